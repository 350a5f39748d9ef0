"""Word lists and the values made of them. Every value is ASCII, and so varied that a reader without eyes guesses none.

No value has a constant beginning or end: ANLS gives half a point for half a match, so a value of known form with few
free characters would be worth something to a model that has not read the page.
"""

from harness.suites.pages.draw import Draw


def _list(text: str, between: str | None = None) -> tuple[str, ...]:
    return tuple(text.split(between))


GIVEN = _list(
    "Adele Amos Anton Beatrix Boris Carla Cedric Clara Conrad Dalia Dexter Dora Edmund Elsa Emil Farah Felix Flora "
    "Gavin Gilda Goran Hanna Hector Hugo Ingrid Irma Isaac Jolene Jonas Judith Karim Katya Kurt Leila Leopold Lydia "
    "Magnus Marta Miles Nadia Nestor Nora Odette Oscar Otto Paula Percy Petra Quentin Ramona Rex Rosa Rufus Sabine "
    "Selma Silas Tamar Thelma Tobias Ursula Vera Victor Wanda Wesley Yusuf Yvonne Zelda Zoltan"
)
FAMILY = _list(
    "Abbott Ackerman Baines Becker Birch Bowman Brandt Calloway Castle Chandra Cobb Crane Dahl Delgado Drummond Dunn "
    "Eastman Egan Emerson Faber Finch Fowler Frost Garza Gibbs Goodwin Gupta Haines Hobbs Holt Hyde Ibanez Ivers "
    "Jarvis Juarez Kemp Kirby Knox Kumar Lang Lowell Lucas Mack Mercer Moss Nagy Noble Novak Oakes Olsen Orr Parks "
    "Pike Quigley Quinn Ramsey Reyes Rowe Sato Sexton Shaw Stone Tate Thorpe Tran Underhill Vance Vogel Wade Wu Yates "
    "York Zamora"
)
CITIES = _list(
    "Akron Albany Boise Boulder Camden Casper Dayton Denver Durham Elgin Eugene Fargo Fresno Galveston Hilo Irvine "
    "Jackson Juneau Kenosha Laredo Lincoln Macon Mesa Mobile Nashua Ogden Omaha Peoria Provo Quincy Racine Reno Salem "
    "Tacoma Topeka Trenton Tulsa Utica Ventura Waco Yonkers Yuma"
)
STREETS = _list("Acorn Bishop Cedar Dover Elm Forge Grove Harbor Juniper King Laurel Mill Orchard Pearl River Spruce")
KINDS_OF_STREET = _list("Street Avenue Road Lane Drive Court")
STEMS = _list(
    "Alder Anchor Beacon Bolton Bright Cobalt Copper Crest Dunmore Echo Falcon Garnet Halden Hazel Indigo Keystone "
    "Lantern Marlow Meridian Norwood Onyx Pioneer Prism Quarry Raven Saffron Sierra Summit Tidewell Union Vector "
    "Whitfield Zenith"
)
TRADES = _list("Foods Supply Labs Press Motors Textile Optics Paper Freight Mills Energy Tools Realty Glass Dairy")
SHOPS = _list("Market Cafe Bakery Books Hardware Grocer Deli Pharmacy Diner Florist Bistro Garage Kitchen Depot")
DEPARTMENTS = _list(
    "Accounting Archives Audit Catering Dispatch Drafting Engineering Estates Facilities Fleet Grants Housing Imaging "
    "Inspection Laboratory Legal Licensing Logistics Maintenance Marketing Mailroom Nursing Outreach Packaging "
    "Payroll Planning Printing Procurement Quality Radiology Records Recruitment Safety Security Surveying Toxicology "
    "Training Treasury Warehouse"
)
POSITIONS = _list(
    "Archivist|Branch Manager|Chief Chemist|Claims Adjuster|Comptroller|Credit Officer|District Engineer|"
    "Editor in Chief|Field Supervisor|General Counsel|Head Librarian|Investigator|Lead Surveyor|"
    "Medical Director|Night Superintendent|Operations Analyst|Plant Superintendent|Press Secretary|"
    "Quality Inspector|Regional Buyer|Sales Executive|Senior Actuary|Traffic Coordinator|Vice President",
    "|",
)
GOODS = _list(
    "Apples Bagels Barley Beets Biscuits Butter Candles Carrots Cashews Celery Cheddar Cider Cocoa Crackers Cream "
    "Dates Eggs Figs Flour Ginger Granola Grapes Honey Jam Ketchup Leeks Lemons Lentils Limes Mangoes Matches Mustard "
    "Napkins Noodles Olives Onions Oranges Papaya Pears Pecans Pepper Plums Quinoa Radish Raisins Sesame Soap Spinach "
    "Sugar Syrup Thyme Tofu Towels Turnips Vanilla Vinegar Walnuts Yeast Yogurt"
)
MATERIALS = _list(
    "Aluminum Asphalt Brass Bronze Canvas Carbon Cement Ceramic Clay Cork Cotton Felt Fiber Gravel Gypsum Lead "
    "Leather Linen Lumber Marble Nickel Nylon Plaster Plywood Resin Rubber Sand Silica Slate Steel Timber Wool "
    "Zinc"
)
MONTHS = _list("January February March April May June July August September October November December")
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"  # without I, O and Q, which some faces draw like 1 and 0
FILLER = (
    "Please read the enclosed notes with care and keep a copy for your own files.",
    "We are grateful for the patience that you have shown while the matter was under review.",
    "Our staff went through the material that you sent and found it to be complete.",
    "Any change to these arrangements will be made known to all parties in writing.",
    "The terms of the agreement remain as they were when it was first signed.",
    "It is our aim to settle every open point before the end of the season.",
    "You may wish to compare these figures with those that were given to you earlier.",
    "Nothing in this notice should be taken as a promise of further payment.",
    "The samples were stored in a dry place and were not exposed to direct light.",
    "We would be glad to answer any question that you may still have.",
    "Copies of the earlier exchange are attached for the sake of good order.",
    "The committee has asked for a short summary, which is now being prepared.",
    "All measurements were repeated by a second person and agreed within the stated limits.",
    "Should you find an error, kindly let us know so that it can be put right.",
    "The goods travel at the risk of the buyer unless it was agreed otherwise.",
    "A full account of the work is given in the annex to this paper.",
    "The method has been in use for many years and has proved to be sound.",
    "We trust that this explains our position and look forward to hearing from you.",
    "Some of the older papers could not be found and had to be made anew.",
    "No part of this document may be passed on without the consent of the sender.",
)


