"""A report as one self-contained page: sortable tables, inline pictures with values on hover, light and dark.

Everything works from disk, without a network. Tables have captions and scoped headers, sorting is a button in a header
(keyboard, screen reader), pictures have a description and their numbers as a table; without JavaScript only sorting is
missing.
"""

import re
from html import escape

from harness.reports.document import Entry, Picture, Report, Table
from harness.reports.formats import page
from harness.reports.marks import MARKS


def write(report: Report) -> str:
    """Return the page."""
    sections = report.sections or (report,)
    contents = "".join(f'<li><a href="#{section.name}">{escape(section.title)}</a></li>' for section in sections)
    body = [f"<h1>{escape(report.title)}</h1>", *(f"<p>{_marked(text)}</p>" for text in report.text)]
    if report.sections:
        body.append(f'<nav aria-label="Contents"><ul>{contents}</ul></nav>')
    body.append(_legend(report))
    for section in report.sections:
        body.append(f'<section id="{section.name}"><h2>{escape(section.title)}</h2>')
        body += [f"<p>{_marked(text)}</p>" for text in section.text]
        body += [_block(block) for block in section.blocks]
        body.append(f"{_sources(section)}</section>")
    body += [_block(block) for block in report.blocks]
    body += [_doubts(report.doubts), _provenance(report), _sources(report)]
    return page.frame(report.title, "\n".join(part for part in body if part))


def _block(block: Table | Picture) -> str:
    return _table(block) if isinstance(block, Table) else _picture(block)


def _table(value: Table) -> str:
    if not value.rows:
        return f"<h3>{escape(value.title)}</h3><p><em>{escape(value.empty)}</em></p>"
    heads = []
    for heading in value.headings:
        numeric = ' class="number"' if heading.numeric else ""
        heads.append(
            f'<th scope="col" aria-sort="none"{numeric}><button type="button">{escape(heading.text)}</button></th>'
        )
    rows = []
    for row in value.rows:
        first, *rest = row
        cells = [f'<th scope="row"{_attributes(first, False)}>{_text(first)}</th>']
        pairs = zip(rest, value.headings[1:], strict=True)
        cells += [f"<td{_attributes(entry, heading.numeric)}>{_text(entry)}</td>" for entry, heading in pairs]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    notes = "".join(f"<li><b>{escape(label)}</b> {_marked(text)}</li>" for label, text in value.notes)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(value.title)}"><table>'
        f"<caption>{escape(value.title)}</caption><thead><tr>{''.join(heads)}</tr></thead>"
        f"<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>" + (f'<ul class="notes">{notes}</ul>' if notes else "")
    )


def _attributes(entry: Entry, numeric: bool) -> str:
    classes = " ".join(part for part in ("number" if numeric else "", entry.tone) if part)
    out = f' class="{classes}"' if classes else ""
    if entry.sort is not None:
        out += f' data-sort="{escape(str(entry.sort))}"'
    meanings = [MARKS[mark].meaning for mark in MARKS if mark in entry.marks]
    hover = ". ".join([entry.hover, *meanings] if entry.hover else meanings)
    return out + (f' title="{escape(hover)}"' if hover else "")


def _text(entry: Entry) -> str:
    marks = "".join(
        f'<abbr title="{escape(MARKS[mark].meaning)}">{MARKS[mark].symbol}</abbr>'
        for mark in MARKS
        if mark in entry.marks
    )
    return escape(entry.text) + marks


def _picture(value: Picture) -> str:
    caption = f"<b>{escape(value.title)}.</b> {escape(value.caption)}"
    return (
        f"<figure>{inline_svg(value)}<figcaption>{caption}</figcaption></figure>"
        f"<details><summary>The numbers in this picture</summary>{_table(value.numbers)}</details>"
    )


def inline_svg(value: Picture) -> str:
    """Return the picture as SVG for this page: its own ids, colours of the page's theme, a title on every point."""
    from harness.reports import style

    svg = style.render(value.figure, "svg", text="none").decode()
    svg = re.sub(r"<\?xml.*?<svg", "<svg", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    prefix = re.sub(r"\W", "-", value.name)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)([^")]+)', rf"\1{prefix}-\2", svg)
    for number, colour in enumerate(style.COLOURS):
        svg = re.sub(colour, f"var(--c{number})", svg, flags=re.IGNORECASE)
    svg = re.sub("#000000", "var(--ink)", svg)
    for name, text in value.hovers.items():
        at = f'id="{prefix}-{name}">'
        svg = svg.replace(at, f"{at}<title>{escape(text)}</title>", 1)
    head = f'<svg role="img" aria-labelledby="{prefix}-alt" class="plot"'
    svg = re.sub(r"<svg\b", head, svg, count=1)
    svg = re.sub(r"(<svg[^>]*>)", rf'\1<title id="{prefix}-alt">{_literal(escape(value.alt))}</title>', svg, count=1)
    return re.sub(
        r"(<svg[^>]*?) (?:height|width)=\"[^\"]*pt\"( [^>]*?)? (?:height|width)=\"[^\"]*pt\"", r"\1\2", svg, count=1
    )


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\")


def _legend(report: Report) -> str:
    lines = [
        f"<li><b>{mark.symbol}</b> {escape(mark.meaning)}</li>" for name, mark in MARKS.items() if name in report.marks
    ]
    return f'<aside aria-label="Marks"><h2>Marks</h2><ul>{"".join(lines)}</ul></aside>' if lines else ""


MOST_DOUBTS_OPEN = 10
"""More are folded: a page is for its figures and tables first."""


def _doubts(doubts: tuple[str, ...]) -> str:
    if not doubts:
        return '<section id="doubts"><h2>Doubts</h2><p>None.</p></section>'
    lines = "".join(f"<li>{escape(doubt)}</li>" for doubt in doubts)
    listed = f"<ul>{lines}</ul>"
    if len(doubts) > MOST_DOUBTS_OPEN:
        listed = f"<details><summary>All {len(doubts)} doubts</summary>{listed}</details>"
    return f'<section id="doubts"><h2>Doubts</h2>{listed}</section>'


def _provenance(report: Report) -> str:
    if report.provenance is None:
        return ""
    folded = f"<details><summary>{len(report.provenance.rows)} run logs</summary>{_table(report.provenance)}</details>"
    return f'<section id="provenance"><h2>Provenance</h2>{folded}</section>'


def _sources(report: Report) -> str:
    return f"<p>Sources: {escape('; '.join(report.sources))}.</p>" if report.sources else ""


def _marked(text: str) -> str:
    """Escape, and show `code` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
