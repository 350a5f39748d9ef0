"""What of a summary row a tracker is told: names, numbers with their units, and every mark and doubt."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from harness.models.protocol import STAGES

Row = Mapping[str, Any]


class Metric(NamedTuple):
    """One number of a row; `values` are the raw samples' summary bounds where there are any."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    bigger_is_better: bool = False


def metrics(row: Row) -> list[Metric]:
    """Return the times in ms (median and 95 % bounds), memory, tokens and accuracy that the row has."""
    found = []
    for name in ("ttft", *STAGES, "tpot", "cold_ttft"):
        value, low, high = (_number(row.get(f"{name}{part}_ns")) for part in ("", "_low", "_high"))
        if value is not None:
            found.append(Metric(f"{name}_ms", value / 1e6, "ms", low and low / 1e6, high and high / 1e6))
    for name, unit in (("peak_memory_bytes", "bytes"), ("visual_tokens", "tokens")):
        value = _number(row.get(name))
        if value is not None:
            found.append(Metric(name, value, unit))
    accuracy = _number(row.get("accuracy"))
    if accuracy is not None:
        bounds = (_number(row.get("accuracy_low")), _number(row.get("accuracy_high")))
        found.append(Metric("accuracy", accuracy, str(row.get("metric") or "share"), *bounds, True))
    return found


def facts(row: Row) -> dict[str, str]:
    """Return what the row is about, in words; `marks` and `doubts` are always there."""
    names = (
        "model", "weights", "weights_digest", "suite", "data", "resolution", "machine", "device", "engine", "dtype",
        "protocol", "settings", "seed", "n", "not_scored",
    )  # fmt: skip
    found = {name: str(row[name]) for name in names if row.get(name) not in (None, "")}
    return found | {"marks": " ".join(row.get("marks") or ()), "doubts": "; ".join(row.get("doubts") or ())}


def title(row: Row) -> str:
    """Return a short name; marks are part of it, so that no chart shows the row without them."""
    parts = [row["model"], row["suite"], f"{row['resolution']}px", row["device"], row["dtype"], row["protocol"]]
    parts += [row["settings"]] if row.get("settings") else []
    parts += [f"[{', '.join(row['marks'])}]"] if row.get("marks") else []
    return " ".join(str(part) for part in parts)


def _number(value: Any) -> float | None:
    return None if value is None or value != value else float(value)
