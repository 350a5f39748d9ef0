"""What reports are made of: the samples, a summary row per cell, the accuracies; and how such numbers are worded."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.models.protocol import STAGES
from harness.reports import accuracy as scoring
from harness.reports import frame, summary
from harness.reports.accuracy import Accuracy
from harness.reports.card import ReportCard
from harness.reports.document import Entry, Heading, Table
from harness.reports.frame import Frame

PLATFORM = ("machine", "device", "engine", "dtype")
"""Times are comparable only where all of these are equal."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """Run logs, read and summed up. `rows` is `summary.summary` as dictionaries with None for what is not there."""

    frame: Frame
    accuracies: Mapping[str, Accuracy] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()

    def series_ns(self, row: Row, stages: tuple[str, ...]) -> list[list[float]]:
        """Return the raw samples behind some stages' (or `ttft`'s) medians, a list per part that is added up."""
        samples = summary.timed(self.frame.samples[self.frame.samples["log"].isin(row["logs"])])
        parts: list[list[float]] = []
        for stage in stages:
            if stage == "ttft" and row["additive"]:
                wanted = ("encode", "prefill") if row["protocol"] == "paper" else STAGES
                return [] if row["ttft_ns"] is None else self.series_ns(row, wanted)
            if stage == "ttft":
                parts += [samples["ttft_ns"].dropna().tolist()] if "ttft_ns" in samples else []
            else:
                parts += summary.stage_values(samples, stage, bool(row["isolate"]))
        return [part for part in parts if part]


def of(*places: Path) -> Material:
    """Read and score all run logs below `places`."""
    logs = frame.load(*places)
    return gather(logs, scoring.of(logs))


def gather(logs: Frame, accuracies: Mapping[str, Accuracy]) -> Material:
    """Return the material of logs that are read and scored already."""
    table = summary.summary(logs, accuracies)
    rows = tuple(
        {str(key): None if _absent(value) else value for key, value in row.items()} for row in table.to_dict("records")
    )
    return Material(logs, accuracies, rows)


def platform(row: Row) -> tuple[str, ...]:
    """Return what must be equal for two rows' times to be comparable."""
    return tuple(str(row[name] or "") for name in PLATFORM)


def platform_text(platform: tuple[str, ...]) -> str:
    """Return a platform in words."""
    machine, device, engine, dtype = platform
    return f"{machine}, {device}, {engine}, {dtype}"


def title(row: Row) -> str:
    """Return a row's name for people: what was run, where it matters for telling rows apart."""
    parts = [row["model"], row["settings"], f"{row['resolution']} px", row["suite"], row["device"], row["dtype"]]
    parts += [row["protocol"] if row["protocol"] != "ttft" else "", "isolated" if row["isolate"] else ""]
    return " ".join(str(part) for part in parts if part)


def number(value: float | None, digits: int = 3) -> str:
    """Return `value` with so many significant digits, without an exponent; `–` for None."""
    if value is None or _absent(value):
        return "–"
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{places}f}"


def count(value: float | None) -> str:
    """Return a count, without decimals where it has none; `–` for None."""
    return "–" if value is None or _absent(value) else f"{value:.1f}".removesuffix(".0")


def interval(value: float | None, low: float | None, high: float | None, scale: float = 1.0, digits: int = 3) -> str:
    """Return `166 [160, 171]`, scaled; without bounds, only the value."""
    if value is None or _absent(value):
        return "–"
    text = number(value * scale, digits)
    if low is None or high is None or _absent(low) or _absent(high):
        return text
    return f"{text} [{number(low * scale, digits)}, {number(high * scale, digits)}]"


def milliseconds(row: Row, name: str, marks: tuple[str, ...] = ()) -> Entry:
    """Return the entry of one of a row's times, in ms."""
    value, low, high = (row.get(f"{name}{part}_ns") for part in ("", "_low", "_high"))
    if value is None:
        return Entry("–", None, "not measured", (), "absent")
    sure = f"median of {row['n']} samples" + ("" if low is None else ", 95 % interval in brackets")
    return Entry(interval(value, low, high, 1e-6), value / 1e6, f"{name}: {sure}", marks)


def accuracy(row: Row) -> Entry:
    """Return the entry of a row's accuracy in points of 100, or why there is none."""
    if row["accuracy"] is None:
        return Entry("not scored", None, str(row["not_scored"]), (), "absent")
    text = interval(row["accuracy"], row["accuracy_low"], row["accuracy_high"], 100)
    return Entry(text, row["accuracy"] * 100, f"{row['metric']} over {row['accuracy_n']} questions of {row['suite']}")


def _absent(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def all_marks(rows: Iterable[Row]) -> tuple[str, ...]:
    """Return the marks that any of the rows carries, in their order."""
    present = {mark for row in rows for mark in row["marks"]}
    return tuple(mark for mark in summary.MARKS if mark in present)


def chosen(data: Material, card: ReportCard) -> list[Row]:
    """Return the rows of the models in the card's setting `models` (comma-separated), or all rows."""
    wanted = [name.strip() for name in str(card.settings.get("models", "")).split(",") if name.strip()]
    return [row for row in data.rows if not wanted or row["model"] in wanted]


def exactly(value: float | None) -> Entry:
    """Return a number for CSV: six decimals, nothing for None."""
    return Entry("") if value is None or _absent(value) else Entry(f"{value:.6f}".rstrip("0").rstrip("."), value)


def long_form(name: str, title: str, rows: Iterable[Row], times: Iterable[str]) -> Table:
    """Return one line per row and time, with unrounded medians and bounds: what is written as CSV."""
    facts = ("model", "settings", "resolution", "weights", "suite", "data", *PLATFORM, "protocol")
    headings = [Heading(fact) for fact in facts]
    headings += [Heading(text) for text in ("visual_tokens", "n", "quantity", "median_ms", "low_ms", "high_ms")]
    lines = []
    for row in rows:
        for time in times:
            values = [row.get(f"{time}{part}_ns") for part in ("", "_low", "_high")]
            if values[0] is None:
                continue
            known = [
                Entry("" if row[fact] is None else str(row[fact]), None, "", tuple(row["marks"])) for fact in facts
            ]
            numbers = [exactly(None if value is None else value / 1e6) for value in values]
            lines.append((*known, exactly(row["visual_tokens"]), exactly(row["n"]), Entry(time), *numbers))
    return Table(name, title, tuple(headings), tuple(lines))


def by_platform(rows: Iterable[Row], *also: str) -> list[tuple[str, list[Row]]]:
    """Return the rows that may be drawn together (one platform, protocol and `also`), with these in words."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        first = tuple(str(row[name] or "") for name in also)
        key = (first, platform(row), row["protocol"] != "ttft", str(row["protocol"]))
        found.setdefault(key, []).append(row)
    out = []
    for (_, where, additive, protocol), mine in sorted(found.items()):
        out.append((platform_text(where) + (f", protocol {protocol}" if additive else ""), mine))
    return out
