"""Cells to run logs: wishes are settled, weights and data found, a log is opened (or resumed), samples come in."""

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import msgspec

from harness import __version__
from harness.clock import Clock, Monotonic
from harness.errors import LESS_MEMORY, DeviceError, out_of_memory
from harness.machine import backend, energy, environment, lock, peaks
from harness.machine.device import Device
from harness.machine.energy import Meter
from harness.measure import cell as cells
from harness.measure.cell import Asked, Cell
from harness.measure.gate import Gate
from harness.measure.loop import MeasureRecord, Plan, headline_ns, measure, now_text
from harness.measure.stopping import Stopping
from harness.models import weights
from harness.models.card import ModelCard
from harness.models.protocol import Model, Options
from harness.models.weights import Source
from harness.runlog.log import Log, Writer, complete, read
from harness.runlog.records import SCHEMA, Footer, Header, Resumed
from harness.suites import examples
from harness.suites.card import SuiteCard
from harness.suites.examples import Suite

Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """A cell with everything that is needed to measure it."""

    asked: Asked
    cell: Cell
    card: ModelCard
    suite_card: SuiteCard
    source: Source
    suite: Suite
    path: Path
    notices: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether a finished log of this very cell is there already."""
        if not self.path.is_file():
            return False
        log = read(self.path)
        return log.finished and not log.cut_short

    @property
    def scored(self) -> bool:
        """Whether the answers will be scored, so that every example must be answered."""
        return self.source.trained and self.asked.protocol == "ttft" and not self.cell.part


def expand(asked: Asked, protocols: tuple[cells.Protocol, ...], processes: int) -> list[Asked]:
    """Return the runs that one command means: protocols × parts × processes, each to be a process of its own."""
    card = cells.settle(asked)[1]
    parts: list[str | None] = [*card.part_names] if asked.isolate and card.llm else [None]
    return [
        replace(asked, protocol=protocol, part=part, repetition=asked.repetition + process)
        for protocol in protocols
        for part in parts
        for process in range(processes)
    ]


def prepare(asked: Asked) -> Job:
    """Find weights and data for what was asked, and name its cell. Downloads, but measures nothing."""
    asked, card, suite_card, notices = cells.settle(asked)
    # The device first: who asked for one that is not here should not wait for data and weights to learn it.
    backend.of(asked.device).open(Monotonic())
    source = weights.resolve(card, asked.weights, asked.offline)
    suite = examples.open_suite(suite_card, asked.data, asked.limit, asked.offline)
    notices += [text for text in (source.notice, suite.notice) if text]
    assert asked.res is not None
    assert asked.dtype is not None
    cell = Cell(
        model=card.name,
        model_digest=card.digest,
        weights=source.kind,
        weights_digest=source.digest,
        suite=suite.name,
        asked_suite=suite_card.name,
        suite_digest=suite.card.digest,
        data=suite.origin,
        data_digest=suite.digest,
        resolution=asked.res,
        device=asked.device,
        engine=asked.engine,
        dtype=asked.dtype,
        protocol=asked.protocol,
        seed=asked.seed,
        settings=dict(asked.settings),
        limit=asked.limit,
        isolate=asked.isolate,
        part=asked.part,
        repetition=asked.repetition,
        decode_tokens=asked.decode_tokens,
        threads=asked.threads,
        minimum_samples=asked.minimum_samples,
        minimum_seconds=asked.minimum_seconds,
        maximum_samples=asked.maximum_samples,
        maximum_seconds=asked.maximum_seconds,
        precision=asked.precision,
    )
    path = cell.path(Path(asked.out), environment.machine_name(asked.device))
    complete(path)
    return Job(asked, cell, card, suite_card, source, suite, path, tuple(notices))


def afresh(job: Job, taken: Collection[Path] = ()) -> Job:
    """Return `job` as the next repetition of its cell that has no log yet: history is never overwritten.

    `taken` are the logs that other runs of the same command will write.
    """
    while job.path.is_file() or job.path in taken:
        repetition = job.cell.repetition + 1
        cell = replace(job.cell, repetition=repetition)
        path = cell.path(Path(job.asked.out), environment.machine_name(job.asked.device))
        job = replace(job, asked=replace(job.asked, repetition=repetition), cell=cell, path=path)
    return job


@contextmanager
def opened(asked: Asked, notify: Notify, clock: Clock | None = None) -> Iterator[tuple[Job, Model, Device, Clock]]:
    """Prepare what was asked, hold the device and load the model, without a log: for experiments and comparisons."""
    job = prepare(asked)
    for notice in job.notices:
        notify(f"note: {notice}")
    with (
        lock.hold(asked.device, asked.wait, notify),
        loaded(job, notify, clock or Monotonic()) as (model, device, clock),
    ):
        yield job, model, device, clock


@contextmanager
def loaded(job: Job, notify: Notify, clock: Clock) -> Iterator[tuple[Model, Device, Clock]]:
    """Open the device and build the model of `job`; close it at the end, whatever happens."""
    device = backend.of(job.asked.device).open(clock)
    if job.asked.threads:
        _set_threads(job.asked.threads)
    notify(f"building {job.card.title} ({job.source.kind} weights)")
    engine = cells.engine(job.cell.engine)
    options = Options(
        side=job.cell.resolution,
        device=device.torch_name,
        dtype=job.cell.dtype,
        seed=job.cell.seed,
        only=job.cell.part,
        settings={**job.card.settings, **engine.SETTINGS, **job.cell.settings},
    )
    try:
        model = engine.load(job.card, job.source, options)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        what = f"{job.cell.model} in {job.cell.dtype} does not fit into the memory of {job.cell.device}"
        raise DeviceError(f"{what}; next: {LESS_MEMORY}") from error
    try:
        yield model, device, clock
    finally:
        model.close()


def carry_out(job: Job, notify: Notify, clock: Clock | None = None) -> Iterator[MeasureRecord]:
    """Measure `job` into its log, yielding each record after it was written; a torn log is resumed."""
    clock = clock or Monotonic()
    with Writer(job.path) as writer, lock.hold(job.asked.device, job.asked.wait, notify) as unlocked:
        left = writer.reopen()
        started_ns = clock.now_ns()
        meter = energy.watched(backend.of(job.asked.device).counter())
        with loaded(job, notify, clock) as (model, device, _):
            loading_s = (clock.now_ns() - started_ns) / 1e9
            if left is None:
                peak = peaks.measure(job.asked.device, job.cell.dtype)
                header = _header(job, device, model, loading_s, peak, meter)
                writer.append(with_doubts(header, unlocked))
            else:
                writer.append(_resumed(left, device))
                notify(f"resuming {writer.part}: {len(_measured(left))} examples are measured already")
            notify("warming up")
            yield from _measure(job, left, writer, model, device, clock, meter)


def _measure(
    job: Job, left: Log | None, writer: Writer, model: Model, device: Device, clock: Clock, meter: Meter | None
) -> Iterator[MeasureRecord]:
    stopping = Stopping(cells.rule(job.cell))
    earlier = [s for s in left.samples if s.phase == "timed"] if left else []
    for sample in earlier:
        if sample.valid and sample.stages:  # without stages it was answered only, after timing had stopped
            stopping.add(headline_ns(sample))
    plan = Plan(
        examples=job.suite.examples,
        stopping=stopping,
        protocol=job.cell.protocol,
        part=job.cell.part,
        decode_tokens=job.cell.decode_tokens,
        score=job.scored,
        finished=_measured(left) if left else frozenset(),
    )
    gate = Gate(backend.of(job.asked.device).probes(), clock)
    refused = len([s for s in earlier if s.stages and not s.valid])
    before = (len(earlier), len(left.failures) if left else 0, refused)
    for record in measure(model, device, clock, gate, plan, meter):
        if isinstance(record, Footer):
            record = replace_footer(record, *before)
            writer.finish(record)
        else:
            writer.append(record)
        yield record


def replace_footer(footer: Footer, samples: int, failures: int, refused: int) -> Footer:
    """Count what an earlier process measured into the footer: the final log reads as one."""
    return Footer(
        ended_at=footer.ended_at,
        samples=footer.samples + samples,
        failures=footer.failures + failures,
        stopped=footer.stopped,
        refused=footer.refused + refused,
        note=footer.note,
    )


def _measured(log: Log) -> frozenset[str]:
    """Return the examples that need not be measured again: timed and valid, or failed for good."""
    done = {s.example for s in log.samples if s.phase == "timed" and s.valid}
    return frozenset(done | {f.example for f in log.failures if f.example and f.error == "ExampleError"})


def _header(
    job: Job, device: Device, model: Model, loading_s: float, peak: peaks.Peak | None, meter: Meter | None
) -> Header:
    asked = {field.name: getattr(job.asked, field.name) for field in fields(job.asked)}
    asked["settings"] = dict(job.asked.settings)
    return Header(
        schema=SCHEMA,
        cell=job.cell.as_dict(),
        key=job.cell.key,
        command=shlex.join(["harness", *command(job.asked)]),
        started_at=now_text(),
        harness={"version": __version__, **commit()},
        environment=dict(environment.describe(str(device.name))),
        device=dict(device.describe()),
        requested=asked,
        effective={
            **model.describe(),
            "resolution_px": job.cell.resolution,
            "loading_s": round(loading_s, 3),
            **_peak(peak),
            **_energy(meter),
        },
        cards={"model": job.card.digest, "suite": job.suite_card.digest},
        weights=job.source.as_dict(),
        data={
            "origin": job.suite.origin,
            "name": job.suite.name,
            "asked": job.suite_card.name,
            "digest": job.suite.digest,
            "examples": str(len(job.suite.examples)),
            "notice": job.suite.notice,
        },
    )


def with_doubts(header: Header, *found: str) -> Header:
    """Return the header with what makes every time of the run doubtful: the device's own answer, and those `found`."""
    asked = backend.of(str(header.cell["device"])).doubts(str(header.cell["dtype"]))
    doubts = [text for text in (*asked, *found) if text]
    return msgspec.structs.replace(header, effective={**header.effective, "doubts": doubts}) if doubts else header


