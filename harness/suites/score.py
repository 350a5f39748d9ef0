"""The bridge to lmms-eval's own scoring: logged answers and rows in, the task's own numbers out; no network."""

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.errors import DataError
from harness.suites.card import SuiteCard

RANDOM_WEIGHTS = "not scored: random weights (their answers say nothing about the model)"
NO_ANSWERS = "not scored: no example was answered"

OF_A_HUNDRED = ("mmbench_en_dev_static",)
"""Tasks whose aggregate is a percentage; all others' is a share."""

QUESTIONS_OF_OCRBENCH = 1000
"""OCRBench's aggregate divides by this whatever was answered."""


class Scorable(Protocol):
    """What scoring needs of a sample; `records.Sample` has it."""

    @property
    def example(self) -> str:
        """The example's id."""

    @property
    def doc(self) -> Mapping[str, Any]:
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
    failures: int = 0
    """Samples without an answer: left out, never wrong answers."""
    reason: str = ""
    """Why nothing was scored."""
    notes: tuple[str, ...] = ()

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
    are left out. Raises `DataError` where a row is not one of the task's.
    """
    if card.judge:
        return not_scored(
            card, f"not scored: {card.name} needs a judge ({card.unit or card.metric}): answers are logged"
        )
    answered = [at for at, sample in enumerate(samples) if sample.answer is not None]
    failures = len(samples) - len(answered)
    if not answered:
        return Scores(card.metric, card.unit, failures=failures, reason=NO_ANSWERS)
    from harness.suites.task import Task, missing

    docs = [copy.deepcopy(dict(samples[at].doc)) for at in answered]
    task = Task(card.task, docs[0])
    if card.metric not in task.metrics:
        raise DataError(
            f"suite {card.name}: task {card.task} has no metric {card.metric!r}; it has {', '.join(task.metrics)}"
        )
    values: list[float | None] = [None] * len(samples)
    aggregates: dict[str, float] = {}
    before = random.getstate()
    try:
        filtered = task.filtered(docs, [samples[at].answer or "" for at in answered])
        for turn, (name, answers) in enumerate(filtered.items()):
            items: dict[str, list[Any]] = {}
            for at, doc, answer in zip(answered, docs, answers, strict=True):
                random.seed(samples[at].example)  # mmmu guesses where an answer has no letter: the same guess each time
                row = copy.deepcopy(doc)
                try:
                    results = task.results(row, answer)
                except (KeyError, TypeError, AttributeError, ValueError, AssertionError) as error:
                    raise DataError(f"example {samples[at].example}: {missing(card.task, doc, error)}") from error
                for metric in task.metrics:
                    if metric in results:
                        items.setdefault(metric, []).append(results[metric])
                if turn == 0 and card.metric in results:
                    values[at] = _share(task, card.metric, results[card.metric])
            for metric, column in items.items():
                total = task.aggregate(metric, copy.deepcopy(column))
                if total is not None:
                    aggregates[metric if turn == 0 else f"{metric},{name}"] = total
    finally:
        random.setstate(before)
    n = sum(value is not None for value in values)
    value, notes = _headline(card, aggregates, values, n)
    return Scores(
        metric=card.metric,
        unit=card.unit,
        value=value,
        values=tuple(values),
        aggregates=aggregates,
        n=n,
        failures=failures,
        reason="" if value is not None else f"not scored: no answer has the metric {card.metric}",
        notes=notes,
    )


def _share(task: Any, metric: str, result: Any) -> float:
    """Return one sample's result as a share: the number it is or holds, else the task's own aggregate of it alone."""
    if isinstance(result, int | float) or hasattr(result, "__float__"):
        return float(result)
    if isinstance(result, Mapping) and isinstance(result.get("score"), int | float):
        return float(result["score"])
    if task.name in OF_A_HUNDRED:  # rows from a million on are rotations of a question, which alone would not count
        result = {**result, "index": int(result["index"]) % 1_000_000}
    alone = task.aggregate(metric, [copy.deepcopy(result)])
    assert alone is not None, f"{task.name} has no aggregate of one {metric}"
    return float(alone) / (100 if task.name in OF_A_HUNDRED else 1)


def _headline(
    card: SuiteCard, aggregates: Mapping[str, float], values: Sequence[float | None], n: int
) -> tuple[float | None, tuple[str, ...]]:
    """Return the aggregate quoted first as a share, and what there is to say about it."""
    if card.metric not in aggregates or not n:
        return None, ()
    value = aggregates[card.metric] / (100 if card.task in OF_A_HUNDRED else 1)
    if card.task == "ocrbench" and n != QUESTIONS_OF_OCRBENCH:
        value *= QUESTIONS_OF_OCRBENCH / n
        return value, (
            f"ocrbench's own aggregate divides by {QUESTIONS_OF_OCRBENCH}; this is the share of {n} answers",
        )
    mean = sum(part for part in values if part is not None) / n
    if abs(mean - value) > 1e-5:
        return value, (f"the task's own aggregate; the mean of its {n} rows is {mean:.4f}",)
    return value, ()
