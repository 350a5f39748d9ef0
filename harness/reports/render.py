"""A report card and run logs → tables, figures and pages, in every format; the same logs give the same bytes.

`render` is what `harness report NAME` calls; besides the run log writer it is the only thing that writes files.
"""

import dataclasses
import re
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from harness import cards, plugins
from harness.errors import CardError, SettingError
from harness.reports import front, measured, tables
from harness.reports.card import ReportCard, load_report_card
from harness.reports.document import Picture, Report, Table
from harness.reports.formats import delimited, html, latex, markdown
from harness.reports.measured import Measured

FORMATS = ("md", "tex", "csv", "html", "png", "svg", "pdf")
NAMES = {"markdown": "md", "latex": "tex"}
"""What people call two of them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Rendered:
    """What a rendering wrote, and what whoever looks at the pictures alone must be told of them."""

    files: tuple[Path, ...]
    told: tuple[str, ...]


def names() -> list[str]:
    """Return the names of all report cards."""
    return cards.names("reports")


def render(name: str, logs: Path, out: Path, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Render the report `name` from the run logs below `logs` into the folder `out`; return the files written.

    Files of an earlier rendering that this one no longer has (a second platform's figure) are removed. Raises
    `UnknownName`, `CardError`, `LogError` or `SettingError`.
    """
    return [*render_all([name], logs, out, formats).files]


def render_all(
    wanted: Sequence[str],
    logs: Path,
    out: Path,
    formats: Sequence[str] = FORMATS,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
) -> Rendered:
    """Render several reports from one reading of the logs, their tables with these columns and rows alone."""
    formats = [NAMES.get(kind, kind) for kind in formats]
    for kind in formats:
        if kind not in FORMATS:
            raise SettingError(f"--format {kind}: known: {', '.join((*FORMATS, *NAMES))}")
    reports = [load_report_card(name) for name in wanted]
    data = measured.of(logs)
    written, told = [], [str(skipped) for skipped in data.frame.skipped]
    told += [] if data.cells else [f"{logs}: no run log that can be used; next: `harness run` or `harness sweep`"]
    for card in reports:
        made = _only(build(card, data), columns, rows)
        files = contents(made, card, formats)
        told += remarks(made, {Path(file).suffix for file in files})
        told += [
            f"{out / file}: removed: it was of an earlier rendering" for file in _cleared(out, card, formats, files)
        ]
        for file, content in files.items():
            out.mkdir(parents=True, exist_ok=True)
            (out / file).write_bytes(content)
            written.append(out / file)
    return Rendered(tuple(written), tuple(told))


TOGETHER = (
    "only cells of one machine, device, engine, precision and protocol (of a served model: of one URL) are drawn "
    "together, and scores only over the same questions"
)


def remarks(report: Report, suffixes: Collection[str]) -> list[str]:
    """Say of each picture what it shows and notes, of each block what it lacks, and why there are several pictures."""
    drawn = [block for block in report.blocks if isinstance(block, Picture) and block.figure is not None]
    suffix = next((one for one in (".png", ".svg", ".pdf") if one in suffixes), "")
    told = [f"{report.name}: nothing to show: {one.empty}" for one in report.tables if not one.rows]
    for one in drawn:
        told += [f"{one.name}{suffix}: {one.title}"]
        told += [f"{one.name}{suffix}: note: {text}" for label, text in one.numbers.notes if label == "Note:"]
    return [*told, f"{report.name}: {len(drawn)} figures: {TOGETHER}"] if len(drawn) > 1 else told


def build(card: ReportCard, data: Measured, above: tuple[str, ...] = ()) -> Report:
    """Make the report from what is measured, without writing anything."""
    blocks: list[Table | Picture] = []
    text = [card.caption] if card.caption else []
    if card.kind == "page":
        above = (*above, card.digest)
        parts = {name: load_report_card(name) for name in card.reports}
        for name, part in parts.items():
            if part.digest in above:
                raise CardError(f"{name}: a page that holds itself; next: take it out of `reports` of {card.name}")
        sections = tuple(build(part, data, above) for part in parts.values())
        doubts = tuple(dict.fromkeys(doubt for section in sections for doubt in section.doubts))
        first, rest = front.front(data, sections)
        logs = tables.provenance(data, data.cells)
        return Report(card.name, card.title, tuple(text), (), doubts, logs, card.sources, rest, first)
    if card.kind == "cells":
        blocks.append(tables.cells(card, data))
    elif card.kind == "published":
        blocks += tables.published(card, data)
    elif card.kind == "claims":
        blocks.append(tables.claims(card, data))
    for number, figure in enumerate(card.figures):
        part = msgspec.structs.replace(card, name=f"{card.name}-{figure}") if number else card
        blocks += plugins.load("figures", figure).draw(data, part)
    if not blocks:
        nothing = "Nothing that this figure needs was measured."
        reasons = dict.fromkeys(one.accuracy.reason for one in measured.chosen(data, card) if one.accuracy.reason)
        nothing += f" Cells without a score: {'; '.join(reasons)}." if reasons else ""
        blocks.append(Table(card.name, card.title, empty=nothing, notes=tuple(card.footnotes.items())))
    cells = tables.used(card, data)
    return Report(
        card.name,
        card.title,
        tuple(text),
        tuple(blocks),
        tables.doubts(data, cells),
        tables.provenance(data, cells),
        card.sources,
    )


def drawings(name: str, data: Measured) -> dict[str, str]:
    """Return the pictures of a report as SVG, by name."""
    card = load_report_card(name)
    files = contents(build(card, data), card, ("svg",))
    return {file.removesuffix(".svg"): content.decode() for file, content in files.items()}


def _only(report: Report, columns: Sequence[str], rows: Sequence[str]) -> Report:
    if not columns and not rows:
        return report
    blocks = tuple(block.only(columns, rows) if isinstance(block, Table) else block for block in report.blocks)
    return dataclasses.replace(report, blocks=blocks)


def contents(report: Report, card: ReportCard, formats: Sequence[str]) -> dict[str, bytes]:
    """Return the files of a report by name."""
    files: dict[str, bytes] = {}
    if "md" in formats and card.kind != "page":
        files[f"{report.name}.md"] = markdown.write(report).encode()
    if "tex" in formats and card.kind != "page":
        files[f"{report.name}.tex"] = latex.write(report).encode()
    if "html" in formats:
        files[f"{report.name}.html"] = html.write(report).encode()
    for block in report.blocks:
        if "csv" in formats:
            files[f"{block.name}.csv"] = delimited.table(block if isinstance(block, Table) else block.numbers).encode()
        for kind in ("png", "svg", "pdf"):
            beside = kind == "pdf" and "tex" in formats  # what the LaTeX names must be there
            if (kind in formats or beside) and isinstance(block, Picture):
                from harness.reports import style

                files[f"{block.name}.{kind}"] = style.render(block.figure, kind)
    return files


def _cleared(out: Path, card: ReportCard, formats: Sequence[str], files: dict[str, bytes]) -> list[str]:
    """Remove the files of an earlier rendering that this one no longer has; return their names."""
    removed = []
    parts = "|".join(["", *(f"-{figure}" for figure in card.figures[1:])])
    mine = re.compile(rf"{re.escape(card.name)}({parts})(-\d+)?\.({'|'.join(formats)})")
    if out.is_dir():
        for path in sorted(out.iterdir()):
            if mine.fullmatch(path.name) and path.name not in files:
                path.unlink()
                removed.append(path.name)
    return removed
