"""One verdict from the three layers: exit code, stage, size, first bad checkpoint, changed answers. Pure functions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from harness.reports.frame import Frame
from harness.track import answers, history, nights, ratios, signs
from harness.track.answers import Accuracy
from harness.track.history import Trend
from harness.track.nights import Reading
from harness.track.ratios import Latency
from harness.track.signs import Signs

SAME, REGRESSION, UNCLEAR, BROKEN = 0, 1, 2, 3
"""Exit codes."""
WORDS = {SAME: "OK", REGRESSION: "REGRESSION", UNCLEAR: "COULD NOT TELL", BROKEN: "BROKEN"}


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """What is said of the newest night. `lines` are its reasons, worst first; `notices` what else must be known."""

    code: int
    night: str
    baseline: str
    title: str
    lines: tuple[str, ...]
    notices: tuple[str, ...] = ()
    stage: str = ""
    first_bad: str = ""
    last_good: str = ""
    latency: Latency | None = None
    accuracy: Accuracy | None = None
    trend: Trend | None = None
    compared: tuple[tuple[str, str], ...] = ()
    """Tonight's checkpoint and the baseline, with what was measured of each: digest of the weights, own settings."""
    signs: Signs = field(default_factory=Signs)
    """The marks and doubts of both."""

    @property
    def word(self) -> str:
        """OK, REGRESSION, COULD NOT TELL or BROKEN; the baseline has no verdict but itself."""
        return WORDS[self.code]

    def as_dict(self) -> dict[str, object]:
        """Return it for `--json`."""
        ratios_ = [
            {"name": r.name, "ratio": r.value, "low": r.low, "high": r.high, "pairs": r.n, "verdict": r.word}
            for r in (self.latency.ratios if self.latency else ())
        ]
        accuracy = None
        if self.accuracy:
            a = self.accuracy
            names = ("word", "metric", "before", "after", "difference", "low", "high", "detectable", "n", "images")
            accuracy = {
                name: getattr(a, name) for name in (*names, "answers_changed", "reason", "lost", "lost_why", "missed")
            }
            accuracy["changed"] = [
                {"example": c.example, "before": c.before, "after": c.after, "score_before": c.score_before,
                 "score_after": c.score_after} for c in a.changed
            ]  # fmt: skip
        return {
            "verdict": self.word,
            "exit_code": self.code,
            "checkpoint": self.night,
            "baseline": self.baseline,
            "title": self.title,
            "reasons": list(self.lines),
            "notices": list(self.notices),
            "marks": list(self.signs.marks),
            "doubts": list(self.signs.doubts),
            "compared": dict(self.compared),
            "stage": self.stage,
            "first_bad": self.first_bad,
            "last_good": self.last_good,
            "ratios": ratios_,
            "accuracy": accuracy,
            "history": self.trend.word if self.trend else None,
            "history_wanders": self.trend.wandering if self.trend else None,
        }


