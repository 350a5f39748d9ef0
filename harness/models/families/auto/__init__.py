"""Any vision-language model that transformers runs without remote code, by the seam that its own `generate` has."""

from harness.models.card import ModelCard
from harness.models.families.auto.answering import AnyModel
from harness.models.protocol import Model, Options
from harness.models.weights import Source


def load(card: ModelCard, source: Source, options: Options) -> Model:
    """Return the model of `card`, ready to answer."""
    return AnyModel(card, source, options)
