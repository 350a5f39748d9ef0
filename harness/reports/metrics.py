"""What of a cell a tracker is told: names, numbers with their units, and every mark and doubt."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from harness.files import digest_bytes
from harness.models.protocol import STAGES
from harness.reports.configuration import FIELDS, told_apart_by
from harness.reports.summary import CellSummary
from harness.runlog.log import Log

DIGITS = 8
"""Of a digest in a name."""
FIRST = ("weights_digest", "machine", "engine", "endpoint", "seed", "decode_tokens")
"""What tells cells of one name apart, if it does, before anything else that a cell has."""


class Metric(NamedTuple):
    """One number of a cell, with its 95 % bounds where there are any."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    bigger_is_better: bool = False


def metrics(one: CellSummary) -> list[Metric]:
    """Return the times in ms (median and 95 % bounds), memory, tokens and accuracy that the cell has."""
    found = []
    for name in ("ttft", *STAGES, "tpot", "cold_ttft"):
        time = one.times.of(name)
        if time is not None and time.value is not None:
            low, high = (None if bound is None else bound / 1e6 for bound in (time.low, time.high))
            found.append(Metric(f"{name}_ms", time.value / 1e6, "ms", low, high))
    for name, value, unit in (
        ("peak_memory_bytes", one.memory.peak_bytes, "bytes"),
        ("visual_tokens", one.tokens.visual, "tokens"),
    ):
        if value is not None:
            found.append(Metric(name, float(value), unit))
    accuracy = one.accuracy
    if accuracy.value is not None:
        unit = accuracy.metric or "share"
        found.append(Metric("accuracy", accuracy.value, unit, accuracy.low, accuracy.high, True))
    return found


def facts(one: CellSummary) -> dict[str, str]:
    """Return what the cell is, in words; `marks` and `doubts` are always there."""
    about = one.cell
    names = (
        "model", "weights", "weights_digest", "suite", "suite_digest", "data", "data_digest", "limit", "resolution",
        "machine", "device", "engine", "dtype", "threads", "protocol", "settings", "seed", "decode_tokens",
        "model_digest", "asked_suite", "endpoint",
    )  # fmt: skip
    found = {name: about.text(name) for name in names}
    found |= {"concurrency": str(about.concurrency)} if about.endpoint else {}
    found |= {"isolate": "True"} if about.isolate else {}
    found |= {"n": str(one.times.n), "not_scored": one.accuracy.reason}
    if one.accuracy.value is not None:
        found |= {"accuracy_n": str(one.accuracy.count)}
    found |= {"accuracy_remarks": "; ".join(one.accuracy.remarks)}
    found = {name: text for name, text in found.items() if text}
    return found | {"marks": " ".join(one.marks), "doubts": "; ".join(one.doubts)}


def numbers(one: CellSummary) -> dict[str, float]:
    """Return all numbers of the cell by name, bounds as `<name>_low` and `<name>_high`."""
    found = {"resolution_px": float(one.cell.resolution), "samples": float(one.times.n)}
    for metric in metrics(one):
        bounds = {"": metric.value, "_low": metric.low, "_high": metric.high}
        found |= {f"{metric.name}{part}": value for part, value in bounds.items() if value is not None}
    return found | ({} if one.accuracy.value is None else {"accuracy_n": float(one.accuracy.count)})


def key(one: CellSummary) -> str:
    """Return what a cell's run is found again by, however often it is exported."""
    return digest_bytes(one.cell.name.encode(), 8)


def origin(one: CellSummary, sources: Mapping[str, Log]) -> dict[str, str]:
    """Return by what code and when the cell was measured: version, commit, digest of the code, start."""
    logs = [sources[name] for name in one.logs if name in sources]
    found = {"measured_at": one.process.started_at}
    for name in ("version", "commit", "code"):
        said = sorted({log.header.harness.get(name, "") for log in logs} - {""})
        found |= {f"harness_{name}": ", ".join(said)} if said else {}
    return found


def title(one: CellSummary, among: Collection[CellSummary] = ()) -> str:
    """Return a short name; marks are part of it, so that no chart shows the cell without them.

    So are a limit and threads. What else tells a cell apart is where a cell `among` those exported with it would have
    the same name: one checkpoint of each night is to be one series, two checkpoints of one night are two, and so are
    two machines.
    """
    short = _title(one)
    alike = [other.cell for other in among if _title(other) == short]
    names = told_apart_by(alike, (*FIRST, *FIELDS)) if len(alike) > 1 else []
    return _title(one, [_named(one, name) for name in names if one.cell.text(name)])


def _named(one: CellSummary, name: str) -> str:
    text = one.cell.text(name)
    return f"{name.removesuffix('_digest')}={text[:DIGITS]}" if name.endswith("_digest") else f"{name}={text}"


def _title(one: CellSummary, more: Sequence[str] = ()) -> str:
    about = one.cell
    parts = [about.model, about.suite, f"{about.resolution}px", about.device, about.dtype, about.protocol]
    parts += ["" if about.limit is None else f"first {about.limit}"]
    parts += ["" if about.threads is None else f"threads={about.threads}"]
    parts += [*more, about.settings]
    parts += [f"[{', '.join(one.marks)}]" if one.marks else ""]
    return " ".join(part for part in parts if part)
