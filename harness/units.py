"""Quantities as people read them."""

from collections.abc import Iterable


def milliseconds(ns: float | None) -> str:
    """Return nanoseconds as a time with three significant digits: `512 µs`, `16.6 ms`, `4.66 s`; `–` for None."""
    if ns is None:
        return "–"
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if abs(ns) >= size:
            return f"{_three(ns / size)} {unit}"
    return f"{ns:.0f} ns"


def _three(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def size(count: float | None) -> str:
    """Return bytes with three significant digits: `1.24 GB` (powers of 1000); `–` for None."""
    if count is None:
        return "–"
    for unit, step in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{_three(count / step)} {unit}"
    return f"{count:.0f} B"


def some(names: Iterable[str], most: int) -> str:
    """Return the first names, at most so many, and how many more there are: `a, b and 3 more`."""
    every = list(names)
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "")
