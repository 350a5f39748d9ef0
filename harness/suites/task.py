"""The bridge to lmms-eval's tasks: their questions, images and scoring, called as they are, without their data set.

Importing lmms-eval takes 8 s and brings torch, so it is imported inside the functions that need it. Loading a task here
never touches the network: the data set that `ConfigurableTask` would download is replaced by the one row it looks at.
"""

import contextlib
import importlib
import inspect
import io
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

from harness.errors import DataError, MissingPackage
from harness.images import png
from harness.suites import definitions, pictures
from harness.suites.contract import Contract, Row, RowProblem
from harness.suites.pictures import Broken, Encoded

REASONING_TAGS = '[["<think>", "</think>"], ["<analysis>", "</analysis>"]]'
"""What lmms-eval's command takes out of answers before they are scored, where nobody says otherwise."""


class Task:
    """One lmms-eval task, loaded afresh (some keep sums in their module) and without its data set."""

    def __init__(self, name: str, first: Row) -> None:
        """Load the task `name`; `first` is a row of its data set without images, which the task's class insists on.

        Raises `UnknownName`, `MissingPackage`, or `DataError` where the row lacks a column that the task reads.
        """
        self.name = name
        self.definition = definitions.find(name)
        _import_evaluate_alone()
        import lmms_eval.api.metrics  # noqa: F401 - registers the metrics that tasks name
        from lmms_eval import utils
        from lmms_eval.api.task import ConfigurableTask

        def download(task: ConfigurableTask, _: object = None) -> None:
            task.dataset = task.dataset_no_image = {self.definition.split: _Rows(first)}

        detached = type("Detached", (ConfigurableTask,), {"download": download})
        try:
            with quiet(), _key_for_import():
                config = utils.load_yaml_config(str(self.definition.path), mode="full")
        except ModuleNotFoundError as error:
            raise MissingPackage(error.name or "?", f"lmms-eval's task {name!r}") from error
        try:
            with quiet():
                self._task = detached(config=config)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(missing(name, first, error)) from error
        process = self._task.config.process_docs
        self._process = None if process is None else str(getattr(process, "__name__", process))
        told = definitions.unasked(name, self._process, str(self._task.config.output_type))
        if told:
            raise DataError(told)
        self._reasoning = self._tags()

    @property
    def max_new_tokens(self) -> int | None:
        """The task's own limit on the answer's length, or None."""
        limit = (self._task.config.generation_kwargs or {}).get("max_new_tokens")
        return None if limit is None else int(limit)

    @property
    def joins_images(self) -> bool:
        """Whether the rows get their images from another table (GQA)."""
        return self._process is not None

    @property
    def metrics(self) -> list[str]:
        """The task's metrics, without those that only write a file for some server."""
        return [metric for metric in self._task.aggregation() if "submission" not in metric]

    def is_lesser(self, metric: str) -> bool:
        """Return whether the task says that less of `metric` is better."""
        return self._task.higher_is_better().get(metric) is False

    def question(self, doc: Row) -> str:
        """Return the full text of the question, with the task's own prompt around it."""
        try:
            return str(self._task.doc_to_text(doc))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(missing(self.name, doc, error)) from error

    def visuals(self, doc: Row) -> list[bytes]:
        """Return the images the task shows for `doc`, whose image columns hold `Encoded` (or lists of them, or None).

        Files are untouched; what the task itself changed is PNG. Raises `RowProblem` where the task wants an image
        that the row does not have.
        """
        try:
            shown = self._task.doc_to_visual(doc)
        except KeyError as error:
            raise RowProblem(str(error.args[0]), f"is not there; the row has {', '.join(doc)}") from error
        except (AttributeError, TypeError) as error:
            gaps = [name for name, value in doc.items() if value is None and pictures.NAMED.fullmatch(name)]
            raise RowProblem(gaps[0] if gaps else "image", "no picture, and the task shows one") from error
        return [image.data if isinstance(image, Encoded) else png(image) for image in shown or []]

    def references(self, doc: Row) -> tuple[str, ...]:
        """Return the right answers, each once, for people to read: scoring reads the row itself."""
        wanted = self._task.config.doc_to_target
        if isinstance(wanted, str) and wanted not in doc and "{{" not in wanted:
            target = doc.get("answers")  # textvqa and vqav2 name a column that only other splits have
        else:
            target = self._task.doc_to_target(doc)
        several = target if isinstance(target, list | tuple) else [target]
        texts = [answer.get("answer") if isinstance(answer, Mapping) else answer for answer in several]
        return tuple(dict.fromkeys(str(text) for text in texts if text is not None))

    def filtered(self, docs: Sequence[Row], answers: Sequence[str]) -> dict[str, list[object]]:
        """Pass the answers through each filter of the task, then take reasoning out, as the evaluator does."""
        instances = [SimpleNamespace(resps=[answer], filtered_resps={}) for answer in answers]
        for chain in self._task._filters:
            chain.apply(instances, docs)
        return {
            chain.name: [self._stripped(instance.filtered_resps[chain.name]) for instance in instances]
            for chain in self._task._filters
        }

    def reasoning(self, answer: str) -> tuple[bool, bool]:
        """Return whether an answer has reasoning that is not scored, and whether it has some that was never closed."""
        tags = self._reasoning or []
        rest = self._stripped(answer)
        return rest != answer.strip() and bool(tags), any(start in str(rest) for start, _ in tags)

    def _tags(self) -> list[list[str]] | None:
        """Return the tags of reasoning: the task's own, else those of lmms-eval's command; None where it stays.

        Without tags a task may still want reasoning out before its own filters: the evaluator puts one before them.
        """
        from lmms_eval.api.reasoning import parse_reasoning_tags_config
        from lmms_eval.filters.transformation import StripThinkingFilter

        own = self._task.config.reasoning_tags
        found: list[list[str]] | None = parse_reasoning_tags_config(cli_value=REASONING_TAGS, task_value=own)
        if found is None and self._task.config.auto_strip_thinking:
            for chain in self._task._filters:
                chain.filters.insert(0, StripThinkingFilter())
        return found

    def _stripped(self, answer: object) -> object:
        from lmms_eval.api.reasoning import strip_reasoning_tags

        if self._reasoning is None:
            return answer
        if isinstance(answer, list):
            return [strip_reasoning_tags(one, self._reasoning) if isinstance(one, str) else one for one in answer]
        return strip_reasoning_tags(answer, self._reasoning) if isinstance(answer, str) else answer

    def results(self, doc: Row, answer: object) -> dict[str, object]:
        """Return the task's own per-sample results; `doc` may be changed. An error is raised at once, not retried."""
        process = inspect.unwrap(type(self._task).process_results)
        with quiet():
            return dict(process(self._task, doc, [answer]))

    def aggregate(self, metric: str, values: list[object]) -> float | None:
        """Return the task's own aggregate of per-sample results; files that it writes go to a folder that vanishes."""
        function = self._task.aggregation()[metric]
        with tempfile.TemporaryDirectory() as folder, quiet():
            takes_args = "args" in inspect.signature(function).parameters
            named = {"args": SimpleNamespace(output_path=folder)} if takes_args else {}
            value = function(values, **named)
        return None if value is None else float(value)


