"""One cell: warm-up and timed examples through one loop, as a stream of records.

Each example is answered twice. The *stage pass* syncs after every event, which splits the time into stages, and makes
a fixed number of tokens (the decode rate); the *whole pass* syncs only at the first piece, which gives the undisturbed
TTFT, and answers at its natural length: that answer is scored. Whole minus stages is the residual.
"""

import traceback
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from math import log2
from typing import Any, Protocol

from harness.clock import Clock
from harness.errors import ExampleError, HarnessError, ServerError, out_of_memory
from harness.machine import backend
from harness.machine.device import Device
from harness.machine.energy import Meter
from harness.measure import concurrency, scoring
from harness.measure.gate import Verdict, retry_delay_ns
from harness.measure.passes import Bench, Collector, failed_stage, keep_part, time_stages, time_whole, undisturbed
from harness.measure.sampling import Drawn, Timed
from harness.measure.stopping import Stopping
from harness.models.protocol import Model, Request, Seen, Work
from harness.runlog.records import Counted, Failure, Footer, Loaded, Pass, Sample
from harness.suites.examples import Example

MAXIMUM_ATTEMPTS = 4
"""A machine that is never quiet must still finish: after so many refused attempts an example stays marked."""
MAXIMUM_CONSECUTIVE_FAILURES = 5
"""After so many failures in a row the cell is given up: the next example will not fare better."""
MAXIMUM_SHAPES_COUNTED = 8

UNJUDGED = Verdict(True)
"""Of what was answered for its score alone, beside other requests."""

MeasureRecord = Sample | Failure | Counted | Loaded | Footer


class Gate(Protocol):
    """What tells whether a sample can be trusted (see `gate.py`)."""

    def before(self) -> object: ...
    def after(
        self, before: Any, wall_ns: int, cpu_ns: int, headline_ns: int | None = None, shape: Hashable = ()
    ) -> Verdict: ...
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
    stages: bool = True
    """Whether there is a stage pass; a server shows no stages, and has been warmed up by its probes."""
    concurrency: int = 1
    """How many examples are answered at a time once timing has stopped (a server alone can do that)."""
    load: tuple[int, ...] = ()
    """Numbers of requests at a time for which a server is timed under load, in the end."""
    finished: frozenset[str] = frozenset()
    """Examples that an earlier, unfinished run has measured already."""
    timed_before: frozenset[str] = frozenset()
    """Those of them that were timed, and not only answered."""
    drawn: Drawn | None = None
    """The order of the examples and their shapes (`sampling.draw`); None: as the data have them, shapes unknown."""
    mine: frozenset[int] | None = None
    """Positions of the examples that are this shard's to answer, once timing has stopped; None: all."""
    timing: bool = True
    """Whether anything is timed here; of several shards the first one times."""
    whole: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "whole", self.protocol == "ttft" and self.part is None)

    @property
    def fixed_tokens(self) -> int:
        """How many tokens a stage pass makes."""
        return max(1, self.decode_tokens if self.whole else 1)

    def room(self, max_new_tokens: int) -> int:
        """Return for how many new tokens the cache of every pass over an example has room (`Request.room`)."""
        return max(self.fixed_tokens, max_new_tokens if self.score else 1)


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of one example's passes."""

    stages: Pass | None
    whole: Pass | None
    seen: Seen | None
    answer: str | None
    counts: bool | None = None
    """Whether its times count, where no stage pass says it (`Sample.counts`)."""
    asked_tokens: int | None = None
    """How long the answer was allowed to be, in tokens."""
    answer_tokens: int | None = None
    """How long it is, where no whole pass says it."""
    shared: str = ""
    """What it shared with other questions, if it was answered for its score alone."""
    finish: str = ""
    """Why a server ended it, where no whole pass says it."""


def measure(
    model: Model, device: Device, clock: Clock, gate: Gate, plan: Plan, meter: Meter | None = None
) -> Iterator[MeasureRecord]:
    """Measure `plan.examples` and yield a record for each sample, failure and count; the footer comes last.

    A failed example is a `Failure`, never a score; a refused one is measured again and both are yielded. Any error that
    is not an example's own (out of memory ...) is a `Failure` too, and ends the cell when it keeps coming.
    """
    return _Loop(model, Bench(device, clock, meter), gate, plan).run()


