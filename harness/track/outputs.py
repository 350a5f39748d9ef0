"""What a verdict is written as: Markdown, JUnit XML, GitHub annotations, JSON for dashboards, and a static page."""

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from harness import files, plugins
from harness.errors import cleaned
from harness.reports import accuracy as scoring
from harness.reports import marks, summary
from harness.reports.document import Entry, Heading, Report, Table
from harness.reports.formats import delimited, html, markdown
from harness.track import page
from harness.track.nights import Reading, Series
from harness.track.verdict import BROKEN, REGRESSION, SAME, UNCLEAR, Judge, Verdict, states
from harness.units import milliseconds

SYMBOLS = {mark.symbol for mark in marks.MARKS.values()}
LEVELS = {SAME: "notice", REGRESSION: "error", UNCLEAR: "warning", BROKEN: "error"}


def write(folder: Path, verdict: Verdict, judge: Judge, series: Series) -> list[Path]:
    """Write every output into `folder` and return the files; the same logs give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    history = page.table(judge, series)
    texts = {
        "verdict.md": summary_text(verdict, series.title, judge.readings),
        "verdict.json": json.dumps(verdict.as_dict() | {"series": series.title}, indent=2) + "\n",
        "junit.xml": junit(verdict, series.title),
        "annotations.txt": "\n".join(annotations(verdict)) + "\n",
        "history.csv": delimited.table(history),
        "history.html": html.write(page.report(verdict, judge, series, history)),
    }
    for name, text in texts.items():
        files.write_atomically(folder / name, text)
    return [*(folder / name for name in texts), *_dashboards(folder, judge.readings[-1], verdict)]


def _dashboards(folder: Path, tonight: Reading, verdict: Verdict) -> list[Path]:
    if tonight.candidate is None or tonight.state != "valid":
        return []
    cells = summary.summaries(tonight.candidate, scoring.of(tonight.candidate))
    facts = {"checkpoint": verdict.night, "baseline": verdict.baseline, "verdict": verdict.word}
    written: list[Path] = []
    for name, file in (
        ("hud", "pytorch-hud.json"),
        ("github_benchmark", "github-action-benchmark.json"),
    ):
        written += plugins.load("exporters", name).export(cells, folder / file, **facts)
    return written


def aside(verdict: Verdict, written: Sequence[Path]) -> list[str]:
    """Return what is said on stderr, whoever reads the verdict itself: where the files are, and why there is none.

    A checkpoint that cannot be loaded is an error, and said as every error of the program.
    """
    told = [f"note: {written[0].parent} has {', '.join(path.name for path in written)}"]
    if verdict.code == BROKEN:
        reason = "; ".join(verdict.lines)
        step = "" if "next: " in reason else "; next: mend it, then the same command"
        told.append(f"harness: {verdict.night}: {reason}{step}")
    return told


def text(verdict: Verdict) -> str:
    """Return the verdict for a terminal."""
    marked = marks.symbols(verdict.signs.marks)
    lines = [f"{verdict.title} {marked}".rstrip(), *(f"  {line}" for line in verdict.lines)]
    if verdict.first_bad:
        lines.append(
            f"  first bad: {verdict.first_bad}" + (f", last good: {verdict.last_good}" * bool(verdict.last_good))
        )
    if verdict.latency and verdict.latency.ratios:
        lines.append(f"  {'':10}  {'baseline':>9}  {'tonight':>9}  ratio")
        for r in verdict.latency.ratios:
            times = f"{milliseconds(r.a_ns):>9}  {milliseconds(r.b_ns):>9}"
            lines.append(f"  {'TTFT' if r.name == 'ttft' else r.name:10}  {times}  {r.change}  {r.word}")
    for change in verdict.accuracy.changed[:5] if verdict.accuracy else ():
        lines.append(f"  {change.example}: {change.before!r} → {change.after!r}{_scores(change)}")
    lines += [f"  {name}: {what}" for name, what in verdict.compared]
    lines += [f"! {notice}" for notice in verdict.notices]
    lines += [f"{'  ' if line[:1] in SYMBOLS else '! '}{line}" for line in verdict.signs.text]
    return "\n".join(map(cleaned, lines))


def _scores(change: object) -> str:
    before, after = getattr(change, "score_before", None), getattr(change, "score_after", None)
    return "" if before is None or after is None else f" ({before:.2f} → {after:.2f})"


def summary_text(verdict: Verdict, title: str, readings: Sequence[Reading] = ()) -> str:
    """Return the Markdown for a job summary."""
    blocks = tables(verdict)
    counted = [f"{count} {name}" for name, count in states(readings).items() if count]
    about = [f"Series: {title}."] + ([f"Nights: {', '.join(counted)}."] if counted else [])
    return markdown.write(
        Report(
            "verdict",
            verdict.title,
            (*(f"{line}." for line in lines(verdict)), *compared(verdict), *about),
            tuple(blocks),
            (*verdict.notices, *verdict.signs.doubts),
        )
    )


def lines(verdict: Verdict) -> list[str]:
    """Return the reasons and where it began."""
    found = list(verdict.lines)
    if verdict.stage and verdict.stage not in ("load", "answers"):
        found.append(f"The stage that lost most: {verdict.stage}")
    if verdict.first_bad:
        good = f"; last good: {verdict.last_good}" if verdict.last_good else ""
        found.append(f"First bad checkpoint: {verdict.first_bad}{good}")
    return found


def compared(verdict: Verdict) -> list[str]:
    """Return what was measured under each name: a name is no identity."""
    return [f"{name}: {what}." for name, what in verdict.compared]


def tables(verdict: Verdict) -> list[Table]:
    """Return tonight's ratios and the answers that changed."""
    found: list[Table] = []
    heads: tuple[Heading, ...]
    rows: tuple[tuple[Entry, ...], ...]
    if verdict.latency and verdict.latency.ratios:
        tone = {"SLOWER": "differs", "FASTER": "matches"}
        rows = tuple(
            (
                Entry("TTFT" if r.name == "ttft" else r.name, None, "", verdict.signs.marks),
                Entry(milliseconds(r.a_ns), r.a_ns),
                Entry(milliseconds(r.b_ns), r.b_ns),
                Entry(r.change, r.value),
                Entry(str(r.n), r.n),
                Entry(r.word, tone=tone.get(r.word, "")),
            )
            for r in verdict.latency.ratios
        )
        heads = (Heading("stage"), Heading("baseline", "", True), Heading("tonight", "", True))
        heads += (Heading("change, 95 % interval", "", True), Heading("pairs", "", True), Heading("verdict"))
        found.append(Table("ratios", "Tonight beside the baseline (medians of the pairs)", heads, rows))
    if verdict.accuracy and verdict.accuracy.changed:
        rows = tuple(
            (Entry(c.example), Entry(c.before), Entry(c.after), _share(c.score_before), _share(c.score_after))
            for c in verdict.accuracy.changed
        )
        heads = (Heading("example"), Heading("baseline's answer"), Heading("tonight's answer"))
        heads += (Heading("score before", "", True), Heading("score now", "", True))
        more = verdict.accuracy.answers_changed - len(rows)
        notes = (("more", f"{more} other answers changed as well"),) if more > 0 else ()
        found.append(Table("answers", "Answers that changed", heads, rows, notes))
    return found


