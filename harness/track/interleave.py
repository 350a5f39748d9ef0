"""Two arms measured in one job, example by example, in alternating order; each writes a run log of its own.

What slows the machine for a minute slows both: the ratio of the pairs does not see it. Measuring half: no pandas here.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from harness import files
from harness.errors import LESS_MEMORY, HarnessError, out_of_memory, passes
from harness.machine import backend, environment, lock
from harness.measure import conditions, estimate, run, sweep
from harness.measure.asked import Asked
from harness.measure.job import Job, prepare
from harness.measure.loop import MAXIMUM_ATTEMPTS, MeasureRecord, now_text
from harness.models.deployment import OF_THE_PROCESS
from harness.runlog.log import Writer
from harness.runlog.records import SCHEMA, Failure, Footer, Header, Sample

R = TypeVar("R")
MEMORY_SHARE = 0.8
"""Two models are loaded at once only if their estimate stays below this share of the free memory."""


TROUBLE = "trouble.txt"
"""In a job's folder: why it could not be measured, for the process that asked."""


def trouble(folder: Path) -> str:
    """Return why the job in `folder` could not be measured, as its process wrote it down, or nothing."""
    try:
        return (folder / TROUBLE).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def measure(candidate: Asked, baseline: Asked | None, notify: Callable[[str], None]) -> list[Path]:
    """Measure both arms as `_measure` does; trouble of this machine's is written down for the process that asked."""
    try:
        return _measure(candidate, baseline, notify)
    except (HarnessError, OSError, MemoryError, RuntimeError) as error:
        told = str(error).strip() or f"out of memory; next: {LESS_MEMORY}"
        with suppress(OSError):
            files.write_atomically(Path(candidate.out).parent / TROUBLE, told)
        raise


def _measure(candidate: Asked, baseline: Asked | None, notify: Callable[[str], None]) -> list[Path]:
    """Measure both arms now (or the candidate alone) and return their logs, the candidate's first.

    The candidate is loaded first: if it cannot be loaded, its log says so and the baseline is not measured. Where
    memory does not hold both, the arms alternate in whole processes (B A A B), which cancels less.
    """
    jobs = [prepare(asked) for asked in (candidate, baseline) if asked is not None]
    for job in jobs:
        for notice in job.notices:
            notify(f"note: {notice}")
        notify(f"measuring {job.cell.title} of {job.source.folder or job.source.kind}")
    paths = [job.path for job in jobs]
    if all(job.finished for job in jobs):
        return paths
    apart = baseline is not None and (_switched_unlike(*jobs) or _too_large(candidate, baseline))
    if baseline is not None and apart:
        notify(f"{apart}: arms alternate process by process")
        return _by_process(candidate, baseline, notify)
    with lock.hold(candidate.device, candidate.wait, notify):
        arms = [_arm(job, notify) for job in jobs]
        for arm, record in alternate(*arms):
            if arm == 0 and isinstance(record, Failure) and record.example is None:
                break  # the checkpoint is broken: there is nothing to compare the baseline with
    return paths


def alternate(*arms: Iterator[R]) -> Iterator[tuple[int, R]]:
    """Take turns: A B, B A, A B ... A turn ends with an example that needs no further attempt. One may end before."""
    live, turn = [True] * len(arms), 0
    while any(live):
        for arm in range(len(arms)) if turn % 2 == 0 else reversed(range(len(arms))):
            if not live[arm]:
                continue
            for record in arms[arm]:
                yield arm, record
                if _ends_turn(record):
                    break
            else:
                live[arm] = False
        turn += 1


def _ends_turn(record: object) -> bool:
    if isinstance(record, Failure):
        return True
    if not isinstance(record, Sample):
        return False
    last = record.attempt == MAXIMUM_ATTEMPTS or record.stages is None
    return record.valid or record.phase != "timed" or last


def _arm(job: Job, notify: Callable[[str], None]) -> Iterator[MeasureRecord]:
    """Measure one arm; a model that cannot be loaded becomes a log that says so, and not an error."""
    if job.finished:
        return
    begun = False
    try:
        for record in run.run_job(job, notify):
            begun = True
            yield record
    except Exception as error:
        if begun or out_of_memory(error) or passes(type(error).__name__, str(error)) or isinstance(error, OSError):
            raise  # this machine's trouble, not the checkpoint's
        notify(f"{job.cell.title} cannot be loaded: {error}")
        yield _broken(job, error)


def _broken(job: Job, error: Exception) -> Failure:
    """Write the log of a checkpoint that cannot be loaded: a header, the failure, a footer."""
    failure = Failure(
        example=None,
        index=None,
        stage="load",
        error=type(error).__name__,
        message=str(error).strip() or type(error).__name__,
        traceback="".join(traceback.format_exception(error)),
        at=now_text(),
    )
    with Writer(job.path) as writer:
        if writer.open() is not None:
            raise error
        writer.append(
            Header(
                schema=SCHEMA,
                cell=job.cell.as_dict(),
                key=job.cell.key,
                command="",
                started_at=now_text(),
                harness=conditions.harness(),
                environment=dict(environment.describe(job.asked.device)),
                device={"name": job.asked.device},
                requested={},
                effective={},
                cards={"model": job.card.digest, "suite": job.suite_card.digest},
                weights=job.source.as_dict(),
                data={"origin": job.suite.origin, "name": job.suite.name, "digest": job.suite.digest},
            )
        )
        writer.append(failure)
        writer.finish(Footer(ended_at=now_text(), samples=0, failures=1, stopped="failures", note="not loaded"))
    return failure


def _switched_unlike(*jobs: Job) -> str:
    """Say which of the process's switches the arms want unlike: one would be timed with the other's."""
    wanted = [{name: job.cell.settings.get(name) for name in OF_THE_PROCESS} for job in jobs]
    unlike = [name for name in OF_THE_PROCESS if len({repr(each[name]) for each in wanted}) > 1]
    return f"the arms differ in {', '.join(unlike)}, which a process has once" if unlike else ""


def _too_large(candidate: Asked, baseline: Asked) -> str:
    return "" if fit_together(candidate, baseline) else "both models do not fit into memory at once"


def fit_together(a: Asked, b: Asked) -> bool:
    """Return whether both models fit at once, by their counts; True where that cannot be told."""
    free = backend.of(a.device).free_bytes()
    if free is None:
        return True
    wanted = [estimate.estimate(asked, None).memory_bytes for asked in (a, b)]
    if any(size is None for size in wanted):
        return True
    return sum(size for size in wanted if size is not None) <= MEMORY_SHARE * free


def _by_process(candidate: Asked, baseline: Asked, notify: Callable[[str], None]) -> list[Path]:
    """Measure baseline, candidate, candidate, baseline, each in a fresh process: two rounds at once."""
    first = 2 * candidate.repetition
    order = [(baseline, first), (candidate, first), (candidate, first + 1), (baseline, first + 1)]
    wanted = [replace(asked, repetition=repetition) for asked, repetition in order]
    for number, ended in enumerate(sweep.run_all(wanted), 1):
        notify(f"[{number}/{len(wanted)}] {ended.title}: {ended.message}")
    return [prepare(wanted[1]).path, prepare(wanted[0]).path]
