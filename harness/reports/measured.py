"""What reports are made of: run logs, read and scored, and what each of their cells came to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.reports import accuracy as scoring
from harness.reports import configuration, frame, summary
from harness.reports.accuracy import Accuracy
from harness.reports.card import ReportCard
from harness.reports.configuration import Configuration, Platform
from harness.reports.frame import Frame
from harness.reports.summary import CellSummary


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Run logs, read and summed up."""

    frame: Frame
    cells: tuple[CellSummary, ...] = ()


def of(*places: Path) -> Measured:
    """Read and score all run logs below `places`."""
    logs = frame.load(*places)
    return gather(logs, scoring.of(logs))


def gather(logs: Frame, accuracies: Mapping[Configuration, Accuracy]) -> Measured:
    """Return what logs that are read and scored already come to."""
    return Measured(logs, summary.summaries(logs, accuracies))


def chosen(data: Measured, card: ReportCard) -> list[CellSummary]:
    """Return the cells of the models in the card's setting `models` (comma-separated), or all."""
    wanted = [name.strip() for name in str(card.settings.get("models", "")).split(",") if name.strip()]
    return [one for one in data.cells if not wanted or one.cell.model in wanted]


LOT = ("isolate", "suite", "limit", "weights", "weights_digest", "suite_digest", "data_digest", "model_digest", "seed")
"""What all points of one curve have in common."""


def one_each(cells: Iterable[CellSummary]) -> tuple[list[CellSummary], dict[str, str]]:
    """Return one cell for each model, setting and resolution, and by label what was left out of what is drawn.

    All of a model's cells are of one lot (questions, weights, whole or isolated): the one with most resolutions, then
    whole before isolated, then with most samples. Within it the cell with most samples is taken.
    """
    lots: dict[str, dict[tuple[object, ...], dict[int, CellSummary]]] = {}
    for one in sorted(cells, key=lambda one: -one.times.n):
        key = tuple(getattr(one.cell, name) for name in LOT)
        lots.setdefault(one.cell.label, {}).setdefault(key, {}).setdefault(one.cell.resolution, one)
    kept: list[CellSummary] = []
    left_out = {}
    for label, mine in sorted(lots.items()):
        first, *others = sorted(([*lot.values()] for lot in mine.values()), key=_last_choice)
        kept += sorted(first, key=lambda one: one.cell.resolution)
        if others:
            names = configuration.told_apart_by([lot[0].cell for lot in (first, *others)], LOT)
            more = [f"{_lot(lot, names)} ({len(lot)} cell{'' if len(lot) == 1 else 's'})" for lot in others]
            left_out[label] = f"drawn is {_lot(first, names)}; left out: {'; '.join(more)}."
    return kept, left_out


def _last_choice(lot: Sequence[CellSummary]) -> tuple[object, ...]:
    return (-len(lot), lot[0].cell.isolate, -sum(one.times.n for one in lot), lot[0].cell.order)


def _lot(lot: Sequence[CellSummary], names: Sequence[str]) -> str:
    said = {name: getattr(lot[0].cell, name) for name in names}
    how = ["isolated" if said.pop("isolate") else "whole"] if "isolate" in said else []
    known = {name.replace("_", " "): "none" if value in (None, "") else value for name, value in said.items()}
    return ", ".join([*how, *(f"{name} {value}" for name, value in known.items())])


def by_platform(cells: Iterable[CellSummary], suites: bool = False) -> list[tuple[Platform, str, list[CellSummary]]]:
    """Return the cells that may be drawn together: of one platform and protocol, with `suites` over the same questions.

    With each group its platform and protocol.
    """
    found: dict[tuple[tuple[str, ...], Platform, bool, str], list[CellSummary]] = {}
    for one in cells:
        about = one.cell
        first = about.questions if suites else ()
        key = (first, about.platform, about.protocol != "ttft", about.protocol)
        found.setdefault(key, []).append(one)
    return [
        (where, protocol, mine) for (_, where, _, protocol), mine in sorted(found.items(), key=lambda pair: pair[0])
    ]