@dataclass(slots=True)
class _Loop:
    """One cell being measured: what has been counted so far, and whether timing may stop."""

    model: Model
    bench: Bench
    gate: Gate
    plan: Plan
    started_ns: int | None = None
    samples: int = 0
    failures: int = 0
    refused: int = 0
    failures_in_a_row: int = 0
    fired: str | None = None
    """Why timing has stopped: the name of the stopping rule, or `failures`."""
    failed: set[str] = field(default_factory=set)
    _asked: set[str] = field(default_factory=set)
    """Examples that were asked to be timed; the others are answered for their score alone."""
    _counted: set[tuple[int, int]] = field(default_factory=set)
    _known: set[Hashable] = field(default_factory=set)
    """Shapes that this process has met: those foreseen, and those that the model told."""
    _timed: Timed = field(init=False)

    def __post_init__(self) -> None:
        self._timed = Timed(self.plan.drawn or Drawn((), {}))
        self.fired = None if self.plan.timing else "shard"
        for example in self.plan.timed_before:
            self._timed.add(example)

    def run(self) -> Iterator[MeasureRecord]:
        """Measure one example after the other, and yield what comes of each."""
        with undisturbed() as collector:
            for example, phase in (order := _order(self.plan, self.failed)):
                if self.fired and (not self.plan.score or self._others(example)):
                    break
                if self.fired and self.plan.concurrency > 1:
                    yield from self._many(chain([example], (one for one, _ in order)))
                    break
                if self.fired and self.plan.whole and isinstance(self.model, scoring.AnswersAll):
                    yield from self._for_score(self.model, collector)
                    break
                collector.collect()
                self._asked |= {example.id} if phase == "timed" else set()
                if phase == "timed" and self.started_ns is None:
                    self.started_ns = self.bench.clock.now_ns()
                    collector.freeze()
                yield from self._measure(example, phase, phase != "timed" or not self.fired)
                if self.failures_in_a_row >= MAXIMUM_CONSECUTIVE_FAILURES:
                    self.fired = "failures"
                    break
                if self.started_ns is not None:
                    self.fired = self.fired or self._rule_that_fired()
        yield from self._load()
        yield Footer(
            ended_at=now_text(),
            samples=self.samples,
            failures=self.failures,
            stopped=self.fired or "examples",
            refused=self.refused,
            rests_on=self._timed.facts() if self.plan.drawn else {},
        )

    def _others(self, example: Example) -> bool:
        """Return whether another shard answers it: then it does so for all that follow in the order."""
        return self.plan.mine is not None and example.index not in self.plan.mine

    def _measure(self, example: Example, phase: str, timing: bool) -> Iterator[MeasureRecord]:
        """Answer one example; the first request of a shape is made, and kept apart, before one that counts."""
        expected = self._expected(example)
        if phase == "timed" and timing and expected is not None and expected not in self._known:
            yield from self._attempts(example, "warmup", True)
        if example.id not in self.failed:
            yield from self._attempts(example, phase, timing)

    def _attempts(self, example: Example, phase: str, timing: bool) -> Iterator[MeasureRecord]:
        """Answer one example, again after a pause while the gate refuses what came of it."""
        if example.problem:
            yield self._fail(example, ExampleError(example.problem))
            return
        counts = phase == "timed" and timing
        attempt = 1
        while attempt <= MAXIMUM_ATTEMPTS:
            before = self.gate.before()
            try:
                measured = _passes(self.model, self.bench, self.plan, example, phase, timing, self.started_ns)
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:
                if concurrency.asks_again(error) and attempt < MAXIMUM_ATTEMPTS:
                    self.bench.clock.sleep_ns(self.gate.retry_delay_ns(attempt))
                    attempt += 1
                    continue
                if isinstance(error, ServerError) and error.gone:
                    raise  # no example's fault: the log stays open, and the same command goes on with it
                yield self._fail(example, error)
                return
            self.failures_in_a_row = 0
            new = self._meet(example, measured)
            if counts and new:
                # Nobody could foresee it (the tokens depend on the picture): this one paid, the next one counts.
                yield _sample(example, "warmup", attempt, measured, UNJUDGED, self.bench, new_shape=True)
                continue
            wall_ns, cpu_ns = work(measured) if counts else (0, 0)
            comparable_ns = (wall_ns or headline_ns(measured)) if counts else None
            verdict = self.gate.after(before, wall_ns, cpu_ns, comparable_ns, _alike(measured))
            self.samples += phase == "timed"
            self.refused += counts and not verdict.valid
            yield _sample(example, phase, attempt, measured, verdict, self.bench, new and phase == "warmup")
            yield from self._count(measured)
            if counts and verdict.valid:
                self._timed.add(example.id)
                page_ns = of_page_ns(measured)
                self.plan.stopping.add(headline_ns(measured), cluster(example), _shape(measured), page_ns)
            if not counts or verdict.valid or self._rule_that_fired() == "maximum_seconds":
                return
            if attempt < MAXIMUM_ATTEMPTS:
                self.bench.clock.sleep_ns(self.gate.retry_delay_ns(attempt))
            attempt += 1

    @property
    def _minds_shapes(self) -> bool:
        """Whether a shape costs more the first time; a server has met all, and would answer from a cache."""
        return self.plan.stages and bool(getattr(self.model, "minds_shapes", True))

    def _expected(self, example: Example) -> Hashable:
        """Return the shape that an example will have, as far as one can tell; None where nothing is known of it."""
        look = self.plan.drawn.looks.get(example.id) if self.plan.drawn else None
        with_text = self.plan.protocol != "paper" and self.plan.part in (None, "llm")
        return None if look is None or not self._minds_shapes else look.shape(with_text)

    def _meet(self, example: Example, measured: Measured) -> bool:
        """Return whether this is the first time that the process meets the shape of `measured`."""
        expected, seen = self._expected(example), measured.seen
        told = (seen.tiles, seen.visual_tokens, seen.text_tokens) if seen else None
        new = told is not None and told not in self._known and self._minds_shapes
        self._known |= {each for each in (expected, told) if each is not None}
        return new

    def _many(self, examples: Iterator[Example]) -> Iterator[MeasureRecord]:
        """Answer the examples that are left, several at a time, for their score alone; records keep their order."""
        for example, came in concurrency.in_order(self._untimed, examples, self.plan.concurrency):
            if isinstance(came, Exception):
                if isinstance(came, ServerError) and came.gone:
                    raise came
                yield self._fail(example, came)
                if self.failures_in_a_row >= MAXIMUM_CONSECUTIVE_FAILURES:
                    self.fired = "failures"
                    return
            else:
                self.failures_in_a_row = 0
                self.samples += 1
                yield _sample(example, "timed", 1, came, UNJUDGED, self.bench, new_shape=False)

    def _for_score(self, model: scoring.AnswersAll, collector: Collector) -> Iterator[MeasureRecord]:
        """Answer the examples that are left for their score alone, image by image, as timing has stopped."""
        order = self.plan.drawn.order if self.plan.drawn else range(len(self.plan.examples))
        mine = (at for at in order if self.plan.mine is None or at in self.plan.mine)
        done = self._asked | self.failed | self.plan.finished
        for positions in scoring.by_image(self.plan.examples, mine, done):
            collector.collect()
            together = [self.plan.examples[at] for at in positions]
            images_before = self.failures_in_a_row
            for example, came in scoring.answer(model, together):
                if isinstance(came, Exception):
                    yield self._fail(example, came)
                    # One image's trouble is counted once, however many questions ask about it.
                    self.failures_in_a_row = min(self.failures_in_a_row, images_before + 1)
                    continue
                self.failures_in_a_row = images_before = 0
                self.samples += 1
                made = Measured(
                    None, None, came.seen, came.text, False, example.max_new_tokens, came.tokens, came.shared
                )
                yield _sample(example, "timed", 1, made, UNJUDGED, self.bench, new_shape=False)
                yield from self._count(made)
            if self.failures_in_a_row >= MAXIMUM_CONSECUTIVE_FAILURES:
                self.fired = "failures"
                return

    def _untimed(self, example: Example) -> Measured:
        if example.problem:
            raise ExampleError(example.problem)
        request = Request(example.images, example.question, example.max_new_tokens)
        came = concurrency.answer(self.model, self.bench, request, retry_delay_ns)
        allowed = example.max_new_tokens
        return Measured(None, None, came.seen, came.text, False, allowed, came.output_tokens, finish=came.finish)

    def _load(self) -> Iterator[MeasureRecord]:
        """Time the server under load, a record for each number of requests at a time."""
        for workers in self.plan.load if self.fired != "failures" else ():
            yield concurrency.load(self.model, self.bench, self.plan.examples, workers)

    def _fail(self, example: Example, error: BaseException) -> Failure:
        self.failures += 1
        self.failed.add(example.id)
        self.failures_in_a_row += not isinstance(error, ExampleError)
        record = _failure(example, error, self.bench.device.name)
        _forget(error)
        return record

    def _count(self, measured: Measured) -> Iterator[Counted]:
        """Count the work of a shape that is new, of the first few."""
        shape = _shape(measured)
        if measured.seen and len(self._counted) < MAXIMUM_SHAPES_COUNTED and shape not in self._counted:
            self._counted.add(shape)
            yield from _count(self.model, measured.seen)

    def _rule_that_fired(self) -> str | None:
        if self.started_ns is None:
            return None
        elapsed_s = (self.bench.clock.now_ns() - self.started_ns) / 1e9
        if self.plan.drawn is None:
            return self.plan.stopping.fired(elapsed_s, all_images=True)
        return self.plan.stopping.fired(elapsed_s, self._timed.represents, self._timed.all_images)


