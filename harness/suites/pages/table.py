"""A report of tables, landscape: its number and one figure in large type, a small table, a large one, notes."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.suites.pages import words
from harness.suites.pages.draw import Draw
from harness.suites.pages.plan import Group
from harness.suites.pages.sheet import ACCENT, GREY, ON_ACCENT, TINT, Overflow, Sheet, Style

GROUPS = {
    "report": Group((0, 1)),
    "headline": Group((0, 1)),
    "about": Group((2, 3), 2),
    "summary": Group((1, 2), 2),
    "detail": Group((2, 3), 4),
    "notes": Group((3, 4), 2),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """What a report is about: title, its headline figure, and the rows and columns of its two tables."""

    title: str
    figure: str
    short_rows: tuple[str, ...]
    short_columns: tuple[str, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]


SUBJECTS = (
    Subject("Shipments by Town", "Shipped", ("Rail", "Road", "Barge"), ("Budget", "Actual"), tuple(words.CITIES),
            ("Spring", "Summer", "Autumn", "Winter", "Returns", "Stock")),
    Subject("Stock of Materials", "In stock", ("East yard", "West yard", "Depot"), ("Opened", "Closed"),
            tuple(words.MATERIALS), ("Ordered", "Received", "Issued", "Scrapped", "Reserved", "On hand")),
    Subject("Attendance by Office", "Enrolled", ("Day shift", "Late shift", "Night shift"), ("Men", "Women"),
            tuple(words.DEPARTMENTS), ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")),
    Subject("Sales of Groceries", "Sold", ("Retail", "Export", "Online"), ("Plan", "Result"), tuple(words.GOODS),
            ("North", "South", "East", "West", "Central", "Overseas")),
)  # fmt: skip


def size(draw: Draw) -> tuple[int, int]:
    """US letter lying on its side."""
    return draw.between(2000, 2200), draw.between(1540, 1700)


def compose(sheet: Sheet) -> None:
    """Set the report from the top; the large table takes the rows that fit above the notes."""
    draw = sheet.draw
    subject = draw.choice(SUBJECTS)
    draw.reserve(*subject.short_rows, *subject.short_columns, *subject.columns, subject.title, subject.figure)
    banded = draw.choice(("bands", "grid", "rules"))
    bottom = _foot(sheet)
    y = _head(sheet, subject)
    y = _summary(sheet, y, subject, banded)
    detail = sheet.style("detail")
    number = min((bottom - y) // detail.line_px - 1, 22)
    if number < 4:
        raise Overflow("no room for four rows")
    number = draw.between(max(4, number * 3 // 4), number)
    pitch = min((bottom - y) // (number + 1), round(1.5 * detail.line_px))
    rows = sorted(draw.shuffled(subject.rows)[:number])
    columns = subject.columns[: draw.between(4, 6)]
    _grid(sheet, Grid("detail", sheet.margin, y, sheet.inner, pitch, banded, 4), rows, columns)


def _head(sheet: Sheet, subject: Subject) -> int:
    """Print title and number, then two lines about the report."""
    draw, x, right = sheet.draw, sheet.margin, sheet.width - sheet.margin
    value = draw.fresh(words.number)
    plain = sheet.style("report", fits=(f"Report  {value}",), within=sheet.inner * 3 // 5)
    bold = sheet.style("report", "bold", fits=(f"Report  {value}",), within=sheet.inner * 3 // 5)
    y = sheet.margin // 2 + plain.ascent_px + 20
    lead = sheet.text(x, y, "Report", plain, "label")
    shown = sheet.text(lead.box[2] + plain.width(" "), y, value, bold, "value")
    sheet.ask("report", "report", "What is the number of the report?", "layout", shown, lead)
    heading = Style(sheet.family.bold, sheet.style("about").em_px * 1.2)
    if shown.box[2] + 40 + heading.width(subject.title) > right:
        raise Overflow("the title of the report")
    sheet.text(right, y, subject.title, heading, "heading", "r")
    y += plain.line_px // 4 + 10
    sheet.rule(x, y, right, 6, ACCENT)
    about = sheet.style("about")
    y += about.line_px
    value = draw.fresh(words.date)
    lead = sheet.text(x, y, "Dated", about, "label")
    shown = sheet.text(lead.box[2] + about.width("  "), y, value, about, "value")
    sheet.ask("about", "dated", "What is the date of the report?", "layout", shown, lead)
    value = draw.fresh(words.company)
    shown = sheet.text(right, y, value, about, "value", "r")
    lead = sheet.text(shown.box[0] - about.width("  "), y, "Client", about, "label", "r")
    sheet.ask("about", "client", "Who is the client?", "layout", shown, lead)
    return y + about.line_px // 2 + 16


def _summary(sheet: Sheet, y: int, subject: Subject, banded: str) -> int:
    """Print the headline figure in a box and the small table beside it."""
    draw, x = sheet.draw, sheet.margin
    value = draw.fresh(words.count)
    wide = round(sheet.inner * 0.40)
    plain = sheet.style("headline", fits=(subject.figure,), within=wide - 60)
    bold = sheet.style("headline", "bold", fits=(value,), within=wide - 60)
    small = sheet.style("summary")
    pitch = round(small.line_px * 1.15)
    high = max(plain.line_px + plain.ascent_px + plain.descent_px + 60, 4 * pitch)
    sheet.box(x, y, x + wide, y + high, fill=TINT if draw.chance(0.5) else None)
    first = y + (high - plain.line_px - plain.ascent_px - plain.descent_px // 2) // 2 + plain.ascent_px
    lead = sheet.text(x + 30, first, subject.figure, plain, "label")
    shown = sheet.text(x + 30, first + plain.line_px, value, bold, "value")
    question = f"What number is given under '{subject.figure}'?"
    sheet.ask("headline", "headline", question, "layout", shown, lead)
    left = x + wide + 40
    place = Grid("summary", left, y, x + sheet.inner - left, pitch, banded, 2)
    _grid(sheet, place, subject.short_rows, subject.short_columns)
    return y + high + 30


@dataclass(frozen=True, slots=True)
class Grid:
    """Where a table is printed, in pixels, how (`manner`), and how many questions are asked about it."""

    group: str
    x: int
    y: int
    wide: int
    pitch: int
    manner: str
    asked: int


def _grid(sheet: Sheet, grid: Grid, rows: Sequence[str], columns: tuple[str, ...]) -> None:
    """Print a table with its questions, each about another row and column."""
    draw, x, y, wide, pitch = sheet.draw, grid.x, grid.y, grid.wide, grid.pitch
    group, manner, asked = grid.group, grid.manner, grid.asked
    plain = sheet.style(group)
    ahead = max(plain.width(row) for row in rows) + 50
    each = (wide - ahead) // len(columns)
    values = [[draw.fresh(words.count) for _ in columns] for _ in rows]
    inked = draw.chance(0.5)
    bold = sheet.style(group, "bold", fits=columns, within=each - 24, fill=ON_ACCENT if inked else 0)
    body = sheet.style(group, fits=[value for row in values for value in row], within=each - 24)
    high = pitch * (len(rows) + 1)
    if inked:
        sheet.box(x, y, x + wide, y + pitch, fill=ACCENT, outline=None)
    base = y + (pitch + plain.ascent_px) // 2
    heads = [
        sheet.text(x + ahead + (i + 1) * each - 12, base, name, bold, "label", "r") for i, name in enumerate(columns)
    ]
    cells = {}
    for i, (row, line) in enumerate(zip(rows, values, strict=True)):
        top = y + (i + 1) * pitch
        if manner == "bands" and i % 2:
            sheet.box(x, top, x + wide, top + pitch, fill=TINT, outline=None)
        lead = sheet.text(x + 14, base + (i + 1) * pitch, row, plain, "label")
        for j, value in enumerate(line):
            shown = sheet.text(x + ahead + (j + 1) * each - 12, base + (i + 1) * pitch, value, body, "value", "r")
            cells[i, j] = (shown, lead, heads[j])
    for i in range(len(rows) + 2):
        if manner != "bands" or i in (0, 1, len(rows) + 1):
            sheet.rule(x, y + i * pitch, x + wide, 2, GREY if manner == "rules" and 1 < i <= len(rows) else 0)
    if manner == "grid":
        for j in range(len(columns) + 1):
            edge = x if j == 0 else x + ahead + (j - 1) * each
            sheet.pen.rectangle((edge, y, edge + 1, y + high), fill=0)
        sheet.pen.rectangle((x + wide - 2, y, x + wide - 1, y + high), fill=0)
    for i, j in zip(draw.shuffled(range(len(rows)))[:asked], _cycled(draw, len(columns), asked), strict=True):
        question = draw.choice(
            ("What is the value in row '{}', column '{}'?", "What does the table give for {} under {}?")
        )
        sheet.ask(group, f"{group}_{i}_{j}", question.format(rows[i], columns[j]), "table/list", *cells[i, j])


def _cycled(draw: Draw, number: int, wanted: int) -> list[int]:
    """Return `wanted` of `number` columns, each once before any comes twice."""
    order = draw.shuffled(range(number))
    return [order[i % number] for i in range(wanted)]


def _foot(sheet: Sheet) -> int:
    """Print the notes; return the lowest pixel above them."""
    draw, x, right = sheet.draw, sheet.margin, sheet.width - sheet.margin
    style = sheet.style("notes")
    y = sheet.height - sheet.margin // 2
    lead = sheet.text(x, y, "Prepared by", style, "label")
    shown = sheet.text(lead.box[2] + style.width("  "), y, draw.fresh(words.person), style, "value")
    sheet.ask("notes", "preparer", "Who prepared the report?", "layout", shown, lead)
    source = sheet.text(right, y, draw.fresh(words.code), style, "value", "r")
    lead = sheet.text(source.box[0] - style.width("  "), y, "Source file", style, "label", "r")
    sheet.ask("notes", "source", "What is the source file?", "layout", source, lead)
    top = y - style.line_px
    note = draw.choice(words.FILLER)
    if style.width(note) < sheet.inner:
        sheet.text(x, top, note, style)
        top -= style.line_px
    return top - 10
