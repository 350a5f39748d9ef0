"""Where weights come from, and how they get into modules: every tensor by name, checked, one at a time.

Order: `--weights PATH`, the local Hub cache, the Hub when it can be reached, else random weights with a plain notice.
Safetensors first; a pickle only with `weights_only=True`. Deciding (`resolve`) needs no torch.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.cards import ModelCard
from harness.errors import WeightsError

if TYPE_CHECKING:
    import torch
    from torch import nn

Kind = Literal["local", "cache", "hub", "random"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights of a run come from; `notice` is what the user must be told about it."""

    kind: Kind
    folder: Path | None = None
    """The checkpoint's folder; with random weights, a folder that only lends its tokenizer, or None."""
    digest: str = ""
    notice: str = ""

    @property
    def trained(self) -> bool:
        """False for random weights, which are never scored as a model's accuracy."""
        return self.kind != "random"

    def as_dict(self) -> dict[str, str]:
        """Return what the log says."""
        return {"source": self.kind, "location": str(self.folder or ""), "digest": self.digest, "notice": self.notice}


def resolve(card: ModelCard, asked: str | None, offline: bool = False) -> Source:
    """Decide where the weights of `card` come from.

    `asked` is the value of `--weights`: a folder, `random`, or None for the stated order.
    """
    if asked == "random":
        return Source(
            "random", folder=_cached(card), notice="random weights, as asked: timings are honest, answers are not"
        )
    if asked is not None:
        folder = Path(asked).expanduser()
        if not folder.is_dir():
            raise WeightsError(f"--weights {asked}: no such folder; next: give a checkpoint's folder, or `random`")
        return Source("local", folder, digest=digest(folder))
    cached = _cached(card)
    if cached and any(_weight_files(cached)):
        return Source("cache", cached, digest=cached.name)
    if card.hub and not offline and not _offline():
        folder = _download(card)
        if folder:
            return Source("hub", folder, digest=folder.name)
    where = (
        f"{card.hub.repo} is not in the Hub cache and the Hub cannot be reached"
        if card.hub
        else "the card names no Hub repository"
    )
    return Source(
        "random",
        folder=cached,
        notice=f"{where}: random weights of the exact architecture (timings are honest, answers are not)",
    )


def present(card: ModelCard) -> bool:
    """Return whether the card's weights are on this machine."""
    cached = _cached(card)
    return bool(cached and any(_weight_files(cached)))


def _offline() -> bool:
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in ("HF_HUB_OFFLINE", "HARNESS_OFFLINE")
    )


def _cached(card: ModelCard) -> Path | None:
    if not card.hub:
        return None
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                card.hub.repo, revision=card.hub.revision, allow_patterns=list(card.hub.files), local_files_only=True
            )
        )
    except Exception:  # noqa: BLE001 - not in the cache; the library's exceptions differ between its versions
        return None


def _download(card: ModelCard) -> Path | None:
    from huggingface_hub import HfApi, snapshot_download

    assert card.hub
    try:  # one quick question first: the downloader itself retries for minutes where there is no network
        HfApi().model_info(card.hub.repo, revision=card.hub.revision, timeout=4.0)
    except Exception:  # noqa: BLE001 - unreachable, gated or gone: the notice names the repository
        return None
    return Path(snapshot_download(card.hub.repo, revision=card.hub.revision, allow_patterns=list(card.hub.files)))


