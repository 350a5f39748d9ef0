r"""A report as LaTeX tables (booktabs) and figures to \input into a paper."""

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
        "% needs: \\usepackage[T1]{fontenc} \\usepackage{textcomp,booktabs,longtable,graphicx}",
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


def table(value: Table) -> str:
    """Return one longtable: it breaks over pages, as Table 6 must."""
    if not value.rows:
        return f"% {value.title}: {value.empty}"
    shape = "".join("r" if heading.numeric else "l" for heading in value.headings)
    head = " & ".join(escape(heading.text) for heading in value.headings) + r" \\"
    body = "\n".join(" & ".join(text(entry) for entry in row) + r" \\" for row in value.rows)
    notes = "\n".join(
        f"\\par\\noindent\\footnotesize {escape(f'{label} {note}')}\\normalsize" for label, note in value.notes
    )
    return (
        f"\\begin{{longtable}}{{{shape}}}\n\\caption{{{escape(value.title)}}}\\label{{tab:{value.name}}}\\\\\n"
        f"\\toprule\n{head}\n\\midrule\n\\endhead\n{body}\n\\bottomrule\n\\end{{longtable}}"
        + ("\n" + notes if notes else "")
    )


def picture(value: Picture) -> str:
    """Return one figure of a column's width."""
    return (
        f"\\begin{{figure}}\n\\centering\n\\includegraphics[width=\\columnwidth]{{{value.name}.pdf}}\n"
        f"\\caption{{{escape(value.title)}{escape('. ' + value.caption) if value.caption else ''}}}"
        f"\\label{{fig:{value.name}}}\n\\end{{figure}}"
    )


def text(entry: Entry) -> str:
    """Return one entry with its marks raised."""
    raised = marks.symbols(entry.marks)
    return escape(entry.text) + (f"\\textsuperscript{{{escape(raised)}}}" if raised else "")


def escape(text: str) -> str:
    """Escape what LaTeX would take for its own, and the signs that pdfLaTeX lacks."""
    return "".join(SPECIAL.get(sign, sign) for sign in text)
