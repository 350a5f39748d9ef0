"""The accuracy of each cell, scored after the run and remembered by what it is made of, or why there is none.

Scoring imports lmms-eval, which is slow: it is done once per log and kept in the cache folder, never in the results.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from harness import stats
from harness.errors import HarnessError
from harness.files import cache_folder
from harness.reports import summary
from harness.reports.frame import Frame
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
    """Return the accuracy of every cell in `frame`, by the cell's name in `summary.summary`."""
    found = {}
    for facts, logs in summary.groups(frame):
        trained = bool(logs["trained"].all())
        found[summary.cell_name(facts)] = _of_cell(facts, trained, list(logs["log"]), frame, remember)
    return found


def answers(frame: Frame, logs: Sequence[str]) -> list[Sample]:
    """Return an answered sample per example, in the suite's order: the last attempt of the first process with it."""
    chosen: dict[str, Sample] = {}
    for name in logs:
        mine = {s.example: s for s in frame.records[name].samples if s.phase == "timed" and s.answer is not None}
        chosen = {**mine, **chosen}
    return sorted(chosen.values(), key=lambda sample: sample.index)


def _of_cell(facts: Mapping[str, Any], trained: bool, logs: list[str], frame: Frame, remember: bool) -> Accuracy:
    if not trained:
        return Accuracy("", reason="random weights are never scored")
    if facts["protocol"] == "paper":
        return Accuracy("", reason="the paper's protocol times the visual tokens alone: no question is answered")
    if facts["isolate"]:
        return Accuracy("", reason="isolated stages answer nothing")
    samples = answers(frame, logs)
    if not samples:
        return Accuracy("", reason="no example was answered")
    try:
        suite = load_suite_card(str(facts["suite"]))
    except HarnessError as error:
        return Accuracy("", reason=str(error))
    if suite.judge:
        return Accuracy(
            suite.metric, reason=f"{suite.name} is judged by a model over an API: answers are logged, not scored"
        )
    scorer = [suite.digest, definitions.release(), str(CACHE_VERSION)]
    digest = summary.digest([frame.digests.get(name, name) for name in logs] + scorer)
    kept = cache_folder() / "scores" / f"{digest}.json"
    if remember and kept.is_file():
        try:
            return msgspec.json.decode(kept.read_bytes(), type=Accuracy)
        except msgspec.MsgspecError:
            pass  # an older version's: scored anew below
    accuracy = _score(samples, suite)
    if remember and accuracy.value is not None:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            temporary = kept.with_suffix(".tmp")
            temporary.write_bytes(msgspec.json.encode(accuracy))
            temporary.replace(kept)
        except OSError:
            pass  # a cache that cannot be written only costs time
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
