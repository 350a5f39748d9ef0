"""The checkpoints along the training, small enough to keep: `python -m training.nightlies unpack --out FOLDER`.

Each is kept as its difference from the model that ships, in seven steps with a scale for every 64 numbers: compressed,
a sixth of half precision. What comes back loads, runs and answers like the kept checkpoint, as far as that carries.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from harness import cards
from harness.models.card import load_model_card

GROUP = 64
"""Numbers that share a scale."""
LARGEST = 3
"""Steps to either side of zero."""
FOLDER = Path(__file__).parent / "nightlies"

Numbers = NDArray[Any]


def pack(value: Numbers, base: Numbers) -> dict[str, Numbers]:
    """Return the steps (groups, GROUP) of `value - base`, and what one step is worth in each group."""
    difference = (value.astype(np.float32) - base.astype(np.float32)).ravel()
    flat = np.pad(difference, (0, -difference.size % GROUP)).reshape(-1, GROUP)
    scale = (np.abs(flat).max(axis=1, keepdims=True) / LARGEST).astype(np.float16)
    steps = np.round(flat / np.maximum(scale.astype(np.float32), 1e-12)).clip(-LARGEST, LARGEST)
    return {"steps": steps.astype(np.int8), "scale": scale[:, 0]}


def unpack(packed: Mapping[str, Numbers], base: Numbers) -> Numbers:
    """Return what `pack` was given, but for half a step."""
    difference = packed["steps"].astype(np.float32) * packed["scale"].astype(np.float32)[:, None]
    restored = base.astype(np.float32) + difference.ravel()[: base.size].reshape(base.shape)
    return restored.astype(base.dtype)


@click.group()
def main() -> None:
    """Keep the checkpoints along a training run, or get them back."""


@main.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--steps", required=True, help="Which checkpoints, with commas between.")
def keep(run: Path, steps: str) -> None:
    """Pack checkpoints of a training run against the model that ships."""
    base = load_file(_shipped() / "model.safetensors")
    FOLDER.mkdir(exist_ok=True)
    for step in map(int, steps.split(",")):
        tensors = load_file(run / f"step-{step:06d}" / "model.safetensors")
        kept = {
            f"{name}|{part}": numbers
            for name, value in tensors.items()
            if value.dtype.kind == "f"
            for part, numbers in pack(value, base[name]).items()
        }
        path = FOLDER / f"step-{step:06d}.npz"
        np.savez_compressed(path, allow_pickle=False, **kept)  # type: ignore[arg-type]
        click.echo(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


@main.command(name="unpack")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the checkpoints.")
def unpack_all(out: Path) -> None:
    """Write every kept checkpoint as a folder that `harness track` takes for a night."""
    base = load_file(_shipped() / "model.safetensors")
    for path in sorted(FOLDER.glob("step-*.npz")):
        with np.load(path, allow_pickle=False) as kept:
            tensors = {
                name: unpack({part: kept[f"{name}|{part}"] for part in ("steps", "scale")}, value)
                if value.dtype.kind == "f"
                else value
                for name, value in base.items()
            }
        folder = out / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "tokenizer.json").write_bytes((_shipped() / "tokenizer.json").read_bytes())
        (folder / "config.json").write_text(json.dumps({"model_type": "llava_qwen2"}))
        click.echo(str(folder))


def _shipped() -> Path:
    return cards.ROOT / "models" / load_model_card("fastvlm-nano").shipped


if __name__ == "__main__":
    main()
