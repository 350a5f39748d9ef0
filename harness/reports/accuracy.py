"""The accuracy of each cell, scored after the run and remembered by what it is made of, or why there is none.

Scoring imports lmms-eval, which is slow: it is done once per log and kept in the cache folder, never in the results.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from harness import stats
from harness.errors import HarnessError
from harness.files import cache_folder, digest_bytes, write_atomically
from harness.reports import frame as logs_
from harness.reports.configuration import Configuration
from harness.reports.frame import Cell, Frame
from harness.runlog import conditions
from harness.runlog.log import Log
from harness.runlog.records import Sample
from harness.stats import Estimate
from harness.suites import definitions
from harness.suites.card import SuiteCard, logged_suite_card

CACHE_VERSION = 4


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
    """What there is to say about the value: guesses, answers left out."""
    asked: int = 0
    """Questions that were to be answered."""
    failed: int = 0
    """Of them, those that failed: left out, never wrong."""
    cut: int = 0
    """Answers that used up the tokens they were allowed, or so their server says: cut off, and scored as they are."""
    own: float | None = None
    """The value in its own unit, where it is no share: see `reason`."""
    also: Mapping[str, float] = {}
    """Other metrics that the suite's card names, as the task gives them."""
    questions: int = 0
    """What the value is over, where several answers count as one (MMBench's rotations); else 0."""

    @property
    def count(self) -> int:
        """What the value is over: questions, of which each may have several answers."""
        return self.questions or self.n

    @property
    def over(self) -> str:
        """The same in words."""
        return f"{self.count} questions" + (f" ({self.n} rows)" if self.questions else "")

    @property
    def remarks(self) -> tuple[str, ...]:
        """What belongs beside the value wherever it is shown: what is missing, what was cut off, other metrics."""
        found = [f"{name} {value:.3f}" for name, value in self.also.items()]
        if self.failed:
            found.append(f"{self.failed} of {self.asked} failed and are left out")
        waiting = self.asked - self.failed - self.n
        if waiting > 0 and self.value is not None:
            found.append(f"{waiting} of {self.asked} not scored")
        if self.cut:
            found.append(f"{self.cut} answers were cut off at the most tokens allowed")
        return (*found, *(note for note in self.notes if note not in self.reason))

    @property
    def estimate(self) -> Estimate | None:
        """The score as an estimate."""
        return None if self.value is None else Estimate(self.value, self.low, self.high, self.count)


def of(frame: Frame, remember: bool = True) -> dict[Configuration, Accuracy]:
    """Return the accuracy of every cell in `frame`."""
    return {cell.configuration: _of_cell(cell, frame, remember) for cell in frame.cells}


def answers(logs: Iterable[Log]) -> list[Sample]:
    """Return an answered sample per example, in the suite's order: the last attempt of the latest run with it."""
    chosen = {example: sample for answered in _by_run(logs) for example, sample in answered.items()}
    return sorted(chosen.values(), key=lambda sample: sample.index)


def _by_run(logs: Iterable[Log]) -> list[dict[str, Sample]]:
    """Return what each run answered, by example, the latest run last."""
    runs = sorted(logs, key=lambda log: log.header.started_at)
    found = [{s.example: s for s in log.samples if s.phase == "timed" and s.answer is not None} for log in runs]
    return [answered for answered in found if answered]


def _of_several_runs(logs: Sequence[Log]) -> list[str]:
    """Say where the runs of a cell answered otherwise, and how many answers are of other conditions than the latest."""
    runs = _by_run(logs)
    said: dict[str, list[str | None]] = {}
    for answered in runs:
        for example, sample in answered.items():
            said.setdefault(example, []).append(sample.answer)
    twice = [several for several in said.values() if len(several) > 1]
    unlike, earlier = sum(len(set(several)) > 1 for several in twice), len(said) - len(runs[-1])
    told = []
    if unlike:
        told.append(f"{unlike} of {len(twice)} questions got different answers from its runs: the latest counts")
    if earlier and conditions.differences([log.header for log in logs]):
        told.append(f"{earlier} of {len(said)} answers are of earlier runs, under other conditions")
    return told


