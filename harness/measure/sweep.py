"""A grid of cells: models × resolutions × suites × devices × engines, from flags or a TOML plan, one process each.

Finished cells are skipped, failures do not stop the others, and a killed sweep goes on where it was: its state is the
run logs themselves.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import msgspec

from harness import cards
from harness.errors import CardError, HarnessError, SettingError, UnknownName
from harness.machine import backend, pool
from harness.measure import cell, command, queue, shards
from harness.measure import executor as executors
from harness.measure import request as requests
from harness.measure.asked import Asked
from harness.measure.executor import INTERRUPTED, Ended, Executor, became, in_words
from harness.measure.job import Job, afresh, expand, prepare, repeated, split

AXES = ("model", "suite", "res", "device", "engine", "protocol", "dtype")
"""What a plan may list several of, in the order in which cells run."""


LOCAL = Executor()

MOST_CELLS = 10_000
"""Of one sweep: a month of them, at five minutes each."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A cell of the grid that cannot be measured, and why: named, counted, never silently dropped."""

    asked: Asked
    reason: str


def grid(
    axes: Mapping[str, Sequence[Any]], common: Asked, processes: int = 1, here: bool = True
) -> tuple[list[Asked], list[Refused]]:
    """Return every combination of `axes` over `common` that its model can take, and those that it cannot.

    A model with fixed input sizes keeps one point of a resolution axis. Parts (`--isolate-stages`) and processes are
    expanded as `harness run` does. What is measured in jobs elsewhere (not `here`) may name a checkpoint's folder that
    only they see. Raises `UnknownName` for an axis there is none of.
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
            expanded = _unseen(asked, processes) if not here and cell.unseen(asked.model, asked.offline) else None
            if expanded is None:
                asked = replace(asked, res=cell.settle(asked, here).resolution)
                expanded = expand(asked, (asked.protocol,), processes, here)
        except SettingError as error:
            refused.append(Refused(asked, str(error)))
            continue
        for one in expanded:
            text = repr(one)
            if text not in seen:
                seen.add(text)
                wanted.append(one)
    return wanted, refused


def _unseen(asked: Asked, processes: int) -> list[Asked]:
    """Return the runs of a model whose card cannot be made here: the jobs check what was asked."""
    if asked.isolate:
        raise SettingError(f"--isolate-stages: {asked.model} is not here, so its parts are not known; next: a card")
    runs = [replace(asked, repetition=asked.repetition + process) for process in range(processes)]
    return [one for each in runs for one in split(each)]


def read_plan(path: Path) -> list[tuple[dict[str, list[object]], dict[str, object]]]:
    """Read a TOML plan: each `[[grid]]` lists axes and its own options; what stands above is common to all grids."""
    table, _ = cards.table(path)
    table.pop("executor", None)
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
                raise UnknownName(f"option in {path}", name, [*Asked.__dataclass_fields__, "grid", "executor"])
        try:
            options = _typed(options)
            axes = {name: [_typed({name: value})[name] for value in values] for name, values in axes.items()}
        except (msgspec.ValidationError, SettingError) as error:
            raise CardError(f"{path}: {error}; next: see docs/sweep.md") from error
        result.append((axes, options))
    return result


def _typed(options: dict[str, object]) -> dict[str, object]:
    """Return the options as `Asked` has them: 0 seconds becomes 0.0, as a child process will read it, and key it."""
    asked = msgspec.convert(options, Asked)
    return {name: getattr(asked, name) for name in options}


def read_executor(path: Path | None, name: str | None, texts: Sequence[str]) -> Executor:
    """Return the executor that a plan's `[executor]` and the command line name, which beats the plan.

    Raises `UnknownName` for an executor or an option that there is not.
    """
    table = cards.table(path)[0].get("executor", {}) if path else {}
    if not isinstance(table, dict):
        raise CardError(f"{path}: executor must be a table, as [executor]; next: see docs/cluster.md")
    told = {key: value for key, value in table.items() if key != "by"}
    chosen = name or str(table.get("by", "local"))
    options = executors.options(texts, told if chosen == table.get("by", chosen) else {})
    title = str(options.pop("name", path.stem if path else "vlm-pareto"))
    return Executor(chosen, options, title).check()


Grids = list[tuple[dict[str, Any], dict[str, Any]]]


def pooled(by: Executor, device: str | None, grids: Grids) -> tuple[Executor, str | None, Grids]:
    """Make a pool of `cuda:all` and `cuda:0,cuda:1`: the executor `pool`, and cells on a `cuda` that each process has.

    This process too sees the pool's devices alone, so that what it asks of its device is true of theirs.
    """
    told = {device} if device else _said(grids)
    told |= {str(by.options["devices"])} if "devices" in by.options else set()
    pools = {one for one in told if pool.is_pool(one)}
    if not pools:
        return by, device, grids
    if len(told) > 1 or by.name not in ("local", "pool"):
        raise SettingError(
            f"--device {', '.join(sorted(told))}: a pool goes by itself, and not with {by.name}; next: one"
        )
    (text,) = pools
    kind = pool.kind(text)
    os.environ.update(backend.of(kind).seeing(pool.looked_at(text)))
    grids = [(_without_device(axes), _without_device(common)) for axes, common in grids]
    return replace(by, name="pool", options={"devices": f"{kind}:all"}), kind, grids


def _without_device(table: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in table.items() if name != "device"}


def _said(grids: Grids) -> set[str]:
    """Return the devices that a plan names."""
    axes = [str(one) for axes, _ in grids for one in axes.get("device", ())]
    return {*axes, *(str(common["device"]) for _, common in grids if "device" in common)}


def check_named(model: bool, device: bool, grids: Sequence[tuple[Mapping[str, object], Mapping[str, object]]]) -> None:
    """Refuse to let this host decide what jobs on others measure: its best device and its weights are not theirs."""
    if not model:
        raise SettingError("--model: say which, as the jobs' hosts may have other weights than this one")
    if not device and not all("device" in axes or "device" in common for axes, common in grids):
        raise SettingError("--device: say which the jobs are to use, as cuda: this host's best one is not theirs")


def run_all(
    wanted: Sequence[Asked],
    again: bool = False,
    by: Executor = LOCAL,
    notify: Callable[[str], None] = lambda text: None,
) -> Iterator[Ended]:
    """Measure the cells, each in a process of its own; yield what became of each as it ends.

    Finished ones are skipped ("measured already"); one that cannot even be prepared is told, and the others go on.
    Raises `KeyboardInterrupt` when a child was interrupted.
    """
    cells = queue.run_all(wanted, again, by, notify) if by.elsewhere and wanted else _run_here(wanted, again, by)
    yield from shards.gathered(cells, notify, by.leave)


def _run_here(wanted: Sequence[Asked], again: bool, by: Executor) -> Iterator[Ended]:
    waiting: list[Job] = []
    chosen: dict[Path, Job] = {}
    for asked in wanted:
        try:
            job = prepare(asked)
            if again:
                job = _afresh(job, chosen)
            if (log := job.measured) is None:
                waiting.append(job)
                continue
        except HarnessError as error:
            yield Ended(requests.title(asked), None, error.exit_code, str(error), asked)
            continue
        told = job.since(pooled=by.name == "pool")
        since = f" (changed since: {told}; --again measures it once more)" if told else ""
        found = became(log.path)
        yield Ended(_title(job), log.path, found.code, found.says(f" already{since}"), job.wished, already=True)
    # A child is asked what was asked here, so that its log has the request by which a queue's host would look for it.
    commands = [[*command.interpreter(), *command.arguments(job.wished), "--bare"] for job in waiting]
    folder = Path(waiting[0].wished.out) if waiting else Path()
    for position, code in by.here.submit(commands, folder, by.options):
        if code in INTERRUPTED:
            raise KeyboardInterrupt
        yield _ended(waiting[position], code)


def _afresh(job: Job, chosen: dict[Path, Job]) -> Job:
    """Return the next repetition of a cell that has no log yet, the same one for all shards of it."""
    began = job.whole
    if began not in chosen:
        chosen[began] = afresh(job, {one.whole for one in chosen.values()})
    return repeated(job, chosen[began].cell.repetition)


def _ended(job: Job, code: int) -> Ended:
    """Say what became of a cell whose process has ended: its log tells, however well the process has ended."""
    path = next((one for one in (job.whole, job.path) if one.is_file()), None)
    if code:
        return Ended(_title(job), path, code, in_words(code, job.cell.device), job.wished)
    if path is None:
        lost = (
            "its process ended well, but not with this cell's log: weights, data or the machine have changed meanwhile"
        )
        return Ended(_title(job), None, 1, f"{lost}; next: the same command ({job.path.name})", job.wished)
    found = became(path)
    return Ended(_title(job), path, found.code, found.says(), job.wished)


def _title(job: Job) -> str:
    return job.cell.title + (f" shard {job.asked.shard}/{job.asked.shards}" if job.asked.shard else "")
