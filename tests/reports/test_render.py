"""Reports from logs: the same logs give the same bytes, every mark is visible in every form, nothing stale is left."""

import csv
import io
import random
import re
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import synthetic_logs
from click.testing import CliRunner

from harness import cli
from harness.errors import CardError, SettingError, UnknownName
from harness.reports import accuracy, frame, measured, render
from harness.reports.card import ReportCard, load_report_card
from harness.reports.marks import MARKS
from harness.stats import mean_interval_clustered


def made(folder: Path, **more: object) -> measured.Measured:
    """Return the material of a small sweep whose accuracies are made up: rising with the resolution."""
    for side in (256, 512, 1024):
        times = {"preprocess": 4.0, "encode": 100 * (side / 1024) ** 2, "project": 1.0, "prefill": 50.0}
        synthetic_logs.write(folder / f"{side}.jsonl", resolution=side, times_ms=times, n=20, **more)
    return with_accuracies(frame.load(folder))


def with_accuracies(data: frame.Frame) -> measured.Measured:
    accuracies = {}
    for cell in data.cells:
        side = cell.configuration.resolution
        rng = random.Random(side)
        scores = tuple(float(rng.random() < side / 1500) for _ in range(40))
        clusters = tuple(f"i{i // 2}" for i in range(40))
        mean = mean_interval_clustered(scores, clusters)
        accuracies[cell.configuration] = accuracy.Accuracy(
            "ANLS", mean.value, mean.low, mean.high, 40, "", scores, clusters
        )
    return measured.gather(data, accuracies)


def test_the_same_logs_give_the_same_bytes(tmp_path: Path) -> None:
    card = load_report_card("pareto")
    first = render.contents(render.build(card, made(tmp_path)), card, render.FORMATS)
    second = render.contents(render.build(card, made(tmp_path)), card, render.FORMATS)
    assert set(first) == {f"pareto.{kind}" for kind in render.FORMATS}
    for name in first:
        assert first[name] == second[name], name
    assert b"2026" not in first["pareto.svg"]
    assert b"CreationDate" not in first["pareto.pdf"]


def test_what_is_missing_of_an_accuracy_stands_below_every_table_that_shows_it(tmp_path: Path) -> None:
    """A guess, a cut answer, a failure, the denominator: not in a bubble, but on the page."""
    data = made(tmp_path)
    more = {"asked": 43, "failed": 3, "cut": 2, "notes": ("4 of 40 answers by chance",)}
    data = replace(
        data, cells=tuple(replace(one, accuracy=msgspec.structs.replace(one.accuracy, **more)) for one in data.cells)
    )
    told = (
        "at 512 px:** over 40 of 43 questions; 3 of 43 failed and are left out; 2 answers were cut off at the most "
        "tokens allowed; 4 of 40 answers by chance."
    )
    for name in ("cells", "pareto"):
        card = load_report_card(name)
        text = render.contents(render.build(card, data), card, ("md",))[f"{name}.md"].decode()
        assert told in text.replace("\\", ""), name
        whole = render.contents(render.build(card, made(tmp_path)), card, ("md",))[f"{name}.md"].decode()
        assert "accuracy of" not in whole.replace("accuracy of the very", ""), "nothing is missing, nothing is said"


