"""A job to its run log: the device is held, the model is built, samples come in; a torn log is resumed."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields

import msgspec

from harness.clock import Clock, Monotonic
from harness.errors import CardError, DeviceError, HarnessError, LogError, SettingError, out_of_memory
from harness.machine import backend, energy, environment, lock, peaks
from harness.machine.device import Device
from harness.machine.devices.cpu import usable_cores
from harness.machine.energy import Meter
from harness.measure import cell as cells
from harness.measure import command, conditions, profile, sampling, shards
from harness.measure.asked import Asked
from harness.measure.gate import Gate
from harness.measure.job import Job, prepare
from harness.measure.loop import MeasureRecord, Plan, cluster, headline_ns, measure, now_text, of_page_ns
from harness.measure.passes import GARBAGE, Bench
from harness.measure.stopping import Stopping
from harness.models import weights
from harness.models.protocol import Examined, Model, Options, Request
from harness.runlog.log import Log, Writer, complete
from harness.runlog.records import SCHEMA, Footer, Header, Resumed, Sample

Notify = Callable[[str], None]


@contextmanager
def opened(asked: Asked, notify: Notify, clock: Clock | None = None) -> Iterator[tuple[Job, Model, Device, Clock]]:
    """Prepare what was asked, hold the device and load the model, without a log: for experiments and comparisons."""
    job = prepare(asked)
    for notice in job.notices:
        notify(f"note: {notice}")
    with (
        lock.hold(job.cell.device, asked.wait, notify),
        loaded(job, notify, clock or Monotonic()) as (model, device, clock),
    ):
        yield job, model, device, clock


@contextmanager
def loaded(job: Job, notify: Notify, clock: Clock) -> Iterator[tuple[Model, Device, Clock]]:
    """Open the device and build the model of `job`; close it at the end, whatever happens."""
    device = backend.of(job.cell.device).open(clock)
    _set_threads(job.cell.threads)
    notify(f"building {job.card.title} ({job.source.kind} weights)")
    engine = cells.engine(job.cell.engine)
    options = Options(
        side=job.cell.resolution,
        device=device.torch_name,
        dtype=job.cell.dtype,
        seed=job.cell.seed,
        only=job.cell.part,
        settings={**job.card.settings, **engine.SETTINGS, **job.cell.settings},
        endpoint=job.cell.endpoint,
    )
    try:
        model = engine.load(job.card, job.source, options)
    except Exception as error:
        _explain(job, error)
        raise
    weights.check_unchanged(job.source)
    told = model.describe().get("configuration", "")
    if "checkpoint" in told:
        notify(f"note: {job.source.folder}: its own configuration counts where the card differs: {told}")
    try:
        if isinstance(model, Examined):
            notify("asking the server what it does with requests")
            model.examine(clock)
        yield model, device, clock
    finally:
        model.close()


def _explain(job: Job, error: Exception) -> None:
    """Say in our words why a model cannot be built: no memory, or a card of the user's own; else do nothing."""
    if isinstance(error, HarnessError):
        return
    if out_of_memory(error):
        what = f"{job.cell.model} in {job.cell.dtype} does not fit into the memory of {job.cell.device}"
        raise DeviceError(f"{what}; next: {backend.less_memory(job.cell.device)}") from error
    if job.asked.model.endswith(".toml"):  # whatever a library raises
        what = f"no model can be built of it: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        raise CardError(f"{job.asked.model}: {what}; next: mend the card; HARNESS_TRACEBACK=1 shows where") from error


def run_job(job: Job, notify: Notify, clock: Clock | None = None) -> Iterator[MeasureRecord]:
    """Measure `job` into its log, yielding each record after it was written; a torn log is resumed."""
    clock = clock or Monotonic()
    with Writer(job.path) as writer, lock.hold(job.cell.device, job.asked.wait, notify) as unlocked:
        complete(job.path)
        if (there := job.measured) is not None:  # by whoever held the device while this process waited for it
            notify(f"measured already, by another run meanwhile: {there.path}")
            return
        left = writer.reopen()
        started_ns = clock.now_ns()
        with loaded(job, notify, clock) as (model, device, _):
            loading_s = (clock.now_ns() - started_ns) / 1e9
            meter = energy.watched(backend.of(job.cell.device).counter(), clock)
            if left is None:
                peak = peaks.measure(job.cell.device, job.cell.dtype) if job.asked.shard < 2 else None
                header = _header(job, device, model, loading_s, peak, meter)
                told = (*told_doubts(device), *told_doubts(model))
                found = (unlocked, crowded(job.cell.threads, usable_cores()), *job.doubts, *told)
                writer.append(with_doubts(header, *found))
            else:
                check_same_server(left, model)
                check_same_conditions(left, str(device.name), notify)
                writer.append(_resumed(left, device))
                notify(f"resuming {writer.part}: {len(left.done)} examples are measured already")
            notify("warming up")
            yield from _measure(job, left, writer, model, device, clock, meter)


