"""A till receipt: shop, order number, who and when, items with prices, sums, the total, codes, a bar code."""

from harness.suites.pages import words
from harness.suites.pages.draw import Draw
from harness.suites.pages.plan import Group
from harness.suites.pages.sheet import INK, Overflow, Run, Sheet, Style
from harness.suites.pages.words import money

GROUPS = {
    "shop": Group((0, 1)),
    "order": Group((0, 1)),
    "total": Group((0, 1)),
    "visit": Group((2, 3), 3),
    "items": Group((2, 3), 2),
    "sums": Group((1, 2, 3), 2),
    "contact": Group((3, 4)),
    "codes": Group((3, 4), 2),
}


def size(draw: Draw) -> tuple[int, int]:
    """Narrow and tall."""
    height = draw.between(1700, 2100)
    return round(height * draw.spread(0.47, 0.54)), height


def compose(sheet: Sheet) -> None:
    """Set the receipt from the top; the number of items follows from the room that the rest leaves."""
    draw, x, right = sheet.draw, sheet.margin, sheet.width - sheet.margin
    dash = draw.choice((0, 8, 14))
    y = _head(sheet)
    y = _visit(sheet, y, dash)
    sums, total, items, codes = (sheet.style(group) for group in ("sums", "total", "items", "codes"))
    after = 2 * sums.line_px + 2 * total.line_px + 4 * codes.line_px + 240
    number = min((sheet.height - y - after) // items.line_px, 24)
    if number < 3:
        raise Overflow("no room for three items")
    names = draw.shuffled(words.GOODS)[: draw.between(max(3, number - 4), number)]
    prices = [draw.between(105, 2999) for _ in names]
    net = sum(prices)
    tax = net * draw.between(40, 95) // 1000
    for cents in (*prices, net, tax, net + tax):
        if not draw.apart(money(cents)[1:]):
            raise Overflow("two sums of money, one printed within the other")
        draw.reserve(money(cents)[1:])
    y += items.line_px // 2
    asked = draw.shuffled(range(len(names)))[:2]
    signs = draw.chance(0.5)
    for i, (name, price) in enumerate(zip(names, prices, strict=True)):
        lead, shown = _line(sheet, "items", y, name, money(price) if signs else money(price)[1:])
        if i in asked:
            also = (money(price),)
            sheet.ask(
                "items",
                f"price_of_{name.lower()}",
                f"What is the price of {name}?",
                "table/list",
                shown,
                lead,
                also=also,
            )
        y += items.line_px
    sheet.rule(x, y - items.line_px // 2, right, 3, dash=dash)
    y += sums.line_px // 2
    kinds = (("subtotal", "Subtotal", "What is the subtotal?"), ("tax", "Tax", "How much is the tax?"))
    for (name, label, question), cents in zip(kinds, (net, tax), strict=True):
        lead, shown = _line(sheet, "sums", y, label, money(cents))
        sheet.ask("sums", name, question, "table/list", shown, lead)
        y += sums.line_px
    y += total.ascent_px - sums.line_px // 3
    lead, shown = _line(sheet, "total", y, draw.choice(("TOTAL", "Total")), money(net + tax), "bold")
    sheet.ask("total", "total", "What is the total?", "table/list", shown, lead)
    y += total.line_px // 2
    sheet.rule(x, y, right, 3, dash=dash)
    _codes(sheet, y + 2 * codes.line_px)


def _line(sheet: Sheet, group: str, y: int, label: str, value: str, weight: str = "regular") -> tuple[Run, Run]:
    """Print a label at the left and its value at the right."""
    style = sheet.style(group, weight, fits=(f"{label}   {value}",), within=sheet.inner)
    lead = sheet.text(sheet.margin, y, label, style, "label")
    return lead, sheet.text(sheet.width - sheet.margin, y, value, style, "value", "r")


def _head(sheet: Sheet) -> int:
    draw, middle = sheet.draw, sheet.width // 2
    name = draw.fresh(words.shop)
    style = sheet.style("shop", "bold", fits=(name,), within=sheet.inner)
    y = sheet.margin + style.ascent_px
    run = sheet.text(middle, y, name, style, "heading", "m")
    sheet.ask("shop", "shop", "What is the name of the shop?", "layout", run)
    small = sheet.style("contact")
    where = f"{words.street(draw)}, {words.city(draw)}"
    draw.reserve(where)
    y += style.line_px // 4 + small.line_px
    if small.width(where) <= sheet.inner:
        sheet.text(middle, y, where, small, anchor="m")
        y += small.line_px
    value = draw.fresh(words.phone)
    both = small.width(f"Tel.  {value}")
    lead = sheet.text(middle - both // 2, y, "Tel.", small, "label")
    shown = sheet.text(lead.box[2] + small.width("  "), y, value, small, "value")
    sheet.ask("contact", "telephone", "What is the telephone number of the shop?", "layout", shown, lead)
    number = draw.fresh(words.number)
    label = draw.choice(("Order", "Slip", "Ticket", "Check"))
    y += small.line_px // 2
    bold = sheet.style("order", "bold", fits=(f"{label}  {number}",), within=sheet.inner - 40)
    y += bold.ascent_px + 30
    both = bold.width(f"{label}  {number}")
    lead = sheet.text(middle - both // 2, y, label, bold, "label")
    shown = sheet.text(lead.box[2] + bold.width("  "), y, number, bold, "value")
    if draw.chance(0.5):
        sheet.box(sheet.margin, y - bold.ascent_px - 20, sheet.width - sheet.margin, y + bold.descent_px + 10)
    sheet.ask("order", label.lower(), f"What is the {label.lower()} number?", "form", shown, lead)
    return y + bold.descent_px + 20


def _visit(sheet: Sheet, y: int, dash: int) -> int:
    draw = sheet.draw
    kinds = (
        ("date", "Date", "What is the date on the receipt?", words.date),
        ("cashier", "Cashier", "What is the name of the cashier?", words.person),
        ("till", "Till", "What is the number of the till?", words.number),
        ("member", "Member", "What is the member number?", words.code),
        ("time", "Time", "What is the time on the receipt?", words.clock),
    )
    pitch = sheet.style("visit").line_px
    for name, label, question, make in draw.shuffled(kinds)[: draw.between(3, 4)]:
        y += pitch
        lead, shown = _line(sheet, "visit", y, label, draw.fresh(make))
        sheet.ask("visit", name, question, "form", shown, lead)
    y += pitch // 2
    sheet.rule(sheet.margin, y, sheet.width - sheet.margin, 3, dash=dash)
    return y + pitch // 2


def _codes(sheet: Sheet, y: int) -> None:
    draw, middle = sheet.draw, sheet.width // 2
    pitch = sheet.style("codes").line_px
    kinds = (
        ("approval", "Approval code", "What is the approval code?"),
        ("terminal", "Terminal", "What is the code of the terminal?"),
    )
    for name, label, question in kinds:
        lead, shown = _line(sheet, "codes", y, label, draw.fresh(words.code))
        sheet.ask("codes", name, question, "form", shown, lead)
        y += pitch
    thanks = draw.choice(("Thank you for your visit", "Please call again", "Goods returned only with this slip"))
    style = Style(sheet.family.regular, sheet.style("codes").em_px)
    sheet.text(middle, y, thanks, style, anchor="m")
    top, x = y + pitch // 2, sheet.margin + sheet.inner // 8
    high = min(sheet.height - sheet.margin // 2 - top, 150)
    while high > 40 and x < sheet.width - sheet.margin - sheet.inner // 8:
        thick = draw.between(2, 9)
        sheet.pen.rectangle((x, top, x + thick - 1, top + high), fill=INK)
        x += thick + draw.between(3, 9)
