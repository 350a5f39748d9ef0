"""A grid of cells: models × resolutions × suites × devices × engines, from flags or a TOML plan, one process each.

Finished cells are skipped, failures do not stop the others, and a killed sweep goes on where it was: its state is the
run logs themselves.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from harness import cards, plugins
from harness.errors import CardError, HarnessError, SettingError, UnknownName
from harness.machine import backend
from harness.measure import cell, command
from harness.measure.asked import Asked
from harness.measure.job import Job, afresh, expand, prepare

AXES = ("model", "suite", "res", "device", "engine", "protocol", "dtype")
"""What a plan may list several of, in the order in which cells run."""


MOST_CELLS = 10_000
"""Of one sweep: a month of them, at five minutes each."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A cell of the grid that cannot be measured, and why: named, counted, never silently dropped."""

    asked: Asked
    reason: str


def grid(axes: Mapping[str, Sequence[Any]], common: Asked, processes: int = 1) -> tuple[list[Asked], list[Refused]]:
    """Return every combination of `axes` over `common` that its model can take, and those that it cannot.

    A model with fixed input sizes keeps one point of a resolution axis. Parts (`--isolate-stages`) and processes are
    expanded as `harness run` does. Raises `UnknownName` for an axis there is none of.
    """
    for name in axes:
        if name not in AXES:
            raise UnknownName("axis of a sweep", name, AXES)
    names = [name for name in AXES if axes.get(name)]
    cells = math.prod(len(axes[name]) for name in names)
    if cells * processes > MOST_CELLS:
        raise SettingError(f"a grid of {cells * processes} cells; next: at most {MOST_CELLS} at a time")
    wanted: list[Asked] = []
    refused: list[Refused] = []
    seen = set()
    for values in product(*(axes[name] for name in names)):
        asked = replace(common, **dict(zip(names, values, strict=True)))
        try:
            settled = cell.settle(asked)
        except SettingError as error:
            refused.append(Refused(asked, str(error)))
            continue
        asked = replace(asked, res=settled.resolution)
        for one in expand(asked, (asked.protocol,), processes):
            text = repr(one)
            if text not in seen:
                seen.add(text)
                wanted.append(one)
    return wanted, refused


def read_plan(path: Path) -> list[tuple[dict[str, list[Any]], dict[str, Any]]]:
    """Read a TOML plan: each `[[grid]]` lists axes and its own options; what stands above is common to all grids."""
    table, _ = cards.table(path)
    grids = table.pop("grid", [{}])
    grids = [grids] if isinstance(grids, dict) else grids
    if not isinstance(grids, list) or not all(isinstance(one, dict) for one in grids):
        raise CardError(f"{path}: grid must be a table or a list of tables, as [[grid]]; next: see docs/sweep.md")
    result = []
    for one in grids:
        axes = {name: one[name] if isinstance(one[name], list) else [one[name]] for name in AXES if name in one}
        options = {**table, **{name: value for name, value in one.items() if name not in AXES}}
        for name in options:
            if name not in Asked.__dataclass_fields__:
                raise UnknownName(f"option in {path}", name, [*Asked.__dataclass_fields__, "grid"])
        try:
            options = _typed(options)
            axes = {name: [_typed({name: value})[name] for value in values] for name, values in axes.items()}
        except (msgspec.ValidationError, SettingError) as error:
            raise CardError(f"{path}: {error}; next: see docs/sweep.md") from error
        result.append((axes, options))
    return result


def _typed(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options as `Asked` has them: 0 seconds becomes 0.0, as a child process will read it, and key it."""
    asked = msgspec.convert(options, Asked)
    return {name: getattr(asked, name) for name in options}


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of one cell: its log if there is one, and in words how it went."""

    title: str
    path: Path | None
    code: int
    message: str


def run_all(wanted: Sequence[Asked], again: bool = False, executor: str = "local") -> Iterator[Ended]:
    """Measure the cells, each in a process of its own; yield what became of each as it ends.

    Finished ones are skipped ("measured already"); one that cannot even be prepared is told, and the others go on.
    Raises `KeyboardInterrupt` when a child was interrupted.
    """
    submit = plugins.load("executors", executor).submit
    waiting: list[Job] = []
    for asked in wanted:
        try:
            job = prepare(asked)
            if again:
                job = afresh(job, {one.path for one in waiting})
            if not job.finished:
                waiting.append(job)
                continue
        except HarnessError as error:
            yield Ended(f"{asked.suite} {asked.model} {asked.device}", None, error.exit_code, str(error))
            continue
        yield Ended(job.cell.title, job.path, 0, "measured already")
    commands = [[*command.interpreter(), *command.arguments(job.asked), "--bare"] for job in waiting]
    for position, code in submit(commands, Path(waiting[0].asked.out) if waiting else Path(), {}):
        if code in INTERRUPTED:
            raise KeyboardInterrupt
        job = waiting[position]
        yield Ended(job.cell.title, job.path if job.path.is_file() else None, code, _in_words(code, job.cell.device))


INTERRUPTED = (130, -2, -15)
KILLED = (137, -9)


def _in_words(code: int, device: str) -> str:
    if code in KILLED:
        return f"killed, probably for want of memory; next: {backend.less_memory(device)}"
    return "measured" if code == 0 else f"exit code {code}"
