"""Encoders and projector through torch.compile, for static shapes: what an answer really calls, and nothing else.

Families run their encoders in several ways: as a module, by timm's `forward_features`, or stage by stage. Compiling a
module changes only what its call does. So one answer is listened to first, and the outermost things that it calls are
what is compiled; a part of which nothing is called is refused, for the log would name what never took effect.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

from harness.clock import Monotonic
from harness.errors import SettingError
from harness.models import deployment
from harness.models.foreign import Network

if TYPE_CHECKING:
    from harness.models.pipeline import VisionLanguageModel

BACKEND = "inductor"
MOST_SHAPES = 64
"""So many shapes are compiled; the next one is an error, for torch would run it uncompiled without a word."""
METHOD = "forward_features"
"""How timm's models are asked for their last map: no call of the module."""


class Listener:
    """Notes the outermost modules of a part that are called, and whether its `forward_features` is."""

    def __init__(self, part: nn.Module) -> None:
        self.part = part
        self.called: list[nn.Module] = []
        self.method = False
        self._depth = 0

    def __enter__(self) -> "Listener":
        self._handles = []
        for module in self.part.modules():
            self._handles.append(module.register_forward_pre_hook(self._enter))
            self._handles.append(module.register_forward_hook(self._leave, always_call=True))
        if hasattr(self.part, METHOD):
            setattr(self.part, METHOD, self._heard(getattr(self.part, METHOD)))
        return self

    def __exit__(self, *raised: object) -> None:
        for handle in self._handles:
            handle.remove()
        self.part.__dict__.pop(METHOD, None)  # the class's own is seen again

    def _enter(self, module: nn.Module, given: object) -> None:
        if not self._depth and not any(module is known for known in self.called):
            self.called.append(module)
        self._depth += 1

    def _leave(self, module: nn.Module, given: object, output: object) -> None:
        self._depth -= 1

    def _heard(self, method: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(pixels: Tensor) -> Tensor:
            self.method = True
            self._depth += 1
            try:
                return method(pixels)
            finally:
                self._depth -= 1

        return run


def compile_parts(model: "VisionLanguageModel") -> str:
    """Compile what of encoders and projector is called, run the usual shape once, and say what that cost."""
    import torch._dynamo

    if model.encoders_watched:
        raise SettingError(f"compile=true: {model.card.name} looks inside its encoder; next: leave it out")
    torch._dynamo.config.recompile_limit = MOST_SHAPES  # type: ignore[attr-defined]
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # type: ignore[attr-defined]
    names = [name for name in model.encoder_names if name in model.parts]
    names += ["projector"] if "projector" in model.parts and model.projector_by_shape else []
    clock = Monotonic()
    start_ns = clock.now_ns()
    with refused(model):
        with ExitStack() as stack:
            heard = {name: stack.enter_context(Listener(model.parts[name])) for name in names}
            deployment.warm(model)
        told = [compile_part(model, name, listener) for name, listener in heard.items()]
        deployment.warm(model)
    took_s = (clock.now_ns() - start_ns) / 1e9
    return f"{', '.join(told)} by {BACKEND}, static shapes; compiling the usual shape took {took_s:.1f} s"


def compile_part(model: "VisionLanguageModel", name: str, listener: Listener) -> str:
    """Compile what an answer calls of one part; return its name, with the number of modules where there are several."""
    import torch

    part: Network = model.parts[name]
    if not listener.called and not listener.method:
        raise SettingError(f"compile=true: no answer of {model.card.name} calls its {name}; next: leave it out")
    for module in listener.called:
        module.compile(dynamic=False, backend=BACKEND)
    if listener.method:
        part.forward_features = torch.compile(part.forward_features, dynamic=False, backend=BACKEND)
    pieces = len(listener.called) + listener.method
    return name if pieces == 1 else f"{name} ({pieces} modules)"


@contextmanager
def refused(
    model: "VisionLanguageModel",
    asked: str = "compile=true",
    what: str = "torch.compile failed",
    step: str = "is there a C++ compiler? else leave it out",
) -> Iterator[None]:
    """Turn whatever the compiler, or capturing, raises into one line."""
    try:
        yield
    except SettingError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:200]
        told = f"{what} ({type(error).__name__}: {first})"
        raise SettingError(f"{asked}: {model.card.name}: {told}; next: {step}") from error
