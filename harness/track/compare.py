"""`harness compare A B`: layers 1 and 3 for two logs, or for two checkpoints that are measured side by side now."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from harness.errors import LogError
from harness.measure.asked import Asked
from harness.reports import configuration, frame
from harness.reports.frame import Frame
from harness.runlog import conditions
from harness.track import arms, contents, jobs, nights
from harness.track.nights import Expected, Reading
from harness.track.verdict import BROKEN, UNCLEAR, WORDS, Judge, Verdict
from harness.units import some

CELL = (
    "machine", "model", "settings", "suite", "data_digest", "limit", "resolution", "device", "engine", "endpoint",
    "dtype", "threads", "protocol", "isolate",
)  # fmt: skip
"""What two logs must have in common, or a difference may be of something else than the checkpoints."""
MOST_TOLD = 6


def of_logs(a: Path, b: Path, minimum_effect: float) -> Verdict:
    """Compare the cell in `b` with the one in `a` (run logs, or folders that hold the logs of one cell)."""
    baseline, candidate = _load(a), _load(b)
    name = str(b) if a != b else f"{b} (again)"
    found = nights.reading(name, candidate, baseline, candidate.skipped)
    mine = nights.reading(str(a), baseline, None, baseline.skipped)
    if found.state == "valid" and mine.state != "valid":
        found = _unusable(found, f"{a}: {mine.reason}")
    verdict = Judge([mine, found], str(a), minimum_effect, one_run=True).verdict()
    return _of_more(verdict, _unlike(baseline, candidate))


def _unlike(baseline: Frame, candidate: Frame) -> list[str]:
    """Return what the logs differ in beyond their checkpoints: what names a cell, and the conditions it ran under.

    Of the harness itself too, but last: its commits are many, and most change nothing that is timed.
    """
    first, second = (next(iter(one.cells)).configuration for one in (baseline, candidate))
    named = [(name, first.text(name) or "none", second.text(name) or "none") for name in CELL]
    told = [f"{name} {was} → {found}" for name, was, found in named if was != found]
    headers = [[log.header for log in one.records.values()] for one in (baseline, candidate)]
    return told + [f"{name} {was} → {found}" for name, (was, found) in conditions.between(headers).items()]


def _of_more(verdict: Verdict, unlike: Sequence[str]) -> Verdict:
    """Return the verdict on logs that differ in more than their checkpoints: it cannot tell whose fault anything is."""
    ours = [told for told in unlike if told.startswith(conditions.OURS)]
    others = [told for told in unlike if told not in ours]
    if ours:
        verdict = _with_notice(verdict, f"measured by different states of the harness: {', '.join(ours)}")
    if not others:
        return verdict
    why = (
        f"the logs differ in more than the checkpoints: {some(others, MOST_TOLD)}; what is slower or worse "
        "may be so for that; next: measure both under the same, or --interleave"
    )
    code = verdict.code if verdict.code == BROKEN else UNCLEAR
    title = f"{WORDS[code]}: {verdict.night} against {verdict.baseline}"
    return replace(verdict, code=code, title=title, lines=(why, *verdict.lines), stage="", first_bad="", last_good="")


def now(asked: Asked, a: str, b: str, out: Path, minimum_effect: float, say: Callable[[str], None]) -> Verdict:
    """Measure `b` beside `a` now, twice where it looks slower, and compare. Logs go below `out`."""
    first, second = arms.arm(asked, a), arms.arm(asked, b)  # a misspelt name is said before anything is loaded
    names = [_label(text) for text in (a, b)]
    if names[0] == names[1]:
        names = [f"{names[0]}-A", f"{names[1]}-B"]
    mine, theirs = nights.series(second), nights.series(first)
    expected = Expected(mine, contents.of_arm(second), contents.of_arm(first), theirs)
    found = jobs.night(asked, jobs.Night(names[1], b, expected, (names[0], a)), out, minimum_effect, say)
    verdict = Judge([found], names[0], minimum_effect).verdict()
    return _with_notice(verdict, f"different cells: {theirs.title}; {mine.title}") if mine != theirs else verdict


def _label(text: str) -> str:
    return Path(text).resolve().stem if Path(text).is_file() else Path(text).resolve().name


def _load(path: Path) -> Frame:
    found = frame.load(path)
    for one in found.skipped:
        if path.is_file():
            raise LogError(f"{one}; next: give another log")
    if not found.records:
        raise LogError(f"{path}: no run log in it; next: give a log, or --interleave to measure checkpoints now")
    names = (*CELL, "weights_digest")
    cells = {tuple(each.configuration.text(name) for name in names): each.configuration for each in found.cells}
    if len(cells) > 1:
        apart = configuration.told_apart_by(cells.values(), names)
        raise LogError(
            f"{path}: holds logs of {len(cells)} cells, which differ in {', '.join(apart)}; next: give one log, or a "
            "folder with one cell's logs"
        )
    return found


def _unusable(reading: Reading, reason: str) -> Reading:
    return replace(reading, state="invalid", reason=reason)


def _with_notice(verdict: Verdict, notice: str) -> Verdict:
    return replace(verdict, notices=(notice, *verdict.notices))
