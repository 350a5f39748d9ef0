"""The history page: every night's TTFT, what was found on it, and where it changed. One file, works from disk."""

from collections.abc import Sequence

from harness.reports import accuracy as scoring
from harness.reports.document import Entry, Heading, Picture, Report, Table
from harness.track import history, nights, signs
from harness.track.nights import Reading, Series
from harness.track.verdict import Judge, Verdict
from harness.units import milliseconds

TONES = {"SLOWER": "differs", "WORSE": "differs", "broken": "differs", "FASTER": "matches", "BETTER": "matches"}


def report(verdict: Verdict, judge: Judge, series: Series, history: Table) -> Report:
    """Return the page as a report: verdict, picture, tonight's tables, all nights."""
    from harness.track import outputs

    blocks: list[Table | Picture] = []
    if any(reading.is_point for reading in judge.readings):
        blocks.append(picture(verdict, judge, series, history))
    blocks += [*outputs.tables(verdict), history]
    text = (f"Series: {series.title}.", *(f"{line}." for line in outputs.lines(verdict)))
    return Report("history", verdict.title, text, tuple(blocks), (*verdict.notices, *verdict.signs.doubts))


def table(judge: Judge, series: Series) -> Table:
    """Return a row per night: state, TTFT, the ratio to the baseline, accuracy, and what was found."""
    rows = []
    before: Reading | None = None
    for reading in judge.readings:
        latency = judge.latency(reading)
        ttft = latency.ttft if latency else None
        finding = _finding(judge, reading)
        carried = signs.of(reading.candidate)
        doubts = "; ".join(carried.doubts)
        changed = nights.difference(before, reading) if before and reading.is_point else ""
        before = reading if reading.is_point else before
        rows.append(
            (
                Entry(reading.night, None, reading.at),
                Entry(reading.state, tone=TONES.get(reading.state, "")),
                Entry(milliseconds(reading.median_ns), reading.median_ns, "", carried.marks),
                Entry(ttft.change if ttft else "–", ttft.value if ttft else None),
                _accuracy(reading),
                Entry(finding, tone=TONES.get(finding.split(" ")[0], "")),
                Entry(str(reading.n), reading.n),
                Entry(str(reading.refused), reading.refused),
                Entry(str(len(carried.doubts)), len(carried.doubts), doubts),
                Entry(f"new segment: {changed}" if changed else ""),
            )
        )
    heads = (
        Heading("checkpoint"),
        Heading("state"),
        Heading("TTFT", "", True),
        Heading("TTFT against the baseline", "", True),
        Heading("accuracy", "", True),
        Heading("found"),
        Heading("valid samples", "", True),
        Heading("refused", "", True),
        Heading("doubts", "", True),
        Heading("machine"),
    )
    return Table("nights", f"All nights of {series.title}", heads, tuple(rows), empty="no night was measured")


def _finding(judge: Judge, reading: Reading) -> str:
    if reading.state != "valid":
        return f"{reading.state}: {reading.reason}"
    if reading.night == judge.baseline:
        return "baseline"
    latency, accuracy = judge.latency(reading), judge.accuracy(reading)
    found = []
    if latency:
        names = ", ".join("TTFT" if r.name == "ttft" else r.name for r in latency.slower)
        found.append(f"{latency.word}{f' ({names})' if names else ''}")
    if accuracy and (accuracy.worse or accuracy.word == "BETTER"):
        lost = f" ({accuracy.lost} lost)" if accuracy.lost else ""
        found.append(f"{'WORSE' if accuracy.worse else 'BETTER'} answers{lost}")
    return ", ".join(found) or "not compared"


def _accuracy(reading: Reading) -> Entry:
    if reading.candidate is None or not reading.is_point:
        return Entry("–")
    found = next(iter(scoring.of(reading.candidate).values()), None)
    return Entry("–") if found is None or found.value is None else Entry(f"{found.value:.3f}", found.value)


