"""Experiments on the instrument itself: two arms on one loaded model, interleaved, and the ratio stage by stage.

- `aa`: the same thing twice; the interval of the ratio must contain 1, and its half-width is what can be resolved here.
- `injection`: arm B sleeps in one stage for a share of that stage's time; it must be found there and nowhere else.
- `overhead`: arm A is our whole pass, arm B a bare loop with two clock reads; the ratio is what measuring costs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from harness import stats
from harness.clock import Clock
from harness.errors import SettingError
from harness.machine.device import Device
from harness.measure import run
from harness.measure.asked import Asked
from harness.measure.passes import Bench, time_stages, time_whole
from harness.models.protocol import Done, Event, Model, Piece, Request, Seen, Work
from harness.suites.examples import Example

Arm = Callable[[Request], Mapping[str, int]]
"""Answers a request and returns nanoseconds by name (stages, `ttft`)."""

KINDS = ("aa", "injection", "overhead")


SMALLEST_ELSEWHERE = 0.1
"""A difference elsewhere below this share of the planted time is real but nothing: sleeping shifts caches a little, and
threads that slept through a long pause wake up in the next stage, which shows where that has one millisecond."""
SMALLEST_FOUND = 0.5
"""A planted delay counts as found when at least this share of it shows in its stage."""
LARGEST_OVERHEAD = 1.01
"""TTFT with our instrumentation over TTFT without: the issue's bound."""


@dataclass(frozen=True, slots=True)
class PairRatio:
    """B over A for one stage: the median of the pairs' ratios and its 95 % interval (order statistics)."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    a_median_ms: float | None
    apart: bool = False
    """Whether A and B differ: 1 is outside an interval wide enough for all the ratios of the experiment together."""

    @property
    def half_width_percent(self) -> float | None:
        """The smallest difference that this many pairs resolve on this machine, about."""
        return None if self.low is None or self.high is None else 50 * (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Result:
    """What an experiment gave."""

    kind: str
    title: str
    ratios: tuple[PairRatio, ...]
    passed: bool
    verdict: str

    def as_dict(self) -> dict[str, object]:
        """Return it for `--json`."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Pair:
    """One round: both arms on the same example, in alternating order."""

    number: int
    a_ns: Mapping[str, int]
    b_ns: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Design:
    """How an experiment is laid out."""

    pairs: int = 20
    stage: str = "prefill"
    """Where an injection sleeps."""
    share: float = 0.05
    """How long, as a share of the stage's time (the shortest of the warm-up's rounds)."""
    answers: int = 4
    """Answers of each arm in a pair, in turns (A B, B A, ...): their median is the arm's time. One answer is as noisy
    as the machine is in that moment; what comes and goes faster than a pair lasts cancels in several."""


def pairs(kind: str, model: Model, bench: Bench, examples: Sequence[Example], design: Design) -> Iterator[Pair]:
    """Run an experiment's rounds after two of warm-up, and yield them one by one.

    An example that is met for the first time is answered once beforehand: the first request of a shape costs more, and
    the arm whose turn it is would pay. Raises `SettingError` where the model has no such stage, or makes no token.
    """
    device, clock = bench.device, bench.clock
    arm_a: Arm = _stages(model, device, clock)
    arm_b: Arm = arm_a
    if kind == "overhead":
        arm_a, arm_b = _whole(model, device, clock), _bare(model, device, clock)
    warm = [arm(_request(examples[0])) for _ in range(2) for arm in (arm_a, arm_b)]
    wanted = {"injection": design.stage, "overhead": "ttft"}.get(kind)
    if wanted and not all(wanted in times for times in warm):
        has = ", ".join(warm[0]) or "nothing"
        raise SettingError(
            f"{kind}: this model has no {wanted} to look at, it has {has}; next: --stage, or a model with an LLM"
        )
    if kind == "injection":
        usual_ns = min(times[design.stage] for times in warm)
        delayed = Delayed(model, device, clock, design.stage, round(usual_ns * design.share))
        arm_b = _stages(delayed, device, clock)
    for number in range(design.pairs):
        request = _request(examples[number % len(examples)])
        if 0 < number < len(examples):
            arm_a(request)
        pair = Pair(number, *_in_turns((arm_a, arm_b), request, design.answers, number % 2))
        if set(pair.a_ns) != set(pair.b_ns):
            raise SettingError(
                f"{kind}: the two arms do not show the same stages ({', '.join(pair.a_ns)} against "
                f"{', '.join(pair.b_ns)}), so they cannot be compared; next: --limit 1, or another model"
            )
        yield pair