def cluster(example: Example | Sample) -> str:
    """Return what names the images of an example: times of one page are not independent."""
    return " ".join(example.image_ids) or f"\0{example.index}"


def _order(plan: Plan, failed: set[str]) -> Iterator[tuple[Example, str]]:
    """Yield examples with their phase: cold, warm-ups of the same example (the same shape), then all timed ones.

    `failed` is looked at after each: an example that failed is not tried again, and what it was to warm up, the next
    one does. Else the process's first request would count as a timed one. Examples are taken one at a time: each brings
    its images with it, and memory must not grow with their number.
    """
    before = [*(["cold"] if plan.stages else []), *["warmup"] * plan.warmups] if plan.timing else []
    for example in _left(plan):
        while before and example.id not in failed:
            yield example, before[0]
            if example.id not in failed:
                del before[0]
        if not before:
            break
    for example in _left(plan):
        if example.id not in failed:
            yield example, "timed"


def _left(plan: Plan) -> Iterator[Example]:
    """Yield the examples that are to be measured, read one by one: a suite's images do not fit into memory."""
    for position in plan.drawn.order if plan.drawn else range(len(plan.examples)):
        if not plan.timing and plan.mine is not None and position not in plan.mine:
            continue
        example = plan.examples[position]
        if example.id not in plan.finished:
            yield example


