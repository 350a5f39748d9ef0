"""The tables of reports: all cells, a published table with ours beside it, the headline claims, provenance, doubts."""

from collections.abc import Iterable, Sequence

from harness.models.protocol import STAGES
from harness.reports import likeness, marks, measured, wording
from harness.reports.card import Match, ReportCard, Side
from harness.reports.configuration import Platform
from harness.reports.document import Entry, Heading, Table
from harness.reports.measured import Measured
from harness.reports.paper import claims as claims_
from harness.reports.paper import published as published_
from harness.reports.paper.claims import Finding, shown
from harness.reports.paper.evidence import Evidence
from harness.reports.paper.published import Comparison, Printed
from harness.reports.summary import CellSummary
from harness.stats import Estimate


def cells(card: ReportCard, data: Measured) -> Table:
    """Return a row for every measured cell; what its times rest on, where any of the logs says it."""
    chosen = measured.chosen(data, card)
    based = any(one.basis for one in chosen)
    headings = (
        Heading("model"), Heading("suite"), Heading("resolution", "px", True), Heading("visual tokens", "", True),
        Heading("device"), Heading("protocol"), *(Heading(stage, "ms", True) for stage in STAGES),
        Heading("TTFT", "ms", True), Heading("residual", "%", True), Heading("n", "", True),
        *([Heading("images"), Heading("shapes", "% of suite", True)] if based else []),
        Heading("peak memory", "GB", True), Heading("accuracy", "of 100", True),
    )  # fmt: skip
    lines = []
    for one in chosen:
        about, times, tokens, memory = one.cell, one.times, one.tokens, one.memory
        lines.append(
            (
                Entry(about.label, about.label, about.name, one.marks),
                Entry(about.suite, None, one.process.data_notice),
                Entry(str(about.resolution), about.resolution, f"the encoder saw {tokens.processed_px} px"),
                Entry(wording.count(tokens.visual), tokens.visual),
                Entry(wording.platform(about.platform)),
                Entry(about.protocol),
                *(wording.milliseconds(one, name) for name in (*STAGES, "ttft")),
                wording.residual(one),
                Entry(str(times.n), times.n, f"{times.refused} refused, {one.process.failures} failed"),
                *(wording.basis(one) if based else ()),
                Entry(wording.number(memory.peak_bytes and memory.peak_bytes / 1e9), memory.peak_bytes, memory.of),
                wording.accuracy(one),
            )
        )
    long = wording.long_form(card.name, card.title, chosen, (*STAGES, "ttft"))
    notes = wording.remarks((one, one.accuracy) for one in chosen)
    return Table(card.name, card.title, headings, tuple(lines), notes, data=long)


def published(card: ReportCard, data: Measured) -> list[Table]:
    """Return the published table with ours in every cell; a second platform's gets only the rows it measured."""
    evidence = Evidence(data)
    platforms: Sequence[Platform | None] = evidence.platforms(card.matches) or [None]
    tables = []
    for number, platform in enumerate(platforms):
        compared = {
            row.label: list(published_.compare(card, row, evidence, platform)) for row in published_.select(card)
        }
        if number:
            timed = {label for label, found in compared.items() if any(c.protocol for c in found)}
            compared = {label: found for label, found in compared.items() if label in timed}
            if not compared:
                continue
        name = card.name + (f"-{number + 1}" if number else "")
        where = f": {wording.platform(platform)}" if platform else ""
        tables.append(_published(card, name, card.title + where, compared, platform))
    return tables


def _published(
    card: ReportCard, name: str, title: str, compared: dict[str, list[Comparison]], platform: Platform | None
) -> Table:
    reasons: dict[str, str] = {}
    used: dict[str, int] = {}
    headings = [Heading("row")]
    headings += [
        Heading(column.title or column.name, column.unit, column.quantity not in ("shown",)) for column in card.columns
    ]
    lines = []
    for row in published_.select(card):
        if row.label not in compared:
            continue
        match = next((match for match in card.matches if row.label in match.rows), None)
        hover = f"here: {match.model}" if match and match.model else "no card of this harness is this model"
        line = [Entry(row.label + _notes(card, row.label, used), row.label, hover)]
        for column in card.columns:
            text = row.values.get(column.name) or "–"
            if column.quantity == "shown":
                line.append(Entry(text + _notes(card, f"{row.label}|{column.name}", used)))
                continue
            found = [c for c in compared[row.label] if c.column == column.name]
            line.append(_compared(text, found, reasons, _notes(card, f"{row.label}|{column.name}", used)))
        lines.append(tuple(line))
    general = [("Note:", card.footnotes["*"])] if "*" in card.footnotes else []
    notes = [*general]
    notes += [(f"({letter})", f"not run here: {reason}.") for reason, letter in reasons.items()]
    notes += [(f"[{number}]", card.footnotes[key]) for key, number in used.items()]
    notes += _unlike((c.row, c.sides) for found in compared.values() for c in found)
    data = _long(name, title, [c for found in compared.values() for c in found], platform)
    key = "published · measured here [95 % interval] · verdict."
    return Table(name, title, tuple(headings), tuple(lines), tuple(notes), data, key=key)


