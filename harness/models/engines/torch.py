"""PyTorch: the family's adapter as it is, on any device that torch has."""

from harness import plugins
from harness.errors import SettingError
from harness.machine import backend
from harness.models.card import ModelCard
from harness.models.protocol import Model, Options
from harness.models.weights import Source

SETTINGS: dict[str, str | int | float | bool] = {}
"""Settings beyond the card's: none."""


def place(device: str) -> str:
    """Return the device that a run asked for on `device` uses; refuses those of other engines."""
    owner = backend.of(device).engine
    if owner != "torch":
        raise SettingError(f"--device {device}: not torch's; next: --engine {owner}")
    return device


def load(card: ModelCard, source: Source, options: Options) -> Model:
    """Return the model that the card's adapter builds."""
    model: Model = plugins.load("adapters", card.adapter).load(card, source, options)
    return model