class _Rows:
    """The one-row data set that a task's constructor looks at."""

    def __init__(self, first: Row) -> None:
        self.features = dict.fromkeys(first)
        self._first = first

    def __getitem__(self, _: int) -> dict[str, object]:
        return dict(self._first)

    def __len__(self) -> int:
        return 1


def encoded(
    row: Row, folder: Path | None = None, contract: Contract | None = None
) -> tuple[dict[str, object], dict[str, object]]:
    """Split a row as Arrow gives it into (columns without images, image columns as `Encoded`, lists of them, or None).

    Image files are `pictures.read`; `folder` is what paths are relative to. Text written as binary becomes text, and
    what JSON cannot hold is made to fit: NaN becomes None. Raises `RowProblem` for a cell that cannot be read.
    """
    doc: dict[str, object] = {}
    images: dict[str, object] = {}
    for name, value in row.items():
        if isinstance(value, Broken):
            raise RowProblem(name, value.why)
        if pictures.holds(name, value, contract):
            images[name] = pictures.read(name, value, folder, contract)
        elif isinstance(value, bytes) and contract and name in (*contract.needed, contract.references):
            doc[name] = pictures.text_of(value)
            if doc[name] is None:
                raise RowProblem(name, f"{len(value)} bytes that are no text in UTF-8")
        else:
            doc[name] = _plain(value)
    return doc, images


def missing(task: str, doc: Row, error: Exception) -> str:
    """Say which columns a row has when a task stumbles over it."""
    return (
        f"a row does not fit task {task}: {type(error).__name__}: {error}; it has the columns {', '.join(doc)}; "
        f"next: give data with the columns of {definitions.find(task).repo}"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what lmms-eval and its tasks print and log out of our output."""
    from loguru import logger

    noisy = ("lmms_eval", "utils", "en_utils")  # tasks' own modules go by their file names
    for name in noisy:
        logger.disable(name)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for name in noisy:
            logger.enable(name)


def _import_evaluate_alone() -> None:
    """Import `evaluate` without transformers' pipelines, which it has an own way to do without.

    Nothing here uses them, they take a third of lmms-eval's import time, and they import torchvision, which fails
    wherever its build does not match torch's: scoring must not depend on that.
    """
    name = "transformers.pipelines"
    if "evaluate" in sys.modules or name in sys.modules:
        return
    sys.modules[name] = None  # type: ignore[assignment] # an import of it now raises ImportError
    try:
        importlib.import_module("evaluate")
    finally:
        del sys.modules[name]


@contextlib.contextmanager
def _key_for_import() -> Iterator[None]:
    """mmvet's module makes an API client when it is imported, which wants a key though nothing is asked of it here."""
    had = os.environ.get("OPENAI_API_KEY")
    os.environ.setdefault("OPENAI_API_KEY", "none")
    try:
        yield
    finally:
        if had is None:
            del os.environ["OPENAI_API_KEY"]


def _plain(value: object) -> object:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return pictures.text_of(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
