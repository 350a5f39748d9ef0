"""In what cells that are compared were not measured alike, beyond what names them: packages, driver, variables, a pool.

Each cell by itself is right, and the step between two of them may be a library's. So whatever compares cells says in a
line or two what differs, and between which of them; a cell whose own logs differ has a doubt of its own.
"""

from collections.abc import Iterable, Mapping, Sequence

from harness.reports.configuration import Configuration
from harness.reports.summary import CellSummary
from harness.runlog import conditions
from harness.units import some

MOST_TOLD = 6
"""Values of one line; of what else differs the names are told."""
MOST_NAMED = 4
FIRST = ("torch", "transformers", "timm", "torchvision", "pillow", "numpy", "mlx", "mlx_lm", "coremltools")
"""Packages that do what is timed."""
WHY = "which alone may set them apart"

Facts = Mapping[str, Sequence[str]]
"""By name, the values: one for each side."""


def notes(cells: Iterable[CellSummary]) -> tuple[str, ...]:
    """Say in what these cells were not measured alike: a line for each way in which that divides them."""
    mine = list(dict.fromkeys(cells))
    by_split: dict[tuple[tuple[int, ...], ...], dict[str, Sequence[str]]] = {}
    ours: list[str] = []
    for name, texts in conditions.between([one.headers for one in mine]).items():
        if name.startswith(conditions.OURS):
            ours.append(name)
            continue
        values = list(dict.fromkeys(text for text in texts if text))
        split = tuple(tuple(at for at, text in enumerate(texts) if text == value) for value in values)
        by_split.setdefault(split, {})[name] = values
    told = [_split(split, facts, [one.cell for one in mine]) for split, facts in by_split.items()]
    return (*told, *([_ours(ours, mine)] if ours else []))


def of_pairs(pairs: Iterable[tuple[str, Sequence[CellSummary]]]) -> tuple[str, ...]:
    """Say of which named pairs the two sides were not measured alike: a line for all that differ in the same."""
    unlike: dict[str, list[str]] = {}
    for name, (first, second) in pairs:
        found = conditions.between([first.headers, second.headers])
        ours = {fact: values for fact, values in found.items() if fact.startswith(conditions.OURS)}
        facts = {fact: values for fact, values in found.items() if fact not in ours}
        if facts:
            sides = [_values(facts, side) for side in (0, 1)]
            told = f"were not measured under the same conditions, {WHY}: {sides[0]} against {sides[1]}{_rest(facts)}"
            unlike.setdefault(told, []).append(name)
        if ours:
            unlike.setdefault("were measured by different commits or versions of the harness", []).append(name)
    return tuple(f"the two sides of {some(dict.fromkeys(names), MOST_NAMED)} {told}" for told, names in unlike.items())


def _split(split: Sequence[Sequence[int]], facts: Facts, cells: Sequence[Configuration]) -> str:
    """Return the line of facts that divide the cells in one way, the largest side last."""
    order = sorted(range(len(split)), key=lambda side: len(split[side]))
    sides = [f"{_values(facts, side)} ({_who([cells[at] for at in split[side]])})" for side in order[:-1]]
    largest = split[order[-1]]
    others = f"the other {len(largest)} cells" if len(largest) > 2 else _who([cells[at] for at in largest])
    sides.append(f"{_values(facts, order[-1])} ({others})")
    return f"not measured under the same conditions, {WHY}: {'; '.join(sides)}{_rest(facts)}"


def _values(facts: Facts, side: int) -> str:
    return ", ".join(f"{name} {facts[name][side]}" for name in _order(facts)[:MOST_TOLD])


def _rest(facts: Facts) -> str:
    left = _order(facts)[MOST_TOLD:]
    return f"; {', '.join(left)} differ too" if left else ""


def _order(facts: Facts) -> list[str]:
    """Return the names, first those that most likely make a difference: variables, the device's own, packages."""

    def key(name: str) -> tuple[bool, str]:
        return not (name in FIRST or name.isupper() or name.startswith("device's ")), name

    return sorted(facts, key=key)


def _who(cells: Iterable[Configuration]) -> str:
    """Name cells: each model once, with its resolutions, and how it was run where that is not the usual way."""
    sides: dict[str, list[int]] = {}
    for one in cells:
        how = [one.protocol if one.protocol != "ttft" else "", "isolated" if one.isolate else ""]
        sides.setdefault(" ".join(filter(None, [one.label, *how])), []).append(one.resolution)
    named = (f"{name} at {', '.join(map(str, sorted({*px})))} px" for name, px in sides.items())
    return some(named, MOST_NAMED)


def _ours(names: Sequence[str], cells: Sequence[CellSummary]) -> str:
    """Say which commits of the harness there are; where they differ in none, which versions or states of its code."""
    values = conditions.differences([header for one in cells for header in one.headers])
    kinds = {"commit": "commits", "version": "versions", "code": "states of the code"}
    kind = next((kind for kind in kinds if f"{conditions.OURS}{kind}" in names), "code")
    told = values.get(f"{conditions.OURS}{kind}", ())
    return f"measured by several {kinds[kind]} of the harness" + (f": {some(told, MOST_NAMED)}" if told else "")
