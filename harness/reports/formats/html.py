"""A report as one self-contained page: the answer on the first screen, then everything that it rests on.

Everything works from disk, without a network, in light and dark. Without JavaScript nothing is hidden: sorting, filter
and choice of columns are missing. Pictures have a description and their numbers as a table.
"""

import re
from html import escape

from harness.reports.document import Picture, Report, Table
from harness.reports.formats import html_table, page
from harness.reports.formats.html_table import marked
from harness.reports.marks import MARKS

OPEN = ("cells",)
"""Sections of a page that are unfolded from the start."""


def write(report: Report) -> str:
    """Return the page."""
    body = [f"<h1>{escape(report.title)}</h1>", *(f"<p>{marked(text)}</p>" for text in report.text)]
    body += [_front(report), _legend(report), _contents(report)]
    body += [_section(section) for section in report.sections]
    body += [_block(block) for block in report.blocks]
    body += [_doubts(report.doubts), _provenance(report), _sources(report)]
    return page.frame(report.title, "\n".join(part for part in body if part))


def _front(report: Report) -> str:
    """Return the first screen: pictures on the left, tables beside them."""
    if not report.front:
        return ""
    pictures = "".join(_picture(block) for block in report.front if isinstance(block, Picture))
    tables = "".join(html_table.write(block, plain=True) for block in report.front if isinstance(block, Table))
    return f'<section class="front" aria-label="At a glance"><div>{pictures}</div><div>{tables}</div></section>'


def _contents(report: Report) -> str:
    if not report.sections:
        return ""
    links = "".join(f'<li><a href="#{part.name}">{escape(part.title)}</a></li>' for part in report.sections)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def _section(section: Report) -> str:
    """Return one report of a page, folded: what is asked for opens, by a click or by a link to it."""
    parts = [f"<p>{marked(text)}</p>" for text in section.text]
    parts += [*map(_block, section.blocks), _sources(section)]
    unfolded = " open" if section.name in OPEN else ""
    return (
        f'<details class="part"{unfolded}><summary><h2>{escape(section.title)}</h2> '
        f'<span class="quiet">{_amount(section)}</span></summary>\n'
        f'<div id="{section.name}">{"".join(parts)}</div></details>'
    )


def _amount(section: Report) -> str:
    """Return what a folded section holds."""
    pictures = sum(isinstance(block, Picture) for block in section.blocks)
    rows = sum(len(block.rows) for block in section.blocks if isinstance(block, Table))
    told = [f"{pictures} figure{'s' * (pictures > 1)}"] if pictures else []
    return ", ".join([*told, *([f"{rows} row{'s' * (rows > 1)}"] if rows else [])]) or "nothing measured"


def _block(block: Table | Picture) -> str:
    return html_table.write(block) if isinstance(block, Table) else _picture(block)


def _picture(value: Picture) -> str:
    caption = f"<b>{escape(value.title)}.</b> {marked(value.said)}"
    return (
        f"<figure>{inline_svg(value)}<figcaption>{caption}</figcaption></figure>"
        f"<details><summary>The numbers in this picture</summary>{html_table.write(value.numbers)}</details>"
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
        f"<li><b>{mark.symbol}</b> {marked(mark.meaning)}</li>" for name, mark in MARKS.items() if name in report.marks
    ]
    return f'<aside aria-label="Marks"><ul>{"".join(lines)}</ul></aside>' if lines else ""


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
    logs = html_table.write(report.provenance)
    folded = f"<details><summary>{len(report.provenance.rows)} run logs</summary>{logs}</details>"
    return f'<section id="provenance"><h2>Provenance</h2>{folded}</section>'


def _sources(report: Report) -> str:
    return f"<p>Sources: {escape('; '.join(report.sources))}.</p>" if report.sources else ""
