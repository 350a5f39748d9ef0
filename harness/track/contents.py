"""What a night's log must have been measured on to count tonight: the checkpoint as it is now, asked as it is now.

A name is no identity: `latest` is a link that moves, a folder is overwritten in place. What a log was measured on
stands in its header; what a checkpoint holds now is its digest and its own settings.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness import files
from harness.errors import HarnessError
from harness.measure import cell as cells
from harness.measure import job
from harness.measure.asked import Asked
from harness.models import checkpoints, weights
from harness.runlog.log import Log
from harness.track import arms

OWN = ("weights_digest", "settings")
"""What differs from night to night."""
COMMON = ("model_digest", "suite", "suite_digest", "data", "data_digest", "seed", "limit", "sampling", "isolate",
          "decode_tokens", "threads")  # fmt: skip
"""What the command says for all nights. An older night keeps what it was measured with: its segment tells it apart."""


@dataclass(frozen=True, slots=True)
class Content:
    """What a checkpoint holds now, and what is asked of it; `common` is empty where an older night's log will do."""

    own: Mapping[str, object]
    common: Mapping[str, object] = field(default_factory=dict)

    def unlike(self, log: Log) -> str:
        """Say what of it `log` was not measured on, or nothing where it counts."""
        cell = log.header.cell
        wanted = {**self.own, **self.common}
        return ", ".join(
            f"{name} {brief(cell.get(name))} → {brief(value)}"
            for name, value in wanted.items()
            if cell.get(name) != value
        )


def brief(value: object) -> str:
    """Return a digest's first letters, and anything else as it is."""
    text = str(value) if value not in ("", None, {}) else "none"
    return text[:12] if len(text) >= 16 and all(letter in "0123456789abcdef" for letter in text) else text


def of_arm(asked: Asked) -> Content:
    """Return the content of an arm that is about to be measured. Raises `HarnessError` where it cannot be prepared."""
    cell = job.prepare(asked).cell.as_dict()
    return Content({name: cell[name] for name in OWN}, {name: cell[name] for name in COMMON})


@dataclass(slots=True)
class Contents:
    """The contents of all nights of one command; what is common to them is found out once."""

    asked: Asked
    _common: Mapping[str, object] = field(default_factory=dict)

    def of(self, folder: Path, strict: bool) -> Content:
        """Return what the checkpoint in `folder` holds now; `strict` for tonight's and the baseline's.

        The files of an older night are not read again while they keep size, time and inode. Raises `HarnessError`,
        and `OSError` where a file vanishes meanwhile.
        """
        settled = cells.settle(arms.arm(self.asked, str(folder)))
        own: dict[str, object] = {"settings": dict(settled.settings)}
        kept = None if strict else _noted(folder)
        if kept is None:
            kept = weights.resolve(settled.card, settled.asked.weights, settled.asked.offline).digest
            _note(folder, kept)
        own["weights_digest"] = kept
        return Content(own, self.common() if strict else {})

    def common(self) -> Mapping[str, object]:
        """Return what the command asks of every night."""
        if not self._common:
            cell = job.prepare(replace(self.asked, weights="random")).cell.as_dict()
            self._common = {name: cell[name] for name in COMMON}
        return self._common


def _stamp(folder: Path) -> list[list[object]]:
    found = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    stamps = [[str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for path, s in found]
    return [*stamps, [files.digest_file(Path(str(weights.__file__)))]]  # another way to digest: not the same digest


def _place(folder: Path) -> Path:
    return files.cache_folder() / "nights" / f"{files.digest_bytes(str(folder.resolve()).encode())}.json"


def _noted(folder: Path) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(_place(folder).read_bytes())
        if known["stamp"] == _stamp(folder):
            return str(known["digest"])
    return None


def _note(folder: Path, digest: str) -> None:
    with suppress(OSError):  # a cache that cannot be written only costs time
        text = json.dumps({"stamp": _stamp(folder), "digest": digest})
        files.write_atomically(_place(folder), text)


MARKS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json", "config.json", arms.OWN)
"""What a checkpoint's folder has: weights, or what says that weights are to come."""
NO_WEIGHTS = ("optimizer", "scheduler", "training_args", "random_states", "rng_state")
"""What trainers save beside the weights, with the same endings."""


def is_checkpoint(folder: Path) -> bool:
    """Return whether the folder is one checkpoint: not a trainer's `runs`, `global_step100` or an empty folder."""
    found = [path for mark in MARKS for path in folder.glob(mark) if not path.name.startswith((".", *NO_WEIGHTS))]
    return bool(found)


def unfinished(folder: Path) -> str:
    """Say what looks half-written in the folder (a trainer may still be at it), or nothing.

    A weight file that ends before its header says, one that an index names and is not there, JSON that breaks off.
    """
    try:
        for path in sorted(folder.glob("*.json")):
            json.loads(path.read_bytes())
        paths = checkpoints.weight_files(folder)
    except (HarnessError, OSError, ValueError):
        return "a JSON file that breaks off"
    if not paths and not (folder / arms.OWN).is_file():
        return "no weights in it yet"
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        return f"{len(absent)} of {len(paths)} weight files are not there yet ({absent[0]})"
    return next((told for path in paths if (told := _torn(path))), "")


def _torn(path: Path) -> str:
    have = path.stat().st_size
    if path.suffix != ".safetensors":
        return "" if have else f"{path.name} is empty"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if have < 8 or length > have - 8:
            return f"{path.name} has {have} bytes, fewer than its header"
        try:
            ends = [entry["data_offsets"][1] for entry in json.loads(file.read(length)).values() if "dtype" in entry]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return ""  # no half of anything: the loader says what it is
    wanted = 8 + length + max(ends, default=0)
    return f"{path.name} has {have} of {wanted} bytes" if have < wanted else ""
