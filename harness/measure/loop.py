"""One cell: warm-up and timed examples through one loop, as a stream of records. Owns the clock and the device sync.

Each example is answered twice. The *stage pass* syncs after every event, which splits the time into stages, and makes
a fixed number of tokens (the decode rate); the *whole pass* syncs only at the first piece, which gives the undisturbed
TTFT, and answers at its natural length: that answer is scored. Whole minus stages is the residual.
"""

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from harness.clock import Clock
from harness.errors import LESS_MEMORY, ExampleError, HarnessError, out_of_memory
from harness.machine.device import Device
from harness.machine.energy import Meter, spent_mj
from harness.measure.stopping import Stopping
from harness.models.protocol import Model, Piece, Request, Seen, Work
from harness.runlog.records import Counted, Failure, Footer, Pass, Sample
from harness.suites.examples import Example

MAXIMUM_ATTEMPTS = 4
"""A machine that is never quiet must still finish: after so many refused attempts an example stays marked."""
MAXIMUM_CONSECUTIVE_FAILURES = 5
"""After so many failures in a row the cell is given up: the next example will not fare better."""
MAXIMUM_SHAPES_COUNTED = 8

MeasureRecord = Sample | Failure | Counted | Footer


class Gate(Protocol):
    """What tells whether a sample can be trusted (see `gate.py`)."""

    def before(self) -> Any: ...
    def after(self, before: Any, wall_ns: int, cpu_ns: int, headline_ns: int | None = None) -> Any: ...
    def retry_delay_ns(self, attempt: int) -> int: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """How one cell is measured."""

    examples: Sequence[Example]
    stopping: Stopping
    protocol: str = "ttft"
    """`ttft`, or `paper`: encoder and prefill of the visual tokens alone, from stage passes, to be added."""
    part: str | None = None
    """The one part that is loaded (`--isolate-stages`): only its stages are kept."""
    decode_tokens: int = 16
    score: bool = True
    """Whether every example must be answered (weights are trained), or only as many as timing needs."""
    warmups: int = 1
    finished: frozenset[str] = frozenset()
    """Examples that an earlier, unfinished run has measured already."""
    whole: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "whole", self.protocol == "ttft" and self.part is None)


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of one example's passes."""

    stages: Pass | None
    whole: Pass | None
    seen: Seen | None
    answer: str | None


def measure(
    model: Model, device: Device, clock: Clock, gate: Gate, plan: Plan, meter: Meter | None = None
) -> Iterator[MeasureRecord]:
    """Measure `plan.examples` and yield a record for each sample, failure and count; the footer comes last.

    A failed example is a `Failure`, never a score; a refused one is measured again and both are yielded. Any error that
    is not an example's own (out of memory ...) is a `Failure` too, and ends the cell when it keeps coming.
    """
    started_ns: int | None = None
    samples = failures = refused = consecutive = 0
    counted: set[tuple[int, int]] = set()
    usual: tuple[int, int] | None = None
    fired: str | None = None
    failed: set[str] = set()
    for example, phase in _order(plan, failed):
        if fired and not plan.score:
            break
        timing = phase != "timed" or not fired
        if phase == "timed" and started_ns is None:
            started_ns = clock.now_ns()
        for attempt in range(1, MAXIMUM_ATTEMPTS + 1):
            before = gate.before()
            wall_ns, cpu_ns = clock.now_ns(), clock.cpu_ns()
            try:
                measured = _passes(model, device, clock, plan, example, phase, timing, meter)
            except (KeyboardInterrupt, SystemExit, GeneratorExit):
                raise
            except Exception as error:  # noqa: BLE001 - whatever a model raises becomes a record
                failures += 1
                failed.add(example.id)
                consecutive += not isinstance(error, ExampleError)
                yield _failure(example, error)
                _forget(error)
                break
            consecutive = 0
            wall_ns, cpu_ns = clock.now_ns() - wall_ns, clock.cpu_ns() - cpu_ns
            comparable_ns = None
            if phase == "timed" and timing:
                usual = usual or _shape(measured)
                # Only samples of one shape may be compared: a wide page makes more tiles, not a slower machine.
                comparable_ns = headline_ns(measured) if _shape(measured) == usual else None
            verdict = gate.after(before, wall_ns, cpu_ns, comparable_ns)
            samples += phase == "timed"
            refused += phase == "timed" and timing and not verdict.valid
            yield _sample(example, phase, attempt, measured, verdict, device, clock)
            if measured.seen and len(counted) < MAXIMUM_SHAPES_COUNTED:
                shape = _shape(measured)
                if shape not in counted:
                    counted.add(shape)
                    yield from _count(model, measured.seen)
            if verdict.valid or phase != "timed" or not timing:
                if verdict.valid and phase == "timed" and timing:
                    plan.stopping.add(headline_ns(measured))
                break
            if _out_of_time(plan.stopping, clock, started_ns):
                break
            if attempt < MAXIMUM_ATTEMPTS:
                clock.sleep_ns(gate.retry_delay_ns(attempt))
        if consecutive >= MAXIMUM_CONSECUTIVE_FAILURES:
            fired = "failures"
            break
        if started_ns is not None:
            fired = fired or plan.stopping.fired((clock.now_ns() - started_ns) / 1e9)
    yield Footer(ended_at=now_text(), samples=samples, failures=failures, stopped=fired or "examples", refused=refused)


