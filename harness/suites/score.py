"""The bridge to lmms-eval's own scoring: logged answers and rows in, the task's own numbers out; no network.

A row that the scorer cannot take is left out and said, never counted; so is a group with a member missing. An answer
for which the task drew a random option is counted apart.
"""

import contextlib
import copy
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, SupportsFloat

from harness.errors import DataError
from harness.suites import contract, definitions, groups
from harness.suites.card import SuiteCard
from harness.suites.contract import RowProblem, Unlabelled

if TYPE_CHECKING:
    from harness.suites.task import Task

RANDOM_WEIGHTS = "not scored: random weights (their answers say nothing about the model)"
NO_ANSWERS = "not scored: no example was answered"
NO_REFERENCES = "not scored: no references"

OF_A_HUNDRED = ("mmbench_en_dev_static",)
"""Tasks whose aggregate is a percentage; all others' is a share."""

OWN_UNIT = ("mme_perception_score", "mme_cognition_score")
"""Metrics that are sums of points (MME: 200 a category), no shares of anything."""

QUESTIONS_OF_OCRBENCH = 1000
"""OCRBench's aggregate divides by this whatever was answered."""


class Scorable(Protocol):
    """What scoring needs of a sample; `records.Sample` has it."""

    @property
    def example(self) -> str:
        """The example's id."""

    @property
    def doc(self) -> Mapping[str, object]:
        """The suite's own row without its images."""

    @property
    def answer(self) -> str | None:
        """What the model said; None where it failed."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How right the answers are, by the task's own rules."""

    metric: str
    """The metric quoted first: its key in lmms-eval."""
    unit: str
    """What tables call it."""
    value: float | None = None
    """The task's own aggregate of `metric` as a share (0 to 1), or None: see `reason`."""
    values: tuple[float | None, ...] = ()
    """`metric` of each sample given, in their order, as a share; None where it failed or is not of this metric."""
    aggregates: Mapping[str, float] = field(default_factory=dict)
    """All of the task's aggregates, in the task's own scale."""
    n: int = 0
    """Answers that were scored."""
    questions: int = 0
    """What `value` is over: fewer than `n` where several answers count as one."""
    failures: int = 0
    """Samples without an answer: left out, never wrong answers."""
    reason: str = ""
    """Why nothing was scored."""
    notes: tuple[str, ...] = ()
    own: float | None = None
    """The aggregate in its own unit, where it is no share: then there is no `value`."""
    guesses: int = 0
    """Answers in which the task found nothing and drew a random option: part of `value`, as lmms-eval has it."""
    left_out: int = 0
    """Answers that could not be scored: bad rows, groups with a member missing."""

    @property
    def scored(self) -> bool:
        """Whether there is a score at all."""
        return self.value is not None


def not_scored(card: SuiteCard, reason: str) -> Scores:
    """Return the scores of a run that has none, and why."""
    return Scores(card.metric, card.unit, reason=reason)


def score(samples: Sequence[Scorable], card: SuiteCard) -> Scores:
    """Score each sample's answer with the suite's lmms-eval task.

    The task is loaded afresh, each row is copied (tasks change them), and metrics that only write a file for a server
    are left out. Raises `DataError` where no row is one of the task's.
    """
    if card.judge:
        return not_scored(
            card, f"not scored: {card.name} needs a judge ({card.unit or card.metric}): answers are logged"
        )
    answered = [at for at, sample in enumerate(samples) if sample.answer is not None]
    failures = len(samples) - len(answered)
    if not answered:
        return Scores(card.metric, card.unit, failures=failures, reason=NO_ANSWERS)
    docs, left, unlabelled = _readable(card, {at: samples[at] for at in answered})
    if len(unlabelled) == len(answered):
        return Scores(card.metric, card.unit, failures=failures, reason=NO_REFERENCES, left_out=len(answered))
    if not docs:
        raise DataError(next(iter(left.values())))
    apart, said = groups.incomplete(card.task, docs, [sample.doc for sample in samples])
    docs = {at: doc for at, doc in docs.items() if at not in apart}
    left |= unlabelled | apart
    if not docs:
        why = f"not scored: {next(iter(apart.values()))}"
        return Scores(card.metric, card.unit, failures=failures, reason=why, left_out=len(left))
    from harness.suites.task import Task

    task = Task(card.task, next(iter(docs.values())))
    if card.metric not in task.metrics:
        raise DataError(
            f"suite {card.name}: task {card.task} has no metric {card.metric!r}; it has {', '.join(task.metrics)}"
        )
    if task.is_lesser(card.metric):
        raise DataError(f"suite {card.name}: {definitions.lesser(card.task, card.metric)}")
    with _random_kept():
        tally = _tally(task, card, samples, docs)
    tally.left = left | tally.left
    return _scores(task, card, tally, len(samples), failures, said)


