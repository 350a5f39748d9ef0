"""A business letter: letterhead, reference, date, addressee, paragraphs with two facts, signature, fine print."""

import math

from harness.suites.pages import words
from harness.suites.pages.draw import Draw
from harness.suites.pages.plan import Group
from harness.suites.pages.sheet import ACCENT, ON_ACCENT, Overflow, Run, Sheet

GROUPS = {
    "company": Group((0, 1)),
    "reference": Group((0, 1)),
    "date": Group((1, 2, 3)),
    "addressee": Group((1, 2, 3)),
    "body": Group((2, 3), 2),
    "signature": Group((1, 2, 3), 2),
    "contact": Group((3, 4), 2),
    "control": Group((3, 4)),
}

FACTS = (
    ("balance", "The balance still open on your account is {}.", "What is the balance still open?", words.amount),
    ("refund", "A refund of {} will be paid to your bank.", "How much will be refunded?", words.amount),
    ("meeting", "The next hearing has been set for {}.", "When is the next hearing?", words.date),
    ("delivery", "We expect to deliver the goods by {}.", "By when are the goods to be delivered?", words.date),
    (
        "cartons",
        "The last consignment held {} cartons.",
        "How many cartons did the last consignment hold?",
        words.count,
    ),
    ("survey", "Our survey was answered by {} households.", "How many households answered the survey?", words.count),
    ("policy", "Your policy is kept under the number {}.", "What is the policy number?", words.code),
    ("inspector", "The site was inspected by {}.", "Who inspected the site?", words.person),
    ("plant", "The pump was made at our works in {}.", "Where was the pump made?", words.city),
)


def size(draw: Draw) -> tuple[int, int]:
    """US letter at about 200 dots per inch, give or take a scanner."""
    return draw.between(1560, 1700), draw.between(2060, 2200)


