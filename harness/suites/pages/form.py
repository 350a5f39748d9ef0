"""A form: title, the number of the case in large type, two key boxes, two sections of labelled cells, fine print."""

from collections.abc import Callable
from dataclasses import dataclass

from harness.suites.pages import words
from harness.suites.pages.draw import Draw
from harness.suites.pages.plan import Group
from harness.suites.pages.sheet import ACCENT, ON_ACCENT, TINT, Overflow, Run, Sheet, Style

GROUPS = {
    "number": Group((0,)),
    "key": Group((1,), 2),
    "person": Group((2, 3), 4),
    "case": Group((2, 3), 4),
    "footer": Group((3, 4), 2),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """A labelled place on a form."""

    name: str
    label: str
    question: str
    make: Callable[[Draw], str]


NUMBERS = (
    (
        Cell("claim", "Claim No.", "What is the claim number?", words.number),
        ("Claim for Reimbursement", "Claim for Damages"),
    ),
    (
        Cell("permit", "Permit No.", "What is the permit number?", words.number),
        ("Application for a Permit", "Work Permit"),
    ),
    (Cell("order", "Order No.", "What is the order number?", words.number), ("Purchase Requisition", "Work Order")),
    (Cell("invoice", "Invoice No.", "What is the invoice number?", words.number), ("Invoice", "Statement of Services")),
    (
        Cell("case", "Case No.", "What is the case number?", words.number),
        ("Request for Review", "Certificate of Inspection"),
    ),
)
KEYS = (
    Cell("total", "Total due", "What is the total due?", words.amount),
    Cell("deposit", "Deposit", "What is the deposit?", words.amount),
    Cell("filed", "Date filed", "What is the date of filing?", words.date),
    Cell("expires", "Valid until", "Until when is the form valid?", words.date),
    Cell("priority", "Priority code", "What is the priority code?", words.code),
)
PERSONS = (
    Cell("applicant", "Applicant", "What is the name of the applicant?", words.person),
    Cell("supervisor", "Supervisor", "What is the name of the supervisor?", words.person),
    Cell("born", "Date of birth", "What is the date of birth?", words.date),
    Cell("department", "Department", "What is the department?", words.department),
    Cell("telephone", "Telephone", "What is the telephone number?", words.phone),
    Cell("town", "Town", "What is the town?", words.city),
    Cell("position", "Position", "What is the position?", words.position),
    Cell("badge", "Badge No.", "What is the badge number?", words.number),
    Cell("employer", "Employer", "What is the name of the employer?", words.company),
)
CASES = (
    Cell("plate", "Vehicle plate", "What is the vehicle plate?", words.plate),
    Cell("destination", "Destination", "What is the destination?", words.city),
    Cell("account", "Account", "What is the account?", words.code),
    Cell("approver", "Approved by", "Who approved the form?", words.person),
    Cell("units", "Units", "How many units are stated?", words.count),
    Cell("licence", "License", "What is the license?", words.code),
    Cell("material", "Material", "What is the material?", lambda draw: draw.choice(words.MATERIALS)),
    Cell("shipped", "Date shipped", "What is the date of shipping?", words.date),
    Cell("freight", "Freight", "How much is the freight?", words.amount),
    Cell("vendor", "Vendor", "What is the name of the vendor?", words.company),
)
SECTIONS = ("Section A - Particulars of the person", "Section B - Particulars of the matter")
BOXES = ("First filing", "Amended", "Urgent", "Copy attached", "Confidential", "By mail")


def size(draw: Draw) -> tuple[int, int]:
    """US letter at about 200 dots per inch, give or take a scanner."""
    return draw.between(1540, 1700), draw.between(2000, 2200)


def compose(sheet: Sheet) -> None:
    """Set the form from the top; the declaration takes what is left above the fine print."""
    draw = sheet.draw
    boxed = draw.chance(0.6)
    bottom = _foot(sheet)
    y = _head(sheet)
    y = _keys(sheet, y)
    for group, cells, title in zip(("person", "case"), (PERSONS, CASES), SECTIONS, strict=True):
        y = _section(sheet, y, group, draw.shuffled(cells)[: draw.choice((4, 6, 8))], title, boxed)
    _declaration(sheet, y, bottom)


def _head(sheet: Sheet) -> int:
    draw, x, right = sheet.draw, sheet.margin, sheet.width - sheet.margin
    cell, titles = draw.choice(NUMBERS)
    title = draw.choice(titles)
    value = draw.fresh(cell.make)
    heading = Style(sheet.family.bold, sheet.style("key").em_px * 0.9)
    office = Style(sheet.family.regular, sheet.style("person").em_px)
    y = sheet.margin // 2 + heading.ascent_px
    sheet.text(x, y, title, heading, "heading")
    name = draw.choice(("Office of Records", "Board of Trade", "State Bureau", "Central Registry", "County Services"))
    draw.reserve(title, name)
    y += office.line_px
    sheet.text(x, y, name, office)
    y += office.line_px // 2
    sheet.rule(x, y, right, 6, ACCENT)
    plain = sheet.style("number", fits=(f"{cell.label}  {value}",), within=sheet.inner - 60)
    bold = sheet.style("number", "bold", fits=(f"{cell.label}  {value}",), within=sheet.inner - 60)
    top = y + 24
    y = top + 30 + plain.ascent_px
    end = y + plain.descent_px + 16
    if draw.chance(0.5):
        sheet.box(x, top, right, end, fill=TINT)
    else:
        sheet.box(x, top, right, end)
    lead = sheet.text(x + 30, y, cell.label, plain, "label")
    shown = sheet.text(right - 30, y, value, bold, "value", "r")
    if shown.box[0] < lead.box[2] + 20:
        raise Overflow("the number of the form")
    sheet.ask("number", cell.name, cell.question, "form", shown, lead)
    return end + 24


def _keys(sheet: Sheet, y: int) -> int:
    """Print two boxes side by side, label above value."""
    draw, x = sheet.draw, sheet.margin
    half = (sheet.inner - 24) // 2
    end = y
    for i, cell in enumerate(draw.shuffled(KEYS)[:2]):
        value = draw.fresh(cell.make)
        left = x + i * (half + 24)
        plain = sheet.style("key", fits=(cell.label,), within=half - 40)
        bold = sheet.style("key", "bold", fits=(value,), within=half - 40)
        lead = sheet.text(left + 20, y + 20 + plain.ascent_px, cell.label, plain, "label")
        shown = sheet.text(left + 20, lead.base_px + sheet.style("key").line_px, value, bold, "value")
        sheet.ask("key", cell.name, cell.question, "form", shown, lead)
        end = max(end, shown.base_px + bold.descent_px + 14)
    for i in range(2):
        sheet.box(x + i * (half + 24), y, x + i * (half + 24) + half, end)
    return end + 24


def _section(sheet: Sheet, y: int, group: str, cells: list[Cell], title: str, boxed: bool) -> int:
    """Print a titled grid of two columns: boxed with the label above the value, or lined with both on one line."""
    draw, x, right = sheet.draw, sheet.margin, sheet.width - sheet.margin
    bar = Style(sheet.family.bold, sheet.style("person").em_px * 0.9, ON_ACCENT)
    sheet.box(x, y, right, y + bar.line_px, fill=ACCENT, outline=None)
    sheet.text(x + 20, y + round(bar.line_px * 0.72), title, bar, "heading")
    y += bar.line_px
    half = sheet.inner // 2
    values = [draw.fresh(cell.make) for cell in cells]
    plain = sheet.style(group)
    weight = draw.choice(("bold", "regular"))
    high = round(plain.line_px * 2.25 if boxed else plain.line_px * 1.5)
    longest = max((cell.label for cell in cells), key=plain.width)
    for i, (cell, value) in enumerate(zip(cells, values, strict=True)):
        left, top = x + i % 2 * half, y + i // 2 * high
        within = half - 40 if boxed else half - 80 - plain.width(longest)
        style = sheet.style(group, weight, fits=(value,), within=within)
        base = top + round(plain.line_px * (0.85 if boxed else 1.0))
        lead = sheet.text(
            left + 20,
            base,
            cell.label,
            sheet.style(group, fits=(cell.label,), within=within if boxed else half),
            "label",
        )
        if boxed:
            sheet.box(left, top, left + half, top + high)
            shown = sheet.text(left + 20, base + plain.line_px, value, style, "value")
        else:
            start = left + 40 + plain.width(longest)
            shown = sheet.text(start, base, value, style, "value")
            sheet.rule(start - 8, base + plain.line_px // 5, left + half - 20, 2)
        sheet.ask(group, cell.name, cell.question, "form", shown, lead)
    return y + (len(cells) + 1) // 2 * high + 28


def _declaration(sheet: Sheet, y: int, bottom: int) -> None:
    """Print check boxes, small print, a box left blank and a line to sign on, as far as there is room."""
    draw, x, right = sheet.draw, sheet.margin, sheet.width - sheet.margin
    style = Style(sheet.family.regular, sheet.style("person").em_px * 0.85)
    if y > bottom:
        raise Overflow("the sections reach the foot of the form")
    if y + 3 * style.line_px < bottom:
        y += style.line_px
        at = x
        for label in draw.shuffled(BOXES):
            side = style.ascent_px
            if at + side + 20 + style.width(label) > right:
                break
            sheet.box(at, y - side, at + side, y)
            if draw.chance(0.4):
                for lean in (0, side):
                    sheet.pen.line((at + lean, y - side, at + side - lean, y), fill=0, width=4)
            at = sheet.text(at + side + 14, y, label, style).box[2] + 50
        y += round(1.5 * style.line_px)
    signed = bottom - style.line_px
    sentences = draw.shuffled(words.FILLER)[: draw.between(4, 9)]
    y = sheet.filler(x, y, style, sheet.inner, signed - 3 * style.line_px, sentences)
    end = signed - 2 * style.line_px
    if end - y > 4 * style.line_px:
        sheet.box(x, y, right, end)
        sheet.text(
            x + 20, y + style.line_px, draw.choice(("For office use only", "Do not write here", "Remarks")), style
        )
    if y < signed - style.line_px:
        for left, far, label in (
            (x, x + sheet.inner * 3 // 5, "Signature"),
            (right - sheet.inner // 4, right, "Place"),
        ):
            sheet.rule(left, signed, far, 2)
            sheet.text(left, signed + round(0.75 * style.line_px), label, style)


def _foot(sheet: Sheet) -> int:
    """Print the fine print; return the lowest pixel above it."""
    draw = sheet.draw
    style = sheet.style("footer")
    y = sheet.height - sheet.margin // 2
    sides = ((sheet.margin, "l"), (sheet.width - sheet.margin, "r"))
    kinds = (("revision", "Revision", "What is the revision of the form?"), ("batch", "Batch", "What is the batch?"))
    for (at, anchor), (name, label, question) in zip(sides, kinds, strict=True):
        value = draw.fresh(words.code)
        gap = style.width("  ")
        if anchor == "l":
            lead: Run = sheet.text(at, y, label, style, "label")
            shown = sheet.text(lead.box[2] + gap, y, value, style, "value")
        else:
            shown = sheet.text(at, y, value, style, "value", "r")
            lead = sheet.text(shown.box[0] - gap, y, label, style, "label", "r")
        sheet.ask("footer", name, question, "form", shown, lead)
    return y - 2 * style.line_px
