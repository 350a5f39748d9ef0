"""How weights get into modules: every tensor by name, checked, one at a time; or random ones of sensible scale."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import WeightsError
from harness.models.checkpoints import Tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

FILLING = {
    "uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_", "constant_", "kaiming_uniform_",
}  # fmt: skip
"""What initialisers do to a tensor in place; the last two are functions of `torch.nn.init`."""

Target = str | None | list[tuple[str, Callable[["torch.Tensor"], "torch.Tensor"]]]
"""What becomes of a checkpoint's tensor: a name in our modules, None (known and not used), or several made of it."""


@contextmanager
def empty() -> Iterator[None]:
    """Build modules inside this: parameters take no memory until they are filled, buffers are real."""
    from accelerate import init_empty_weights
    from torch.overrides import TorchFunctionMode

    class NoDrawing(TorchFunctionMode):
        """Leaves out what fills a parameter without memory: half of the time that a network takes to build."""

        def __torch_function__(
            self,
            function: Callable[..., object],
            types: object,
            given: Sequence[object] = (),
            named: Mapping[str, object] | None = None,
        ) -> object:
            filled = given[0] if given else (named or {}).get("tensor")
            if getattr(function, "__name__", "") in FILLING and getattr(filled, "is_meta", False):
                return filled
            return function(*given, **(named or {}))

    with init_empty_weights(include_buffers=False), NoDrawing():
        yield


def fill(
    parts: "nn.ModuleDict",
    tensors: Tensors,
    rename: Callable[[str], Target],
    device: str,
    dtype: "torch.dtype",
) -> None:
    """Fill `parts` from a checkpoint, tensor by tensor, and check all of them.

    `rename` maps a checkpoint's name to one in `parts` ("llm.model.norm.weight"). Names whose first component is a part
    that was not built are skipped; a name that maps to nothing in a built part is unexpected. Raises one `WeightsError`
    naming every missing, unexpected, misshapen and non-finite tensor.
    """
    import torch

    shared = _shared(parts)
    wanted = {name: tensor for name, tensor in _stateful(parts) if name not in shared}
    given: set[str] = set()
    twice: list[tuple[str, Tying]] = []
    problems: dict[str, list[str]] = {"missing": [], "unexpected": [], "wrong shape or kind": [], "NaN or infinite": []}
    for name in tensors:
        for goal, change in _targets(rename(name), parts):
            if goal in shared:
                twice.append((name, (goal, change)))
                continue
            if goal not in wanted or goal in given:
                problems["unexpected"].append(f"{name} (given twice)" if goal in given else name)
                continue
            value, old = change(tensors[name]()), wanted[goal]
            if goal.endswith(COUNTER):  # some programs save it as a float, some not at all; nothing is computed of it
                value = value.to(old.dtype)
            if value.shape != old.shape or not _same_kind(value, old):
                problems["wrong shape or kind"].append(
                    f"{name}: {_form(value)}, the model has {_form(old.to(dtype) if old.is_floating_point() else old)}"
                )
            else:
                kind = dtype if old.is_floating_point() else old.dtype
                value = value.to(device, kind, copy=True, memory_format=torch.contiguous_format)
                if not _is_finite(value):  # after the cast: a number too large for float16 is found too
                    problems["NaN or infinite"].append(name)
                _put(parts, goal, value)
            given.add(goal)
    for name in wanted:
        if name.endswith(COUNTER) and name not in given:
            _put(parts, name, torch.zeros((), dtype=torch.int64, device=device))
            given.add(name)
    problems["missing"] = [name for name in wanted if name not in given]
    _refuse(problems, tensors.folder, tensors.made_by)
    _finish(parts, shared, device)
    for name, (goal, change) in twice:  # a checkpoint may repeat a tied tensor, but not give it another value
        if not torch.equal(change(tensors[name]()).to(device=device, dtype=dtype), parts.get_parameter(goal)):
            problems[f"different from {shared[goal]}, to which the card ties it"] = [name]
    _refuse(problems, tensors.folder, tensors.made_by)


COUNTER = ".num_batches_tracked"
"""A batch norm's count of training steps."""


def _same_kind(value: "torch.Tensor", old: "torch.Tensor") -> bool:
    """Return whether both are numbers of one kind; 8-bit floats have scales beside them, and are no numbers alone."""
    return value.is_floating_point() == old.is_floating_point() and not (
        value.is_floating_point() and value.element_size() < 2
    )


Tying = tuple[str, Callable[["torch.Tensor"], "torch.Tensor"]]


def _targets(target: Target, parts: "nn.ModuleDict") -> list[Tying]:
    """Return where a checkpoint's tensor goes among the parts that were built, and what is done to it on the way."""
    if target is None:
        return []
    goals = [(target, _as_is)] if isinstance(target, str) else target
    return [(goal, change) for goal, change in goals if goal.split(".", 1)[0] in parts]


