"""A report as GitHub Markdown; pictures are linked as the PNG beside it."""

from harness.reports import marks
from harness.reports.document import Entry, Picture, Report, Table

SUFFIX = ".md"


def write(report: Report) -> str:
    """Return the whole report."""
    parts = [f"# {escape(report.title)}", *map(escape, report.text)]
    for block in report.blocks:
        parts += picture(block) if isinstance(block, Picture) else table(block)
    legend = marks.legend(report.marks)
    if legend:
        parts.append("Marks: " + "; ".join(map(escape, legend)) + ".")
    if report.doubts:
        parts += ["## Doubts", "\n".join(f"- {escape(doubt)}" for doubt in report.doubts)]
    if report.provenance:
        parts += ["## Provenance", *table(report.provenance, heading=False)]
    if report.sources:
        parts.append("Sources: " + "; ".join(map(escape, report.sources)) + ".")
    return "\n\n".join(parts) + "\n"


def table(value: Table, heading: bool = True) -> list[str]:
    """Return the paragraphs of one table."""
    parts = [f"## {escape(value.title)}"] if heading else []
    if not value.rows:
        return [*parts, f"_{escape(value.empty)}_"]
    lines = [[escape(heading.text) for heading in value.headings]]
    lines += [[text(entry) for entry in row] for row in value.rows]
    rule = ["--:" if heading.numeric else ":--" for heading in value.headings]
    parts.append("\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]]))
    if value.explained:
        parts.append("\n".join(f"- **{escape(label)}** {escape(note)}" for label, note in value.explained))
    return parts


def picture(value: Picture) -> list[str]:
    """Return the paragraphs of one picture and its numbers."""
    parts = [f"## {escape(value.title)}"]
    if value.figure is not None:
        parts.append(f"![{escape(value.alt)}]({value.name}.png)")
    if value.caption:
        parts.append(escape(value.caption))
    return [*parts, *table(value.numbers, heading=False)]


def text(entry: Entry) -> str:
    """Return one entry with its marks."""
    return escape(entry.text + marks.symbols(entry.marks))


def escape(text: str) -> str:
    """Escape what Markdown would take for its own, but for `code`."""
    if text.count("`") > 1:
        before, code, after = text.split("`", 2)
        return f"{escape(before)}`{code}`{escape(after)}"
    out = text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    for sign in "*_<>`":
        out = (
            out.replace(sign, f"\\{sign}") if sign not in "<>" else out.replace(sign, {"<": "&lt;", ">": "&gt;"}[sign])
        )
    return out