def compose(sheet: Sheet) -> None:
    """Set the letter from the top and from the bottom; filler takes what is left between."""
    draw = sheet.draw
    y = _head(sheet)
    bottom = _foot(sheet)
    y = _opening(sheet, y)
    body = sheet.style("body")
    signer = draw.fresh(words.person)
    title = draw.fresh(words.position)
    hand = sheet.style("signature", "bold", fits=(signer,), within=sheet.inner // 2)
    role = sheet.style("signature", fits=(title,), within=sheet.inner // 2)
    closing = 2 * body.line_px + round(2.2 * hand.line_px) + role.line_px
    last = bottom - closing
    y = sheet.text(sheet.margin, y, draw.choice(("Dear Sir or Madam,", "To whom it may concern,")), body).base_px
    y += round(1.6 * body.line_px)
    sentences = draw.shuffled(words.FILLER)
    for name, text, question, make in draw.shuffled(FACTS)[:2]:
        value = draw.fresh(make)
        told = f"{sentences.pop()} {text.format(value.replace(' ', '~'))} {sentences.pop()}"
        y, run = _told(sheet, y, told, value, last)
        sheet.ask("body", name, question, "free_text", run)
    while y + 2 * body.line_px < last and len(sentences) >= 3 and draw.chance(0.9):
        y = sheet.filler(sheet.margin, y, body, sheet.inner, last, [sentences.pop() for _ in range(3)])
        y += body.line_px // 2
    y += body.line_px // 2
    x = sheet.margin if draw.chance(0.6) else sheet.width // 2
    sheet.text(x, y, draw.choice(("Sincerely,", "Yours truly,", "With kind regards,")), body)
    _scrawl(sheet, x, y + body.line_px // 3, hand.line_px)
    y += round(2.2 * hand.line_px)
    named = sheet.text(x, y, signer, hand, "value")
    sheet.ask("signature", "signer", "Who signed the letter?", "free_text", named)
    ranked = sheet.text(x, y + role.line_px, title, role, "value")
    sheet.ask("signature", "position", "What is the position of the person who signed the letter?", "free_text", ranked)


def _told(sheet: Sheet, y: int, text: str, value: str, last: int) -> tuple[int, Run]:
    block = sheet.paragraph(sheet.margin, y, text, sheet.style("body"), sheet.inner, last, value)
    if block.value is None:
        raise Overflow(f"no room for {text!r}")
    return block.base + sheet.style("body").line_px // 2, block.value


def _head(sheet: Sheet) -> int:
    """Print the letterhead in one of three manners; return where the page goes on."""
    draw, x, right = sheet.draw, sheet.margin, sheet.width - sheet.margin
    name = draw.fresh(words.company)
    tel, fax = draw.fresh(words.phone), draw.fresh(words.phone)
    manner = draw.choice(("centre", "left", "bar"))
    pad = sheet.margin // 2
    style = sheet.style("company", "bold", fits=(name,), within=sheet.inner - 2 * pad)
    y = pad + style.ascent_px + pad
    if manner == "bar":
        sheet.box(0, 0, sheet.width, y + pad, fill=ACCENT, outline=None)
        style = sheet.style("company", "bold", fits=(name,), within=sheet.inner - 2 * pad, fill=ON_ACCENT)
        run = sheet.text(x, y, name, style, "heading")
        y += pad
    elif manner == "left":
        run = sheet.text(x, y, name, style, "heading")
        y += style.line_px // 3
        sheet.rule(x, y, right, 5, ACCENT)
    else:
        run = sheet.text(sheet.width // 2, y, name, style, "heading", "m")
        y += style.line_px // 3
        sheet.rule(x, y, right, 3)
        sheet.rule(x, y + 8, right, 3)
    sheet.ask("company", "company", "Which company is named in the letterhead?", "layout", run)
    small = sheet.style("contact")
    y += round(1.3 * small.line_px)
    home = f"{words.street(draw)}, {words.city(draw)}"
    draw.reserve(home)
    sheet.text(x, y, home, small)
    gap = 3 * small.width(" ")
    at = right
    for label, name_, noun, value in (("Fax", "fax", "fax", fax), ("Telephone", "telephone", "telephone", tel)):
        shown = sheet.text(at, y, value, small, "value", "r")
        lead = sheet.text(shown.box[0] - gap // 2, y, label, small, "label", "r")
        question = f"What is the {noun} number in the letterhead?"
        sheet.ask("contact", name_, question, "layout", shown, lead)
        at = lead.box[0] - gap
    if at < x + small.width(home):
        raise Overflow("the letterhead's small print")
    return y + small.line_px


def _opening(sheet: Sheet, y: int) -> int:
    """Print reference, date and addressee; return the salutation's base line."""
    draw, x, right = sheet.draw, sheet.margin, sheet.width - sheet.margin
    label = draw.choice(("Ref.", "File", "Case", "Matter"))
    noun = {"Ref.": "reference", "File": "file", "Case": "case", "Matter": "matter"}[label]
    value = draw.fresh(words.number)
    pad = 24
    within = sheet.inner - 2 * pad
    plain = sheet.style("reference", fits=(f"{label}  {value}",), within=within)
    bold = sheet.style("reference", "bold", fits=(f"{label}  {value}",), within=within)
    y += plain.ascent_px + 2 * pad
    lead = sheet.text(x + pad, y, label, plain, "label")
    shown = sheet.text(lead.box[2] + plain.width("  "), y, value, bold, "value")
    if draw.chance(0.5):
        sheet.box(x, y - plain.ascent_px - pad, shown.box[2] + pad, y + plain.descent_px + pad // 2)
    sheet.ask("reference", noun, f"What is the {noun} number of the letter?", "form", shown, lead)
    y += plain.descent_px + 2 * pad
    day = draw.fresh(words.date)
    dated = sheet.style("date")
    y += dated.ascent_px + pad
    at, anchor = draw.choice(((right, "r"), (x, "l")))
    sheet.ask(
        "date", "date", "What is the date of the letter?", "layout", sheet.text(at, y, day, dated, "value", anchor)
    )
    y += dated.line_px // 2
    whom = draw.fresh(words.person)
    where = [draw.fresh(words.company), draw.fresh(words.street), draw.fresh(words.city)]
    style = sheet.style("addressee", fits=(whom, *where), within=sheet.inner * 3 // 4)
    y += style.line_px
    run = sheet.text(x, y, whom, style, "value")
    sheet.ask("addressee", "addressee", "To whom is the letter addressed?", "layout", run)
    firm = sheet.text(x, y + style.line_px, where[0], style, "value")
    sheet.ask("addressee", "company_of_addressee", "To which company is the letter addressed?", "layout", firm)
    for i, line in enumerate(where[1:], 2):
        sheet.text(x, y + i * style.line_px, line, style)
    return y + 4 * style.line_px + sheet.style("body").line_px


def _foot(sheet: Sheet) -> int:
    """Print the fine print at the foot; return the lowest pixel above it."""
    draw, x, right = sheet.draw, sheet.margin, sheet.width - sheet.margin
    style = sheet.style("control")
    y = sheet.height - sheet.margin // 2
    value = sheet.text(right, y, draw.fresh(words.code), style, "value", "r")
    lead = sheet.text(value.box[0] - style.width("  "), y, "Document control", style, "label", "r")
    sheet.ask("control", "control", "What is the document control number?", "form", value, lead)
    if x + style.width("Registered office as above") < lead.box[0]:
        sheet.text(x, y, "Registered office as above", style)
    top = y - style.line_px
    sheet.rule(x, top, right, 2)
    return top - sheet.margin // 3


def _scrawl(sheet: Sheet, x: int, y: int, height: int) -> None:
    """Draw what passes for a signature: a few loops that spell nothing."""
    draw = sheet.draw
    tall, wide = height * 0.9, draw.spread(0.12, 0.2) * sheet.width
    loops = draw.between(4, 7)
    swings = [draw.spread(0.25, 1.0) for _ in range(loops + 1)]
    points = []
    for i in range(loops * 24):
        turn = i / 24
        swing = swings[int(turn)] * tall / 2
        angle = 2 * math.pi * turn
        points.append(
            (x + 20 + wide * turn / loops + 0.35 * swing * math.cos(angle), y + tall / 2 + swing * math.sin(angle))
        )
    sheet.pen.line(points, fill=ACCENT, width=5, joint="curve")
