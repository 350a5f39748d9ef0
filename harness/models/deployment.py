"""A model run as people deploy it: encoders compiled or replayed from CUDA graphs, a static cache, chosen kernels.

Every option is off unless asked for with `--set`, is in the cell's key then, and what took effect is in the log. The
functions stay the same up to the order of sums. What costs time once (compiling, capturing) is paid before anything
counts: at loading for the usual shape, and for any other in the warm-up that the loop gives each new shape.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from harness import images
from harness.errors import SettingError
from harness.models.foreign import Network, Output

if TYPE_CHECKING:
    from harness.models.pipeline import VisionLanguageModel

SETTINGS: dict[str, str | int | float | bool] = {
    "compile": False,
    "graphs": False,
    "static_cache": False,
    "decode_ahead": False,
    "tf32": "default",
    "sdpa": "default",
    "image_backend": "default",
}
"""`compile`: encoders and projector through torch.compile, shapes static. `graphs`: CUDA graphs of the encoders and of
one decode step (with `static_cache`). `static_cache`: keys and values in one place of fixed length. `decode_ahead`: the
next step is asked for before a token is read, from the second token on. `tf32`: true, false. `sdpa`: one kernel.
`image_backend`: torchvision resizes faster than PIL, to other pixels; by how much is measured at each load. By default
our own families take PIL, and route `auto` what transformers takes: torchvision where it is installed."""

FLAGS = ("compile", "graphs", "static_cache", "decode_ahead")
OF_LANGUAGE_MODELS = ("static_cache", "decode_ahead")
OF_THE_PROCESS = ("tf32", "sdpa")
"""Torch's switches, which all models of a process share: two that want them unlike cannot take turns in one."""
SDPA = ("flash", "mem_efficient", "math", "cudnn")
IMAGE_BACKENDS = ("pil", "torchvision")
BLOCK = 64
"""A static cache's length is a multiple of it, so that answers of about one length share a shape."""


def check(settings: Mapping[str, str | int | float | bool], device: str) -> None:
    """Refuse values that no option has, and options that cannot be on this device, in one line."""
    for name in FLAGS:
        if not isinstance(settings.get(name, False), bool):
            raise SettingError(f"{name}={settings[name]}: known: true, false")
    if settings.get("graphs") and not device.startswith("cuda"):
        raise SettingError(f"graphs=true: CUDA graphs are for CUDA, not for {device}; next: leave it out")
    if (settings.get("static_cache") or settings.get("graphs")) and settings.get("scoring") in ("prefix", "batch"):
        raise SettingError(
            f"scoring={settings['scoring']}: copies caches that grow; next: without static_cache, graphs"
        )
    if settings.get("tf32", "default") not in ("default", True, False):
        raise SettingError(f"tf32={settings['tf32']}: known: true, false")
    if settings.get("tf32", "default") != "default" and not device.startswith("cuda"):
        raise SettingError(f"tf32={settings['tf32']}: TF32 is CUDA's, {device} has none; next: leave it out")
    if settings.get("image_backend", "default") not in ("default", *IMAGE_BACKENDS):
        raise SettingError(f"image_backend={settings['image_backend']}: known: {', '.join(IMAGE_BACKENDS)}")
    if settings.get("sdpa", "default") not in ("default", *SDPA):
        raise SettingError(f"sdpa={settings['sdpa']}: known: {', '.join(SDPA)}")
    fixed = next((name for name in ("static_cache", "graphs") if settings.get(name)), None)
    if settings.get("sdpa") == "flash" and fixed:
        raise SettingError(f"sdpa=flash: takes no mask, which {fixed}=true needs; next: sdpa=cudnn or mem_efficient")


@dataclass(slots=True)
class Switches:
    """Torch's switches that belong to the process, not to a model; as torch had them when it was first asked."""

    kept: dict[str, Any] = field(default_factory=dict)

    def turn(self, settings: Mapping[str, str | int | float | bool]) -> None:
        """Set the switches as asked, and those not asked for as torch had them."""
        import torch

        self.kept = self.kept or self.read()
        tf32, sdpa = settings.get("tf32", "default"), settings.get("sdpa", "default")
        torch.backends.cuda.matmul.allow_tf32 = self.kept["tf32_matmul"] if tf32 == "default" else bool(tf32)
        torch.backends.cudnn.allow_tf32 = self.kept["tf32_convolutions"] if tf32 == "default" else bool(tf32)
        for name in SDPA:
            enable: Callable[[bool], None] = getattr(torch.backends.cuda, f"enable_{name}_sdp")
            enable(self.kept[f"sdpa_{name}"] if sdpa == "default" else name == sdpa)

    @staticmethod
    def read() -> dict[str, Any]:
        """Return how the switches are now."""
        import torch

        cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
        return {
            "tf32_matmul": cuda.matmul.allow_tf32,
            "tf32_convolutions": cudnn.allow_tf32,
            "reduced_sums_float16": cuda.matmul.allow_fp16_reduced_precision_reduction,
            "reduced_sums_bfloat16": cuda.matmul.allow_bf16_reduced_precision_reduction,
            "cudnn_benchmark": cudnn.benchmark,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            **{f"sdpa_{name}": getattr(cuda, f"{name}_sdp_enabled")() for name in SDPA},
        }


