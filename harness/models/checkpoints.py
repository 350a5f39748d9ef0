"""The tensors in a checkpoint's folder, by name, one at a time: safetensors, or a pickle only with `weights_only`.

Which files are taken where several could be is decided as transformers decides it.
"""

import json
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import WeightsError
from harness.models.configuration import POINTER, Fields, read, section

if TYPE_CHECKING:
    import torch

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""A file of one of these names is the checkpoint, whatever index or shards of an earlier save lie beside it."""

PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.bin")
"""Files that hold tensors; the first of these that finds any is taken."""

NO_MODEL = (
    "adapter_model", "mm_projector", "non_lora_trainables", "optimizer", "rng_state", "scheduler", "training_args",
)  # fmt: skip
"""How files begin that trainers leave beside a model, and that are none."""


def weight_files(folder: Path) -> list[Path]:
    """Return the whole file, else the files that an index names, whether there or not, else those found."""
    for pattern, whole in zip(PATTERNS, (*WHOLE, ""), strict=True):
        if whole and (folder / whole).is_file():
            return [folder / whole]
        index = _index(folder, pattern)
        if index:
            return sorted({folder / shard for shard in index[1].values()})
        found = [path for path in visible(folder, pattern) if not path.name.startswith(NO_MODEL)]
        if found:
            return found
    return []


def passed_over(folder: Path) -> str:
    """Return what is said of an index that plays no part: as in transformers, the whole file is the checkpoint.

    Nothing is said of an index of that very file.
    """
    for pattern, whole in zip(PATTERNS, WHOLE, strict=False):
        if not (folder / whole).is_file():
            continue
        try:
            index = _index(folder, pattern)
        except WeightsError:
            index = None
        path = next(iter(visible(folder, f"{pattern}.index.json")), None)
        if path and not (index and set(index[1].values()) == {whole}):
            return f"{folder / whole} is the checkpoint, {path.name} beside it is not read; next: remove what is not it"
        return ""
    return ""


def visible(folder: Path, pattern: str) -> list[Path]:
    """Return the files of `pattern` by name, without `._*`: what a Mac leaves beside every file on foreign drives."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def is_complete(folder: Path) -> bool:
    """Return whether the folder has weights, and all that its index names: a download that broke off has not."""
    files = weight_files(folder)
    return bool(files) and all(path.is_file() for path in files)


def _index(folder: Path, pattern: str) -> tuple[Path, dict[str, str]] | None:
    """Return the index of the files of `pattern` and where it says each tensor is, or None."""
    path = next(iter(visible(folder, f"{pattern}.index.json")), None)
    if not path:
        return None
    try:
        named = json.loads(path.read_text())["weight_map"]
        found = {str(name): str(shard) for name, shard in named.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise WeightsError(f"{path}: not an index of weight files: {error!r}; next: fetch it anew") from error
    far = next((shard for shard in found.values() if Path(shard).is_absolute() or ".." in Path(shard).parts), None)
    if far:
        raise WeightsError(f"{path}: names {far}, which is not in the folder; next: copy the file there")
    return path, found


def refusal(folder: Path) -> str:
    """Return what a folder is that is no checkpoint we can run, and what to do; nothing where it may be one."""
    configured = read(folder).model
    quantised = section(configured, ("quantization_config", "compression_config"))
    method = quantised.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in quantised else "")
    if not quantised and any((folder / name).is_file() for name in ("quantize_config.json", "quant_config.json")):
        method = "GPTQ or AWQ"
    if quantised or method:
        bits = quantised.get("bits") or quantised.get("w_bit") or (4 if quantised.get("load_in_4bit") else "")
        told = f"{method or 'an unnamed method'}{f', {bits} bits' if bits else ''}"
        return f"quantised ({told}): its tensors are not the model's; next: give the checkpoint before quantisation"
    packed = section(configured, ("quantization",))
    if packed:
        return (
            f"an MLX conversion, quantised to {packed.get('bits', '?')} bits; next: give the original checkpoint "
            "(and --engine mlx --set llm_bits=4)"
        )
    return "" if weight_files(folder) else _without_weights(folder)


def _without_weights(folder: Path) -> str:
    """Return what a folder without a weight file is."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        of, kind = _adapter(adapter)
        return f"{kind} adapter (of {of}), no whole model; next: merge it into its base (peft's merge_and_unload)"
    if visible(folder, "mm_projector*.bin"):
        return "a projector alone (LLaVA's pretraining stage), no whole model; next: give the checkpoint after tuning"
    for pattern, what in FOREIGN.items():
        if visible(folder, pattern):
            return f"{what}; next: give the checkpoint in safetensors that it was made from"
    if any(path.is_dir() for path in folder.glob("global_step*")):
        return "a DeepSpeed state; next: run its zero_to_fp32.py, and give what that writes"
    return ""


FOREIGN = {
    "*.gguf": "GGUF (llama.cpp)",
    "*.onnx": "ONNX",
    "onnx/*.onnx": "ONNX",
    "*.mlpackage": "a Core ML package",
    "*.tflite": "LiteRT",
    "*.litertlm": "LiteRT",
    "*.task": "MediaPipe",
    "*.distcp": "a sharded state of torch.distributed",
    "*.pth": "a bare torch file",
    "*.pt": "a bare torch file",
    "*.ckpt": "a training checkpoint",
}
"""Other programs' files, and what a folder with nothing else is."""


