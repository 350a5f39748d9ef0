"""What the gate asks the machine: one file per part of it. Probes take their readers as arguments; none ever raises."""

from dataclasses import dataclass
from typing import Protocol

Value = float | str | None
Readings = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Span:
    """What lies between two readings: wall time and our own CPU time."""

    wall_ns: int
    cpu_ns: int


class Probe(Protocol):
    """Reads one part of the machine and judges a sample by the readings on both sides of it."""

    def read(self) -> Readings:
        """Return what the machine says now; None for what it does not tell. Never raises."""
        ...

    def judge(self, before: Readings, after: Readings, span: Span) -> tuple[list[str], Readings]:
        """Return reasons to refuse the sample, and the readings for the log."""
        ...
