r"""A report as LaTeX tables (booktabs, over both columns) and figures to \input into a two-column paper."""

from collections.abc import Sequence

from harness.reports import marks
from harness.reports.document import Entry, Picture, Report, Table

SUFFIX = ".tex"
SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "×": r"$\times$", "±": r"$\pm$", "−": r"$-$",
    "·": r"$\cdot$",
    "†": r"\textdagger{}", "‡": r"\textdaggerdbl{}", "§": r"\S{}", "¶": r"\P{}", "◇": r"$\diamond$", "⚠": r"(!)",
    "–": "--", "—": "---", "≤": r"$\leq$", "≥": r"$\geq$", "→": r"$\rightarrow$", "µ": r"\textmu{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "≈": r"$\approx$", "“": "``", "”": "''", "’": "'",
}  # fmt: skip


def write(report: Report) -> str:
    """Return the whole report: a fragment without preamble."""
    parts = [
        f"% {report.title}",
        "% needs: \\usepackage[T1]{fontenc} \\usepackage{textcomp,booktabs,graphicx}",
    ]
    for block in report.blocks:
        if isinstance(block, Picture) and block.figure is not None:
            parts.append(picture(block))
        parts.append(table(block.numbers if isinstance(block, Picture) else block))
    legend = marks.legend(report.marks)
    if legend:
        parts.append("\\par\\noindent\\footnotesize " + escape("Marks: " + "; ".join(legend) + ".") + "\\normalsize")
    parts += [f"% doubt: {doubt}" for doubt in report.doubts]
    return "\n\n".join(parts) + "\n"


MOST_ROWS = 45
"""Of one table: what a page of a two-column paper holds in this size."""


def table(value: Table) -> str:
    """Return floats over both columns, as many as the rows need; one that is too wide is set smaller."""
    if not value.rows:
        return f"% {value.title}: {value.empty}"
    parts = [value.rows[i : i + MOST_ROWS] for i in range(0, len(value.rows), MOST_ROWS)]
    floats = []
    for number, rows in enumerate(parts):
        title = escape(value.title) + (f" ({number + 1} of {len(parts)})" if len(parts) > 1 else "")
        label = f"tab:{value.name}" + (f"-{number + 1}" if number else "")
        notes = [f"{escape(f'{label_} {note}')}" for label_, note in value.explained] if rows is parts[-1] else []
        floats.append(_float(value, rows, title, label, notes))
    return "\n\n".join(floats)


def _float(value: Table, rows: Sequence[tuple[Entry, ...]], title: str, label: str, notes: Sequence[str]) -> str:
    shape = "".join("r" if heading.numeric else "l" for heading in value.headings)
    head = " & ".join(escape(heading.text) for heading in value.headings) + r" \\"
    body = "\n".join(" & ".join(text(entry) for entry in row) + r" \\" for row in rows)
    below = "".join(f"\n\\par\\raggedright {note}" for note in notes)
    return (
        f"\\begin{{table*}}[tp]\n\\centering\\footnotesize\\setlength{{\\tabcolsep}}{{3pt}}\n"
        f"\\caption{{{title}}}\\label{{{label}}}\n"
        f"\\resizebox{{\\ifdim\\width>\\textwidth \\textwidth\\else\\width\\fi}}{{!}}{{%\n"
        f"\\begin{{tabular}}{{{shape}}}\n\\toprule\n{head}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}}}"
        f"{below}\n\\end{{table*}}"
    )


def picture(value: Picture) -> str:
    """Return one figure of a column's width."""
    return (
        f"\\begin{{figure}}\n\\centering\n\\includegraphics[width=\\columnwidth]{{{value.name}.pdf}}\n"
        f"\\caption{{{escape(value.title)}{escape('. ' + value.said) if value.said else ''}}}"
        f"\\label{{fig:{value.name}}}\n\\end{{figure}}"
    )


def text(entry: Entry) -> str:
    """Return one entry with its marks raised."""
    raised = marks.symbols(entry.marks)
    return escape(entry.text) + (f"\\textsuperscript{{{escape(raised)}}}" if raised else "")


def escape(text: str) -> str:
    """Escape what LaTeX would take for its own, and the signs that pdfLaTeX lacks."""
    return "".join(SPECIAL.get(sign, sign) for sign in text)
