"""One answer, timed: undisturbed up to the first token (`time_whole`), or split into stages (`time_stages`).

Between two clock reads there is nothing of ours but the device's sync; what is kept of a stage is read after its clock.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar, cast

from harness.clock import Clock
from harness.machine.device import Device
from harness.machine.energy import Meter, spent_mj
from harness.models.protocol import Done, Event, Model, Piece, Request, Seen, Thought, Told, stage_after
from harness.runlog.records import Pass

Number = TypeVar("Number", int, float, int | None)


def note_stage(error: BaseException, done: Event | None) -> None:
    """Write down on `error` what the model was working on when it was raised."""
    error.failed_in = stage_after(done)  # type: ignore[attr-defined]


def failed_stage(error: BaseException) -> str:
    """Return the stage in which an answer broke off with `error`."""
    return str(getattr(error, "failed_in", "answer"))


@dataclass(frozen=True, slots=True)
class Bench:
    """What a pass is run with: the device that is waited for, the clock that is read, the meter if there is one."""

    device: Device
    clock: Clock
    meter: Meter | None = None


@dataclass(slots=True)
class Collector:
    """Python's garbage collector, held back while a cell is measured."""

    frozen: bool = False

    def freeze(self) -> None:
        """Put everything that is there now (the model, the libraries) out of the collector's sight."""
        gc.collect()
        gc.freeze()
        self.frozen = True

    def collect(self) -> None:
        """Collect what the last example left behind, before the next one; what was frozen is not looked at."""
        gc.disable()  # again: another cell, measured in turns with this one, may have ended and switched it on
        if self.frozen:
            gc.collect()


@contextmanager
def undisturbed() -> Iterator[Collector]:
    """Keep garbage collection out of every pass: a full one looks at all objects, for tens of milliseconds."""
    was_on, collector = gc.isenabled(), Collector()
    gc.disable()
    try:
        yield collector
    finally:
        if collector.frozen:
            gc.unfreeze()
        if was_on:
            gc.enable()


GARBAGE = "frozen after warm-up, collected between examples only"
"""What the log says of garbage collection."""


def time_whole(model: Model, request: Request, bench: Bench) -> tuple[Pass, Seen | None, str]:
    """Answer `request` undisturbed: the only sync before the end is at the first piece.

    What the model raises comes out with the stage that was being worked on (`failed_stage`).
    """
    device, clock = bench.device, bench.clock
    pieces_ns: list[int] = []
    thoughts_ns: list[int] = []
    texts: list[str] = []
    seen: Seen | None = None
    told: Told | None = None
    done: Event | None = None
    first_cpu_ns = ended_ns = None
    try:
        # A generator does nothing yet; the client of a server builds its request here, outside the clock.
        events = model.answer(request)
        device.sync()
        cpu_ns = clock.cpu_ns()
        start_ns = clock.now_ns()
        for event in events:
            kind = type(event)
            if kind is Piece:
                if not pieces_ns:
                    device.sync()
                    pieces_ns.append(clock.now_ns() - start_ns)
                    first_cpu_ns = clock.cpu_ns() - cpu_ns
                else:
                    pieces_ns.append(clock.now_ns() - start_ns)
                texts.append(event.text)  # type: ignore[union-attr]
                done = event
            elif kind is Seen:
                seen = event  # type: ignore[assignment]
            elif kind is Thought:
                thoughts_ns.append(clock.now_ns() - start_ns)
            elif kind is Told:
                ended_ns, told = clock.now_ns() - start_ns, event  # type: ignore[assignment]
            else:
                done = event
        device.sync()
    except BaseException as error:
        note_stage(error, done)
        raise
    total_ns = ended_ns or clock.now_ns() - start_ns
    _verify(model)
    return (
        Pass(
            ttft_ns=pieces_ns[0] if pieces_ns else None,
            cpu_ns=first_cpu_ns,
            piece_ns=tuple(pieces_ns),
            total_ns=total_ns,
            output_tokens=len(pieces_ns) if told is None else told.output_tokens or 0,
            thought_ns=thoughts_ns[0] if thoughts_ns else None,
            thoughts_ns=tuple(thoughts_ns),
            server=dict(told.facts()) if told else {},
        ),
        seen,
        "".join(texts),
    )


def time_stages(model: Model, request: Request, bench: Bench) -> tuple[Pass, Seen | None]:
    """Answer `request` with a sync after every event; memory and energy are read between stages, off their clock.

    What the model raises comes out with the stage that was being worked on (`failed_stage`).
    """
    split = _Split(bench)
    split.begin()
    with hearing(model, split.take):
        try:
            for event in model.answer(request):
                split.take(event)
            bench.device.sync()
        except BaseException as error:
            note_stage(error, split.done)
            raise
    taken = split.end()
    _verify(model)
    return taken, split.seen


def _verify(model: Model) -> None:
    """Refuse a pass whose numbers are not finite: it has a time, but no answer."""
    if hasattr(model, "verify"):
        model.verify()


@contextmanager
def hearing(model: Model, take: Callable[[Event], None]) -> Iterator[None]:
    """Let a model tell events that happen inside a library's call, where it cannot yield (`model.hear`)."""
    if not hasattr(model, "hear"):
        yield
        return
    model.hear = take
    try:
        yield
    finally:
        model.hear = None


