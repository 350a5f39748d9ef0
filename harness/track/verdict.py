"""One verdict from the three layers: exit code, stage, size, first bad checkpoint, changed answers. Pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.reports.frame import Frame
from harness.track import answers, history, nights, ratios
from harness.track.answers import Accuracy
from harness.track.history import Trend
from harness.track.nights import Reading
from harness.track.ratios import Latency

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

    @property
    def word(self) -> str:
        """OK, REGRESSION, COULD NOT TELL or BROKEN; the baseline has no verdict but itself."""
        return WORDS[self.code]

    def as_dict(self) -> dict[str, Any]:
        """Return it for `--json`."""
        ratios_ = [
            {"name": r.name, "ratio": r.value, "low": r.low, "high": r.high, "pairs": r.n, "verdict": r.word}
            for r in (self.latency.ratios if self.latency else ())
        ]
        accuracy = None
        if self.accuracy:
            a = self.accuracy
            names = ("word", "metric", "before", "after", "difference", "low", "high", "detectable", "n", "images")
            accuracy = {name: getattr(a, name) for name in (*names, "answers_changed", "reason")}
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
            "compared": dict(self.compared),
            "stage": self.stage,
            "first_bad": self.first_bad,
            "last_good": self.last_good,
            "ratios": ratios_,
            "accuracy": accuracy,
            "history": self.trend.word if self.trend else None,
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
        notices = [str(one) for reading in self.readings for one in reading.skipped]
        if tonight.night == self.baseline and tonight.state != "broken":
            if tonight.state == "invalid":
                return self._say(UNCLEAR, tonight, [f"the baseline itself is invalid: {tonight.reason}"], notices)
            return self._say(SAME, tonight, ["this is the baseline: there is nothing to compare it with yet"], notices)
        if tonight.state == "broken":
            lines = [f"the checkpoint cannot be measured: {tonight.reason}"]
            return self._say(BROKEN, tonight, lines, notices, stage="load", first_bad=self._first(_is_broken))
        if tonight.state == "unready":
            lines = [f"not measured tonight: {tonight.reason}", "the same command tries again"]
            return self._say(UNCLEAR, tonight, lines, notices)
        if tonight.state != "valid":
            return self._answers_only(tonight, notices)
        return self._judge(tonight, notices)

    def _answers_only(self, tonight: Reading, notices: list[str]) -> Verdict:
        """Judge a night without a valid time: answers are right or wrong however busy the machine was."""
        line, accuracy = f"no valid time tonight: {tonight.reason}", self.accuracy(tonight)
        if accuracy is None:
            return self._say(UNCLEAR, tonight, [line], notices)
        if accuracy.word != "WORSE":
            return self._say(UNCLEAR, tonight, [line, accuracy.text], notices, accuracy=accuracy)
        lines = [f"answers are worse: {accuracy.text}", line]
        first = self._first(self._is_worse)
        return self._say(REGRESSION, tonight, lines, notices, "answers", first, accuracy=accuracy)

    def _judge(self, tonight: Reading, notices: list[str]) -> Verdict:
        latency, accuracy = self.latency(tonight), self.accuracy(tonight)
        points, changed = nights.segment(self.readings)
        if changed:
            notices.append(f"{changed}; nights before it are no longer compared with")
        trend = self._trend(points)
        bad: list[str] = []
        unsure: list[str] = []
        fine: list[str] = []
        stage = first_bad = ""
        if latency and latency.word == "SLOWER":
            how = f"in each of {latency.rounds} runs" if latency.confirmed else "one run, not confirmed"
            told = [f"{_name(r.name)} is slower: {r.change} ({how}, {latency.pairs} pairs)" for r in latency.slower]
            (bad if latency.confirmed or self.one_run else unsure).extend(told)
            stage = next((r.name for r in latency.slower if r.name != "ttft"), "")
            first_bad = self._first(self._is_slower)
        elif latency:
            ttft = latency.ttft
            text = f"TTFT {latency.word}: {ttft.change if ttft else '–'} ({latency.pairs} pairs)"
            text += f"; {latency.note}" if latency.note else ""
            (unsure if latency.word == "AMBIGUOUS" else fine).append(text)
        if latency and not tonight.interleaved:
            notices.append("the arms did not take turns: what slowed the machine may have slowed one of them only")
        held = latency is not None and latency.word in ("SAME", "FASTER")
        if trend and trend.word == "slower" and trend.ratio:
            text = f"history: slower by {trend.ratio - 1:+.1%} since {points[trend.first_bad or 0].night}"
            if held:
                notices.append(f"{text}, but side by side with the baseline it is not: the machine became slower")
            elif latency is None:
                bad.append(text)
                stage, first_bad = stage or "ttft", points[trend.first_bad or 0].night
        elif trend and trend.word == "suspicious" and not held and not bad:
            unsure.append("history: suspiciously slow tonight; it takes a second valid night to be sure")
        elif trend and latency is None:
            fine.append("history: no change of level" if len(points) > 1 else "history: the first valid night")
            if len(points) < 2 * history.MINIMUM_SEGMENT:
                unsure.append(f"{len(points)} valid nights are too few for change points, and nothing ran side by side")
        if accuracy and accuracy.word == "WORSE":
            bad.append(f"answers are worse: {accuracy.text}")
            first_bad = first_bad or self._first(self._is_worse)
            stage = stage or "answers"
        elif accuracy:
            fine.append(accuracy.text)
        code = REGRESSION if bad else UNCLEAR if unsure else SAME
        return self._say(code, tonight, [*bad, *unsure, *fine], notices, stage, first_bad, latency, accuracy, trend)

    def _trend(self, points: Sequence[Reading]) -> Trend | None:
        medians = [point.median_ns for point in points if point.median_ns]
        names = [point.night for point in points]
        reference = names.index(self.baseline) if self.baseline in names else 0
        return history.trend(medians, reference, self.minimum_effect) if medians else None

    def _first(self, bad: Any) -> str:
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
        return None if found is None or found.word == "NOT SCORED" else found.word == "WORSE"

    def _say(
        self,
        code: int,
        tonight: Reading,
        lines: Sequence[str],
        notices: Sequence[str],
        stage: str = "",
        first_bad: str = "",
        latency: Latency | None = None,
        accuracy: Accuracy | None = None,
        trend: Trend | None = None,
    ) -> Verdict:
        names = [reading.night for reading in self.readings if reading.state == "valid"]
        earlier = [name for name in names if first_bad and nights.natural(name) < nights.natural(first_bad)]
        own = next((one for one in self.readings if one.night == self.baseline), None)
        compared = [(tonight.night, _measured_on(tonight.candidate))]
        if tonight.night != self.baseline:
            theirs = (
                tonight.baseline if tonight.baseline and tonight.baseline.records else own.candidate if own else None
            )
            compared.append((self.baseline, _measured_on(theirs)))
        for one in {id(one): one for one in (own, tonight) if one and one.changed}.values():
            notices = [
                *notices,
                f"{one.night} was measured before as something else ({one.changed}): not compared with that",
            ]
        title = f"{WORDS[code]}: {tonight.night} against {self.baseline}"
        if tonight.night == self.baseline:
            title = f"{WORDS[code]}: {tonight.night} is the baseline"
        return Verdict(
            code, tonight.night, self.baseline, title, tuple(lines), tuple(dict.fromkeys(notices)), stage, first_bad,
            earlier[-1] if earlier else "", latency, accuracy, trend, tuple((n, c) for n, c in compared if c),
        )  # fmt: skip


def _measured_on(frame: Frame | None) -> str:
    """Return what the frame's last log was measured on: the digest of the weights (or random), and its own settings."""
    if frame is None or not frame.records:
        return ""
    header = max((log.header for log in frame.records.values()), key=lambda header: header.started_at)
    digest, settings = header.cell.get("weights_digest"), header.cell.get("settings")
    told = [f"weights {digest}" if digest else f"{header.cell.get('weights') or 'unknown'} weights"]
    told += [f"{name}={value}" for name, value in sorted(settings.items())] if isinstance(settings, dict) else []
    return ", ".join(told)


def _is_broken(reading: Reading) -> bool | None:
    return None if reading.state in ("missing", "invalid", "unready") else reading.state == "broken"


def _name(name: str) -> str:
    return "TTFT" if name == "ttft" else name


def states(readings: Sequence[Reading]) -> Mapping[str, int]:
    """Count the nights by state."""
    return {
        name: sum(r.state == name for r in readings) for name in ("valid", "invalid", "unready", "broken", "missing")
    }
