"""The tensors in a checkpoint's folder, by name, one at a time: safetensors, or a pickle only with `weights_only`."""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import WeightsError

if TYPE_CHECKING:
    import torch

PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.bin")
"""Files that hold tensors; the first of these that finds any is taken."""


def weight_files(folder: Path) -> list[Path]:
    """Return the files that a checkpoint's index names, whether there or not; without an index, those found."""
    for pattern in PATTERNS:
        index = _index(folder, pattern)
        if index:
            return sorted({folder / shard for shard in index[1].values()})
        found = sorted(folder.glob(pattern))
        if found:
            return found
    return []


def is_complete(folder: Path) -> bool:
    """Return whether the folder has weights, and all that its index names: a download that broke off has not."""
    files = weight_files(folder)
    return bool(files) and all(path.is_file() for path in files)


def _index(folder: Path, pattern: str) -> tuple[Path, dict[str, str]] | None:
    """Return the index of the files of `pattern` and where it says each tensor is, or None."""
    path = next(iter(sorted(folder.glob(f"{pattern}.index.json"))), None)
    if not path:
        return None
    try:
        named = json.loads(path.read_text())["weight_map"]
        return path, {str(name): str(shard) for name, shard in named.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise WeightsError(f"{path}: not an index of weight files: {error!r}; next: fetch it anew") from error


class Tensors(Mapping[str, Callable[[], "torch.Tensor"]]):
    """The tensors of a checkpoint by name, each read when called: never the whole checkpoint at once."""

    def __init__(self, folder: Path) -> None:
        """Open all files; raises `WeightsError` for one that is missing, torn, holds code, or repeats a tensor."""
        self.folder = folder
        files = weight_files(folder)
        if not files:
            raise WeightsError(f"{folder}: no *.safetensors and no *.bin in it; next: is this a checkpoint's folder?")
        lost = [path.name for path in files if not path.is_file()]
        if lost:
            raise WeightsError(
                f"{folder}: {len(lost)} of {len(files)} files that its index names are missing: {', '.join(lost[:5])}"
                f"{' ...' if len(lost) > 5 else ''}; next: fetch them"
            )
        self._where: dict[str, Callable[[], torch.Tensor]] = {}
        held: dict[str, str] = {}
        for path in files:
            for name, read in (_safetensors(path) if path.suffix == ".safetensors" else _pickle(path)).items():
                if name in held:
                    raise WeightsError(
                        f"{folder}: {name} is in {held[name]} and in {path.name}; next: remove the file that is not "
                        "the checkpoint's"
                    )
                held[name] = path.name
                self._where[name] = read
        index = next((found for pattern in PATTERNS if (found := _index(folder, pattern))), None)
        absent = [f"{name} of {shard}" for name, shard in index[1].items() if held.get(name) != shard] if index else []
        if index and absent:
            raise WeightsError(
                f"{folder}: {len(absent)} tensors are not where {index[0].name} says, e.g. {absent[0]}; next: fetch "
                "that file anew"
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
    return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118 - not a dict


def _pickle(path: Path) -> dict[str, Callable[[], "torch.Tensor"]]:
    import torch

    mapped = zipfile.is_zipfile(path)  # files older than torch 1.6 cannot be mapped
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"{path}: cannot be read with weights_only=True: {reason}; next: convert it to safetensors"
        ) from error
    odd = [name for name, value in tensors.items() if not isinstance(value, torch.Tensor)] if tensors else []
    if not isinstance(tensors, dict) or odd:
        raise WeightsError(
            f"{path}: not a plain table of tensors{f' ({odd[0]!r} is none)' if odd else ''}; next: save the state "
            "dictionary alone"
        )
    return {name: partial(tensors.__getitem__, name) for name in tensors}