def _adapter(path: Path) -> tuple[str, str]:
    try:
        fields: Fields = json.loads(path.read_text())
        return str(fields.get("base_model_name_or_path") or "a base that it does not name"), (
            "a LoRA" if fields.get("peft_type", "LORA") == "LORA" else f"a {fields.get('peft_type')}"
        )
    except (ValueError, AttributeError, OSError):
        return "a base that cannot be read from adapter_config.json", "a LoRA"


class Tensors(Mapping[str, Callable[[], "torch.Tensor"]]):
    """The tensors of a checkpoint by name, each read when called: never the whole checkpoint at once."""

    def __init__(self, folder: Path) -> None:
        """Open all files; raises `WeightsError` for one that is missing, torn, holds code, or repeats a tensor."""
        self.folder = folder
        reason = refusal(folder)
        if reason:
            raise WeightsError(f"{folder}: {reason}")
        self.files = weight_files(folder)
        if not self.files:
            raise WeightsError(f"{folder}: no *.safetensors and no *.bin in it; next: is this a checkpoint's folder?")
        lost = [path.name for path in self.files if not path.is_file()]
        if lost:
            raise WeightsError(
                f"{folder}: {len(lost)} of {len(self.files)} files that its index names are missing: "
                f"{', '.join(lost[:5])}{' ...' if len(lost) > 5 else ''}; next: fetch them"
            )
        self.made_by = ""
        """The program that wrote the files, where they say so ("pt", "mlx")."""
        self._where: dict[str, Callable[[], torch.Tensor]] = {}
        self._shapes: dict[str, Callable[[], tuple[int, ...]]] = {}
        held: dict[str, str] = {}
        for path in self.files:
            for name, (tensor, shape) in self._open(path).items():
                if name in held:
                    raise WeightsError(
                        f"{folder}: {name} is in {held[name]} and in {path.name}; next: remove the file that is not "
                        "the checkpoint's"
                    )
                held[name] = path.name
                self._where[name], self._shapes[name] = tensor, shape
        if len(self.files) == 1:  # the whole checkpoint: an index beside it is of another save
            return
        index = next((found for pattern in PATTERNS if (found := _index(folder, pattern))), None)
        absent = [f"{name} of {shard}" for name, shard in index[1].items() if name not in held] if index else []
        if index and absent:
            raise WeightsError(
                f"{folder}: {len(absent)} tensors are not where {index[0].name} says, nor anywhere else, e.g. "
                f"{absent[0]}; next: fetch that file anew"
            )

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading its numbers."""
        return self._shapes[name]()

    def _open(self, path: Path) -> "dict[str, Entry]":
        with path.open("rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise WeightsError(
                    f"{path}: a git-lfs pointer, not the file itself; next: `git lfs pull` in that folder"
                )
        if path.suffix != ".safetensors":
            return _pickle(path)
        made_by, entries = _safetensors(path)
        self.made_by = self.made_by or made_by
        return entries

    def __getitem__(self, name: str) -> Callable[[], "torch.Tensor"]:
        return self._where[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


Entry = tuple[Callable[[], "torch.Tensor"], Callable[[], tuple[int, ...]]]
"""What reads a tensor, and what tells its shape."""


def _safetensors(path: Path) -> tuple[str, dict[str, Entry]]:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: not a readable safetensors file: {error}; next: fetch it anew") from error

    def shape(name: str) -> tuple[int, ...]:
        return tuple(file.get_slice(name).get_shape())

    names = list(file.keys())
    made_by = str((file.metadata() or {}).get("format", ""))
    return made_by, {name: (partial(file.get_tensor, name), partial(shape, name)) for name in names}


def _pickle(path: Path) -> dict[str, Entry]:
    import torch

    mapped = zipfile.is_zipfile(path)  # files older than torch 1.6 cannot be mapped
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns of the pickle's form; what matters is said below
            tensors: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(
            f"{path}: cannot be read with weights_only=True: {reason}; next: convert it to safetensors"
        ) from error
    given = tensors.items() if isinstance(tensors, dict) else ()
    odd = [str(name) for name, value in given if not (isinstance(name, str) and isinstance(value, torch.Tensor))]
    if not isinstance(tensors, dict) or odd:
        raise WeightsError(
            f"{path}: not a plain table of tensors{f' ({odd[0]!r} is none)' if odd else ''}; next: save the state "
            "dictionary alone"
        )

    def shape(name: str) -> tuple[int, ...]:
        return tuple(tensors[name].shape)

    return {name: (partial(tensors.__getitem__, name), partial(shape, name)) for name in tensors}