def _out_of_time(stopping: Stopping, clock: Clock, started_ns: int | None) -> bool:
    return started_ns is not None and stopping.fired((clock.now_ns() - started_ns) / 1e9) == "maximum_seconds"


def _order(plan: Plan, failed: set[str]) -> Iterator[tuple[Example, str]]:
    """Yield examples with their phase: cold, warm-ups of the same example (the same shape), then all timed ones.

    `failed` is looked at after each: an example that failed is not tried again, and what it was to warm up, the next
    one does. Else the process's first request would count as a timed one.
    """
    left = [example for example in plan.examples if example.id not in plan.finished]
    before = ["cold", *["warmup"] * plan.warmups]
    for example in left:
        while before and example.id not in failed:
            yield example, before[0]
            if example.id not in failed:
                del before[0]
        if not before:
            break
    for example in left:
        if example.id not in failed:
            yield example, "timed"


def _passes(
    model: Model,
    device: Device,
    clock: Clock,
    plan: Plan,
    example: Example,
    phase: str,
    timing: bool,
    meter: Meter | None,
) -> Measured:
    visual_only = plan.protocol == "paper"
    # An answer that nobody scores need not be finished: random weights never stop by themselves.
    length = example.max_new_tokens if plan.score else 1
    natural = Request(example.images, example.question, length, visual_only=visual_only)
    fixed = Request(
        example.images,
        example.question,
        max(1, plan.decode_tokens if plan.whole else 1),
        ignore_eos=True,
        visual_only=visual_only,
    )
    stages = whole = seen = answer = None
    # Alternating the order keeps what one pass leaves in the caches from favouring the same pass every time.
    order = ["stages", "whole"] if example.index % 2 else ["whole", "stages"]
    if phase == "cold":
        order = ["whole"] if plan.whole else ["stages"]
    for kind in order:
        if kind == "whole" and plan.whole:
            whole, seen, answer = time_whole(model, natural, device, clock)
        elif kind == "stages" and timing:
            stages, seen = time_stages(model, fixed, device, clock, meter)
    if plan.part and stages:
        stages = _only(stages, plan.part)
    return Measured(stages, whole, seen, answer)


