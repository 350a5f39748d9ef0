"""Experiments on the instrument itself: two arms on one loaded model, interleaved, and the ratio stage by stage.

- `aa`: the same thing twice; the interval of the ratio must contain 1, and its half-width is what can be resolved here.
- `injection`: arm B sleeps in one stage for a share of that stage's time; it must be found there and nowhere else.
- `overhead`: arm A is our whole pass, arm B a bare loop with two clock reads; the ratio is what measuring costs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.clock import Clock
from harness.errors import SettingError
from harness.machine.device import Device
from harness.measure.passes import Bench, time_stages, time_whole
from harness.models.protocol import Done, Event, Model, Piece, Request, Seen, Work
from harness.suites.examples import Example

Arm = Callable[[Request], Mapping[str, int]]
"""Answers a request and returns nanoseconds by name (stages, `ttft`)."""

KINDS = ("aa", "injection", "overhead")


@dataclass(frozen=True, slots=True)
class Pair:
    """One round: both arms on the same example, in alternating order."""

    number: int
    a_ns: Mapping[str, int]
    b_ns: Mapping[str, int]


def pairs(
    kind: str,
    model: Model,
    device: Device,
    clock: Clock,
    examples: Sequence[Example],
    count: int,
    stage: str = "prefill",
    share: float = 0.05,
) -> Iterator[Pair]:
    """Run `count` rounds of an experiment after two of warm-up, and yield them one by one.

    `share` is the injected delay as a fraction of the stage's time (the shortest of the warm-up's rounds). Raises
    `SettingError` where the model has no such stage, or makes no token.
    """
    arm_a: Arm = _stages(model, device, clock)
    arm_b: Arm = arm_a
    if kind == "overhead":
        arm_a, arm_b = _whole(model, device, clock), _bare(model, device, clock)
    warm = [arm(_request(examples[0])) for _ in range(2) for arm in (arm_a, arm_b)]
    wanted = {"injection": stage, "overhead": "ttft"}.get(kind)
    if wanted and not all(wanted in times for times in warm):
        raise SettingError(f"{kind}: this model has no {wanted} to look at; next: --stage, or a model with an LLM")
    if kind == "injection":
        usual_ns = min(times[stage] for times in warm)
        arm_b = _stages(Delayed(model, device, clock, stage, round(usual_ns * share)), device, clock)
    for number in range(count):
        request = _request(examples[number % len(examples)])
        if number % 2:
            b_ns, a_ns = arm_b(request), arm_a(request)
        else:
            a_ns, b_ns = arm_a(request), arm_b(request)
        yield Pair(number, a_ns, b_ns)


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
    """A model that is slower by a fixed time in one stage: what a regression looks like to the instrument."""

    def __init__(self, model: Model, device: Device, clock: Clock, stage: str, delay_ns: int) -> None:
        self._model, self._device, self._clock = model, device, clock
        self._stage, self._delay_ns = stage, delay_ns

    def answer(self, request: Request, /) -> Iterator[Event]:
        for event in self._model.answer(request):
            if isinstance(event, Done) and event == Done(self._stage):
                self._device.sync()  # else the host would sleep while the device still works, and hide the delay
                self._clock.sleep_ns(self._delay_ns)
            yield event

    def describe(self) -> Mapping[str, str]:
        return {**self._model.describe(), "injected": f"{self._delay_ns} ns in {self._stage}"}

    def work(self, seen: Seen, /) -> Mapping[str, Work]:
        return self._model.work(seen)

    def close(self) -> None:
        self._model.close()