def _peak(peak: peaks.Peak | None) -> dict[str, object]:
    if peak is None:
        return {}
    return {"peak_flops_per_s": peak.flops_per_s, "peak_bytes_per_s": peak.bytes_per_s, "peak_how": peak.how}


def _energy(meter: Meter | None) -> dict[str, object]:
    return {"energy_method": meter.method, "energy_resolution": meter.resolution} if meter else {"energy_method": None}


def _resumed(left: Log, device: Device) -> Resumed:
    return Resumed(
        started_at=now_text(),
        environment=dict(environment.describe(str(device.name))),
        device=dict(device.describe()),
        lines_kept=1 + len(left.samples) + len(left.failures) + len(left.counted) + len(left.resumed),
        bytes_dropped=left.torn_bytes,
    )


@cache
def commit() -> dict[str, str]:
    """Return the harness's own git commit (with `+dirty`), or nothing outside a checkout."""
    folder = Path(__file__).parent
    try:
        run = {"cwd": folder, "capture_output": True, "text": True, "timeout": 5}
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], check=True, **run).stdout.strip()  # type: ignore[call-overload]
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno", "."], check=True, **run).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": head + ("+dirty" if dirty else "")}


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def command(asked: Asked) -> list[str]:
    """Return the arguments of `harness` that ask for exactly `asked`: what a child process, or a reader, runs again."""
    standard = Asked()
    arguments = ["run"]
    for field in fields(asked):
        value = getattr(asked, field.name)
        if field.name not in STATED and value == getattr(standard, field.name):
            continue
        flag = "--" + FLAGS.get(field.name, field.name.replace("_", "-"))
        if field.name == "settings":
            arguments += [part for name, one in sorted(value.items()) for part in (flag, f"{name}={json.dumps(one)}")]
        elif isinstance(value, bool):
            arguments.append(flag)
        else:
            arguments += [flag, str(value)]
    return arguments


FLAGS = {
    "settings": "set",
    "isolate": "isolate-stages",
    "minimum_samples": "min-samples",
    "minimum_seconds": "min-seconds",
    "maximum_samples": "max-samples",
    "maximum_seconds": "max-seconds",
}
"""Flags whose name is not the field's."""

STATED = ("model", "suite", "device")
"""Said always: without `--device`, a child or a reader would get the best one of its machine, not the one measured."""


def interpreter() -> list[str]:
    """Return how a child process starts this program."""
    return [sys.executable, "-m", "harness"]
