"""PyTorch: the family's adapter as it is, on any device that torch has."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from harness import plugins
from harness.errors import SettingError
from harness.machine import backend
from harness.models import deployment, memory_format
from harness.models.card import ModelCard
from harness.models.protocol import Model, Options
from harness.models.weights import Source

if TYPE_CHECKING:
    from harness.models.pipeline import VisionLanguageModel

SETTINGS: dict[str, str | int | float | bool] = {
    "route": "own",
    "channels_last": False,
    "scoring": "features",
    "text_bucket": 0,
    **deployment.SETTINGS,
}
"""`route`: `own` runs the card's family, `auto` any family's checkpoint by transformers' own code. `channels_last`: how
convolutional encoders keep images in memory; `auto` asks a trial. What took effect is in a cell's key, never "auto".
`scoring`: what questions about one image share once timing has stopped (see `sharing`): never while anything is timed.
`text_bucket`: prompts' text is padded to multiples of so many tokens, which makes few shapes of many; 0: it is not.
The others are `deployment`'s."""
LARGEST_BUCKET = 4096

ROUTES = ("own", "auto")
OF_AUTO = ("image_backend",)
"""Settings of this engine that family `auto` obeys by itself, in transformers' own words."""


def place(device: str) -> str:
    """Return the device that a run asked for on `device` uses; refuses those of other engines."""
    owner = backend.of(device).engine
    if owner != "torch":
        raise SettingError(f"--device {device}: not torch's; next: --engine {owner}")
    return backend.of(device).spelling()


def decide(
    settings: Mapping[str, str | int | float | bool], subject: memory_format.Subject, wait: bool
) -> tuple[dict[str, str | int | float | bool], tuple[str, ...]]:
    """Return the settings with `auto` decided, those that are as by default left out; and what was decided, in words.

    Raises `SettingError` for another value than true, false and auto, and where the trial fails.
    """
    decided = dict(settings)
    wish = decided.pop("channels_last", SETTINGS["channels_last"])
    if wish is False:
        return decided, ()
    if wish is True:
        return {**decided, "channels_last": True}, ()
    if wish != "auto":
        raise SettingError(f"channels_last={wish}: known: true, false, auto")
    found = memory_format.decide(replace(subject, settings=decided), wait)
    notice = f"channels_last=auto: {'true' if found.channels_last else 'false'} ({found.how})"
    return (decided | {"channels_last": True} if found.channels_last else decided), (notice,)


def distinct(card: ModelCard, settings: Mapping[str, str | int | float | bool]) -> dict[str, str | int | float | bool]:
    """Return the settings without what the family does anyway: ours resize with PIL, whether asked to or not."""
    usual = "default" if _family(card, settings) == "auto" else "pil"
    return {name: value for name, value in settings.items() if (name, value) != ("image_backend", usual)}


def _family(card: ModelCard, settings: Mapping[str, str | int | float | bool]) -> str:
    return "auto" if settings.get("route") == "auto" else card.adapter


def load(card: ModelCard, source: Source, options: Options) -> Model:
    """Return the model that the card's adapter builds."""
    route = options.settings.get("route", "own")
    if route not in ROUTES:
        raise SettingError(f"route={route}: known: {', '.join(ROUTES)}; next: --route auto")
    deployment.check(options.settings, options.device)
    deployment.SWITCHES.turn(options.settings)
    family = _family(card, options.settings)
    known = OF_AUTO if family == "auto" else ()
    own = {name: value for name, value in options.settings.items() if name not in SETTINGS or name in known}
    model: Model = plugins.load("adapters", family).load(card, source, replace(options, settings=own))
    try:
        _lay_channels_last(card, model, options)
        _deploy(card, model, options)
        _pad_text(card, model, options)
        _share(card, model, options)
    except SettingError:
        model.close()
        raise
    return model


def _own(card: ModelCard, model: Model, asked: str, instead: str = "leave it out") -> "VisionLanguageModel":
    """Return the model as one of our own pipeline; refuse one that runs by other code than ours."""
    from harness.models.pipeline import VisionLanguageModel

    if not isinstance(model, VisionLanguageModel):
        raise SettingError(f"{asked}: {card.name} runs by other code than ours; next: {instead}")
    return model


@runtime_checkable
class Switched(Protocol):
    """A model of other code, which Torch's switches reach all the same."""

    deployed: Mapping[str, str]


def _deploy(card: ModelCard, model: Model, options: Options) -> None:
    """Run the model as it is deployed, and have it tell what took effect."""
    from harness.models.pipeline import VisionLanguageModel

    asked = [name for name in deployment.FLAGS if options.settings.get(name)]
    if _family(card, options.settings) != "auto" and options.settings.get("image_backend") == "torchvision":
        asked.append("image_backend")
    if asked:
        _own(card, model, asked[0])
    switches = deployment.told() if card.adapter != "fake" else {}
    if isinstance(model, VisionLanguageModel):
        model.deployed = {**switches, **deployment.deploy(model, options.settings)}
    elif isinstance(model, Switched):
        model.deployed = switches


def _share(card: ModelCard, model: Model, options: Options) -> None:
    """Have questions about one image share what is asked; refuse what cannot be shared."""
    from harness.models.pipeline import VisionLanguageModel
    from harness.models.sharing import SHARED

    scoring = str(options.settings.get("scoring", SETTINGS["scoring"]))
    if scoring != SETTINGS["scoring"]:
        _own(card, model, f"scoring={scoring}")
    if scoring not in SHARED:
        raise SettingError(f"scoring={scoring}: known: {', '.join(SHARED)}; next: leave it out")
    if isinstance(model, VisionLanguageModel):
        model.scoring = scoring


def _pad_text(card: ModelCard, model: Model, options: Options) -> None:
    """Have prompts padded; refuse a size that is none, and a model that reads no text."""
    size = options.settings.get("text_bucket", 0)
    if size == 0:
        return
    if type(size) is not int or not 0 < size <= LARGEST_BUCKET:
        raise SettingError(f"text_bucket={size}: a whole number of tokens from 0 (none) to {LARGEST_BUCKET}")
    fixed = next((name for name in ("static_cache", "graphs") if options.settings.get(name)), None)
    if fixed:
        raise SettingError(
            f"text_bucket={size}: not together with {fixed}, which fixes lengths itself; next: leave one out"
        )
    own = _own(card, model, f"text_bucket={size}")
    if not card.llm:
        raise SettingError(f"text_bucket={size}: {card.name} reads no text; next: leave it out")
    own.text_bucket = size


def _lay_channels_last(card: ModelCard, model: Model, options: Options) -> None:
    """Lay the encoders' weights out pixel by pixel; refuse a model without convolutions that would gain from it."""
    if not options.settings.get("channels_last", False):
        return
    instead = "leave it out, or channels_last=auto"
    own = _own(card, model, "channels_last=true", instead)
    if not own.convolutional:
        if options.only:  # this part has none; another one may
            return
        raise SettingError(f"channels_last=true: {card.name} has no convolutional encoder; next: {instead}")
    own.lay_out(True)
