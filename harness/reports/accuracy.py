"""The accuracy of each cell, scored after the run and remembered by what it is made of, or why there is none.

Scoring imports lmms-eval, which is slow: it is done once per log and kept in the cache folder, never in the results.
"""

from collections.abc import Iterable
from contextlib import suppress

import msgspec

from harness import stats
from harness.errors import HarnessError
from harness.files import cache_folder, digest_bytes, write_atomically
from harness.reports import frame as logs_
from harness.reports.frame import Cell, Frame
from harness.runlog.log import Log
from harness.runlog.records import Sample
from harness.stats import Estimate
from harness.suites import definitions
from harness.suites.card import SuiteCard, load_suite_card

CACHE_VERSION = 1


class Accuracy(msgspec.Struct, frozen=True):
    """A cell's score (a share, 0 to 1) with its interval, clustered by image; or None and the reason.

    `scores` and `clusters` have an entry per question, for resampling; a metric that is not a mean has none.
    """

    metric: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    reason: str = ""
    scores: tuple[float, ...] = ()
    clusters: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def estimate(self) -> Estimate | None:
        """The score as an estimate."""
        return None if self.value is None else Estimate(self.value, self.low, self.high, self.n)


def of(frame: Frame, remember: bool = True) -> dict[str, Accuracy]:
    """Return the accuracy of every cell in `frame`, by the name of its configuration."""
    return {cell.configuration.name: _of_cell(cell, frame, remember) for cell in frame.cells}


def answers(logs: Iterable[Log]) -> list[Sample]:
    """Return an answered sample per example, in the suite's order: the last attempt of the first process with it."""
    chosen: dict[str, Sample] = {}
    for log in logs:
        mine = {s.example: s for s in log.samples if s.phase == "timed" and s.answer is not None}
        chosen = {**mine, **chosen}
    return sorted(chosen.values(), key=lambda sample: sample.index)


def _of_cell(cell: Cell, frame: Frame, remember: bool) -> Accuracy:
    about, logs = cell.configuration, cell.logs
    if not all(map(logs_.trained, logs.values())):
        return Accuracy("", reason="random weights are never scored")
    if about.protocol == "paper":
        return Accuracy("", reason="the paper's protocol times the visual tokens alone: no question is answered")
    if about.isolate:
        return Accuracy("", reason="isolated stages answer nothing")
    samples = answers(logs.values())
    if not samples:
        return Accuracy("", reason="no example was answered")
    try:
        suite = load_suite_card(about.suite)
    except HarnessError as error:
        return Accuracy("", reason=str(error))
    if suite.judge:
        return Accuracy(
            suite.metric, reason=f"{suite.name} is judged by a model over an API: answers are logged, not scored"
        )
    scorer = [suite.digest, definitions.release(), str(CACHE_VERSION)]
    digest = digest_bytes("\0".join([frame.digests.get(name, name) for name in logs] + scorer).encode(), 8)
    kept = cache_folder() / "scores" / f"{digest}.json"
    if remember and kept.is_file():
        try:
            return msgspec.json.decode(kept.read_bytes(), type=Accuracy)
        except msgspec.MsgspecError:
            pass  # an older version's: scored anew below
    accuracy = _score(samples, suite)
    if remember and accuracy.value is not None:
        with suppress(OSError):  # a cache that cannot be written only costs time
            write_atomically(kept, msgspec.json.encode(accuracy))
    return accuracy


def _score(samples: list[Sample], suite: SuiteCard) -> Accuracy:
    from harness.suites import score

    name = suite.unit or suite.metric
    try:
        scores = score.score(samples, suite)
    except HarnessError as error:
        return Accuracy(name, reason=str(error))
    if scores.value is None:
        return Accuracy(name, reason=scores.reason.removeprefix("not scored: "), notes=scores.notes)
    kept = [(sample, value) for sample, value in zip(samples, scores.values, strict=True) if value is not None]
    values = tuple(value for _, value in kept)
    clusters = tuple(" ".join(sample.image_ids) or sample.example for sample, _ in kept)
    interval = stats.mean_interval_clustered(values, clusters)
    low, high = interval.low, interval.high
    if interval.value is None or abs(interval.value - scores.value) > 1e-5:
        low = high = None  # the task's aggregate is no mean: the clustered interval is not about it
        values, clusters, kept = (), (), []
    examples = tuple(sample.example for sample, _ in kept)
    return Accuracy(name, scores.value, low, high, scores.n, "", values, clusters, examples, scores.notes)