def test_every_mark_is_in_every_form(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl.part", weights="random", data="embedded", device="fake", finished=False)
    for part, times in (("fastvithd", {"encode": 100.0}), ("llm", {"prefill": 50.0})):
        synthetic_logs.write(tmp_path / f"{part}.jsonl", part=part, times_ms=times, protocol="paper")
    data = measured.gather(frame.load(tmp_path), {})
    card = load_report_card("cells")
    files = render.contents(render.build(card, data), card, ("md", "tex", "csv", "html"))
    expected = ("random", "embedded", "isolated", "paper", "emulated", "torn")
    for mark in expected:
        symbol, meaning, _ = MARKS[mark]
        assert symbol in files["cells.md"].decode()
        assert meaning in files["cells.md"].decode()
        assert f'<abbr title="{meaning}'[:30] in files["cells.html"].decode()
    text = files["cells.csv"].decode()
    assert {mark for row in csv.DictReader(io.StringIO(text)) for mark in row["marks"].split()} == set(expected)
    for sign in (r"\textdagger", r"\textdaggerdbl", r"\S{}", r"\P{}", r"$\diamond$"):
        assert sign in files["cells.tex"].decode()
    assert "did not finish" in files["cells.md"].decode()


def test_csv_is_unrounded(tmp_path: Path) -> None:
    data = made(tmp_path)
    card = load_report_card("breakdown")
    text = render.contents(render.build(card, data), card, ("csv",))["breakdown.csv"].decode()
    found = {(row["resolution"], row["quantity"]): row for row in csv.DictReader(io.StringIO(text))}
    for row in data.cells:
        line = found[str(row.cell.resolution), "encode"]
        assert float(line["median_ms"]) == pytest.approx(row.times.of("encode").value / 1e6, abs=1e-6)
        assert float(line["low_ms"]) == pytest.approx(row.times.of("encode").low / 1e6, abs=1e-6)


def test_the_paretos_numbers_and_labels(tmp_path: Path) -> None:
    built = render.build(load_report_card("pareto"), made(tmp_path, data="embedded"))
    (picture,) = built.blocks
    labels = {text.get_text() for text in picture.figure.axes[0].texts}
    assert labels == {"256", "512", "1024"}
    assert picture.figure.axes[0].get_xscale() == "log"
    assert picture.figure.get_figwidth() == 3.3
    assert len(picture.numbers.rows) == 3
    assert len(picture.hovers) == 3


def test_accuracy_against_tokens_has_other_numbers(tmp_path: Path) -> None:
    built = render.build(load_report_card("pareto-tokens"), made(tmp_path))
    assert [row[1].text for row in built.blocks[0].numbers.rows] == ["16.00", "64.00", "256.0"]


def test_render_writes_removes_the_stale_and_keeps_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path / "cache"))
    logs, out = tmp_path / "logs", tmp_path / "out"
    synthetic_logs.write(logs / "a.jsonl", weights="random", machine="one")
    synthetic_logs.write(logs / "b.jsonl", weights="random", machine="two")
    written = render.render("breakdown", logs, out, ("md", "csv"))
    assert sorted(path.name for path in written) == ["breakdown-2.csv", "breakdown.csv", "breakdown.md"]
    (out / "breakdown.toml").write_text("a card")
    (out / "breakdown-of-something.csv").write_text("another report's")
    (logs / "b.jsonl").unlink()
    render.render("breakdown", logs, out, ("md", "csv"))
    left = sorted(path.name for path in out.iterdir())
    assert left == ["breakdown-of-something.csv", "breakdown.csv", "breakdown.md", "breakdown.toml"]
    assert not list(logs.glob("*.tmp")), "results are never written while reporting"


def test_what_was_drawn_and_what_was_not_is_said_to_whoever_sees_only_file_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path / "cache"))
    logs, out = tmp_path / "logs", tmp_path / "out"
    for machine in ("one", "two"):
        for model, how in (("a", "PIL bicubic"), ("b", "torchvision, by X")):
            synthetic_logs.write(
                logs / f"{machine}-{model}.jsonl", model=model, machine=machine, weights="random",
                effective={"image_backend": how},
            )  # fmt: skip
    (logs / "junk.jsonl").write_text("x\n")
    where = ["--logs", str(logs), "--out", str(out), "--format", "png"]
    done = CliRunner().invoke(cli.report, ["breakdown", *where])
    said = done.stderr.splitlines()
    assert done.stdout.splitlines() == [str(out / "breakdown.png"), str(out / "breakdown-2.png")]
    assert said[0].startswith("harness: junk.jsonl: skipped: ")
    assert any(line.startswith("harness: breakdown.png: ") and "one, cpu, torch, float32" in line for line in said)
    assert any(line.startswith("harness: breakdown-2.png: ") and "two, cpu, torch, float32" in line for line in said)
    assert sum("note: images were resized by different libraries" in line for line in said) == 2
    assert said[-1].startswith("harness: breakdown: 2 figures: only cells of one machine, device, engine, precision")
    for path in logs.glob("two-*"):
        path.unlink()
    done = CliRunner().invoke(cli.report, ["breakdown", *where])
    assert f"harness: {out / 'breakdown-2.png'}: removed: it was of an earlier rendering" in done.stderr
    assert "figures: only cells" not in done.stderr
    done = CliRunner().invoke(cli.report, ["pareto", *where])
    assert done.exit_code == 0
    assert "harness: pareto: nothing to show: Nothing that this figure needs was measured. Cells without a score" in (
        done.stderr
    )
    assert done.stdout == ""