@dataclass(slots=True)
class _Tally:
    """What the task said of each answer, by the answer's position."""

    results: dict[str, dict[str, dict[int, object]]] = field(default_factory=dict)
    """By filter and metric."""
    shares: dict[int, float] = field(default_factory=dict)
    guessed: set[int] = field(default_factory=set)
    left: dict[int, str] = field(default_factory=dict)
    questions: int = 0
    reasoned: int = 0
    """Answers whose reasoning was taken out."""
    unclosed: int = 0
    """Answers with reasoning that was never closed."""


def _readable(
    card: SuiteCard, samples: Mapping[int, Scorable]
) -> tuple[dict[int, dict[str, object]], dict[int, str], dict[int, str]]:
    """Return the rows as the scorer takes them, and why the others are left out: bad ones, and without references."""
    mine = contract.of(card.task, definitions.field(definitions.find(card.task).path, "doc_to_target"))
    docs, left, unlabelled = {}, {}, {}
    for at, sample in samples.items():
        try:
            docs[at] = mine.labelled(mine.asked(copy.deepcopy(dict(sample.doc))))
        except Unlabelled as error:
            unlabelled[at] = f"example {sample.example}, {error}"
        except RowProblem as error:
            columns = ", ".join(sample.doc)
            left[at] = (
                f"example {sample.example}, {error}; it has the columns {columns}; next: give data with the columns of "
                f"{definitions.find(card.task).repo}"
            )
    return docs, left, unlabelled


def _tally(task: "Task", card: SuiteCard, samples: Sequence[Scorable], docs: Mapping[int, dict[str, object]]) -> _Tally:
    said = [samples[at].answer or "" for at in docs]
    reasoning = [task.reasoning(answer) for answer in said]
    tally = _Tally(reasoned=sum(had for had, _ in reasoning), unclosed=sum(broken for _, broken in reasoning))
    answers_by_filter = task.filtered(list(docs.values()), said)
    for name, answers in answers_by_filter.items():
        results = tally.results.setdefault(name, {})
        for (at, doc), answer in zip(docs.items(), answers, strict=True):
            random.seed(samples[at].example)  # mmmu guesses where an answer has no letter: the same guess each time
            before = random.getstate()
            try:
                found = task.results(copy.deepcopy(doc), answer)
                guessed = random.getstate() != before
                if len(tally.results) == 1 and card.metric in found:
                    tally.shares[at] = _share(task, card.metric, found[card.metric])
            except Exception as error:  # noqa: BLE001 - whatever a task's own code raises over a row is the row's
                tally.left[at] = f"example {samples[at].example}: {type(error).__name__}: {error}"
                continue
            if guessed:
                tally.guessed.add(at)
            for metric in task.metrics:
                if metric in found:
                    results.setdefault(metric, {})[at] = found[metric]
    tally.questions = groups.questions(card.task, [docs[at] for at in tally.shares])
    return tally


def _scores(task: "Task", card: SuiteCard, tally: _Tally, count: int, failures: int, said: str) -> Scores:
    aggregates: dict[str, float] = {}
    notes = [said] if said else []
    for turn, (name, results) in enumerate(tally.results.items()):
        for metric, column in results.items():
            total, problem = _aggregate(task, metric, column)
            if problem:
                notes.append(f"{metric}: {problem}")
            if total is not None:
                aggregates[metric if turn == 0 else f"{metric},{name}"] = total
    values = [tally.shares.get(at) for at in range(count)]
    alone = _of_the_best(task, card.metric, tally)
    value, own, note = _headline(card, aggregates, values, alone)
    notes += [note] if note else []
    scored = set(tally.shares)
    guesses = len(tally.guessed & scored)
    reason = "" if value is not None else f"not scored: no answer has the metric {card.metric}"
    if own is not None:
        reason = f"{card.unit or card.metric} {round(own, 2)} in its own unit, no share of the questions"
    elif value is None and notes:
        reason = f"not scored: {'; '.join(notes)}"
    if guesses:
        sure = _without(tally)
        rest = "no answer is left without them"
        if sure is not None:
            rest = f"without them {sure:.3f} over {len(scored) - guesses}"
        lucky = sum(tally.shares[at] > 0 for at in tally.guessed & scored)
        notes.append(
            f"{guesses} of {len(scored)} answers by chance, {lucky} of them right (they name no option, the task draws "
            f"one); {rest}"
        )
        if sure is None:
            value, reason = None, f"not scored: {notes[-1]}"
    notes += _reasoning(tally)
    if tally.left:
        notes.append(f"{len(tally.left)} answers left out: {next(iter(tally.left.values()))}")
    return Scores(
        metric=card.metric,
        unit=card.unit,
        value=value,
        values=tuple(values),
        aggregates=aggregates,
        n=len(scored),
        questions=tally.questions,
        failures=failures,
        reason=reason,
        notes=tuple(notes),
        own=own,
        guesses=guesses,
        left_out=len(tally.left),
    )