def _passes(
    model: Model, bench: Bench, plan: Plan, example: Example, phase: str, timing: bool, started_ns: int | None
) -> Measured:
    visual_only, room = plan.protocol == "paper", plan.room(example.max_new_tokens)
    new_shape = phase == "warmup" and started_ns is not None
    # An answer that nobody scores need not be finished: random weights never stop by themselves.
    length = example.max_new_tokens if plan.score else 1
    if new_shape:  # a decode step is a shape of its own where steps are replayed from graphs
        length = 2 if getattr(model, "steps", None) else 1
    natural = Request(example.images, example.question, length, new_shape, visual_only, room)
    fixed = Request(example.images, example.question, plan.fixed_tokens, True, visual_only, room)
    stages = whole = seen = answer = None
    # Alternating the order keeps what one pass leaves in the caches from favouring the same pass every time.
    order = ["stages", "whole"] if example.index % 2 else ["whole", "stages"]
    if phase == "cold" or not plan.stages or new_shape:
        order = ["whole"] if plan.whole else ["stages"]
    for kind in order:
        if kind == "whole" and plan.whole:
            whole, seen, answer = time_whole(model, natural, bench)
        elif kind == "stages" and timing:
            stages, seen = time_stages(model, fixed, bench)
    if plan.part and stages:
        stages = keep_part(stages, plan.part)
    return Measured(stages, whole, seen, answer, None if plan.stages else timing, length if plan.whole else None)