def _compared(text: str, found: Sequence[Comparison], reasons: dict[str, str], note: str) -> Entry:
    """Return the entry `published · measured · verdict`; a reason for not running is a letter explained below."""
    first = found[0]
    if not first.printed:
        return Entry(text + note, None, "not reported", (), "absent")
    ratio = f" ({wording.number(first.published)}×)" if any(c.unit == "×" for c in found) else ""
    sort = float(first.published) if first.published is not None else None
    published = Entry(text + ratio + note, sort)
    if first.reference:
        hover = "times are divided by this row's"
        here = Entry("reference", None, hover, first.marks)
        return Entry(f"{text} · reference{note}", sort, hover, first.marks, "", (published, here, Entry("")))
    if all(c.measured is None for c in found):
        letter = reasons.setdefault(first.why_not, _letter(len(reasons)))
        hover = f"not run here: {first.why_not}"
        missing = Entry("–", None, hover, (), "absent"), Entry(f"({letter})", None, hover, (), "absent")
        return Entry(f"{text} · – · ({letter}){note}", sort, hover, (), "absent", (published, *missing))
    values, verdicts = [], []
    for c in found:
        assert c.measured is not None
        values.append((f"{c.protocol} " if len(found) > 1 else "") + _value(c.measured, c.unit))
        verdicts.append(c.verdict)
    carried = marks.of_all(c.marks for c in found)
    known = [c.matches for c in found if c.matches is not None]
    tone = "" if len(known) < len(found) else "matches" if all(known) else "differs"
    hover = f"published {first.printed}; here n = {first.measured.n if first.measured else 0}"
    told = " · ".join([text + ratio, *(" · ".join(pair) for pair in zip(values, verdicts, strict=True))])
    measured = Entry("\n".join(values), first.measured.value if first.measured else None, hover, carried)
    return Entry(told + note, sort, hover, carried, tone, (published, measured, Entry("\n".join(verdicts), tone=tone)))


def _value(value: Estimate, unit: str) -> str:
    return wording.interval(value.value, value.low, value.high) + ("×" if unit == "×" else "")


def _notes(card: ReportCard, key: str, used: dict[str, int]) -> str:
    if key not in card.footnotes:
        return ""
    same = next((number for known, number in used.items() if card.footnotes[known] == card.footnotes[key]), None)
    number = same or used.setdefault(key, len(used) + 1)
    return f" [{number}]"


