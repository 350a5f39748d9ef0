"""Several requests at a time to one server: answers for their score alone, in order; and TTFT under load.

Neither is ever mixed with what is timed alone: answers beside others carry no times, and load has records of its own.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle, islice
from typing import NamedTuple, TypeVar

from harness.errors import ServerError
from harness.measure.passes import Bench, time_whole
from harness.models.protocol import Event, Model, Piece, Request, Seen, Told, Work
from harness.runlog.records import Loaded
from harness.suites.examples import Example

T = TypeVar("T")
REQUESTS_EACH, FEWEST_REQUESTS = 4, 8
"""How many requests each of N workers sends in a row under load, and the fewest in all."""
MOST_BUSY = 20
"""So often a busy server is asked again for one answer; load that it turns away is a failure of that series."""


def in_order(
    work: Callable[[Example], T], examples: Iterator[Example], at_a_time: int
) -> Iterator[tuple[Example, T | Exception]]:
    """Yield each example with what `work` returned or raised, in the order of `examples`, `at_a_time` under way.

    No more than twice as many examples are held in memory. What is under way when the reader stops is waited for and
    thrown away: it was never yielded, so a run that resumes asks it again.
    """
    window: deque[tuple[Example, Future[T]]] = deque()
    with ThreadPoolExecutor(at_a_time) as pool:
        try:
            while True:
                for example in islice(examples, 2 * at_a_time - len(window)):
                    window.append((example, pool.submit(work, example)))
                if not window:
                    return
                example, future = window.popleft()
                try:
                    came: T | Exception = future.result()
                except Exception as error:  # noqa: BLE001 - whatever was raised is the reader's to judge
                    came = error
                yield example, came
        finally:
            for _, left in window:
                left.cancel()


class Answered(NamedTuple):
    """An answer that was not timed."""

    seen: Seen | None
    text: str
    output_tokens: int | None
    """None where the server does not count."""
    finish: str = ""
    """Why the server ended it, as it says."""


def answer(model: Model, bench: Bench, request: Request, pause_ns: Callable[[int], int]) -> Answered:
    """Answer one request untimed; a server that is busy is asked again after a pause."""
    for attempt in range(1, MOST_BUSY):
        try:
            return _untimed(model, request)
        except ServerError as error:
            if not asks_again(error):
                raise
            if error.gone and attempt > 3:
                raise
            bench.clock.sleep_ns(pause_ns(attempt))
    return _untimed(model, request)


def _untimed(model: Model, request: Request) -> Answered:
    seen: Seen | None = None
    texts: list[str] = []
    told: Told | None = None
    finish = ""
    for event in model.answer(request):
        if isinstance(event, Piece):
            texts.append(event.text)
        elif isinstance(event, Seen):
            seen = event
        elif isinstance(event, Told):
            told = event
            finish = str(event.facts().get("finish", ""))  # asked for in any case: it lets go of the connection
    return Answered(seen, "".join(texts), len(texts) if told is None else told.output_tokens, finish)


def asks_again(error: BaseException) -> bool:
    """Return whether a server was only busy, or is not there just now: worth another attempt after a pause."""
    return isinstance(error, ServerError) and (error.busy or error.gone)


class _Prepared:
    """One answer whose request has been built already, behind the seam."""

    def __init__(self, model: Model, events: Iterator[Event]) -> None:
        self._model, self._events = model, events

    def answer(self, request: Request, /) -> Iterator[Event]:
        return self._events

    def describe(self) -> Mapping[str, str]:
        return self._model.describe()

    def work(self, seen: Seen, /) -> Mapping[str, Work]:
        return self._model.work(seen)

    def close(self) -> None:
        self._model.close()


def load(model: Model, bench: Bench, examples: Sequence[Example], workers: int) -> Loaded:
    """Time requests in a closed loop: each of `workers` sends its next request when its last one has been answered."""
    count = max(FEWEST_REQUESTS, REQUESTS_EACH * workers)
    sound = (one for number in cycle(range(len(examples))) if not (one := examples[number]).problem)
    requests = [Request(one.images, one.question, one.max_new_tokens) for one in islice(sound, count)]
    # All bodies are built first: on one interpreter, building the next would delay the clock of those under way.
    prepared = [_Prepared(model, model.answer(request)) for request in requests]
    start_ns = bench.clock.now_ns()

    def timed(one: "_Prepared") -> tuple[int, int, int]:
        measured, _, _ = time_whole(one, requests[0], bench)
        return measured.ttft_ns or measured.total_ns, measured.total_ns, measured.output_tokens

    ttft_ns, total_ns, tokens, failures = [], [], [], []
    with ThreadPoolExecutor(workers) as pool:
        for future in [pool.submit(timed, one) for one in prepared]:
            try:
                first, total, made = future.result()
            except ServerError as error:
                failures.append(str(error))
                continue
            ttft_ns.append(first)
            total_ns.append(total)
            tokens.append(made)
    return Loaded(
        concurrency=workers,
        wall_ns=bench.clock.now_ns() - start_ns,
        ttft_ns=tuple(ttft_ns),
        total_ns=tuple(total_ns),
        output_tokens=tuple(tokens),
        failures=tuple(failures),
    )
