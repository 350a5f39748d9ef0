"""The Python face: `harness.load`, `harness.summary`, `harness.run`. DataFrames with units in the columns' names."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from harness.reports.summary import CellSummary

Place = str | Path
Setting = str | int | float | bool | None
Settings = Mapping[str, str | int | float | bool] | Sequence[str]
"""Several of `--set`: by name, or each as `NAME=VALUE`."""


def load(*places: Place | Iterable[Place]) -> "pd.DataFrame":
    """Return a row per sample of all run logs at or below `places` (files, folders; texts or paths; one or many).

    Cold, warm-up and refused samples are there too: filter by `phase` and `valid`. Logs that cannot be used are named
    in `attrs["skipped"]`. Raises `LogError` for a place that does not exist.
    """
    from harness.reports import frame

    found = frame.load(*_paths(places))
    samples = found.samples
    samples.attrs["skipped"] = [str(one) for one in found.skipped]
    return samples


def summary(*places: Place | Iterable[Place], scores: bool = True) -> "pd.DataFrame":
    """Return a row per cell: medians in ms with 95 % bounds, tokens, memory, accuracy, `marks` and `doubts`.

    Without `scores` nothing is scored, which is quicker. Raises `LogError` for a place that does not exist.
    """
    import pandas as pd

    from harness.reports import accuracy, frame, measured

    logs = frame.load(*_paths(places))
    cells = measured.gather(logs, accuracy.of(logs) if scores else {}).cells
    table = pd.DataFrame([_row(one) for one in cells])
    table.attrs["skipped"] = [str(one) for one in logs.skipped]
    return table


def run(model: str, suite: str = "docvqa", res: int | None = None, **options: Setting | Settings) -> "pd.DataFrame":
    """Measure one cell in a process of its own, as `harness run` does, and return its summary.

    `options` are the command's: `weights="random"`, `limit=12`, `device="cpu"`, `out="results"`; True is a flag.
    `set={"tiles": 1, "compile": True}` gives several settings. Raises `HarnessError` with the command's own message
    where it could not be measured, and `SettingError` for several values of an option that takes one.
    """
    import json
    import subprocess

    from harness import parent
    from harness.errors import HarnessError

    out = str(options.pop("out", None) or "results")
    command = [*parent.program(), "run", "--model", model, "--suite", suite, "--out", out, "--json"]
    command += [] if res is None else ["--res", str(res)]
    command += [part for name, value in options.items() for part in _flags(name, value)]
    environment = parent.surroundings()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or not done.stdout.strip():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise HarnessError(last.removeprefix("harness: "))
    logs = [name for result in json.loads(done.stdout) for name in result["logs"]]
    return summary(*(path for name in logs for path in Path(out).rglob(Path(name).name)))


def _flags(name: str, value: Setting | Settings) -> list[str]:
    """Return the arguments that say one option. Raises `SettingError` for several values of one that is not `set`."""
    import json

    from harness.errors import SettingError

    flag = f"--{name.replace('_', '-')}"
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    if isinstance(value, str) or not isinstance(value, Iterable):
        return [flag, str(value)]
    if name != "set":
        raise SettingError(f"harness.run({name}={value!r}): takes one value; next: run it once for each")
    told = [f"{key}={json.dumps(one)}" for key, one in value.items()] if isinstance(value, Mapping) else value
    return [part for each in told for part in (flag, str(each))]


def _paths(places: Iterable[Place | Iterable[Place]]) -> list[Path]:
    flat: list[Path] = []
    for place in places:
        flat += [Path(place)] if isinstance(place, str | Path) else [Path(each) for each in place]
    return flat


def _row(one: "CellSummary") -> Mapping[str, object]:
    from dataclasses import asdict

    row: dict[str, object] = asdict(one.cell)
    for name, found in one.times.median_ns.items():
        for part, value in (("", found.value), ("_low", found.low), ("_high", found.high)):
            row[f"{name}{part}_ms"] = None if value is None else value / 1e6
    row |= {
        "samples": one.times.n,
        "refused": one.times.refused,
        "residual_percent": one.times.residual_percent,
        "visual_tokens": one.tokens.visual,
        "text_tokens": one.tokens.text,
        "peak_memory_bytes": one.memory.peak_bytes,
        "accuracy": one.accuracy.value,
        "accuracy_low": one.accuracy.low,
        "accuracy_high": one.accuracy.high,
        "accuracy_n": one.accuracy.count if one.accuracy.value is not None else None,
        "accuracy_remarks": one.accuracy.remarks,
        "metric": one.accuracy.metric,
        "not_scored": one.accuracy.reason,
        "marks": one.marks,
        "doubts": one.doubts,
        "cell": one.cell.name,
        "logs": one.logs,
    }
    return row
