"""TTFT against resolution, a curve per model, both axes logarithmic, with 95 % intervals."""

from collections.abc import Sequence

from harness.reports import material, style
from harness.reports.card import ReportCard
from harness.reports.document import Entry, Heading, Picture, Table
from harness.reports.figures.breakdown import one_each
from harness.reports.material import Material, Row


def draw(data: Material, card: ReportCard) -> list[Picture]:
    """Return a picture for each platform and protocol; the card's setting `quantity` is `ttft` or a stage."""
    quantity = str(card.settings.get("quantity", "ttft"))
    rows = [row for row in material.chosen(data, card) if row.get(f"{quantity}_ns") is not None]
    pictures = []
    for number, (where, mine) in enumerate(material.by_platform(rows)):
        name = f"{card.name}{f'-{number + 1}' if number else ''}"
        pictures.append(picture(name, f"{card.title}: {where}", one_each(mine), quantity))
    return pictures


def picture(name: str, title: str, rows: Sequence[Row], quantity: str) -> Picture:
    """Draw one curve per model and setting."""
    marks = frozenset(mark for row in rows for mark in row["marks"])
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(" ".join(str(part) for part in (row["model"], row["settings"]) if part), []).append(row)
    what = "TTFT" if quantity == "ttft" else quantity
    hovers: dict[str, str] = {}
    with style.style():
        figure, axes = style.new(2.5)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for number, (one, mine) in enumerate(sorted(series.items())):
            mine = sorted(mine, key=lambda row: row["resolution"])
            colour, marker = style.COLOURS[number % 8], style.MARKERS[number % 8]
            label = f"{one}{style.symbols(mark for row in mine for mark in row['marks'])}"
            ys = [row[f"{quantity}_ns"] / 1e6 for row in mine]
            axes.plot([row["resolution"] for row in mine], ys, color=colour, marker=marker, markersize=3.5, label=label)
            for row, y in zip(mine, ys, strict=True):
                low, high = row.get(f"{quantity}_low_ns"), row.get(f"{quantity}_high_ns")
                if low is not None and high is not None:
                    axes.vlines(row["resolution"], low / 1e6, high / 1e6, color=colour, linewidth=1.4)
                (dot,) = axes.plot(row["resolution"], y, marker=marker, markersize=3.5, color=colour)
                dot.set_gid(f"dot-{len(hovers)}")
                hovers[f"dot-{len(hovers)}"] = (
                    f"{one} at {row['resolution']} px: {what} {material.milliseconds(row, quantity).text} ms"
                )
        sides = sorted({int(row["resolution"]) for row in rows})
        shown = [side for i, side in enumerate(sides) if i + 1 == len(sides) or sides[i + 1] / side > 1.2]
        axes.set_xticks(shown, [str(side) for side in shown])
        axes.set_xticks([], minor=True)
        low, high = axes.get_ylim()
        style.log_ticks(axes.yaxis, low, high)
        axes.set_xlabel("resolution (px of a side, log scale)")
        axes.set_ylabel(f"{what} (ms, log scale)")
        figure.legend(loc="outside upper center", ncols=2, columnspacing=1.0)
        style.legend_of_marks(figure, marks)
    alt = f"{title}. {what} against resolution for {', '.join(sorted(series))}; the numbers are in the table."
    return Picture(name, title, alt, figure, table(name, title, rows, quantity), "", hovers, marks)


def table(name: str, title: str, rows: Sequence[Row], quantity: str) -> Table:
    """Return the numbers of the curves."""
    headings = (
        Heading("model"),
        Heading("resolution", "px", True),
        Heading("visual tokens", "", True),
    )
    lines = []
    for row in rows:
        model = " ".join(str(part) for part in (row["model"], row["settings"]) if part)
        entries = (
            Entry(model, None, str(row["cell"]), tuple(row["marks"])),
            Entry(str(row["resolution"]), row["resolution"]),
            Entry(material.count(row["visual_tokens"]), row["visual_tokens"]),
            Entry(str(row["n"]), row["n"]),
        )
        lines.append((*entries, material.milliseconds(row, quantity)))
    what = "TTFT" if quantity == "ttft" else quantity
    data = material.long_form(name, title, rows, (quantity,))
    head = (*headings, Heading("n", "", True), Heading(what, "ms", True))
    return Table(name, f"{title}: the numbers", head, tuple(lines), data=data)