def _as_is(tensor: "torch.Tensor") -> "torch.Tensor":
    return tensor


def _form(tensor: "torch.Tensor") -> str:
    return f"{'x'.join(map(str, tensor.shape)) or 'scalar'} of {str(tensor.dtype).removeprefix('torch.')}"


def _is_finite(tensor: "torch.Tensor") -> bool:
    """Look in pieces: at once, the check would take more memory than the tensor."""
    import torch

    return not tensor.is_floating_point() or all(
        bool(torch.isfinite(p).all()) for p in tensor.view(-1).split(CHECKED_AT_ONCE)
    )


def _refuse(problems: Mapping[str, list[str]], folder: Path, made_by: str = "") -> None:
    told = "; ".join(
        f"{len(names)} {what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for what, names in problems.items()
        if names
    )
    if told:
        what = "an MLX conversion, and not" if made_by == "mlx" else "not"
        raise WeightsError(f"{folder}: {what} the weights of this model: {told}; next: check --model and --weights")


BLOCK = (1 << 24) - 3
"""Numbers in the block of normals that fills random weights: odd, so that rows of a matrix do not repeat each other,
and of a size that is quickly copied without counting for memory."""

CHECKED_AT_ONCE = 1 << 22


def randomise(parts: "nn.ModuleDict", seed: int, device: str, dtype: "torch.dtype") -> None:
    """Fill `parts` with random weights of sensible scale: normal with variance 1 / fan-in, norms near one.

    One block of normals is drawn and repeated, each tensor going on where the last one stopped, so a 7B model takes
    seconds and no memory but its own; the time of a matrix product does not depend on it.
    """
    import torch

    shared = _shared(parts)
    wanted = [(name, old) for name, old in _stateful(parts) if name not in shared]
    size = 0 if device == "meta" else min(BLOCK, sum(old.numel() for _, old in wanted))
    block = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype).to(device)
    at = 0
    for name, old in wanted:
        new = torch.empty(old.shape, dtype=dtype if old.is_floating_point() else old.dtype, device=device)
        if not old.is_floating_point():
            new.zero_()
        elif device != "meta":
            mean, std = _scale(name, old.shape)
            flat, start = new.view(-1), 0
            while start < flat.numel():
                length = min(size - at, flat.numel() - start)
                torch.mul(block[at : at + length], std, out=flat[start : start + length])
                start, at = start + length, (at + length) % size
            if mean:
                new += mean
        _put(parts, name, new)
    _finish(parts, shared, device)


def _scale(name: str, shape: "torch.Size") -> tuple[float, float]:
    last = name.rsplit(".", 1)[-1]
    if last == "running_mean":
        return 0.0, 0.0
    if last == "running_var":
        return 1.0, 0.0
    if last == "gamma" or "layer_scale" in name:
        return 0.1, 0.0
    if last == "bias":
        return 0.0, 0.02
    if len(shape) < 2:
        return 1.0, 0.02
    fan_in = 1
    for size in shape[1:]:
        fan_in *= size
    return 0.0, float(fan_in**-0.5)


def _stateful(parts: "nn.Module") -> Iterator[tuple[str, "torch.Tensor"]]:
    """Yield parameters (shared ones once) and persistent buffers by name."""
    yield from parts.named_parameters()
    parameters = {name for name, _ in parts.named_parameters(remove_duplicate=False)}
    for name, buffer in parts.state_dict(keep_vars=True).items():
        if name not in parameters:
            yield name, buffer


def _shared(parts: "nn.Module") -> dict[str, str]:
    """Return tied names and the name that holds their tensor (`llm.lm_head.weight` and the embeddings)."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in parts.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            tied[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
    for part_name, part in parts.named_children():
        config = getattr(part, "config", None)
        if getattr(config, "tie_word_embeddings", False) and hasattr(part, "lm_head"):
            tied[f"{part_name}.lm_head.weight"] = f"{part_name}.model.embed_tokens.weight"
    return tied


def _put(parts: "nn.Module", name: str, value: "torch.Tensor") -> None:
    from torch import nn

    path, _, last = name.rpartition(".")
    owner = parts.get_submodule(path)
    if last in owner._parameters:
        owner._parameters[last] = nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[last] = value


def _finish(parts: "nn.Module", shared: Mapping[str, str], device: str) -> None:
    """Tie what is shared, move the buffers that no checkpoint has (rotary frequencies), and leave training mode."""
    for name, holder in shared.items():
        path, _, last = name.rpartition(".")
        parts.get_submodule(path)._parameters[last] = parts.get_parameter(holder)
    for module in parts.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type != device.split(":")[0]:
                module._buffers[name] = buffer.to(device)
    parts.eval().requires_grad_(False)