def _shape(measured: Measured) -> tuple[int, int]:
    """Return visual tokens and tiles, which decide how much work an example is."""
    return (measured.seen.visual_tokens, measured.seen.tiles) if measured.seen else (0, 0)


def _alike(measured: Measured) -> Hashable:
    """Return what samples must share to be compared in speed: tiles, and tokens to an eighth of an octave."""
    if measured.seen is None:
        return ()
    tokens = measured.seen.visual_tokens + measured.seen.text_tokens
    return measured.seen.tiles, round(8 * log2(tokens)) if tokens else 0


def work(measured: Measured) -> tuple[int, int]:
    """Return wall and CPU time of what is the same for all samples of a shape: both passes without preprocessing.

    How large a page's file is decides how long it is decoded, on one core.
    """
    stages = measured.stages
    if stages is None:
        return 0, 0
    mine = [name for name in stages.stage_ns if "." not in name and name != "preprocess"]
    wall_ns = sum(stages.stage_ns[name] for name in mine)
    cpu_ns = sum(stages.stage_cpu_ns.get(name, 0) for name in mine)
    whole = measured.whole
    if whole and whole.ttft_ns is not None and whole.cpu_ns is not None:
        wall_ns += max(0, whole.ttft_ns - stages.stage_ns.get("preprocess", 0))
        cpu_ns += max(0, whole.cpu_ns - stages.stage_cpu_ns.get("preprocess", 0))
    return wall_ns, cpu_ns


def of_page_ns(measured: Measured | Sample) -> int:
    """Return what of the headline number the page's file decides, not the machine: its preprocessing."""
    return measured.stages.stage_ns.get("preprocess", 0) if measured.stages else 0


def headline_ns(measured: Measured | Sample) -> int:
    """Return the number whose precision decides when to stop: TTFT, or without one the sum of the stages."""
    if measured.whole and measured.whole.ttft_ns is not None:
        return measured.whole.ttft_ns
    if measured.stages:
        return sum(value for name, value in measured.stages.stage_ns.items() if "." not in name)
    assert measured.whole
    return measured.whole.total_ns


def _sample(
    example: Example, phase: str, attempt: int, measured: Measured, verdict: Verdict, bench: Bench, new_shape: bool
) -> Sample:
    seen = measured.seen
    return Sample(
        example=example.id,
        index=example.index,
        attempt=attempt,
        phase=phase,
        at=now_text(),
        clock=bench.clock.name,
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
        asked_tokens=measured.asked_tokens,
        references=example.references,
        image_ids=example.image_ids,
        doc=example.doc,
        valid=verdict.valid,
        reasons=tuple(verdict.reasons),
        readings=dict(verdict.readings),
        memory=dict(bench.device.memory()),
        new_shape=new_shape,
        counts=measured.counts,
        answer_tokens=measured.answer_tokens,
        shared=measured.shared,
        finish=measured.finish,
    )


def _failure(example: Example, error: BaseException, device: str) -> Failure:
    message = str(error).strip() or type(error).__name__
    if out_of_memory(error):
        message = f"{message.splitlines()[0]}; next: {backend.less_memory(device)}"
    return Failure(
        example=example.id,
        index=example.index,
        stage="data" if example.problem else failed_stage(error),
        error=type(error).__name__,
        message=message.splitlines()[0] if not isinstance(error, HarnessError) else message,
        traceback="".join(traceback.format_exception(error)),
        at=now_text(),
        doc=example.doc,
    )


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