@dataclass(slots=True)
class _Split:
    """A stage pass being taken: what each stage took, and where the clock, the stamps and the counters stood before."""

    bench: Bench
    seen: Seen | None = None
    done: Event | None = None
    stage_ns: dict[str, int] = field(default_factory=dict)
    cpu_ns: dict[str, int] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    energy_mj: dict[str, float] = field(default_factory=dict)
    pieces_ns: list[int] = field(default_factory=list)
    _stamps: dict[str, list[tuple[object, object]]] = field(default_factory=dict)
    _parts_ns: dict[str, int] = field(default_factory=dict)
    _parts_cpu_ns: dict[str, int] = field(default_factory=dict)
    _begun_mj: dict[str, float] = field(default_factory=dict)
    _joules_mj: float | None = None
    _stamp: object = None
    _cpu_ns: int = 0
    _start_ns: int = 0
    _last_ns: int = 0

    def begin(self) -> None:
        device, clock, meter = self.bench.device, self.bench.clock, self.bench.meter
        device.sync()
        device.reset_peak()
        self._joules_mj = meter.read_mj() if meter else None
        self._cpu_ns, self._stamp = clock.cpu_ns(), device.stamp()
        self._start_ns = self._last_ns = clock.now_ns()

    def take(self, event: Event) -> None:
        """End the stage that `event` names, as soon as the device has done it."""
        device, clock = self.bench.device, self.bench.clock
        kind = type(event)
        if kind is Seen:
            self.seen = event  # type: ignore[assignment]
            return
        if kind is Piece and self.pieces_ns:
            # Its token is on the host, so it was waited for; a sync would wait for a step that was asked for ahead too.
            self.done = event
            self._piece(clock.now_ns())
            return
        end_stamp = device.stamp()
        device.sync()
        now_ns = clock.now_ns()
        self.done = event
        if kind is Piece:
            self._piece(now_ns)
            return
        stage, part = cast(Done, event)  # a server's events come in whole passes alone
        name = f"{stage}.{part}" if part else stage
        # From here to the next clock read nothing is timed.
        self._add(self.stage_ns, self._parts_ns, stage, name, now_ns - self._last_ns)
        self._add(self.cpu_ns, self._parts_cpu_ns, stage, name, clock.cpu_ns() - self._cpu_ns)
        if self._stamp is not None:
            self._stamps.setdefault(stage, []).append((self._stamp, end_stamp))
        self._read_peak(stage)
        self._read_energy(stage, name, part)
        self._cpu_ns, self._stamp = clock.cpu_ns(), device.stamp()
        self._last_ns = clock.now_ns()

    def _piece(self, now_ns: int) -> None:
        self.pieces_ns.append(now_ns - self._start_ns)
        if len(self.pieces_ns) == 1:
            self.cpu_ns["first token"] = self.bench.clock.cpu_ns() - self._cpu_ns
        self._last_ns = now_ns

    @staticmethod
    def _add(table: dict[str, int], parts: dict[str, int], stage: str, name: str, value: int) -> None:
        """Put one stage's or part's value down; a stage of several parts is all of them and what came after."""
        if name != stage:
            parts[stage] = parts.get(stage, 0) + value
            table[name] = value
        else:
            table[name] = value + parts.get(stage, 0)

    def _read_peak(self, stage: str) -> None:
        bytes_now = self.bench.device.peak_bytes()
        if bytes_now is not None:
            self.peak_bytes[stage] = max(bytes_now, self.peak_bytes.get(stage, 0))
            self.bench.device.reset_peak()

    def _read_energy(self, stage: str, name: str, part: str) -> None:
        meter = self.bench.meter
        if not meter or self._joules_mj is None:
            return
        read = meter.read_mj()
        since = self._begun_mj.setdefault(stage, self._joules_mj)  # a stage of several parts begins with its first
        spent = spent_mj(meter, self._joules_mj if part else since, read, self.stage_ns[name])
        if spent is not None:
            self.energy_mj[name] = spent
        self._joules_mj = read

    def end(self) -> Pass:
        """Return the pass; the device has been waited for."""
        device = self.bench.device
        total_ns = self.bench.clock.now_ns() - self._start_ns
        spans = {stage: [device.elapsed_ns(a, b) for a, b in pairs] for stage, pairs in self._stamps.items()}
        return Pass(
            stage_ns=self.stage_ns,
            device_ns={stage: sum(x for x in span if x is not None) for stage, span in spans.items()},
            stage_cpu_ns=self.cpu_ns,
            piece_ns=tuple(self.pieces_ns),
            total_ns=total_ns,
            output_tokens=len(self.pieces_ns),
            stage_peak_bytes=self.peak_bytes,
            stage_energy_mj=self.energy_mj,
        )


def keep_part(stages: Pass, part: str) -> Pass:
    """Keep the stages that belong to an isolated part: the LLM's preprocessing only made its stand-ins' shapes."""
    keep = ("project", "prefill") if part == "llm" else ("preprocess", "encode", f"encode.{part}")

    def pick(table: dict[str, Number]) -> dict[str, Number]:
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
