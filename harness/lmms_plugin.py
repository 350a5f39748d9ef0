"""Our adapters as a model of lmms-eval: `python -m lmms_eval --model vlm_pareto --model_args card=...,res=1024`.

lmms-eval finds `manifests` through the entry point group `lmms_eval.models`. Importing this module costs nothing; the
model class is made when lmms-eval asks for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

NAME = "vlm_pareto"

LONGEST = 1024
"""New tokens where neither the task nor the model arguments limit them: lmms-eval's own adapters do the same."""


def manifests() -> "list[ModelManifest]":
    """Return what lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id=NAME, simple_class_path=f"{__name__}.VlmPareto")]


def __getattr__(name: str) -> object:
    if name != "VlmPareto":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    made = _make()
    globals()[name] = made
    return made


@dataclass(frozen=True, slots=True)
class Given:
    """What may stand in `--model_args` besides settings of the card's own, and what lmms-eval itself adds."""

    card: str = "fastvlm-0.5b"
    weights: str | None = None
    res: int | None = None
    device: str | None = None
    dtype: str | None = None
    failures: str = "raise"
    max_new_tokens: int | None = None
    batch_size: int | str = 1
    max_batch_size: int | None = None


class Answers:
    """Answers lmms-eval's requests with one of our models: greedily, one at a time, from the data set's own bytes.

    A failure is raised; with `failures=mark` the answer says that it is one, the run goes on, and the count is logged.
    Stop strings (`until`) are not applied: the answers are those that `harness run` times and scores.
    """

    def __init__(self, **arguments: Any) -> None:
        """Build a model; `arguments` are `Given`'s fields and settings of its card. Raises `HarnessError`."""
        from harness import plugins
        from harness.clock import Monotonic
        from harness.errors import SettingError, WeightsError
        from harness.machine import backend
        from harness.measure import cell
        from harness.measure.asked import Asked
        from harness.models import weights
        from harness.models.protocol import Options

        own = {field.name for field in fields(Given)}
        given = Given(**{name: value for name, value in arguments.items() if name in own})
        settings = {name: value for name, value in arguments.items() if name not in own}
        if str(given.batch_size) not in ("1", "auto"):
            raise SettingError(
                f"batch_size {given.batch_size}: {NAME} answers one request at a time; next: --batch_size 1"
            )
        if given.failures not in ("raise", "mark"):
            raise SettingError(f"failures={given.failures}: known: raise, mark")
        place = str(given.device or backend.best())
        asked = Asked(model=str(given.card), res=given.res, device=place, dtype=given.dtype, settings=settings)
        settled = cell.settle(asked)
        chosen = settled.card
        source = weights.resolve(chosen, given.weights)
        if not source.trained and given.weights != "random" and chosen.adapter != "fake":
            raise WeightsError(
                f"{source.notice}, and lmms-eval would score them as the model's; next: weights=FOLDER in model_args, "
                "or weights=random to try the plumbing"
            )
        opened = backend.of(place).open(Monotonic())
        options = Options(
            side=settled.resolution,
            device=opened.torch_name,
            dtype=settled.dtype,
            settings={**chosen.settings, **settled.settings},
        )
        self.model = plugins.load("engines", "torch").load(chosen, source, options)
        self.longest, self.mark = given.max_new_tokens, given.failures == "mark"
        self.failed = 0

    def answer(self, request: Any, split: object) -> str:
        """Answer one of lmms-eval's requests; `split` is the data set its row is in."""
        from harness.errors import HarnessError
        from harness.models.protocol import Piece, Request

        text, settings, to_visual, at, task, _ = request.args
        longest = int(settings.get("max_new_tokens") or self.longest or _card_limit(task) or LONGEST)
        try:
            ours = Request(tuple(visuals(to_visual, split, at)), text, longest)
            answer = "".join(event.text for event in self.model.answer(ours) if isinstance(event, Piece))
            if hasattr(self.model, "verify"):
                self.model.verify()  # an answer that rests on no number is a failure
            return answer
        except Exception as error:
            if not self.mark:
                raise HarnessError(f"{task}, document {at}: {type(error).__name__}: {error}") from error
            self.failed += 1
            return f"[{NAME} failed: {type(error).__name__}: {error}]"


def visuals(to_visual: Any, split: Any, at: int) -> list[bytes]:
    """Return the image files of document `at` as the data set has them; what the task itself changed is PNG."""
    from harness.images import png
    from harness.suites.pictures import Encoded
    from harness.suites.task import encoded

    if hasattr(split, "with_format"):
        row: Mapping[str, object] = split.with_format("arrow")[at].to_pylist()[0]
        doc, images = encoded(row)
        shown = to_visual({**doc, **images})
    else:
        shown = to_visual(split[at])
    return [image.data if isinstance(image, Encoded) else png(image.convert("RGB")) for image in shown or []]


def _make() -> type:
    """Make the class that lmms-eval loads: its base class costs seconds to import."""
    from lmms_eval.api.model import lmms
    from loguru import logger
    from tqdm import tqdm  # type: ignore[import-untyped]

    class VlmPareto(lmms):  # type: ignore[misc]
        """See `Answers`, which takes the same arguments."""

        is_simple = True

        def __init__(self, **arguments: object) -> None:
            super().__init__()
            self.answers = Answers(**arguments)
            logger.info(f"{NAME}: {dict(self.answers.model.describe())}")

        def generate_until(self, requests: list[object]) -> list[str]:
            texts = []
            for request in tqdm(requests, desc=NAME, disable=self.rank != 0):
                *_, task, split = request.args
                texts.append(self.answers.answer(request, self.task_dict[task][split]))
                self.cache_hook.add_partial("generate_until", request.args[:2], texts[-1])
            if self.answers.failed:
                logger.error(f"{NAME}: {self.answers.failed} of {len(texts)} answers are failures, scored as wrong")
            return texts

        def loglikelihood(self, requests: list[object]) -> list[tuple[float, bool]]:
            raise NotImplementedError(f"{NAME} generates answers; it gives no likelihoods")

        def generate_until_multi_round(self, requests: list[object]) -> list[str]:
            raise NotImplementedError(f"{NAME} answers one question at a time")

        def clean(self) -> None:
            """Keep the model: lmms-eval would delete it after one evaluation, and a sweep goes on with it."""

    VlmPareto.__module__, VlmPareto.__qualname__ = __name__, "VlmPareto"
    return VlmPareto


def _card_limit(task: str) -> int | None:
    """Return the limit that our own card of `task` states where the task has none."""
    from harness import cards
    from harness.suites.card import load_suite_card

    ours = (load_suite_card(name) for name in cards.names("suites"))
    return next((card.max_new_tokens for card in ours if card.task == task and card.max_new_tokens), None)
