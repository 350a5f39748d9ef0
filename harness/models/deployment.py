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
from harness.clock import Monotonic
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
    "image_backend": "pil",
}
"""`compile`: encoders and projector through torch.compile, shapes static. `graphs`: CUDA graphs of the encoders and of
one decode step (with `static_cache`). `static_cache`: keys and values in one place of fixed length. `decode_ahead`: the
next step is asked for before a token is read, from the second token on. `tf32`: true, false. `sdpa`: one kernel.
`image_backend`: torchvision resizes faster than PIL, to pixels that are up to a level or two off."""

FLAGS = ("compile", "graphs", "static_cache", "decode_ahead")
SDPA = ("flash", "mem_efficient", "math", "cudnn")
IMAGE_BACKENDS = ("pil", "torchvision")
BACKEND = "inductor"
MOST_SHAPES = 64
"""So many shapes are compiled; the next one is an error, for torch would run it uncompiled without a word."""
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
    if settings.get("image_backend", "pil") not in IMAGE_BACKENDS:
        raise SettingError(f"image_backend={settings['image_backend']}: known: {', '.join(IMAGE_BACKENDS)}")
    if settings.get("sdpa", "default") not in ("default", *SDPA):
        raise SettingError(f"sdpa={settings['sdpa']}: known: {', '.join(SDPA)}")


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
    return {**{name: str(value) for name, value in now.items()}, "sdpa_kernels_allowed": "+".join(kernels)}


def deploy(model: "VisionLanguageModel", settings: Mapping[str, str | int | float | bool]) -> dict[str, str]:
    """Have `model` run as `settings` say; return what took effect, for the log."""
    model.static_cache = bool(settings.get("static_cache", False)) or bool(settings.get("graphs", False))
    model.decode_ahead = bool(settings.get("decode_ahead", False))
    found: dict[str, str] = {}
    if settings.get("image_backend", "pil") == "torchvision":
        model.scaler = by_torchvision
        found["image_backend"] = "torchvision bicubic, antialiased"
    if model.static_cache and "llm" in model.parts:
        found["cache"] = f"static, in blocks of {BLOCK}"
    if model.decode_ahead:
        found["decode"] = "one step ahead of the host"
    if settings.get("compile"):
        found["compiled"] = compile_parts(model)
    if settings.get("graphs"):
        from harness.models import graphs

        found["graphs"] = graphs.graph_parts(model)
    return found


def compile_parts(model: "VisionLanguageModel") -> str:
    """Compile the encoders and the projector for static shapes, run the usual shape once, and say what that cost."""
    import torch
    import torch._dynamo

    torch._dynamo.config.recompile_limit = MOST_SHAPES  # type: ignore[attr-defined]
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # type: ignore[attr-defined]
    names = [name for name in (*model.encoder_names, "projector") if name in model.parts]
    for name in names:
        part: Network = model.parts[name]
        part.compile(dynamic=False, backend=BACKEND)
        if hasattr(part, "forward_features"):  # timm's models are not called, but asked for their last map
            part.forward_features = torch.compile(part.forward_features, dynamic=False, backend=BACKEND)
    clock = Monotonic()
    start_ns = clock.now_ns()
    try:
        warm(model)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:200]
        what = f"torch.compile failed ({type(error).__name__}: {first})"
        raise SettingError(
            f"compile=true: {model.card.name}: {what}; next: is there a C++ compiler? else leave it out"
        ) from error
    took_s = (clock.now_ns() - start_ns) / 1e9
    return f"{', '.join(names)} by {BACKEND}, static shapes; compiling the usual shape took {took_s:.1f} s"


def by_torchvision(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize with torch's bicubic filter for bytes, with antialiasing, as transformers' fast image processors do."""
    import torch
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize_image

    levels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # strided pixel by pixel: torch has a kernel for that
    scaled = resize_image(levels, [height, width], InterpolationMode.BICUBIC, antialias=True)
    return Image.fromarray(scaled.permute(1, 2, 0).contiguous().numpy())


def warm(model: "VisionLanguageModel") -> None:
    """Run encoders and projector once, on a white image of the usual size."""
    import torch

    side = model.encoder_side
    with torch.inference_mode():
        prepared = model.look([images.blank((side, side))])
        features = {name: model.encode(name, prepared) for name in model.encoder_names if name in model.parts}
        if len(features) == len(model.encoder_names) and "projector" in model.parts:
            model.project(features, prepared)


def static_cache(llm: Network, length: int) -> Output:
    """Return an empty cache for `length` tokens: whole blocks, so that few lengths of many are made."""
    from transformers import StaticCache

    return StaticCache(config=llm.config, max_cache_len=length)