def time_whole(model: Model, request: Request, device: Device, clock: Clock) -> tuple[Pass, Seen | None, str]:
    """Answer `request` undisturbed: the only sync before the end is at the first piece."""
    pieces_ns: list[int] = []
    texts: list[str] = []
    seen: Seen | None = None
    device.sync()
    cpu_ns = clock.cpu_ns()
    start_ns = clock.now_ns()
    first_cpu_ns = None
    for event in model.answer(request):
        kind = type(event)
        if kind is Piece:
            if not pieces_ns:
                device.sync()
                pieces_ns.append(clock.now_ns() - start_ns)
                first_cpu_ns = clock.cpu_ns() - cpu_ns
            else:
                pieces_ns.append(clock.now_ns() - start_ns)
            texts.append(event.text)  # type: ignore[union-attr]
        elif kind is Seen:
            seen = event  # type: ignore[assignment]
    device.sync()
    total_ns = clock.now_ns() - start_ns
    return (
        Pass(
            ttft_ns=pieces_ns[0] if pieces_ns else None,
            cpu_ns=first_cpu_ns,
            piece_ns=tuple(pieces_ns),
            total_ns=total_ns,
            output_tokens=len(pieces_ns),
        ),
        seen,
        "".join(texts),
    )


def time_stages(
    model: Model, request: Request, device: Device, clock: Clock, meter: Meter | None = None
) -> tuple[Pass, Seen | None]:
    """Answer `request` with a sync after every event; memory and energy are read between stages, off their clock."""
    stage_ns: dict[str, int] = {}
    cpu: dict[str, int] = {}
    peak: dict[str, int] = {}
    energy: dict[str, float] = {}
    stamps: dict[str, list[tuple[Any, Any]]] = {}
    pieces_ns: list[int] = []
    seen: Seen | None = None
    in_parts_ns: dict[str, int] = {}
    in_parts_cpu_ns: dict[str, int] = {}
    begun_mj: dict[str, float] = {}
    device.sync()
    device.reset_peak()
    joules = meter.read_mj() if meter else None
    cpu_ns, stamp = clock.cpu_ns(), device.stamp()
    start_ns = last_ns = clock.now_ns()
    for event in model.answer(request):
        kind = type(event)
        if kind is Seen:
            seen = event  # type: ignore[assignment]
            continue
        end_stamp = device.stamp()
        device.sync()
        now_ns = clock.now_ns()
        if kind is Piece:
            pieces_ns.append(now_ns - start_ns)
            if len(pieces_ns) == 1:
                cpu["first token"] = clock.cpu_ns() - cpu_ns
            last_ns = now_ns
            continue
        stage, part = event  # type: ignore[misc]
        name = f"{stage}.{part}" if part else stage
        stage_ns[name] = now_ns - last_ns
        if part:
            in_parts_ns[stage] = in_parts_ns.get(stage, 0) + stage_ns[name]
        else:
            stage_ns[name] += in_parts_ns.get(stage, 0)
        # From here to the next clock read nothing is timed.
        cpu[name] = clock.cpu_ns() - cpu_ns
        if part:
            in_parts_cpu_ns[stage] = in_parts_cpu_ns.get(stage, 0) + cpu[name]
        else:
            cpu[name] += in_parts_cpu_ns.get(stage, 0)
        if stamp is not None:
            stamps.setdefault(stage, []).append((stamp, end_stamp))
        bytes_now = device.peak_bytes()
        if bytes_now is not None:
            peak[stage] = max(bytes_now, peak.get(stage, 0))
            device.reset_peak()
        if meter and joules is not None:
            read = meter.read_mj()
            since = begun_mj.setdefault(stage, joules)  # a stage of several parts begins with its first
            spent = spent_mj(meter, joules if part else since, read, stage_ns[name])
            if spent is not None:
                energy[name] = spent
            joules = read
        cpu_ns, stamp = clock.cpu_ns(), device.stamp()
        last_ns = clock.now_ns()
    device.sync()
    total_ns = clock.now_ns() - start_ns
    spans = {stage: [device.elapsed_ns(a, b) for a, b in pairs] for stage, pairs in stamps.items()}
    return (
        Pass(
            stage_ns=stage_ns,
            device_ns={stage: sum(x for x in span if x is not None) for stage, span in spans.items()},
            stage_cpu_ns=cpu,
            piece_ns=tuple(pieces_ns),
            total_ns=total_ns,
            output_tokens=len(pieces_ns),
            stage_peak_bytes=peak,
            stage_energy_mj=energy,
        ),
        seen,
    )