def _letter(number: int) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return letters[number] if number < 26 else letters[number // 26 - 1] + letters[number % 26]


def _long(name: str, title: str, found: Iterable[Comparison], platform: Platform | None) -> Table:
    titles = (
        "row", "column", "published", "compared_as", "measured", "low", "high", "unit", "protocol", "platform",
        "verdict", "why_not",
    )  # fmt: skip
    lines = []
    for c in found:
        if not c.printed:
            continue
        m = c.measured
        numbers = [wording.exactly(v) for v in ((m.value, m.low, m.high) if m else (None, None, None))]
        where = wording.platform(platform) if platform and c.protocol else ""
        entries = [Entry(c.row, None, "", c.marks), Entry(c.column), Entry(c.printed), wording.exactly(c.published)]
        entries += [*numbers, Entry(c.unit), Entry(c.protocol), Entry(where), Entry(c.verdict), Entry(c.why_not)]
        lines.append(tuple(entries))
    return Table(name, title, tuple(Heading(text) for text in titles), tuple(lines))


def claims(card: ReportCard, data: Measured) -> Table:
    """Return a row for every claim, platform and protocol."""
    headings = (
        Heading("claim"), Heading("rows compared"), Heading("published ratio", "", True),
        Heading("published encode", "", True), Heading("published prefill", "", True), Heading("measured on"),
        Heading("measured ratio", "", True), Heading("encode", "", True), Heading("prefill", "", True),
        Heading("verdict"),
    )  # fmt: skip
    used: dict[str, int] = {}
    reasons: dict[str, str] = {}
    found = claims_.findings(card, Evidence(data))
    lines = [_claim(finding, used, reasons) for finding in found]
    key = (
        "every ratio is the slower (larger) side over FastVLM's; a saving is 1 − 1/ratio, points are FastVLM's score "
        "less the other's."
    )
    notes = [(f"({letter})", f"not run here: {reason}.") for reason, letter in reasons.items()]
    notes += [(f"[{number}]", text) for text, number in used.items()]
    notes += [("Note:", card.footnotes["*"])] if "*" in card.footnotes else []
    notes += _unlike((finding.claim.name, finding.sides) for finding in found)
    return Table(card.name, card.title, headings, tuple(lines), tuple(notes), key=key)


def _unlike(pairs: Iterable[tuple[str, Sequence[CellSummary]]]) -> list[tuple[str, str]]:
    """Return the notes on what the sides of ratios and differences were not measured alike in."""
    return [("Note:", f"{told}.") for told in likeness.of_pairs(pair for pair in pairs if len(pair[1]) == 2)]


def _claim(finding: Finding, used: dict[str, int], reasons: dict[str, str]) -> tuple[Entry, ...]:
    claim = finding.claim
    numbers = [used.setdefault(text, len(used) + 1) for text in claim.footnotes]
    rows = f"{claim.numerator.title} / {claim.denominator.title}"
    rows += "".join(f" [{number}]" for number in numbers)

    def ratio(value: float | None) -> Entry:
        return Entry("–" if value is None else f"{wording.number(value)}×", value)

    def ours(value: Estimate | None) -> Entry:
        if value is None or value.value is None:
            return Entry("–", None, "", (), "absent")
        return Entry(_value(value, unit), value.value, f"n = {value.n}", finding.marks)

    unit = " points" if claim.quantity == "points" else "×"

    tolerance = f"{claim.tolerance:g} points" if claim.quantity == "points" else f"{claim.tolerance:.0%}"
    as_claimed = f" = {shown(claim, finding.published):.0%} less" if claim.saving else ""
    here = (
        f"{wording.platform(finding.platform)}, protocol {finding.protocol}" if finding.platform else finding.protocol
    )
    verdict = finding.verdict
    if finding.measured is None:
        verdict += f" ({reasons.setdefault(finding.why_not, _letter(len(reasons)))})"
    tone = {True: "matches", False: "differs", None: ""}[finding.matches] if finding.measured else "absent"
    return (
        Entry(claim.name, claim.claimed, claim.text),
        Entry(rows),
        Entry(f"{wording.number(finding.published, 4)}{unit}{as_claimed}", finding.published, f"claimed: {claim.name}"),
        ratio(finding.published_encode),
        ratio(finding.published_prefill),
        Entry(here or "–"),
        ours(finding.measured),
        ours(finding.encode),
        ours(finding.prefill),
        Entry(verdict, None, f"tolerance {tolerance}", (), tone),
    )


def provenance(data: Measured, cells: Iterable[CellSummary]) -> Table | None:
    """Return where the numbers come from: a row per log."""
    wanted = {name: one.cell.machine for one in cells for name in one.logs}
    if not wanted:
        return None
    headings = ("log", "machine", "processor", "device", "harness", "weights", "data", "started", "command")
    lines = []
    for name, machine in sorted(wanted.items()):
        header = data.frame.records[name].header
        version = " ".join(filter(None, map(header.harness.get, ("version", "commit", "code"))))
        texts = (
            f"{name} ({data.frame.digests[name]})",
            machine,
            header.environment.get("cpu", ""),
            header.device.get("name", str(header.cell.get("device"))),
            version,
            f"{header.weights.get('source', '')} {header.weights.get('digest', '')}".strip(),
            f"{header.data.get('name', '')}, {header.data.get('origin', '')} {header.data.get('digest', '')}",
            header.started_at,
            header.command,
        )
        lines.append(tuple(Entry(text or "–") for text in texts))
    return Table("provenance", "Provenance", tuple(Heading(text) for text in headings), tuple(lines))


def used(card: ReportCard, data: Measured) -> list[CellSummary]:
    """Return the cells that a report may quote: of the models that its card names, or all."""
    subjects: list[Match | Side] = [*card.matches]
    subjects += [side for claim in card.claims for side in (claim.numerator, claim.denominator)]
    named = {model for subject in subjects for model in (subject.model, *subject.alike)}
    return [one for one in measured.chosen(data, card) if not named or one.cell.model in named]


def doubts(data: Measured, cells: Iterable[CellSummary]) -> tuple[str, ...]:
    """Return everything that makes a number doubtful, and every log that could not be used."""
    found = [f"{one.cell.title}, {one.cell.machine}: {doubt}" for one in cells for doubt in one.doubts]
    return (*dict.fromkeys(found), *(str(skipped) for skipped in data.frame.skipped))


__all__ = ["Printed", "cells", "claims", "doubts", "provenance", "published"]
