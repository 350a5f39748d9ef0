"""Passes of their own after the timing, off its record: how busy the device is in each stage, and what a stage draws.

The host's time of a stage of many small kernels is the time to launch them, and events around them show the same: only
the kernels' own time tells how busy the device was. A profiler slows the host down, so its pass is never timed.

An energy counter moves every 20 to 100 ms and a stage takes 5 to 50. So an answer is broken off after the stage and
asked for anew, back to back, until the counter has moved often enough; the stage is what that draws beyond the same up
to the stage before.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from harness.clock import Clock
from harness.machine.device import CountsWork, Device
from harness.machine.energy import UPDATES_NEEDED, Meter
from harness.measure.passes import Bench, hearing
from harness.models.protocol import DECODE, Done, Event, Model, Piece, Request, Seen, Told
from harness.runlog.records import Busy, Energy, Pass, StageEnergy

PIECES = 4
"""Three tokens beyond the first are enough to see how busy a step is."""
UPDATES_WATCHED = 20
SHORTEST_NS = 300_000_000
LONGEST_NS = 20_000_000_000
"""How long one stage is repeated: so many moves of the counter, at least and at most so long."""
FIRST_TOKEN = "first token"


def profile(model: Model, bench: Bench, request: Request, usual: Pass) -> Iterator[Busy | Energy]:
    """Measure one request once more, each kind of figure in passes of its own; what fails is a note, never an error.

    `usual` is a timed stage pass of the same request: it says which stages are too short for the meter.
    """
    if isinstance(bench.device, CountsWork):
        try:
            found = busy_ns(model, bench.device, replace(request, max_new_tokens=PIECES, ignore_eos=True))
            yield Busy(
                stage_busy_ns=found if any(found.values()) else {},
                stage_ns=_usual_ns(usual),
                pieces=PIECES - 1,
                method=bench.device.work_method,
                note="" if any(found.values()) else "the profiler saw no work on the device",
            )
        except Exception as error:  # noqa: BLE001 - the cell is measured already, and must not be lost
            yield Busy(stage_busy_ns={}, stage_ns={}, pieces=0, method=bench.device.work_method, note=_words(error))
    if bench.meter:
        try:
            yield energy(model, bench, replace(request, max_new_tokens=1), usual)
        except Exception as error:  # noqa: BLE001 - as above
            yield Energy(stages={}, idle_w=None, method=bench.meter.method, note=_words(error))


def _usual_ns(usual: Pass) -> dict[str, int]:
    """Return what the stages took when they were timed, and as many tokens after the first as are profiled."""
    found = {stage: ns for stage, ns in usual.stage_ns.items() if "." not in stage}
    if len(usual.piece_ns) > 1:
        each_ns = (usual.piece_ns[-1] - usual.piece_ns[0]) / (len(usual.piece_ns) - 1)
        found[DECODE] = round(each_ns * (PIECES - 1))
    return found


def _words(error: Exception) -> str:
    return f"not measured: {type(error).__name__}: {error}".splitlines()[0]


# --- how busy ---


def busy_ns(model: Model, device: CountsWork, request: Request) -> dict[str, int]:
    """Return by stage how long the device computed; `decode` is all tokens after the first together."""
    stages: list[str] = []
    pieces = 0
    work = device.work()

    def take(event: Event) -> None:
        nonlocal pieces
        if isinstance(event, Seen | Told):
            return
        stages.append(event.stage if isinstance(event, Done) else DECODE if pieces else FIRST_TOKEN)
        pieces += isinstance(event, Piece)
        work.cut()

    try:
        with hearing(model, take):
            for event in model.answer(request):
                take(event)
    except BaseException:
        with suppress(Exception):  # what went wrong first is what is told
            work.close()
        raise
    spans_ns = work.close()
    found: dict[str, int] = {}
    for stage, span_ns in zip(stages, spans_ns, strict=True):
        found[stage] = found.get(stage, 0) + span_ns
    return found


# --- what it draws ---


@dataclass(frozen=True, slots=True)
class Drawn:
    """What repeating something drew: energy and time each time, and how far off the counter's steps may put it."""

    each_mj: float
    each_ns: float
    error_mj: float
    repetitions: int

    @property
    def watts(self) -> float:
        """Millijoules per millisecond are watts."""
        return self.each_mj / (self.each_ns / 1e6)


