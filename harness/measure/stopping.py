"""When is enough: until both minima, out at either maximum, or when the median is known well enough."""

from collections.abc import Hashable
from dataclasses import dataclass, fields

from harness.errors import SettingError
from harness.stats import alike, median_interval, modes

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


def rule_of(wishes: object) -> Rule:
    """Return the rule that `wishes` (what was asked, or a cell) has in fields of the same names."""
    return Rule(**{field.name: getattr(wishes, field.name) for field in fields(Rule)})


class Stopping:
    """Takes the valid samples one by one and says which rule fired.

    The interval is looked at after every sample, so its 95 % is nominal; the report computes it anew from raw samples.
    Precision is not believed of a machine that has two speeds (samples of one shape in two heaps): the interval then
    closes around whichever speed was met more often. Two kinds of pages are no two speeds: preprocessing is left out.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._taken_ns: list[int] = []
        self._clusters: list[str] = []
        self._by_shape_ns: dict[Hashable, list[int]] = {}

    def add(self, ttft_ns: int, cluster: str | None = None, shape: Hashable = (), page_ns: int = 0) -> None:
        """Take one valid sample; `cluster` names its image, and only samples of one `shape` are compared in speed.

        `page_ns` of it the page decides, whatever the machine: how long its file is decoded and resized.
        """
        self._clusters.append(f"\0{len(self._clusters)}" if cluster is None else cluster)
        self._taken_ns.append(ttft_ns)
        self._by_shape_ns.setdefault(shape, []).append(ttft_ns - page_ns)

    @property
    def count(self) -> int:
        """Return how many samples there are."""
        return len(self._taken_ns)

    def half_width(self, all_images: bool = False) -> float | None:
        """Return half the width of the median's interval over the median; None while there are too few samples.

        Images are clusters, unless all of the suite's are among the samples: then none was left to chance.
        """
        clusters = None if all_images else self._clusters
        return median_interval(self._taken_ns, LEVEL, clusters).relative_half_width

    @property
    def two_speeds(self) -> bool:
        """Whether samples of equal work fall into two heaps further apart than the precision asked for."""
        found = modes(alike(self._by_shape_ns.values()))
        return found is not None and found.upper - found.lower > 2 * self.rule.precision

    def fired(self, elapsed_s: float, represents: bool = True, all_images: bool = False) -> str | None:
        """Return "precision", "maximum_samples" or "maximum_seconds", or None to go on.

        Precision is believed only past both minima, and of samples whose shapes stand for the suite's (`represents`);
        a maximum ends the cell in any case.
        """
        if self.count >= self.rule.minimum_samples and elapsed_s >= self.rule.minimum_seconds and represents:
            half = self.half_width(all_images)
            if half is not None and half <= self.rule.precision and not self.two_speeds:
                return "precision"
        if self.count >= self.rule.maximum_samples:
            return "maximum_samples"
        if elapsed_s >= self.rule.maximum_seconds:
            return "maximum_seconds"
        return None
