"""Which checkpoint at which resolution for a budget: the best cell, how sure that is, and what would make it surer.

Cells are compared only on one platform and over the same questions. In every bootstrap draw the cells that fit the
budget compete; how often one wins is the probability that it is the best. Scores are drawn towards their common mean
by as much as their spread is noise, for otherwise the luckiest of several equals would be called the best.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from harness.errors import SettingError
from harness.models.protocol import STAGES
from harness.reports import candidates, marks, measured, pareto, wording
from harness.reports.candidates import Candidate
from harness.reports.measured import Measured
from harness.reports.summary import CellSummary
from harness.units import milliseconds, size

DRAWS = 4000
SURE = 0.95
WIDER = 1.25
"""Bootstraps of few samples are too narrow: without this the named winner was right less often than it said, see
benchmarks/choose_calibration.py."""
SURE_Z = 1.645
"""One-sided 95 % of the normal distribution."""
MOST_MORE = 20_000
"""More samples than that nobody takes: the two are then called equal."""

Array = NDArray[np.float64]
Fit = Literal["surely", "maybe", "not", "unknown"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What the choice must keep to; None where nothing was said. With `accuracy` the fastest cell is looked for."""

    ttft_ns: float | None = None
    accuracy: float | None = None
    memory_bytes: float | None = None
    energy_mj: float | None = None

    @property
    def fastest(self) -> bool:
        """Whether the fastest cell that is right often enough is looked for, not the most accurate one."""
        return self.accuracy is not None

    @property
    def text(self) -> str:
        """The budget in words."""
        said = [f"TTFT at most {milliseconds(self.ttft_ns)}"] if self.ttft_ns is not None else []
        said += [f"accuracy at least {self.accuracy:.3g}"] if self.accuracy is not None else []
        said += [f"memory at most {size(self.memory_bytes)}"] if self.memory_bytes is not None else []
        said += [f"energy at most {self.energy_mj / 1e3:.3g} J"] if self.energy_mj is not None else []
        return ", ".join(said)


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """One cell: how likely it fits the budget, and how likely it is the best that does."""

    candidate: Candidate
    fit: Fit
    fits: float
    best: float
    why: str = ""
    """Why it cannot fit, or why that is not known."""

    @property
    def cell(self) -> CellSummary:
        return self.candidate.cell

    @property
    def probability(self) -> float | None:
        """How likely it is the best; None where it was measured too few times for an interval: nobody knows."""
        return None if self.candidate.point.unbounded else self.best

    @property
    def text(self) -> str:
        """The cell with its two numbers."""
        one, scored = self.cell, self.candidate.accuracy
        return (
            f"{self.candidate.point.series} at {one.cell.resolution} px"
            f"{marks.symbols(self.candidate.point.marks)}: TTFT "
            f"{wording.estimate(one.times.of('ttft'), 1e-6)} ms, {scored.metric} {wording.estimate(scored.estimate)} "
            f"over {scored.n} questions"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The choice on one platform for one suite; `contenders` are all cells, the likeliest first."""

    about: str
    budget: Budget
    contenders: tuple[Contender, ...]
    advice: tuple[str, ...] = ()
    nothing: str = ""
    """Why there is no winner."""
    marks: tuple[str, ...] = field(default=())
    notes: tuple[str, ...] = ()
    """What there is to say about comparing them: on which questions, and what was not measured alike."""

    @property
    def winner(self) -> Contender | None:
        """The cell that is most likely the best one."""
        return None if self.nothing else self.contenders[0]

    @property
    def runner_up(self) -> Contender | None:
        """The next likely one, if it has any chance."""
        rest = [one for one in self.contenders[1:] if one.best >= 0.005]
        return rest[0] if rest and not self.nothing else None


def parse(
    ttft: str | None = None, accuracy: str | None = None, memory: str | None = None, energy: str | None = None
) -> Budget:
    """Return the budget that these texts say. Raises `SettingError` for a quantity without its unit, or for none."""
    if ttft is accuracy is memory is energy is None:
        raise SettingError("no budget was named; next: give --ttft 200ms, --accuracy 0.7, --memory 8GB or --energy 5J")
    share = None
    if accuracy is not None:
        share = _quantity("--accuracy", accuracy, {"": 1.0, "%": 0.01}, "0.7 or 70%")
        if not 0 < share <= 1:
            raise SettingError(f"--accuracy {accuracy}: a share between 0 and 1; next: write 0.7 or 70%")
    return Budget(
        None if ttft is None else _quantity("--ttft", ttft, {"us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}, "200ms"),
        share,
        None if memory is None else _quantity("--memory", memory, BYTES, "8GB"),
        None if energy is None else _quantity("--energy", energy, {"mj": 1.0, "j": 1e3}, "5J"),
    )


BYTES = {"mb": 1e6, "gb": 1e9, "tb": 1e12, "mib": 2.0**20, "gib": 2.0**30, "tib": 2.0**40}


def _quantity(option: str, text: str, units: dict[str, float], example: str) -> float:
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-zA-Zµ%]*)\s*", text)
    if found is None or found[2].lower() not in units or float(found[1]) <= 0:
        known = ", ".join(unit for unit in units if unit)
        raise SettingError(f"{option} {text}: no number with one of the units {known}; next: write {example}")
    return float(found[1]) * units[found[2].lower()]


def choose(data: Measured, budget: Budget, suite: str | None = None, seed: int = 0) -> list[Answer]:
    """Return the choice for each platform and suite that was measured end to end, the one with most cells first."""
    cells = [one for one in data.cells if one.cell.protocol == "ttft" and suite in (None, one.cell.suite)]
    answers = []
    groups = measured.by_platform(cells, suites=True)
    for about, (_, _, mine) in zip(wording.abouts(groups), groups, strict=True):
        found = candidates.of(data, [one for one in mine if not one.cell.isolate], "ttft")
        answers.append(answer(about, found, budget, seed) if found else _unanswered(about, mine, budget))
    return sorted(answers, key=lambda one: (bool(one.nothing), -len(one.contenders)))


def _unanswered(about: str, cells: Sequence[CellSummary], budget: Budget) -> Answer:
    reasons = dict.fromkeys(one.accuracy.reason for one in cells if one.accuracy.reason)
    told = "; ".join(reasons) or "no cell has both a TTFT and a score"
    return Answer(about, budget, (), nothing=f"{len(cells)} cells, none of them scored: {told}")


def answer(about: str, found: Sequence[Candidate], budget: Budget, seed: int = 0) -> Answer:
    """Return the choice among candidates of one platform over the same questions."""
    costs, merits, drawn_in = drawn([one.point for one in found], seed)
    allowed = [
        not one.apart and all(value is not None and value <= most for value, most in _limits(one.cell, budget))
        for one in found
    ]
    fits, wins = odds(costs, merits, drawn_in, budget, allowed)
    contenders = [Contender(one, *_fit(one, float(fits[i]), budget), float(wins[i])) for i, one in enumerate(found)]
    contenders = [Contender(c.candidate, c.fit, c.fits, c.best, _why(c.candidate, c.fit, budget)) for c in contenders]
    order = sorted(
        range(len(found)),  # what more likely misses the budget than fits it is not named, however fast it is
        key=lambda i: (contenders[i].fits < 0.5, -contenders[i].best, -contenders[i].fits, found[i].point.cost),
    )
    ranked = tuple(contenders[i] for i in order)
    carried, notes = marks.of_all(one.point.marks for one in found), candidates.notes(found)
    if ranked[0].best <= 0:
        return Answer(about, budget, ranked, (), _nearest(found, budget), carried, notes)
    advice: list[str] = []
    if ranked[0].best < SURE:
        rivals = order[1:2] if len(ranked) > 1 and ranked[1].best > 0 else []
        for i in (order[0], *rivals):
            advice += _to_fit(found[i], costs[:, i], merits[:, i], budget)
        advice += [_to_beat(found, order[0], i, costs, drawn_in, budget) for i in rivals]
    advice = [said for said in advice if said]
    return Answer(about, budget, ranked, tuple(advice), "", carried, notes)


def drawn(points: Sequence[pareto.Point], seed: int, draws: int = DRAWS) -> tuple[Array, Array, Array]:
    """Return bootstrap draws of all costs, of all scores, and of the scores drawn towards their mean.

    A score is held against a limit as it was measured, and against other scores drawn in by the noise's share.
    """
    costs, merits = pareto.draw(points, seed, draws)
    seen, took = (np.array([getattr(point, name) for point in points]) for name in ("merit", "cost"))
    costs, off = took + WIDER * (costs - took), WIDER * (merits - seen)
    if len(points) < 2:
        return costs, seen + off, seen + off
    # Questions that are hard for all move all scores alike: only what is left of the noise could turn the order.
    own = off - off.mean(axis=1, keepdims=True)
    noise = own.var(axis=0) * len(points) / (len(points) - 1)
    spread = max(0.0, float(seen.var(ddof=1) - noise.mean()))
    kept = np.where(noise > 0, spread / np.maximum(spread + noise, 1e-12), 1.0)
    return costs, seen + off, seen.mean() + kept * (seen - seen.mean()) + np.sqrt(kept) * own


def odds(costs: Array, merits: Array, drawn_in: Array, budget: Budget, allowed: Sequence[bool]) -> tuple[Array, Array]:
    """Return how often each cell fits the budget, and how often it is the best of those that do; see `drawn`."""
    fits = np.tile(np.array(allowed, dtype=bool), (len(costs), 1))
    if budget.ttft_ns is not None:
        fits &= costs <= budget.ttft_ns / 1e6
    if budget.accuracy is not None:
        fits &= merits >= 100 * budget.accuracy
    values = np.where(fits, -costs if budget.fastest else drawn_in, -np.inf)
    best = values.max(axis=1, keepdims=True)
    first = (values == best) & fits
    share = first / np.maximum(first.sum(axis=1, keepdims=True), 1)
    return fits.mean(axis=0), share.mean(axis=0)


def _limits(one: CellSummary, budget: Budget) -> list[tuple[float | None, float]]:
    """Return what has no interval, with its limit: memory and energy."""
    wanted = ((one.memory.whole_bytes, budget.memory_bytes), (_energy_mj(one), budget.energy_mj))
    return [(value, most) for value, most in wanted if most is not None]


def _energy_mj(one: CellSummary) -> float | None:
    """Return the energy until the first token; None where a stage was too short for the counter: no sum is partial."""
    spent = one.times.energy_mj
    stages = [stage for stage in STAGES if one.times.of(stage) or stage in ("encode", "prefill")]
    return sum(spent[stage] for stage in stages) if all(stage in spent for stage in stages) else None


def _fit(one: Candidate, share: float, budget: Budget) -> tuple[Fit, float]:
    if one.apart or any(value is None for value, _ in _limits(one.cell, budget)):
        return "unknown", 0.0
    if one.point.unbounded and share > 0:
        return "maybe", share  # measured too few times to be sure of anything
    return ("surely" if share >= SURE else "maybe" if share > 1 - SURE else "not"), share


def _why(one: Candidate, fit: Fit, budget: Budget) -> str:
    if fit == "unknown":
        missing = f" ({one.cell.memory.not_told} share is not told)" if one.cell.memory.not_told else ""
        return one.apart or f"its memory{missing}, or the energy of each of its stages, was not measured"
    if fit == "maybe" and one.point.unbounded:
        return "measured too few times for an interval"
    if fit == "not" and any(value is not None and value > most for value, most in _limits(one.cell, budget)):
        return "needs too much memory or energy"
    return ""


def _nearest(everybody: Sequence[Candidate], budget: Budget) -> str:
    found = [one for one in everybody if not one.apart]
    if not found:
        return "no two cells answered enough of the same questions"
    fastest, best = min(found, key=lambda c: c.point.cost), max(found, key=lambda c: c.point.merit)
    told = []
    if budget.ttft_ns is not None:
        told.append(f"the fastest takes {wording.number(fastest.point.cost)} ms ({fastest.point.name})")
    if budget.accuracy is not None:
        told.append(f"the best scores {best.point.merit / 100:.3f} ({best.point.name})")
    if budget.memory_bytes is not None:
        known = [one.cell.memory.whole_bytes for one in found if one.cell.memory.whole_bytes is not None]
        told.append(f"the smallest needs {size(min(known))}" if known else "no cell's memory was measured")
    if budget.energy_mj is not None and all(_energy_mj(one.cell) is None for one in found):
        told.append("no cell's energy was measured in each of its stages")
    return f"no cell fits: {'; '.join(told)}"


def _to_fit(one: Candidate, costs: Array, merits: Array, budget: Budget) -> list[str]:
    """Return which more samples would show whether a cell fits the budget."""
    said = []
    if budget.ttft_ns is not None:
        share = float((costs <= budget.ttft_ns / 1e6).mean())
        said.append(_more(f"TTFT of {one.point.name}", one.cell.times.n, share, "samples"))
    if budget.accuracy is not None:
        share = float((merits >= 100 * budget.accuracy).mean())
        said.append(_more(f"accuracy of {one.point.name}", one.questions, share, "questions"))
    return said


def _to_beat(found: Sequence[Candidate], first: int, second: int, costs: Array, merits: Array, budget: Budget) -> str:
    """Return which more samples would show which of two cells is the better one; nothing where that is known."""
    both = f"of {found[first].point.name} and {found[second].point.name}"
    if budget.fastest:
        n = min(found[i].cell.times.n for i in (first, second))
        return _more(f"TTFT {both}", n, float((costs[:, first] < costs[:, second]).mean()), "samples")
    n = min(found[i].questions for i in (first, second))
    return _more(f"accuracy {both}", n, float((merits[:, first] > merits[:, second]).mean()), "questions")


def _more(what: str, n: int, share: float, unit: str) -> str:
    """Say how many more samples would make a probability of `share` a sure one: errors fall with their square root."""
    if not 1 - SURE < share < SURE:
        return ""
    z = abs(NormalDist().inv_cdf(share))
    more = math.ceil(n * (SURE_Z / z) ** 2 - n) if z else math.inf
    if more > MOST_MORE:
        return f"{what}: too near to tell apart with any reasonable number of {unit}; treat them as equal"
    return f"{what}: about {max(more, 1)} more {unit} each ({n} now)"


def text(answers: Sequence[Answer]) -> str:
    """Return the answers as people read them."""
    lines: list[str] = []
    for one in answers:
        lines += [f"{one.about}: {one.budget.text}"]
        if one.nothing:
            lines += [f"  cannot say: {one.nothing}"]
        aim = "the fastest" if one.budget.fastest else "the most accurate"
        for word, each in (("choose", one.winner), ("else", one.runner_up)):
            if each:
                lines += [f"  {word:6}  {each.text}"]
                lines += [f"          {aim} that fits, {_sure(each)}"]
                lines += [f"          accuracy: {said}" for said in each.candidate.accuracy.remarks]
                lines += [f"          doubt: {said}" for said in each.candidate.doubts]
        lines += [f"  to decide: {said}" for said in one.advice]
        for fit, words in (("surely", "fit surely"), ("maybe", "fit maybe"), ("unknown", "not known")):
            named = [
                f"{c.candidate.point.series} {c.cell.cell.resolution} px{'?' if c.candidate.doubts else ''}{_odds(c)}"
                for c in one.contenders
                if c.fit == fit
            ]
            lines += [f"  {words}: {', '.join(named)}"] if named else []
        out = [c.candidate.point.name for c in one.contenders if c.fit == "not"]
        lines += [f"  do not fit: {', '.join(out)}"] if out else []
        lines += [f"  note: {said}" for said in one.notes]
        lines += [f"  {line}" for line in marks.legend(one.marks)]
    return "\n".join(lines)


def probability(share: float | None) -> str:
    """Return a probability in words."""
    if share is None:
        return "not known"
    return "over 0.99" if share > 0.99 else f"{share:.2f}"


def _sure(one: Contender) -> str:
    if one.probability is None:
        return f"how surely is not known: {one.candidate.cell.times.n} samples were too few for an interval"
    return f"with probability {probability(one.probability)}"


def _odds(one: Contender) -> str:
    if one.why:
        return f" ({one.why})"
    return f" ({one.fits:.2f})" if one.fit == "maybe" else ""


def as_dict(one: Answer) -> dict[str, object]:
    """Return an answer for `--json`; units are in the names."""
    budget = one.budget
    return {
        "about": one.about,
        "budget": {
            "ttft_ms": None if budget.ttft_ns is None else budget.ttft_ns / 1e6,
            "accuracy": budget.accuracy,
            "memory_bytes": budget.memory_bytes,
            "energy_j": None if budget.energy_mj is None else budget.energy_mj / 1e3,
        },
        "winner": None if one.winner is None else one.winner.cell.cell.name,
        "probability": None if one.winner is None else one.winner.probability,
        "runner_up": None if one.runner_up is None else one.runner_up.cell.cell.name,
        "to_decide": list(one.advice),
        "cannot_say": one.nothing,
        "notes": list(one.notes),
        "cells": [_cell(each) for each in one.contenders],
    }


def _cell(one: Contender) -> dict[str, object]:
    about, ttft, scored = one.cell.cell, one.cell.times.of("ttft"), one.candidate.accuracy
    assert ttft is not None
    return {
        "cell": about.name,
        "model": about.label,
        "resolution_px": about.resolution,
        "ttft_ms": wording.scaled(ttft.value, 1e-6),
        "ttft_low_ms": wording.scaled(ttft.low, 1e-6),
        "ttft_high_ms": wording.scaled(ttft.high, 1e-6),
        "accuracy": scored.value,
        "accuracy_low": scored.low,
        "accuracy_high": scored.high,
        "questions": scored.n,
        "remarks": list(scored.remarks),
        "compared_on_questions": 0 if one.candidate.apart else one.candidate.questions,
        "compared_accuracy": None if one.candidate.apart else one.candidate.point.merit / 100,
        "fit": one.fit,
        "probability_fits": one.fits,
        "probability_best": one.probability,
        "marks": list(one.candidate.point.marks),
        "doubts": list(one.candidate.doubts),
    }
