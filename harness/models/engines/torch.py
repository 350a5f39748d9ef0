"""PyTorch: the family's adapter as it is, on any device that torch has."""

from dataclasses import replace

from harness import plugins
from harness.errors import SettingError
from harness.machine import backend
from harness.models.card import ModelCard
from harness.models.protocol import Model, Options
from harness.models.weights import Source

SETTINGS: dict[str, str | int | float | bool] = {"route": "own"}
"""`route`: `own` runs the card's family, `auto` any family's checkpoint by transformers' own code."""

ROUTES = ("own", "auto")


def place(device: str) -> str:
    """Return the device that a run asked for on `device` uses; refuses those of other engines."""
    owner = backend.of(device).engine
    if owner != "torch":
        raise SettingError(f"--device {device}: not torch's; next: --engine {owner}")
    return device


def load(card: ModelCard, source: Source, options: Options) -> Model:
    """Return the model that the card's adapter builds."""
    route = options.settings.get("route", "own")
    if route not in ROUTES:
        raise SettingError(f"route={route}: known: {', '.join(ROUTES)}; next: --route auto")
    own = {name: value for name, value in options.settings.items() if name not in SETTINGS}
    options = replace(options, settings=own)
    family = "auto" if route == "auto" else card.adapter
    model: Model = plugins.load("adapters", family).load(card, source, options)
    return model