SWITCHES = Switches()


def told() -> dict[str, str]:
    """Return the switches as they are, for the log."""
    now = Switches.read()
    kernels = [name for name in SDPA if now.pop(f"sdpa_{name}")]
    found = {**{name: str(value) for name, value in now.items()}, "sdpa_kernels_allowed": "+".join(kernels)}
    order = sdpa_order()
    return {**found, "sdpa_kernels_order": order} if order else found


def sdpa_order() -> str:
    """Return which kernel torch takes first where several can; empty where this torch does not tell."""
    import torch
    from torch.nn.attention import SDPBackend

    asked: Callable[[], list[int]] | None = getattr(torch._C, "_get_sdp_priority_order", None)
    if asked is None or not torch.cuda.is_available():  # the order is CUDA's
        return ""
    names = {
        int(value): name.removesuffix("_ATTENTION").lower()
        for name, value in vars(SDPBackend).items()
        if name.isupper()
    }
    return ", ".join(names.get(int(each), str(each)) for each in asked())


def deploy(model: "VisionLanguageModel", settings: Mapping[str, str | int | float | bool]) -> dict[str, str]:
    """Have `model` run as `settings` say; return what took effect, for the log."""
    idle = next((name for name in OF_LANGUAGE_MODELS if settings.get(name)), None)
    if idle and not model.card.llm:
        raise SettingError(f"{idle}=true: {model.card.name} has no language model; next: leave it out")
    model.static_cache = bool(settings.get("static_cache", False)) or bool(settings.get("graphs", False))
    model.decode_ahead = bool(settings.get("decode_ahead", False))
    found: dict[str, str] = {}
    if settings.get("image_backend", "default") == "torchvision":
        model.scaler = by_torchvision
        found["image_backend"] = f"torchvision bicubic, antialiased; {off_by(by_torchvision)}"
    if model.static_cache and "llm" in model.parts:
        found["cache"] = f"static, in blocks of {BLOCK}"
    if model.decode_ahead and "llm" in model.parts:
        found["decode"] = "one step ahead of the host"
    if settings.get("compile"):
        from harness.models import compiling

        found["compiled"] = compiling.compile_parts(model)
    if settings.get("graphs"):
        from harness.models import graphs

        found["graphs"] = graphs.graph_parts(model)
    return found


def by_torchvision(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize with torch's bicubic filter for bytes, with antialiasing, as transformers' fast image processors do."""
    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize_image

    levels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # strided pixel by pixel: torch has a kernel for that
    scaled = resize_image(levels, [height, width], InterpolationMode.BICUBIC, antialias=True)
    return Image.fromarray(scaled.permute(1, 2, 0).contiguous().numpy())


def off_by(scaler: images.Scaler) -> str:
    """Say by how many levels `scaler` and PIL differ here, on a picture of noise.

    It is measured, not known: torch picks another kernel on another CPU (one or two levels on AVX2; 15 were seen).
    """
    levels = np.random.default_rng(0).integers(0, 256, (533, 301, 3), dtype=np.uint8)
    noise = Image.fromarray(levels)
    ours, theirs = noise.resize((256, 320), Image.Resampling.BICUBIC), scaler(noise, 256, 320)
    apart = np.abs(np.asarray(theirs).astype(int) - np.asarray(ours).astype(int))
    return f"{(apart > 0).mean():.2%} of the values of noise differ from PIL's, by up to {apart.max()} of 255"


def warm(model: "VisionLanguageModel") -> None:
    """Run encoders and projector once, on a white image of the usual size."""
    import torch

    side = model.encoder_side
    with torch.inference_mode():
        prepared = model.look([images.blank((side, side))])
        features = {name: model.encode(name, prepared) for name in model.encoder_names if name in model.parts}
        features = model.stand_in(prepared) if model.options.only == "llm" else features
        if len(features) == len(model.encoder_names) and "projector" in model.parts:
            model.project(features, prepared)


def static_cache(llm: Network, length: int) -> Output:
    """Return an empty cache for `length` tokens: whole blocks, so that few lengths of many are made."""
    from transformers import StaticCache
    from transformers.cache_utils import StaticLayer

    cache = StaticCache(config=llm.config, max_cache_len=length)
    for layer in cache.layers:  # made on the host, it would be copied in the timed prefill, once a layer, with a wait
        if isinstance(layer, StaticLayer):
            layer.cumulative_length = layer.cumulative_length.to(llm.device)
    return cache
