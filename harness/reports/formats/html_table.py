"""A table of a page: sorting by its heads, a filter, a choice of columns, rows that are shown on demand.

What was published, what was measured here and the verdict stand in sub-columns of their own.
"""

import re
from collections.abc import Sequence
from html import escape

from harness.reports.document import Entry, Heading, Table
from harness.reports.marks import MARKS

PARTS = ("published", "here", "verdict")
LONG = 24
"""A text of more characters may be broken into lines."""


def write(value: Table, plain: bool = False) -> str:
    """Return the table; a `plain` one, for a glance, has no controls and its key below."""
    if not value.rows:
        return f"<h3>{escape(value.title)}</h3><p><em>{escape(value.empty)}</em></p>"
    widths = [_width(value.rows, number) for number in range(len(value.headings))]
    split = any(width > 1 for width in widths)
    rows = [_row(row, value.headings, widths, split) for row in value.rows]
    notes = "".join(f"<li><b>{escape(label)}</b> {marked(text)}</li>" for label, text in value.notes)
    key = f'<p class="key">{marked(value.key[:1].upper() + value.key[1:])}</p>' if value.key else ""
    above, below = ("", key) if plain else (key, "")
    return (
        f'<div class="sheet{" plain" if plain else ""}">{above}'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(value.title)}"><table>'
        f"<caption>{escape(value.title)}</caption><thead>{_heads(value.headings, widths, plain)}</thead>"
        f"<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>"
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
        + f"{below}</div>"
    )


def _width(rows: Sequence[tuple[Entry, ...]], column: int) -> int:
    """Return how many sub-columns a column needs: three where anything of it was measured."""
    return 3 if any(len(row[column].parts) == 3 and _compared(row[column]) for row in rows) else 1


def _compared(entry: Entry) -> bool:
    return entry.tone in ("matches", "differs")


def _heads(headings: Sequence[Heading], widths: Sequence[int], plain: bool) -> str:
    """Return one row of heads, or two where a column has sub-columns. A head says which column of the body it sorts."""
    if plain:
        signs = (' class="number"' if heading.numeric else "" for heading in headings)
        cells = (f'<th scope="col"{sign}>{escape(one.text)}</th>' for one, sign in zip(headings, signs, strict=True))
        return f"<tr>{''.join(cells)}</tr>"
    upper, lower, at = [], [], 0
    deep = max(widths) > 1
    for heading, width in zip(headings, widths, strict=True):
        if width > 1:
            upper.append(f'<th scope="colgroup" colspan="{width}" data-at="{at}">{escape(heading.text)}</th>')
            lower += [_head(part, at + i, part != "verdict") for i, part in enumerate(PARTS)]
        else:
            upper.append(_head(heading.text, at, heading.numeric, 2 if deep else 1))
        at += width
    return f"<tr>{''.join(upper)}</tr>" + (f"<tr>{''.join(lower)}</tr>" if lower else "")


def _head(text: str, at: int, numeric: bool, height: int = 1) -> str:
    more = (' class="number"' if numeric else "") + (f' rowspan="{height}"' if height > 1 else "")
    return f'<th scope="col" aria-sort="none" data-at="{at}"{more}><button type="button">{escape(text)}</button></th>'


def _row(row: tuple[Entry, ...], headings: Sequence[Heading], widths: Sequence[int], split: bool) -> str:
    cells = [f'<th scope="row"{_attributes(row[0], False)}>{_text(row[0])}</th>']
    for entry, heading, width in zip(row[1:], headings[1:], widths[1:], strict=True):
        if width == 1:
            only = entry.parts[0] if entry.parts else entry
            cells.append(_cell(only, heading.numeric))
            continue
        parts = entry.parts or (entry, Entry(""), Entry(""))
        cells += [_cell(part, number < 2) for number, part in enumerate(parts)]
    measured = any(_compared(entry) or (entry.parts and not entry.tone) for entry in row)
    unmeasured = ' class="unmeasured"' if split and not measured else ""
    return f"<tr{unmeasured}>{''.join(cells)}</tr>"


def _cell(entry: Entry, numeric: bool) -> str:
    return f"<td{_attributes(entry, numeric)}>{_text(entry)}</td>"


def _attributes(entry: Entry, numeric: bool) -> str:
    long = "long" if not numeric and len(entry.text) > LONG else ""
    classes = " ".join(part for part in ("number" if numeric else "", entry.tone, long) if part)
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
    return escape(entry.text).replace("\n", "<br>") + marks


def marked(text: str) -> str:
    """Escape, and show `code` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