def _reasoning(tally: _Tally) -> list[str]:
    """Say what became of reasoning in the answers."""
    told = []
    if tally.reasoned:
        told.append(f"{tally.reasoned} answers had reasoning, which is no part of what is scored")
    if tally.unclosed:
        told.append(f"{tally.unclosed} answers never end their reasoning: scored with all of it, as lmms-eval does")
    return told


def _of_the_best(task: "Task", metric: str, tally: _Tally) -> float | None:
    """Return the task's aggregate of the best row alone, in the aggregate's own scale; None where it has none.

    Rows may be shares and their aggregate a percentage: 0.75 of few right rows looks like a share, this one does not.
    """
    column = next(iter(tally.results.values()), {}).get(metric, {})
    best = max((at for at in column if at in tally.shares), key=lambda at: tally.shares[at], default=None)
    return None if best is None else _aggregate(task, metric, {best: column[best]})[0]


def _aggregate(task: "Task", metric: str, column: Mapping[int, object]) -> tuple[float | None, str]:
    """Return the task's aggregate, or why there is none: a column's own trouble, or a value that is no number."""
    try:
        total = task.aggregate(metric, copy.deepcopy(list(column.values())))
    except Exception as error:  # noqa: BLE001 - the task's own code
        return None, f"the task's aggregate fails: {type(error).__name__}: {error}"
    if total is not None and not math.isfinite(total):
        return None, f"the task's aggregate is {total}"
    return total, ""


def _without(tally: _Tally) -> float | None:
    """Return the mean of the answers that were no guesses, or None where all were."""
    sure = {at: share for at, share in tally.shares.items() if at not in tally.guessed}
    return sum(sure.values()) / len(sure) if sure else None


@contextlib.contextmanager
def _random_kept() -> Iterator[None]:
    """Leave the random state as it was, whatever the tasks draw."""
    before = random.getstate()
    try:
        yield
    finally:
        random.setstate(before)


def _share(task: "Task", metric: str, result: object) -> float:
    """Return one sample's result as a share: the number it is or holds, else the task's own aggregate of it alone."""
    if isinstance(result, SupportsFloat):
        value = float(result)
    elif isinstance(result, Mapping) and isinstance(result.get("score"), int | float):
        value = float(result["score"])
    else:
        if task.name in OF_A_HUNDRED and isinstance(
            result, Mapping
        ):  # rows from a million on are rotations, which alone would not count
            result = {**result, "index": int(result["index"]) % groups.ROTATION}
        alone = task.aggregate(metric, [copy.deepcopy(result)])
        if alone is None:
            raise DataError(f"{task.name} has no aggregate of one {metric}")
        value = float(alone) / (100 if task.name in OF_A_HUNDRED else 1)
    if not math.isfinite(value):
        raise DataError(f"{metric} is {value}")
    return value


def _headline(
    card: SuiteCard, aggregates: Mapping[str, float], values: Sequence[float | None], alone: float | None
) -> tuple[float | None, float | None, str]:
    """Return the aggregate quoted first as a share, or in its own unit, and what there is to say about it.

    `alone` is the aggregate of the best row by itself. One that is no share, or a row's, says that the scale is
    another, however small the value is: 3 right of 400 are 0.75 in percent.
    """
    rows = [value for value in values if value is not None]
    n = len(rows)
    if card.metric not in aggregates or not n:
        return None, None, ""
    scale = 100 if card.task in OF_A_HUNDRED else 1
    value = aggregates[card.metric] / scale
    seen = [value, *rows, *([] if alone is None else [alone / scale])]
    if card.metric in OWN_UNIT or not all(-1e-9 <= one <= 1 + 1e-9 for one in seen):
        return None, value, ""
    if card.task == "ocrbench" and n != QUESTIONS_OF_OCRBENCH:
        value *= QUESTIONS_OF_OCRBENCH / n
        note = f"ocrbench's own aggregate divides by {QUESTIONS_OF_OCRBENCH}; this is the share of {n} answers"
        return value, None, note
    mean = sum(rows) / n
    if abs(mean - value) > 1e-5:
        return value, None, f"the task's own aggregate; the mean of its {n} rows is {mean:.4f}"
    return value, None, ""
