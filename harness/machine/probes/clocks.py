"""Is an accelerator's clock steady? Judged by its own steady state, not by what its maximum is.

A card under its power cap, or with its clock locked on purpose, never sees its maximum: that is its normal state, and
its times are good as long as the clock stays where it is. What spoils a cell is a clock that moves within it.
"""

from statistics import median

FALLEN = 0.90
"""Share of the steady clock below which it has fallen: cards under a power cap dither by up to 5 %."""
FALLEN_HOT = 0.97
"""The same while the card says that it slows down because of heat."""
SETTLED_SPREAD = 0.05
SETTLED_AFTER = 5
"""So many readings in a row within so narrow a band are a steady state, wherever it lies."""
EXACT_AFTER = 3
LOCKED_BELOW = 0.97
"""Share of the maximum; a clock that stands still to the megahertz below it was locked, not capped."""


class SteadyClock:
    """Learns one cell's steady clock from the readings after its samples."""

    def __init__(self, maximum_mhz: float | None) -> None:
        self._maximum_mhz = maximum_mhz
        self._recent_mhz: list[float] = []
        self._steady_mhz: float | None = None

    def fell(self, mhz: float, hot: bool = False) -> bool:
        """Take a reading, and return whether it lies below the steady state (before that: below the highest so far).

        A clock that has settled lower is the new steady state: what the card can keep up is what it is.
        """
        reference = self._steady_mhz or max(self._recent_mhz, default=mhz)
        self._recent_mhz = [*self._recent_mhz[-(SETTLED_AFTER - 1) :], mhz]
        highest = max(self._recent_mhz)
        if len(self._recent_mhz) == SETTLED_AFTER and highest - min(self._recent_mhz) <= SETTLED_SPREAD * highest:
            reference = self._steady_mhz = median(self._recent_mhz)
        return mhz < (FALLEN_HOT if hot else FALLEN) * reference

    def locked(self) -> bool:
        """Return whether the last readings are equal, and below the maximum: somebody locked the clock there."""
        recent = self._recent_mhz[-EXACT_AFTER:]
        if self._maximum_mhz is None or len(recent) < EXACT_AFTER:
            return False
        return len(set(recent)) == 1 and recent[0] < LOCKED_BELOW * self._maximum_mhz

    def share(self, mhz: float) -> float | None:
        """Return the clock over the maximum: a fact for the log, nothing to judge by."""
        return round(mhz / self._maximum_mhz, 3) if self._maximum_mhz else None