def _of_cell(cell: Cell, frame: Frame, remember: bool) -> Accuracy:
    about, logs = cell.configuration, cell.logs
    if not all(map(logs_.trained, logs.values())):
        return Accuracy("", reason="random weights are never scored")
    if about.protocol == "paper":
        return Accuracy("", reason="the paper's protocol times the visual tokens alone: no question is answered")
    if about.isolate:
        return Accuracy("", reason="isolated stages answer nothing")
    header = max(logs.values(), key=lambda log: log.header.started_at).header
    if header.data.get("unscored"):
        return Accuracy("", reason=header.data["unscored"].removeprefix("not scored: "))
    samples = answers(logs.values())
    if not samples:
        return Accuracy("", reason="no example was answered")
    try:
        suite = logged_suite_card(header.suite_card, about.suite)
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
    runs = list(logs.values())
    failed = _failed(samples, runs)
    accuracy = _score(samples, failed, suite)
    notes = (*_of_several_runs(runs), *accuracy.notes)
    accuracy = msgspec.structs.replace(accuracy, notes=notes, **_counted(samples, failed, runs))
    if remember and accuracy.value is not None:
        with suppress(OSError):  # a cache that cannot be written only costs time
            write_atomically(kept, msgspec.json.encode(accuracy))
    return accuracy


def _counted(samples: Sequence[Sample], failed: Sequence["_Failed"], logs: Sequence[Log]) -> dict[str, int]:
    """Return how many questions there were, how many failed for good, and how many answers were cut off."""
    stated = [log.header.data.get("examples", "") for log in logs]
    asked = max((int(text) for text in stated if text.isdigit()), default=0)
    cut = [sample for sample in samples if _was_cut(sample)]
    return {"asked": max(asked, len(samples) + len(failed)), "failed": len(failed), "cut": len(cut)}


def _was_cut(sample: Sample) -> bool:
    """Return whether an answer was ended by the most tokens allowed: as its server says, else by its length.

    A server may count no tokens, or count the token that ends an answer among them.
    """
    finish = sample.whole.server.get("finish") if sample.whole else sample.finish
    if finish:
        return finish == "length"
    made = sample.whole.output_tokens if sample.whole else sample.answer_tokens or 0
    return bool(sample.asked_tokens) and made >= (sample.asked_tokens or 0)


@dataclass(frozen=True, slots=True)
class _Failed:
    """An example that failed, as the scorer takes it: its row may be one of a group that counts only as a whole."""

    example: str
    doc: Mapping[str, object]
    answer: None = None


def _failed(samples: Sequence[Sample], logs: Sequence[Log]) -> list[_Failed]:
    answered = {sample.example for sample in samples}
    lost = {one.example: one for log in logs for one in log.failures if one.example and one.example not in answered}
    return [_Failed(str(name), one.doc) for name, one in lost.items()]


def _score(samples: list[Sample], failed: list[_Failed], suite: SuiteCard) -> Accuracy:
    from harness.suites import score

    name = suite.unit or suite.metric
    everything: list[Sample | _Failed] = [*samples, *failed]
    try:
        scores = score.score(everything, suite)
    except HarnessError as error:
        return Accuracy(name, reason=str(error))
    also = {text: scores.aggregates[metric] for metric, text in suite.also.items() if metric in scores.aggregates}
    if scores.value is None:
        reason = scores.reason.removeprefix("not scored: ")
        return Accuracy(name, reason=reason, notes=scores.notes, own=scores.own, also=also)
    kept = [(sample, value) for sample, value in zip(samples, scores.values, strict=False) if value is not None]
    values = tuple(value for _, value in kept)
    clusters = tuple(" ".join(sample.image_ids) or sample.example for sample, _ in kept)
    interval = stats.mean_interval_clustered(values, clusters)
    low, high = interval.low, interval.high
    if interval.value is None or abs(interval.value - scores.value) > 1e-5:
        low = high = None  # the task's aggregate is no mean: the clustered interval is not about it
        values, clusters, kept = (), (), []
    examples = tuple(sample.example for sample, _ in kept)
    return Accuracy(
        name, scores.value, low, high, scores.n, "", values, clusters, examples, scores.notes, also=also,
        questions=scores.questions if scores.questions != scores.n else 0,
    )  # fmt: skip
