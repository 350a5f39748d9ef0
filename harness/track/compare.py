"""`harness compare A B`: layers 1 and 3 for two logs, or for two checkpoints that are measured side by side now."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness.errors import LogError
from harness.measure.asked import Asked
from harness.reports import frame
from harness.reports.frame import Frame
from harness.track import arms, contents, jobs, nights
from harness.track.nights import Expected, Reading
from harness.track.verdict import Judge, Verdict

CELL = ("model", "suite", "data_digest", "resolution", "device", "engine", "dtype", "protocol", "limit")
"""What two logs should have in common, or the comparison is about more than the checkpoints."""


def of_logs(a: Path, b: Path, minimum_effect: float) -> Verdict:
    """Compare the cell in `b` with the one in `a` (run logs, or folders that hold the logs of one cell)."""
    baseline, candidate = _load(a), _load(b)
    name = str(b) if a != b else f"{b} (again)"
    found = nights.reading(name, candidate, baseline, candidate.skipped)
    mine = nights.reading(str(a), baseline, None, baseline.skipped)
    if found.state == "valid" and mine.state != "valid":
        found = _unusable(found, f"{a}: {mine.reason}")
    verdict = Judge([mine, found], str(a), minimum_effect, one_run=True).verdict()
    first, second = (next(iter(one.records.values())).header.cell for one in (baseline, candidate))
    unlike = [f"{name} {first.get(name)} → {second.get(name)}" for name in CELL if first.get(name) != second.get(name)]
    if unlike:
        return _with_notice(verdict, f"the logs are not of the same cell: {', '.join(unlike)}")
    return verdict


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
    names = ("model", "resolution", "weights_digest", "suite", "protocol")
    cells = {tuple(log.header.cell.get(name) for name in names) for log in found.records.values()}
    if len(cells) > 1:
        raise LogError(
            f"{path}: holds logs of {len(cells)} cells; next: give one log, or a folder with one cell's logs"
        )
    return found


def _unusable(reading: Reading, reason: str) -> Reading:
    return replace(reading, state="invalid", reason=reason)


def _with_notice(verdict: Verdict, notice: str) -> Verdict:
    return replace(verdict, notices=(notice, *verdict.notices))