def picture(verdict: Verdict, judge: Judge, series: Series, numbers: Table) -> Picture:
    """Draw the nights' median TTFT; regressions are large triangles, changes of level vertical lines."""
    from harness.reports import style

    points = [(index, reading) for index, reading in enumerate(judge.readings) if reading.is_point]
    hovers = {}
    with style.style():
        figure, axes = style.new(2.4, 6.6)
        xs, ys = [index for index, _ in points], [(reading.median_ns or 0.0) / 1e6 for _, reading in points]
        axes.plot(xs, ys, color=style.QUIET, linewidth=0.8)
        for x, y, reading in zip(xs, ys, (reading for _, reading in points), strict=True):
            bad = _is_slower(judge, reading) or "WORSE" in _finding(judge, reading)
            colour, marker, size = (style.COLOURS[1], "^", 7) if bad else (style.COLOURS[0], "o", 4)
            (dot,) = axes.plot(x, y, marker=marker, markersize=size, color=colour)
            dot.set_gid(f"night-{x}")
            hovers[f"night-{x}"] = f"{reading.night}: TTFT {y:.4g} ms, {_finding(judge, reading)}"
        for x, colour in _lines(verdict, judge):
            axes.axvline(x - 0.5, color=colour, linewidth=0.8, linestyle="--")
        for x, reading in enumerate(judge.readings):
            if not reading.is_point:
                axes.plot(x, min(ys), marker="x", markersize=4, color=style.QUIET)
        step = max(1, len(judge.readings) // 12)
        shown = list(range(0, len(judge.readings), step))
        axes.set_xticks(shown, [judge.readings[x].night for x in shown], rotation=30, ha="right")
        axes.set_ylabel("TTFT (ms, median of the night)")
        axes.set_ylim(0, 1.15 * max(ys))
    caption = (
        "A triangle is a confirmed regression against the baseline, a cross a night that is no point (invalid, broken "
        "or not measured). A dashed line is a change of level: orange slower, green faster; grey where the checkpoint "
        "beside the baseline did not change, so that the machine did."
    )
    alt = _described(judge, series, [reading for _, reading in points])
    marked = frozenset(verdict.signs.marks)
    return Picture("history", "TTFT by night", alt, figure, numbers, caption, hovers, marked)


def _is_slower(judge: Judge, reading: Reading) -> bool:
    return _finding(judge, reading).startswith("SLOWER")


def _lines(verdict: Verdict, judge: Judge) -> list[tuple[int, str]]:
    """Return the positions of the nights that a level begins with, and the lines' colours.

    History finds a change only to within a night or two. Where nights were measured beside the baseline, the night that
    compares with it otherwise than the one before is where it is; without such a one the checkpoint has not changed.
    """
    from harness.reports import style

    position = {reading.night: index for index, reading in enumerate(judge.readings)}
    points = nights.segment(judge.readings)[0]
    ranks = [_rank(judge, reading) for reading in points]
    found = []
    for change in verdict.trend.changes if verdict.trend else ():
        turns = [
            at for at in range(1, len(points)) if _steps(ranks[at - 1], ranks[at]) * (1 if change.slower else -1) > 0
        ]
        near = [at for at in turns if abs(at - change.at) < history.MINIMUM_SEGMENT]
        at = min(near, key=lambda at: abs(at - change.at), default=change.at)
        same = not near and None not in (ranks[at - 1], ranks[at])
        colour = style.QUIET if same else style.COLOURS[1 if change.slower else 2]
        found.append((position[points[at].night], colour))
    return found


def _rank(judge: Judge, reading: Reading) -> int | None:
    latency = judge.latency(reading)
    known = {"FASTER": -1, "SAME": 0, "SLOWER": 1}
    if reading.night == judge.baseline:
        return 0
    return known.get(latency.word) if latency else None


def _steps(before: int | None, after: int | None) -> int:
    return 0 if before is None or after is None else after - before


def _described(judge: Judge, series: Series, points: Sequence[Reading]) -> str:
    """Return the picture in words, made from what it shows."""
    times = [reading.median_ns for reading in points if reading.median_ns is not None]
    bad = [reading.night for reading in points if _is_slower(judge, reading)]
    text = f"TTFT of {len(points)} nights of {series.title}: {milliseconds(min(times))} to {milliseconds(max(times))}, "
    text += f"last {milliseconds(times[-1])}. "
    return text + (f"Slower than the baseline: {', '.join(bad)}." if bad else "No night is slower than the baseline.")