def _in_turns(arms: tuple[Arm, Arm], request: Request, answers: int, first: int) -> Iterator[dict[str, int]]:
    """Answer `request` by both arms in turns, and return each arm's medians by name; `first` begins."""
    taken: tuple[list[Mapping[str, int]], ...] = ([], [])
    for turn in range(answers):
        begins = (first + turn) % 2
        for arm in (begins, 1 - begins):
            taken[arm].append(arms[arm](request))
    for mine in taken:
        yield {name: round(median(one[name] for one in mine)) for name in mine[0] if all(name in one for one in mine)}


def _request(example: Example) -> Request:
    return Request(example.images, example.question, max_new_tokens=1, ignore_eos=True)


def _stages(model: Model, device: Device, clock: Clock) -> Arm:
    def arm(request: Request) -> Mapping[str, int]:
        measured, _ = time_stages(model, request, Bench(device, clock))
        stages = {name: value for name, value in measured.stage_ns.items() if "." not in name}
        return {**stages, "ttft": measured.piece_ns[0]} if measured.piece_ns else stages

    return arm


def _whole(model: Model, device: Device, clock: Clock) -> Arm:
    def arm(request: Request) -> Mapping[str, int]:
        measured, _, _ = time_whole(model, request, Bench(device, clock))
        return {} if measured.ttft_ns is None else {"ttft": measured.ttft_ns}

    return arm


def _bare(model: Model, device: Device, clock: Clock) -> Arm:
    def arm(request: Request) -> Mapping[str, int]:
        device.sync()
        start_ns = clock.now_ns()
        events = model.answer(request)  # held by name: else leaving the loop would free its tensors inside the time
        for event in events:
            if isinstance(event, Piece):
                break
        device.sync()
        return {"ttft": clock.now_ns() - start_ns}

    return arm


class Delayed:
    """A model that is slower by a fixed time in one stage: what a regression looks like to the instrument.

    A stage may end inside a library's call, where it is told and not yielded (`hear`): the delay is planted there too.
    """

    def __init__(self, model: Model, device: Device, clock: Clock, stage: str, delay_ns: int) -> None:
        self._model, self._device, self._clock = model, device, clock
        self._stage, self._delay_ns = stage, delay_ns

    @property
    def hear(self) -> Callable[[Event], None] | None:
        """What is called with the stages that are told (`protocol.Model`)."""
        return getattr(self._model, "hear", None)

    @hear.setter
    def hear(self, take: Callable[[Event], None] | None) -> None:
        if not hasattr(self._model, "hear"):
            return

        def heard(event: Event) -> None:
            assert take
            self._delay(event)
            take(event)

        self._model.hear = heard if take else None

    def _delay(self, event: Event) -> None:
        if isinstance(event, Done) and event == Done(self._stage):
            self._device.sync()  # else the host would sleep while the device still works, and hide the delay
            self._clock.sleep_ns(self._delay_ns)

    def answer(self, request: Request, /) -> Iterator[Event]:
        for event in self._model.answer(request):
            self._delay(event)
            yield event

    def verify(self) -> None:
        """Raise `OutputError` if the last answer's numbers are not finite."""
        if hasattr(self._model, "verify"):
            self._model.verify()

    def describe(self) -> Mapping[str, str]:
        return {**self._model.describe(), "injected": f"{self._delay_ns} ns in {self._stage}"}

    def work(self, seen: Seen, /) -> Mapping[str, Work]:
        return self._model.work(seen)

    def close(self) -> None:
        self._model.close()