def _share(value: float | None) -> Entry:
    return Entry("–" if value is None else f"{value:.2f}", value)


def annotations(verdict: Verdict) -> list[str]:
    """Return GitHub's workflow commands: one for the verdict, one for each notice and each doubt."""
    body = "; ".join([*lines(verdict), *marks.legend(verdict.signs.marks)])
    found = [f"::{LEVELS[verdict.code]} title={_property(verdict.title)}::{_data(body)}"]
    found += [f"::notice title=harness track::{_data(notice)}" for notice in verdict.notices]
    return found + [f"::warning title=harness track, doubt::{_data(doubt)}" for doubt in verdict.signs.doubts]


def _data(value: str) -> str:
    return cleaned(value).replace("%", "%25")


def _property(value: str) -> str:
    return _data(value).replace(":", "%3A").replace(",", "%2C")


def junit(verdict: Verdict, title: str) -> str:
    """Return JUnit XML: the checkpoint, each stage, the answers and the history are test cases."""
    cases: list[tuple[str, str, str]] = [
        ("loads", "failure" if verdict.code == BROKEN else "", "; ".join(verdict.lines))
    ]
    took_ns: dict[str, float] = {}
    latency, accuracy, trend = verdict.latency, verdict.accuracy, verdict.trend
    slow = {r.name for r in latency.slower} if latency else set()
    for r in latency.ratios if latency else ():
        kind = "failure" if r.name in slow else "skipped" if r.word == "AMBIGUOUS" else ""
        cases.append((f"latency.{r.name}", kind, f"{r.word}: {r.change}"))
        took_ns[f"latency.{r.name}"] = r.b_ns or 0.0
    if accuracy:
        kind = "failure" if accuracy.worse else "skipped" if accuracy.word == "NOT SCORED" else ""
        told = [accuracy.lost_text] if accuracy.lost else []
        cases.append(("accuracy", kind, "; ".join([*told, accuracy.text])))
    if trend:
        failed = verdict.code == REGRESSION and trend.word == "slower" and latency is None
        cases.append(("history", "failure" if failed else "", f"history: {trend.word}"))
    if verdict.code == UNCLEAR:
        cases.append(("verdict", "skipped", "; ".join(verdict.lines)))
    suite = ElementTree.Element("testsuite", name=f"harness track: {title}", tests=str(len(cases)))
    suite.set("failures", str(sum(kind == "failure" for _, kind, _ in cases)))
    suite.set("skipped", str(sum(kind == "skipped" for _, kind, _ in cases)))
    if verdict.signs.marks:
        about = ElementTree.SubElement(suite, "properties")
        ElementTree.SubElement(about, "property", name="marks", value=" ".join(verdict.signs.marks))
    for name, kind, message in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=verdict.night, name=name)
        case.set("time", f"{took_ns.get(name, 0.0) / 1e9:.6f}")
        if kind:
            ElementTree.SubElement(case, kind, message=message)
    if verdict.signs.text:
        ElementTree.SubElement(suite, "system-out").text = "\n".join(map(cleaned, verdict.signs.text))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"