def energy(model: Model, bench: Bench, request: Request, usual: Pass) -> Energy:
    """Return what each stage that is too short for the meter draws beyond the idle device."""
    meter, clock = bench.meter, bench.clock
    assert meter
    stages = [name for name in usual.stage_ns if "." not in name]
    short = [name for name in stages if usual.stage_ns[name] < UPDATES_NEEDED * meter.update_ns]
    if not short:
        return Energy(stages={}, idle_w=None, method=meter.method, note="every stage is long enough to be read itself")
    idle = repeat(lambda: clock.sleep_ns(max(1, meter.update_ns // 4)), meter, clock)
    if idle is None:
        return Energy(stages={}, idle_w=None, method=meter.method, note="the counter stood still")
    found: dict[str, StageEnergy] = {}
    before: Drawn | None = Drawn(0.0, 0.0, 0.0, 1)
    for stage in stages[: stages.index(short[-1]) + 1]:
        drawn = None
        if answer_until(model, request, stage, bench.device):  # once, to know that the stage can be broken off after
            drawn = repeat(lambda stage=stage: answer_until(model, request, stage, bench.device), meter, clock)  # type: ignore[misc]
        if drawn and before:
            found[stage] = _between(before, drawn, idle)
        before = drawn
    return Energy(
        stages=found, idle_w=idle.watts, method=meter.method, note="" if found else "no stage could be repeated alone"
    )


def answer_until(model: Model, request: Request, stage: str, device: Device) -> bool:
    """Answer up to the end of `stage`, and return whether the model said where that is."""
    answer = model.answer(request)
    try:
        reached = any(isinstance(event, Done) and event.stage == stage and not event.part for event in answer)
        device.sync()
        return reached
    finally:
        close = getattr(answer, "close", None)
        if close:
            close()


def repeat(run: Callable[[], object], meter: Meter, clock: Clock) -> Drawn | None:
    """Repeat `run` until the counter has moved often enough; None where it has not, or cannot be read.

    Energy and time are taken from one move of the counter to another. Either move was seen at most one repetition late,
    or the counter was at most one update old, whichever is shorter: that is the error, at both ends together.
    """
    window_ns = max(SHORTEST_NS, UPDATES_WATCHED * meter.update_ns)
    start_ns, last_mj = clock.now_ns(), meter.read_mj()
    moves: list[tuple[int, int, float]] = []
    repetitions = 0
    while last_mj is not None and clock.now_ns() - start_ns < LONGEST_NS:
        run()
        repetitions += 1
        now_mj = meter.read_mj()
        if now_mj is not None and now_mj != last_mj:
            moves.append((repetitions, clock.now_ns(), now_mj))
            if moves[-1][1] - moves[0][1] >= window_ns:
                break
        last_mj = now_mj
    if len(moves) < 3:
        return None
    (first, first_ns, first_mj), (last, end_ns, end_mj) = moves[0], moves[-1]
    count, took_ns, spent_mj = last - first, end_ns - first_ns, end_mj - first_mj
    late_ns = min(meter.update_ns, took_ns / count)
    return Drawn(spent_mj / count, took_ns / count, spent_mj / took_ns * late_ns / count, count)


def _between(before: Drawn, after: Drawn, idle: Drawn) -> StageEnergy:
    """Return what a stage draws: an answer up to its end, less one up to the stage before, less the idle device."""
    gross_mj, took_ns = after.each_mj - before.each_mj, after.each_ns - before.each_ns
    net_mj = gross_mj - idle.watts * took_ns / 1e6
    error_mj = after.error_mj + before.error_mj + idle.error_mj * max(0.0, took_ns) / idle.each_ns
    return StageEnergy(
        above_idle_mj=net_mj,
        low_mj=net_mj - error_mj,
        high_mj=net_mj + error_mj,
        gross_mj=gross_mj,
        repetitions=after.repetitions,
    )