class Judge:
    """Judges nights against one baseline, each at most once: `readings` are all nights in their order.

    With `one_run` a SLOWER needs no further run to count: two logs are all there is.
    """

    def __init__(
        self, readings: Sequence[Reading], baseline: str, minimum_effect: float, one_run: bool = False
    ) -> None:
        self.one_run = one_run
        self.readings, self.baseline, self.minimum_effect = list(readings), baseline, minimum_effect
        self.latencies: dict[str, Latency | None] = {}
        self.accuracies: dict[str, Accuracy | None] = {}

    def latency(self, reading: Reading) -> Latency | None:
        """Return layer 1's finding on a night, None where it was not measured beside the baseline."""
        if reading.night not in self.latencies:
            found = ratios.decide(reading.rounds, self.minimum_effect) if reading.rounds else None
            self.latencies[reading.night] = found
        return self.latencies[reading.night]

    def accuracy(self, reading: Reading) -> Accuracy | None:
        """Return layer 3's finding on a night; the baseline's answers are those of the same job, else its own."""
        if reading.night not in self.accuracies:
            own = next((one.candidate for one in self.readings if one.night == self.baseline), None)
            theirs = reading.baseline if reading.baseline and reading.baseline.records else own
            found = None
            if theirs and theirs.records and reading.candidate and reading.night != self.baseline:
                found = answers.compare(theirs, reading.candidate)
            self.accuracies[reading.night] = found
        return self.accuracies[reading.night]

    def verdict(self) -> Verdict:
        """Return the verdict on the newest night that was looked at."""
        tonight = self.readings[-1]
        case = _Case(notices=[str(one) for reading in self.readings for one in reading.skipped])
        case.unsure += [tonight.given_up] if tonight.given_up else []
        if tonight.night == self.baseline and tonight.state != "broken":
            if tonight.state == "invalid":
                case.unsure.append(f"the baseline itself is invalid: {tonight.reason}")
            else:
                case.fine.append("this is the baseline: there is nothing to compare it with yet")
        elif tonight.state == "broken":
            case.bad.append(f"the checkpoint cannot be measured: {tonight.reason}")
            case.stage, case.first_bad = "load", self._first(_is_broken)
            return self._say(tonight, case, BROKEN)
        elif tonight.state == "unready":
            case.unsure += [f"not measured tonight: {tonight.reason}", "the same command tries again"]
        elif tonight.state != "valid":
            case.unsure.append(f"no valid time tonight: {tonight.reason}")
            self._hear_answers(tonight, case)  # right or wrong, however busy the machine was
        else:
            self._hear_latency(tonight, case)
            self._hear_history(case)
            self._hear_answers(tonight, case)
        return self._say(tonight, case, REGRESSION if case.bad else UNCLEAR if case.unsure else SAME)

    def _hear_latency(self, tonight: Reading, case: "_Case") -> None:
        """Layer 1: tonight beside the baseline."""
        latency = case.latency = self.latency(tonight)
        if latency is None:
            return
        if latency.word == "SLOWER":
            how = f"in each of {latency.rounds} runs" if latency.confirmed else "one run, not confirmed"
            told = [f"{_name(r.name)} is slower: {r.change} ({how}, {latency.pairs} pairs)" for r in latency.slower]
            (case.bad if latency.confirmed or self.one_run else case.unsure).extend(told)
            case.stage = next((r.name for r in latency.slower if r.name != "ttft"), "")
            case.first_bad = self._first(self._is_slower)
        else:
            ttft = latency.ttft
            text = f"TTFT {latency.word}: {ttft.change if ttft else '–'} ({latency.pairs} pairs)"
            text += f"; {latency.note}" if latency.note else ""
            (case.unsure if latency.word == "AMBIGUOUS" else case.fine).append(text)
        if not tonight.interleaved:
            case.notices.append("the arms did not take turns: what slowed the machine may have slowed one of them only")

    def _hear_history(self, case: "_Case") -> None:
        """Layer 2: tonight after the nights before it; side by side overrules it."""
        points, changed = nights.segment(self.readings)
        if changed:
            case.notices.append(f"{changed}; nights before it are no longer compared with")
        trend = case.trend = self._trend(points)
        latency = case.latency
        held = latency is not None and latency.word in ("SAME", "FASTER")
        if trend and trend.word == "slower" and trend.ratio:
            since = points[trend.first_bad or 0].night
            text = f"history: slower by {trend.ratio - 1:+.1%} since {since}"
            if held:
                case.notices.append(f"{text}, but side by side with the baseline it is not: the machine became slower")
            elif latency is None:
                case.bad.append(text)
                case.stage, case.first_bad = case.stage or "ttft", since
        elif trend and trend.word == "suspicious" and not held and not case.bad:
            case.unsure.append("history: suspiciously slow tonight; it takes a second valid night to be sure")
        elif trend and latency is None:
            case.fine.append("history: no change of level" if len(points) > 1 else "history: the first valid night")
            if len(points) < 2 * history.MINIMUM_SEGMENT:
                few = f"{len(points)} valid nights are too few for change points, and nothing ran side by side"
                case.unsure.append(few)
        if trend and trend.wandering:
            case.notices.append(_wanders(trend.wandering, len(points)))

    def _hear_answers(self, tonight: Reading, case: "_Case") -> None:
        """Layer 3: tonight's answers beside the baseline's."""
        accuracy = case.accuracy = self.accuracy(tonight)
        if accuracy is None:
            return
        if accuracy.worse:
            case.bad += [accuracy.lost_text] if accuracy.lost else []
            case.first_bad = case.first_bad or self._first(self._is_worse)
            case.stage = case.stage or "answers"
        if accuracy.word == "WORSE":
            case.bad.append(f"answers are worse: {accuracy.text}")
        else:
            (case.unsure if accuracy.open else case.fine).append(accuracy.text)
        if accuracy.missed:
            told = "questions that the baseline answers failed tonight for reasons that may pass"
            case.unsure.append(f"{accuracy.missed} {told}")

    def _trend(self, points: Sequence[Reading]) -> Trend | None:
        medians = [point.median_ns for point in points if point.median_ns]
        names = [point.night for point in points]
        reference = names.index(self.baseline) if self.baseline in names else 0
        return history.trend(medians, reference, self.minimum_effect) if medians else None

    def _first(self, bad: Callable[[Reading], bool | None]) -> str:
        """Return the earliest night from which on every night that could be judged is bad."""
        first = ""
        for reading in reversed(self.readings):
            found = bad(reading)
            if found is False or reading.night == self.baseline:
                break
            if found:
                first = reading.night
        return first

    def _is_slower(self, reading: Reading) -> bool | None:
        found = self.latency(reading)
        return None if found is None or found.word == "AMBIGUOUS" else found.word == "SLOWER"

    def _is_worse(self, reading: Reading) -> bool | None:
        found = self.accuracy(reading) if reading.state in ("valid", "invalid") else None
        return None if found is None or (found.word == "NOT SCORED" and not found.lost) else found.worse

    def _say(self, tonight: Reading, case: "_Case", code: int) -> Verdict:
        names = [reading.night for reading in self.readings if reading.state == "valid"]
        first = case.first_bad
        own = next((one for one in self.readings if one.night == self.baseline), None)
        for one in {id(one): one for one in (own, tonight) if one and one.changed}.values():
            changed = f"{one.night} was measured before as something else ({one.changed}): not compared with that"
            case.notices.append(changed)
        earlier = [name for name in names if first and nights.natural(name) < nights.natural(first)]
        title = f"{WORDS[code]}: {tonight.night} against {self.baseline}"
        if tonight.night == self.baseline:
            title = f"{WORDS[code]}: {tonight.night} is the baseline"
        return Verdict(
            code, tonight.night, self.baseline, title, (*case.bad, *case.unsure, *case.fine),
            tuple(dict.fromkeys(case.notices)), case.stage, first, earlier[-1] if earlier else "",
            case.latency, case.accuracy, case.trend, self._compared(tonight, own),
            signs.of_both(tonight, self.baseline),
        )  # fmt: skip

    def _compared(self, tonight: Reading, own: Reading | None) -> tuple[tuple[str, str], ...]:
        """Return tonight's checkpoint and the baseline with what was measured of each, where that is known."""
        compared = [(tonight.night, _measured_on(tonight.candidate))]
        if tonight.night != self.baseline:
            beside = tonight.baseline if tonight.baseline and tonight.baseline.records else None
            compared.append((self.baseline, _measured_on(beside or (own.candidate if own else None))))
        return tuple((name, what) for name, what in compared if what)