def _only(stages: Pass, part: str) -> Pass:
    """Keep the stages that belong to an isolated part: the LLM's preprocessing only made its stand-ins' shapes."""
    keep = ("project", "prefill") if part == "llm" else ("preprocess", "encode", f"encode.{part}")

    def pick(table: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in table.items() if name in keep}

    return Pass(
        stage_ns=pick(stages.stage_ns),
        device_ns=pick(stages.device_ns),
        stage_cpu_ns=pick(stages.stage_cpu_ns),
        total_ns=stages.total_ns,
        output_tokens=stages.output_tokens,
        stage_peak_bytes=pick(stages.stage_peak_bytes),
        stage_energy_mj=pick(stages.stage_energy_mj),
    )


def _shape(measured: Measured) -> tuple[int, int]:
    """Return visual tokens and tiles, which decide how much work an example is."""
    return (measured.seen.visual_tokens, measured.seen.tiles) if measured.seen else (0, 0)


def headline_ns(measured: Measured | Sample) -> int:
    """Return the number whose precision decides when to stop: TTFT, or without one the sum of the stages."""
    if measured.whole and measured.whole.ttft_ns is not None:
        return measured.whole.ttft_ns
    if measured.stages:
        return sum(value for name, value in measured.stages.stage_ns.items() if "." not in name)
    assert measured.whole
    return measured.whole.total_ns


def _sample(
    example: Example, phase: str, attempt: int, measured: Measured, verdict: Any, device: Device, clock: Clock
) -> Sample:
    seen = measured.seen
    return Sample(
        example=example.id,
        index=example.index,
        attempt=attempt,
        phase=phase,
        at=now_text(),
        clock=clock.name,
        stages=measured.stages,
        whole=measured.whole,
        original_px=seen.original_px if seen else None,
        processed_px=seen.processed_px if seen else None,
        content_px=seen.content_px if seen else None,
        tiles=seen.tiles if seen else None,
        visual_tokens=seen.visual_tokens if seen else None,
        text_tokens=seen.text_tokens if seen else None,
        conversions=seen.conversions if seen else (),
        note=seen.note if seen else "",
        answer=measured.answer,
        references=example.references,
        image_ids=example.image_ids,
        doc=example.doc,
        valid=verdict.valid,
        reasons=tuple(verdict.reasons),
        readings=dict(verdict.readings),
        memory=dict(device.memory()),
    )


def _failure(example: Example, error: BaseException) -> Failure:
    message = str(error).strip() or type(error).__name__
    if out_of_memory(error):
        message = f"{message.splitlines()[0]}; next: {LESS_MEMORY}"
    return Failure(
        example=example.id,
        index=example.index,
        stage=_stage_of(error),
        error=type(error).__name__,
        message=message.splitlines()[0] if not isinstance(error, HarnessError) else message,
        traceback="".join(traceback.format_exception(error)),
        at=now_text(),
        doc=example.doc,
    )


def _stage_of(error: BaseException) -> str:
    """Return the adapter's function that failed, from the traceback: prepare, encode, project, prefill ..."""
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    known = {
        "prepare": "preprocess",
        "decode": "preprocess",
        "encode": "encode",
        "project": "project",
        "prefill": "prefill",
    }
    return next((known[name] for name in reversed(names) if name in known), "answer")


def _forget(error: BaseException) -> None:
    """Let go of the failed frames: after out-of-memory they hold the very tensors that the next example needs."""
    error.__traceback__ = None
    error.__context__ = None


def _count(model: Model, seen: Seen) -> Iterator[Counted]:
    work: Mapping[str, Work]
    try:
        work, note = model.work(seen), ""
    except Exception as error:  # noqa: BLE001 - a count that fails must not cost the measurement
        work, note = {}, f"not counted: {type(error).__name__}: {error}"
    if work or note:
        yield Counted(
            visual_tokens=seen.visual_tokens,
            text_tokens=seen.text_tokens,
            tiles=seen.tiles,
            flops={stage: each.flops for stage, each in work.items()},
            weight_bytes={stage: each.weight_bytes for stage, each in work.items()},
            note=note,
        )


def now_text() -> str:
    """Return the time of day for the log, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
