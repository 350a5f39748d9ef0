"""LaTeX goes into a two-column paper: it compiles, with the columns and rows that were asked for."""

import shutil
import subprocess
from pathlib import Path

import pytest
import synthetic_logs

from harness.errors import UnknownName
from harness.reports import frame, measured, render
from harness.reports.card import load_report_card
from harness.reports.document import Entry, Heading, Table
from harness.reports.formats import latex


@pytest.mark.parametrize("name", ["cells", "breakdown", "fastvlm-table6"])
def test_it_compiles_in_a_two_column_paper(tmp_path: Path, name: str) -> None:
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("no pdflatex here (Debian: texlive-latex-recommended): the LaTeX is not compiled")
    for side in (256, 1024):
        path = tmp_path / "logs" / f"{side}.jsonl"
        synthetic_logs.write(path, resolution=side, weights="random", data="embedded")
    data, card = measured.gather(frame.load(tmp_path / "logs"), {}), load_report_card(name)
    for file, content in render.contents(render.build(card, data), card, ("tex",)).items():
        (tmp_path / file).write_bytes(content)
    paper = r"\documentclass[twocolumn]{article}\usepackage[T1]{fontenc}\usepackage{textcomp,booktabs,graphicx}"
    (tmp_path / "paper.tex").write_text(paper + rf"\begin{{document}}\input{{{name}}}\end{{document}}")
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull \\hbox" not in done.stdout
    assert (tmp_path / "paper.pdf").is_file()


def table(rows: int) -> Table:
    lines = tuple((Entry(f"model-{i}"), Entry(str(i), i), Entry("x")) for i in range(rows))
    return Table("t", "A table", (Heading("model"), Heading("n", "", True), Heading("note")), lines)


def test_chosen_columns_and_rows() -> None:
    chosen = table(12).only(["note", "model"], ["model-1"])
    assert [heading.title for heading in chosen.headings] == ["note", "model"]
    assert [row[1].text for row in chosen.rows] == ["model-1", "model-10", "model-11"]
    with pytest.raises(UnknownName, match="nott"):
        table(1).only(["nott"], [])
    assert "no row of t is called z" in latex.table(table(3).only([], ["z"]))


def test_a_long_table_is_several_floats() -> None:
    text = latex.table(table(100))
    assert text.count(r"\begin{table*}") == text.count(r"\end{table*}") == 3
    assert "(3 of 3)" in text
    assert "longtable" not in text
