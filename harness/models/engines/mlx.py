"""MLX: FastVLM's projector and language model through mlx-lm on Apple's GPU; the encoder through torch on the same GPU.

On Linux MLX's CPU build runs it too, slowly: for checks of correctness, never for timings of a model.
"""

from harness.errors import DeviceError, SettingError
from harness.models.card import ModelCard
from harness.models.protocol import Model, Options
from harness.models.weights import Source

SETTINGS: dict[str, str | int | float | bool] = {"llm_bits": 16}
"""`llm_bits`: 16 leaves the language model in `--dtype`; 8 or 4 quantise its matrices, in groups of 64."""

PLACES = {"mps": "mlx", "mlx": "mlx", "mlx:gpu": "mlx", "cpu": "mlx:cpu", "mlx:cpu": "mlx:cpu"}


def place(device: str) -> str:
    """Return MLX's name for `device`: mps is its GPU, cpu its CPU."""
    if device not in PLACES:
        raise SettingError(f"--engine mlx has no --device {device}; next: --device mps on a Mac, else --device cpu")
    return PLACES[device]


def load(card: ModelCard, source: Source, options: Options) -> Model:
    """Return FastVLM with its language model in MLX; other families have no MLX engine yet."""
    if card.adapter != "fastvlm":
        raise SettingError(f"--engine mlx runs FastVLM; {card.name} is of {card.adapter!r}; next: --engine torch")
    if options.device not in ("cpu", "mps"):
        raise DeviceError(f"--engine mlx has no torch device {options.device}; next: --device mps or cpu")
    from harness.models.families.fastvlm import mlx

    return mlx.FastVlmMlx(card, source, options)