@dataclass(slots=True)
class _Case:
    """What the layers have said of a night so far: for and against it, and in what they are not sure."""

    notices: list[str]
    bad: list[str] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)
    fine: list[str] = field(default_factory=list)
    stage: str = ""
    first_bad: str = ""
    latency: Latency | None = None
    accuracy: Accuracy | None = None
    trend: Trend | None = None


def _measured_on(frame: Frame | None) -> str:
    """Return what the frame's last log was measured on: the digest of the weights (or random), and its own settings."""
    if frame is None or not frame.records:
        return ""
    header = max((log.header for log in frame.records.values()), key=lambda header: header.started_at)
    digest, settings = header.cell.get("weights_digest"), header.cell.get("settings")
    told = [f"weights {digest}" if digest else f"{header.cell.get('weights') or 'unknown'} weights"]
    told += [f"{name}={value}" for name, value in sorted(settings.items())] if isinstance(settings, dict) else []
    return ", ".join(told)


def _wanders(correlation: float, nights_: int) -> str:
    """Say that nights follow one another, and what of the history is still to be believed."""
    told = f"history: the {nights_} nights wander by themselves (neighbours correlate by {correlation:.2f})"
    if correlation >= history.NO_LEVEL:
        return f"{told}: there is no level that could change, so no change of level is looked for"
    return f"{told}: change points assume independent nights, so only larger changes are believed"


def _is_broken(reading: Reading) -> bool | None:
    return None if reading.state in ("missing", "invalid", "unready") else reading.state == "broken"


def _name(name: str) -> str:
    return "TTFT" if name == "ttft" else name


def states(readings: Sequence[Reading]) -> Mapping[str, int]:
    """Count the nights by state."""
    return {
        name: sum(r.state == name for r in readings) for name in ("valid", "invalid", "unready", "broken", "missing")
    }
