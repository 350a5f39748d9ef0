"""What must be known of a night's numbers wherever they are shown: the marks and the doubts of its cells."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from harness.reports import accuracy as scoring
from harness.reports import marks, summary
from harness.reports.frame import Frame
from harness.track.nights import Reading


@dataclass(frozen=True, slots=True)
class Signs:
    """Marks by name, in their order, and doubts as sentences."""

    marks: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()

    @property
    def text(self) -> list[str]:
        """A line for each: what a mark means, what is doubtful."""
        return [*marks.legend(self.marks), *(f"doubt: {doubt}" for doubt in self.doubts)]


def of(*frames: Frame | None) -> Signs:
    """Return the signs of all cells in these logs; of cells without a timed sample only the marks."""
    cells = [one for logs in frames if logs and logs.records for one in summary.summaries(logs, scoring.of(logs))]
    doubts = dict.fromkeys(doubt for one in cells if one.times.n for doubt in one.doubts)
    return Signs(marks.of_all(one.marks for one in cells), tuple(doubts))


def of_both(reading: Reading, baseline: str) -> Signs:
    """Return the signs of a night and of what it was measured beside; a doubt says whose it is."""
    mine, theirs = of(reading.candidate), of(reading.baseline)
    doubts = [*_named(reading.night, mine.doubts), *_named(baseline, theirs.doubts)]
    return Signs(marks.of_all((mine.marks, theirs.marks)), tuple(doubts))


def _named(name: str, doubts: Iterable[str]) -> Iterator[str]:
    return (f"{name}: {doubt}" for doubt in doubts)