def _measure(
    job: Job, left: Log | None, writer: Writer, model: Model, device: Device, clock: Clock, meter: Meter | None
) -> Iterator[MeasureRecord]:
    stopping = Stopping(job.cell.rule)
    drawn = sampling.draw(job.suite.examples, job.cell.seed, getattr(model, "foresee", None))
    earlier = [s for s in left.samples if s.phase == "timed"] if left else []
    for sample in earlier:
        if sample.valid and sample.timed:  # otherwise it was answered only, after timing had stopped
            shape = (sample.visual_tokens, sample.tiles)
            stopping.add(headline_ns(sample), cluster(sample), shape, of_page_ns(sample))
    plan = Plan(
        examples=job.suite.examples,
        stopping=stopping,
        protocol=job.cell.protocol,
        part=job.cell.part,
        decode_tokens=job.cell.decode_tokens,
        score=job.scored,
        finished=left.done if left else frozenset(),
        timed_before=frozenset(sample.example for sample in earlier if sample.valid and sample.timed),
        drawn=drawn,
        stages=not job.cell.endpoint,
        concurrency=job.cell.concurrency,
        mine=shards.share(drawn.order, job.asked.shard, job.asked.shards) if job.asked.shard else None,
        timing=job.asked.shard < 2,
        load=tuple(n for n in job.cell.load if n not in {one.concurrency for one in (left.loaded if left else ())}),
    )
    gate = Gate(backend.of(job.cell.device).probes(), clock)
    refused = len([s for s in earlier if s.timed and not s.valid])
    before = (len(earlier), len(left.failures) if left else 0, refused)
    usual = next(filter(None, map(_usual, earlier)), None)
    for record in measure(model, device, clock, gate, plan, meter):
        usual = usual or _usual(record)
        if isinstance(record, Footer):
            if usual and usual.stages and record.stopped != "failures" and not (left and left.busy + left.energy):
                request = _request(plan, usual)
                aside_meter = None if job.asked.skip_energy else meter
                for aside in profile.profile(model, Bench(device, clock, aside_meter), request, usual.stages):
                    writer.append(aside)
            record = replace_footer(record, *before)
            writer.finish(record)
        else:
            writer.append(record)
        yield record


def _usual(record: object) -> Sample | None:
    """Return the record if it is a sample that counts: on its example the passes off the record are made."""
    counts = isinstance(record, Sample) and record.phase == "timed" and record.valid and record.stages
    return record if counts and isinstance(record, Sample) else None


def _request(plan: Plan, sample: Sample) -> Request:
    example = plan.examples[sample.index]  # by its position: looking through them would read every image
    room = plan.room(example.max_new_tokens)
    return Request(example.images, example.question, visual_only=plan.protocol == "paper", room=room)


def replace_footer(footer: Footer, samples: int, failures: int, refused: int) -> Footer:
    """Count what an earlier process measured into the footer: the final log reads as one."""
    return msgspec.structs.replace(
        footer,
        samples=footer.samples + samples,
        failures=footer.failures + failures,
        refused=footer.refused + refused,
    )


def _header(
    job: Job, device: Device, model: Model, loading_s: float, peak: peaks.Peak | None, meter: Meter | None
) -> Header:
    asked = {field.name: getattr(job.asked, field.name) for field in fields(job.asked)}
    asked["settings"] = dict(job.asked.settings)
    return Header(
        schema=SCHEMA,
        cell=job.cell.as_dict(),
        key=job.cell.key,
        command=shlex.join(["harness", *command.arguments(job.asked)]),
        started_at=now_text(),
        harness=conditions.harness(),
        environment=dict(environment.describe(str(device.name))),
        device=dict(device.describe()),
        requested=asked,
        effective={
            **model.describe(),
            "resolution_px": job.cell.resolution,
            **({"decided": "; ".join(job.decisions)} if job.decisions else {}),
            "loading_s": round(loading_s, 3),
            "garbage_collection": GARBAGE,
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
            "order": f"{job.cell.sampling}, seed {job.cell.seed}",
            "notice": job.suite.notice,
            **job.suite.facts,
        },
        suite_card=job.suite.card.as_dict(),
        request=job.request,
    )


def with_doubts(header: Header, *found: str) -> Header:
    """Return the header with what makes every time of the run doubtful: the device's own answer, and those `found`."""
    asked = backend.of(str(header.cell["device"])).doubts(str(header.cell["dtype"]))
    doubts = [text for text in (*asked, *found) if text]
    return msgspec.structs.replace(header, effective={**header.effective, "doubts": doubts}) if doubts else header


def told_doubts(loaded: Model | Device) -> tuple[str, ...]:
    """Return what a server's probes doubt, a model of ours of its own answers, or a device of what was put on it."""
    return tuple(getattr(loaded, "doubts", ()))


def check_same_server(left: Log, model: Model) -> None:
    """Refuse to go on with a log that another server, or another version of it, has begun."""
    if not isinstance(model, Examined):
        return
    was, now = left.header.effective, model.describe()
    for name in model.IDENTITY:
        if was.get(name) != now.get(name):
            raise LogError(
                f"{left.path}: begun with a server whose {name} was {was.get(name)!r}, which is {now.get(name)!r} now; "
                "next: move the file away, or start the server as it was"
            )


def check_same_conditions(left: Log, device: str, notify: Notify) -> None:
    """Refuse to go on with a log under other conditions: its median would be of two machines. Tell of another harness.

    Raises `LogError`.
    """
    changed = conditions.changed(left.header.environment, device)
    if changed:
        raise LogError(
            f"{left.path}: begun under other conditions ({changed}); next: run as it was begun, or move the file away"
        )
    if told := conditions.changed_harness(left):
        notify(f"note: the log was begun by another harness ({told}): its samples are of both")


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


TORCHS_OWN: list[int] = []
"""How many threads torch took before anybody asked for another number."""


def _set_threads(threads: int | None) -> None:
    """Have torch use so many threads, or as many as it took by itself: another run here may have changed that."""
    import torch

    TORCHS_OWN[:] = TORCHS_OWN or [torch.get_num_threads()]
    wanted = threads or TORCHS_OWN[0]
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)
    if torch.get_num_threads() != wanted:
        raise SettingError(
            f"--threads {threads}: torch runs {torch.get_num_threads()} threads all the same; next: less"
        )


def crowded(threads: int | None, cores: int) -> str:
    """Return a doubt where there are more threads than cores to run them."""
    if not threads or threads <= cores:
        return ""
    return f"{threads} threads wait for each other on {cores} cores; next: --threads {cores}"