def digest(folder: Path) -> str:
    """Return the digest of all weight and configuration files of a checkpoint's folder."""
    total = hashlib.blake2b(digest_size=16)
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin", ".json", ".model", ".txt")):
        total.update(path.name.encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
    return total.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder, or its pickle shards where it has none."""
    return (
        sorted(folder.glob("*.safetensors"))
        or sorted(folder.glob("pytorch_model*.bin"))
        or sorted(folder.glob("*.bin"))
    )


class Tensors(Mapping[str, Callable[[], "torch.Tensor"]]):
    """The tensors of a checkpoint by name, each read when called: never the whole checkpoint at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = _weight_files(folder)
        if not files:
            raise WeightsError(f"{folder}: no *.safetensors and no *.bin in it; next: is this a checkpoint's folder?")
        self._where: dict[str, Callable[[], torch.Tensor]] = {}
        for path in files:
            self._where.update(_safetensors(path) if path.suffix == ".safetensors" else _pickle(path))
        index = next(iter(folder.glob("*.index.json")), None)
        if index:
            named = json.loads(index.read_text())["weight_map"]
            lost = {name: shard for name, shard in named.items() if name not in self._where}
            if lost:
                name, shard = next(iter(lost.items()))
                raise WeightsError(
                    f"{folder}: {len(lost)} tensors named by {index.name} are missing, e.g. {name} of {shard}; next: fetch that file anew"
                )

    def __getitem__(self, name: str) -> Callable[[], "torch.Tensor"]:
        return self._where[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _safetensors(path: Path) -> dict[str, Callable[[], "torch.Tensor"]]:
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file: {error}; next: fetch it anew") from error
    return {name: lambda name=name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def _pickle(path: Path) -> dict[str, Callable[[], "torch.Tensor"]]:
    import torch

    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise WeightsError(
            f"{path}: cannot be read with weights_only=True: {error}; next: convert it to safetensors"
        ) from error
    return {name: lambda name=name: tensors[name] for name in tensors}


Target = str | None | list[tuple[str, Callable[["torch.Tensor"], "torch.Tensor"]]]
"""What becomes of a checkpoint's tensor: a name in our modules, None (known and not used), or several made of it."""


def empty() -> AbstractContextManager[None]:
    """Build modules inside this: parameters take no memory until they are filled, buffers are real."""
    from accelerate import init_empty_weights

    context: AbstractContextManager[None] = init_empty_weights(include_buffers=False)
    return context


def fill(
    parts: "nn.ModuleDict",
    tensors: Tensors,
    rename: Callable[[str], Target],
    device: str,
    dtype: "torch.dtype",
) -> None:
    """Fill `parts` from a checkpoint, tensor by tensor, and check all of them.

    `rename` maps a checkpoint's name to one in `parts` ("llm.model.norm.weight"). Names whose first component is a part that
    was not built are skipped; a name that maps to nothing in a built part is unexpected. Raises one `WeightsError` naming
    every missing, unexpected, misshapen and non-finite tensor.
    """
    import torch

    shared = _shared(parts)
    wanted = {name: tensor for name, tensor in _stateful(parts) if name not in shared}
    given: set[str] = set()
    unexpected, misshapen, not_finite = [], [], []
    for name in tensors:
        target = rename(name)
        if target is None:
            continue
        tensor = None
        for goal, change in [(target, None)] if isinstance(target, str) else target:
            if goal.split(".", 1)[0] not in parts:
                continue
            if goal not in wanted:
                if goal not in shared:
                    unexpected.append(name)
                continue
            tensor = tensors[name]() if tensor is None else tensor
            value = change(tensor) if change else tensor
            if value.shape != wanted[goal].shape:
                misshapen.append(f"{name}: {tuple(value.shape)}, the model has {tuple(wanted[goal].shape)}")
                continue
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                not_finite.append(name)
                continue
            floating = wanted[goal].is_floating_point()
            _put(parts, goal, value.to(device=device, dtype=dtype if floating else wanted[goal].dtype, copy=True))
            given.add(goal)
    missing = [name for name in wanted if name not in given]
    problems = {"missing": missing, "unexpected": unexpected, "wrong shape": misshapen, "NaN or infinite": not_finite}
    if any(problems.values()):
        told = "; ".join(
            f"{len(names)} {what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
            for what, names in problems.items()
            if names
        )
        raise WeightsError(
            f"{tensors.folder}: not the weights of this model: {told}; next: check --model and --weights"
        )
    _finish(parts, shared, device)


def randomise(parts: "nn.ModuleDict", seed: int, device: str, dtype: "torch.dtype") -> None:
    """Fill `parts` with random weights of sensible scale: normal with variance 1 / fan-in, norms near one.

    One block of normals is drawn and repeated, so a 7B model takes seconds; the time of a matrix product does not depend on it.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(1 << 22, generator=generator)
    shared = _shared(parts)
    scaled: dict[float, torch.Tensor] = {}
    for name, old in list(_stateful(parts)):
        if name in shared:
            continue
        if device == "meta":
            new = torch.empty(old.shape, dtype=dtype if old.is_floating_point() else old.dtype, device="meta")
        elif not old.is_floating_point():
            new = torch.zeros(old.shape, dtype=old.dtype, device=device)
        else:
            mean, std = _scale(name, old.shape)
            if std not in scaled:
                scaled[std] = (block * std).to(device=device, dtype=dtype)
            new = torch.empty(old.shape, dtype=dtype, device=device)
            flat, source = new.view(-1), scaled[std]
            for start in range(0, flat.numel(), source.numel()):
                length = min(source.numel(), flat.numel() - start)
                flat[start : start + length].copy_(source[:length])
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
    for part_name, part in parts.items() if hasattr(parts, "items") else ():
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
