"""At which image side each text of a page becomes readable: dealt out, so that the shares over the suite are exact."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from harness.suites.pages.draw import Draw

READABLE_PX = 8.0
"""The x-height, in pixels of the square image, at which text counts as readable."""

BANDS = ((208, 256), (390, 512), (670, 768), (920, 1024), (1300, 1700))
"""Sides of the square at which text of each band becomes readable: above the last band's reach, up to its own."""

DEMANDS = ((0, 1, 2, 3, 4), (0, 1, 1, 2, 3), (0, 1, 2, 3, 4), (0, 1, 2, 2, 3))
"""The bands of the five questions of a page, by turns: 20 % in the first, 25, 25, 20, and 10 % beyond 1024."""

SHARES = {256: 0.20, 512: 0.45, 768: 0.70, 1024: 0.90}
"""Share of the questions that are readable at each side, by the demands above."""


@dataclass(frozen=True, slots=True)
class Group:
    """Text set in one size: the bands it may be in and how many questions it answers at least."""

    bands: tuple[int, ...]
    fields: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """The band of every group, with the drawn side and the largest the band allows."""

    bands: Mapping[str, int]
    sides: Mapping[str, tuple[float, int]]


def deal(draw: Draw, groups: Mapping[str, Group], demands: tuple[int, ...]) -> Plan:
    """Give every group a band, so that each demanded band has as many questions as are demanded of it."""
    wanted = Counter(demands)
    for _ in range(1000):
        bands = {name: draw.choice(group.bands) for name, group in groups.items()}
        have: Counter[int] = Counter()
        for name, group in groups.items():
            have[bands[name]] += group.fields
        if wanted <= have:
            sides = {name: (draw.spread(*BANDS[band]), BANDS[band][1]) for name, band in bands.items()}
            return Plan(bands, sides)
    raise ValueError(f"no deal of {dict(groups)} meets {demands}")
