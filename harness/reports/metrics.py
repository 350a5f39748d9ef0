"""What of a cell a tracker is told: names, numbers with their units, and every mark and doubt."""

from collections.abc import Mapping
from typing import NamedTuple

from harness.files import digest_bytes
from harness.models.protocol import STAGES
from harness.reports.summary import CellSummary
from harness.runlog.log import Log


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
        "model", "weights", "weights_digest", "suite", "data", "resolution", "machine", "device", "engine", "dtype",
        "protocol", "settings",
    )  # fmt: skip
    found = {name: str(getattr(about, name)) for name in names}
    found |= {"seed": "" if about.seed is None else str(about.seed), "n": str(one.times.n)}
    found |= {"not_scored": one.accuracy.reason}
    found = {name: text for name, text in found.items() if text}
    return found | {"marks": " ".join(one.marks), "doubts": "; ".join(one.doubts)}


def numbers(one: CellSummary) -> dict[str, float]:
    """Return all numbers of the cell by name, bounds as `<name>_low` and `<name>_high`."""
    found = {"resolution_px": float(one.cell.resolution), "samples": float(one.times.n)}
    for metric in metrics(one):
        bounds = {"": metric.value, "_low": metric.low, "_high": metric.high}
        found |= {f"{metric.name}{part}": value for part, value in bounds.items() if value is not None}
    return found


def key(one: CellSummary) -> str:
    """Return what a cell's run is found again by, however often it is exported."""
    return digest_bytes(one.cell.name.encode(), 8)


def origin(one: CellSummary, sources: Mapping[str, Log]) -> dict[str, str]:
    """Return by what code and when the cell was measured: version, commit, start."""
    logs = [sources[name] for name in one.logs if name in sources]
    found = {"measured_at": one.process.started_at}
    for name in ("version", "commit"):
        said = sorted({log.header.harness.get(name, "") for log in logs} - {""})
        found |= {f"harness_{name}": ", ".join(said)} if said else {}
    return found


def title(one: CellSummary) -> str:
    """Return a short name; marks are part of it, so that no chart shows the cell without them."""
    about = one.cell
    parts = [about.model, about.suite, f"{about.resolution}px", about.device, about.dtype, about.protocol]
    parts += [about.settings, f"[{', '.join(one.marks)}]" if one.marks else ""]
    return " ".join(part for part in parts if part)