def run_experiment(kind: str, asked: Asked, design: Design, say: Callable[[str], None]) -> Result:
    """Load the model once and run the interleaved pairs of experiment `kind`."""
    with run.opened(asked, say) as (job, model, device, clock):
        rounds = []
        for pair in pairs(kind, model, Bench(device, clock), job.suite.examples, design):
            rounds.append(pair)
            say(f"pair {pair.number + 1} of {design.pairs}")
        title = job.cell.title
    ratios = of_rounds(kind, rounds, design.stage)
    passed, verdict = judge(kind, ratios, design.stage, design.share)
    return Result(kind, title, ratios, passed, verdict)


def of_rounds(kind: str, rounds: Sequence[Pair], stage: str) -> tuple[PairRatio, ...]:
    """Return the ratio of each stage that all rounds have; raises `SettingError` where the planted one is not one.

    A model may divide its stages for one example and not for the next.
    """
    arms = [arm for pair in rounds for arm in (pair.a_ns, pair.b_ns)]
    names = [name for name in arms[0] if all(name in arm for arm in arms)]
    if kind == "injection" and stage not in names:
        raise SettingError(f"injection: not every example has a stage {stage} by itself; next: --limit 1")
    return tuple(
        ratio(name, [p.a_ns[name] for p in rounds], [p.b_ns[name] for p in rounds], len(names)) for name in names
    )


def ratio(name: str, a_ns: list[int], b_ns: list[int], among: int = 1) -> PairRatio:
    """Return the median of b / a pair by pair, with its interval.

    `among` is how many ratios are judged together. Of five 95 % intervals one misses 1 in every fifth experiment on a
    perfect machine, so whether A and B differ is decided at 1 - 5 % / `among` (Bonferroni).
    """
    shares = [b / a for a, b in zip(a_ns, b_ns, strict=True)]
    estimate, wide = stats.median_interval(shares), stats.median_interval(shares, 1 - 0.05 / among)
    apart = wide.low is not None and wide.high is not None and not wide.low <= 1 <= wide.high
    middle = stats.median_interval(a_ns).value
    return PairRatio(
        name, estimate.value, estimate.low, estimate.high, estimate.n, middle / 1e6 if middle else None, apart
    )


def _moved(other: PairRatio, planted: PairRatio, share: float) -> bool:
    """Return whether a stage differs by as much time as could be the planted one's."""
    if other.value is None or other.a_median_ms is None or planted.a_median_ms is None:
        return True
    return abs(other.value - 1) * other.a_median_ms >= SMALLEST_ELSEWHERE * share * planted.a_median_ms


def judge(kind: str, ratios: tuple[PairRatio, ...], stage: str, share: float) -> tuple[bool, str]:
    """Return whether the experiment holds, and in words why."""
    by_name = {each.name: each for each in ratios}
    if kind == "aa":
        off = [each.name for each in ratios if each.apart]
        if off:
            return False, f"A and A differ in {', '.join(off)}: timings of this machine are not to be trusted now"
        return True, "A and A cannot be told apart"
    if kind == "overhead":
        cost = by_name["ttft"]
        dearer = 1 / cost.value if cost.value else None  # arm A is instrumented, B is bare
        passed = dearer is not None and dearer <= LARGEST_OVERHEAD
        return passed, f"TTFT with instrumentation over TTFT without: {dearer:.4f} (allowed: {LARGEST_OVERHEAD})"
    planted = by_name[stage]
    found = planted.low is not None and planted.low > 1 and (planted.value or 0) >= 1 + SMALLEST_FOUND * share
    elsewhere = [
        name
        for name, each in by_name.items()
        if name not in (stage, "ttft") and each.apart and _moved(each, planted, share)
    ]
    if not found:
        return False, f"{share:+.0%} planted in {stage} was not found"
    if elsewhere:
        return False, f"{share:+.0%} planted in {stage} was found, but also a difference in {', '.join(elsewhere)}"
    return True, f"{share:+.0%} planted in {stage} was found there and nowhere else"
