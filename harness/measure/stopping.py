"""When is enough: until both minima, out at either maximum, or when the median is known well enough."""

from bisect import insort
from dataclasses import dataclass

from harness.errors import SettingError
from harness.stats import median_rank

LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Rule:
    """How long to measure. `precision`: half the width of the median's 95 % interval over the median (0.02 is ±2 %)."""

    minimum_samples: int = 8
    minimum_seconds: float = 2.0
    maximum_samples: int = 200
    maximum_seconds: float = 120.0
    precision: float = 0.02

    def __post_init__(self) -> None:
        for name in ("samples", "seconds"):
            least, most = getattr(self, f"minimum_{name}"), getattr(self, f"maximum_{name}")
            if least < 0 or most <= 0 or least > most:
                raise SettingError(
                    f"--min-{name} {least:g} and --max-{name} {most:g}: 0 <= minimum <= maximum, and maximum > 0"
                )
        if not self.precision >= 0:
            raise SettingError(f"--precision {self.precision}: 0 or more, e.g. 0.02 for 2 %")


class Stopping:
    """Takes the valid samples one by one and says which rule fired.

    The interval is looked at after every sample, so its 95 % is nominal; the report computes it anew from raw samples.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._ordered_ns: list[int] = []

    def add(self, ttft_ns: int) -> None:
        """Take one valid sample."""
        insort(self._ordered_ns, ttft_ns)

    @property
    def count(self) -> int:
        """Return how many samples there are."""
        return len(self._ordered_ns)

    @property
    def half_width(self) -> float | None:
        """Return half the width of the median's interval over the median; None while there are too few samples."""
        ordered, n = self._ordered_ns, len(self._ordered_ns)
        rank = median_rank(n, LEVEL)
        if rank is None:
            return None
        median_ns = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
        return (ordered[n - rank] - ordered[rank - 1]) / 2 / median_ns if median_ns > 0 else None

    def fired(self, elapsed_s: float) -> str | None:
        """Return "precision", "maximum_samples" or "maximum_seconds", or None to go on.

        Precision is believed only past both minima; a maximum ends the cell in any case.
        """
        if self.count >= self.rule.minimum_samples and elapsed_s >= self.rule.minimum_seconds:
            half = self.half_width
            if half is not None and half <= self.rule.precision:
                return "precision"
        if self.count >= self.rule.maximum_samples:
            return "maximum_samples"
        if elapsed_s >= self.rule.maximum_seconds:
            return "maximum_seconds"
        return None