def digits(draw: Draw, pattern: str) -> str:
    """Fill a pattern: `#` a digit, `%` a digit other than zero, `@` a letter; all else stands for itself."""
    fill = {"#": "0123456789", "%": "123456789", "@": LETTERS}
    return "".join(draw.choice(fill[mark]) if mark in fill else mark for mark in pattern)


def number(draw: Draw) -> str:
    """A short reference number: `48-2213`, `K7-306`, `90451` ..."""
    return digits(draw, draw.choice(("%#-####", "%####", "@#-###", "%###-@", "@@ ###", "%##/##", "@%###")))


def code(draw: Draw) -> str:
    """A longer code: `QT-48213`, `2217-BD`, `F84-221-07` ..."""
    return digits(
        draw, draw.choice(("@@-#####", "####-@@", "@##-###-##", "######", "@@@ ####", "##-##-@@@", "@#@ #@#"))
    )


def person(draw: Draw) -> str:
    """A full name."""
    middle = f" {draw.choice(LETTERS)}." if draw.chance(0.3) else ""
    return f"{draw.choice(GIVEN)}{middle} {draw.choice(FAMILY)}"


def company(draw: Draw) -> str:
    """A company of at most seventeen characters."""
    return f"{draw.choice(STEMS)} {draw.choice(TRADES)}"


def shop(draw: Draw) -> str:
    """A shop of at most fourteen characters."""
    for _ in range(100):
        name = f"{draw.choice(STEMS + FAMILY)} {draw.choice(SHOPS)}"
        if len(name) <= 14:
            return name
    raise AssertionError("the lists have many short pairs")


def city(draw: Draw) -> str:
    """A town."""
    return draw.choice(CITIES)


def street(draw: Draw) -> str:
    """A street with a house number."""
    return f"{digits(draw, '%##')} {draw.choice(STREETS)} {draw.choice(KINDS_OF_STREET)}"


def department(draw: Draw) -> str:
    """A department."""
    return draw.choice(DEPARTMENTS)


def position(draw: Draw) -> str:
    """What somebody is in an office."""
    return draw.choice(POSITIONS)


def date(draw: Draw) -> str:
    """A date between 1961 and 2024 in one of six forms."""
    day, month, year = draw.between(1, 28), draw.between(1, 12), draw.between(1961, 2024)
    word = MONTHS[month - 1]
    return draw.choice(
        (
            f"{word} {day}, {year}",
            f"{word[:3]} {day}, {year}",
            f"{day} {word} {year}",
            f"{month}/{day}/{year % 100:02d}",
            f"{year}-{month:02d}-{day:02d}",
            f"{day:02d}.{month:02d}.{year}",
        )
    )


def amount(draw: Draw) -> str:
    """A sum of money under a hundred thousand dollars."""
    return money(draw.between(1011, draw.choice((9999, 99999, 999999, 9999999))))


def money(cents: int) -> str:
    """Print cents as dollars."""
    return f"${cents // 100:,}.{cents % 100:02d}"


def count(draw: Draw) -> str:
    """A number of things."""
    return f"{draw.between(101, draw.choice((999, 9999, 99999))):,}"


def phone(draw: Draw) -> str:
    """A telephone number that nobody can have: no North American exchange begins with 0 or 1."""
    return digits(draw, draw.choice(("%##-0##-####", "(%##) 1##-####", "%## 0## ####", "%##.1##.####")))


def plate(draw: Draw) -> str:
    """A number plate."""
    return digits(draw, draw.choice(("@@@ ###", "###-@@@", "@## @@#", "%@@@ ##")))


def clock(draw: Draw) -> str:
    """A time of day."""
    hour, minute = draw.between(0, 23), draw.between(0, 59)
    return draw.choice((f"{hour:02d}:{minute:02d}", f"{(hour + 11) % 12 + 1}:{minute:02d} {'AP'[hour > 11]}M"))


def variants(text: str) -> tuple[str, ...]:
    """Return what else is right: money without its sign or commas, a count without commas."""
    bare = text.removeprefix("$")
    if not bare.replace(",", "").replace(".", "").isdigit() or (bare == text and "," not in text):
        return (text,)
    return tuple(dict.fromkeys((text, bare, bare.replace(",", ""))))