def test_a_folder_without_logs_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    made = render.render_all(["index"], tmp_path / "empty", tmp_path / "out", ("html",))
    assert made.told == (f"{tmp_path / 'empty'}: no run log that can be used; next: `harness run` or `harness sweep`",)


def test_every_report_renders_without_any_log(tmp_path: Path) -> None:
    nothing = measured.gather(frame.frame({}, {}), {})
    for name in render.names():
        card = load_report_card(name)
        files = render.contents(render.build(card, nothing), card, ("md", "tex", "csv", "html"))
        assert files
        if card.kind == "figure":
            assert b"Nothing that this figure needs was measured" in files[f"{name}.md"]


def test_wrong_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="known: md, tex"):
        render.render("pareto", tmp_path, tmp_path, ("docx",))
    with pytest.raises(UnknownName, match="did you mean 'pareto'"):
        render.render("paretto", tmp_path, tmp_path)


def test_skipped_logs_are_doubts(tmp_path: Path) -> None:
    (tmp_path / "junk.jsonl").write_text("x\n")
    built = render.build(load_report_card("cells"), measured.gather(frame.load(tmp_path), {}))
    assert any("junk.jsonl: skipped" in doubt for doubt in built.doubts)


def test_encoders_are_drawn_with_published_merits_marked(tmp_path: Path) -> None:
    for model, side, encode in (("encoder-fastvithd", 1024, 116.0), ("encoder-siglip-so400m-384", 384, 272.0)):
        times = {"preprocess": 1.0, "encode": encode}
        synthetic_logs.write(
            tmp_path / f"{model}.jsonl", model=model, resolution=side, times_ms=times, weights="random"
        )
    data = measured.gather(frame.load(tmp_path), {})
    (picture,) = render.build(load_report_card("pareto-encoders"), data).blocks
    assert picture.marks == {"random", "published"}
    values = {row[0].text: (row[4].text, row[8].text) for row in picture.numbers.rows}
    assert values["FastViTHD@1024/256"] == ("55.90", "frontier")
    assert values["SigLIP ViT-SO400M@384/729"] == ("55.50", "dominated")


def test_cards_are_frozen_facts() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert({"title": "t", "kind": "figure", "figurs": ["pareto"]}, ReportCard)


def test_a_page_that_holds_itself_is_refused(tmp_path: Path) -> None:
    for name, held in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.toml").write_text(f'title="x"\nkind="page"\nreports=["{tmp_path}/{held}.toml"]\n')
    data = measured.gather(frame.frame({}, {}), {})
    with pytest.raises(CardError, match=r"a\.toml: a page that holds itself; next:"):
        render.build(load_report_card(str(tmp_path / "a.toml")), data)


def test_every_format_that_help_names_is_written(tmp_path: Path) -> None:
    """`markdown` and `latex` were once offered and refused."""
    synthetic_logs.write(tmp_path / "logs" / "a.jsonl")
    told = next(option.help for option in cli.report.params if option.name == "formats")
    offered = re.findall(r"[a-z]+", told.partition(". [")[0])
    assert {"md", "markdown", "tex", "latex"} <= {*offered}
    for kind in offered:
        where = ["--logs", str(tmp_path / "logs"), "--out", str(tmp_path / kind)]
        done = CliRunner().invoke(cli.report, ["breakdown", "--format", kind, *where])
        assert done.exit_code == 0, done.output
        suffix = {"markdown": "md", "latex": "tex"}.get(kind, kind)
        beside = {".pdf"} if suffix == "tex" else set()  # the figure that the table's page includes
        assert {path.suffix for path in (tmp_path / kind).iterdir()} == {f".{suffix}", *beside}
    refused = CliRunner().invoke(cli.report, ["breakdown", "--format", "word", "--logs", str(tmp_path / "logs")])
    assert isinstance(refused.exception, SettingError)
    assert "md, tex, csv, html, png, svg, pdf, markdown, latex" in str(refused.exception)
