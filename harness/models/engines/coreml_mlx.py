"""The FastVLM paper's own set-up: the encoder as a Core ML package on the Neural Engine, the language model in MLX."""

from harness.errors import SettingError
from harness.models.card import ModelCard
from harness.models.engines import mlx
from harness.models.protocol import Model, Options
from harness.models.weights import Source

SETTINGS: dict[str, str | int | float | bool] = {**mlx.SETTINGS, "compute_units": "CPU_AND_NE"}
"""`compute_units`: where Core ML may run the encoder: ALL, CPU_AND_NE, CPU_AND_GPU or CPU_ONLY."""

UNITS = ("ALL", "CPU_AND_NE", "CPU_AND_GPU", "CPU_ONLY")


PLACES = ("mps", "cpu", "coreml")
"""What a Mac's best device may be called; elsewhere the device itself says that it needs a Mac."""


def place(device: str) -> str:
    """Return "coreml": Core ML and MLX choose their units themselves, whatever torch's best device is."""
    if device not in PLACES:
        raise SettingError(f"--engine coreml+mlx runs on a Mac, not on {device}; next: without --device")
    return "coreml"


def load(card: ModelCard, source: Source, options: Options) -> Model:
    """Return FastVLM with a Core ML encoder (converted now, unless it was before) and its language model in MLX."""
    if card.adapter != "fastvlm":
        raise SettingError(f"--engine coreml+mlx runs FastVLM; {card.name} is not; next: --engine torch")
    units = options.settings.get("compute_units")
    if units not in UNITS:
        raise SettingError(f"compute_units={units}: known: {', '.join(UNITS)}; next: --set compute_units=CPU_AND_NE")
    from harness.models.families.fastvlm import mlx as fastvlm_mlx

    return fastvlm_mlx.FastVlmCoreMl(card, source, options)
