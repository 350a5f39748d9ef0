"""What reports are made of: run logs, read and scored, and what each of their cells came to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.reports import accuracy as scoring
from harness.reports import frame, summary
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
