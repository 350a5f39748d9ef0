"""The documentation's code: every command is one that the program takes, cheap ones run, Python and TOML blocks work.

A block whose first line has `not run: REASON` behind the language is passed over by name.
"""

import csv
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

import harness
from benchmarks import log_schema
from harness import cards, cli, plugins
from harness.models import families
from harness.models.card import load_model_card
from harness.reports import marks, wording
from harness.suites.card import load_suite_card

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CHEAP = ("list", "check", "choose", "show")
"""What is run, on the reference logs; everything else needs weights, a network, a server or time."""


def blocks(path: Path) -> Iterator[tuple[str, str]]:
    for found in re.finditer(r"^```([^\n]*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        yield found[1].strip(), found[2]


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the words of every `harness` command of the page's shell blocks."""
    for language, text in blocks(path):
        if "not run" in language or language.split(" ")[0] not in ("", "sh", "console"):
            continue
        joined = text.replace("\\\n", " ")
        for line in joined.splitlines():
            for part in re.split(r"&&|\|\|", line.removeprefix("$ ")):
                if re.match(r"\s*(\S*/)?harness\s", part):
                    yield shlex.split(part, comments=True)[1:]


ALL = [(path.name, words) for path in PAGES for words in commands(path)]


def parsed(words: list[str]) -> tuple[click.Command, click.Context]:
    """Return the command that click finds, its options parsed but nothing run."""
    command: click.Command = cli.program
    context = click.Context(command, info_name="harness")
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(context, words)
        assert command is not None
        context = click.Context(command, info_name=name, parent=context)
    files = {one: one.type for one in command.params if isinstance(one.type, click.Path)}
    try:
        for one in files:
            one.type = click.Path()  # the files of examples need not be there
        command.make_parser(context).parse_args(list(words))
    finally:
        for one, kind in files.items():
            one.type = kind
    return command, context


@pytest.mark.parametrize(("page", "words"), ALL, ids=[f"{page}-{' '.join(words)}"[:80] for page, words in ALL])
def test_every_command_is_one_that_the_program_takes(page: str, words: list[str]) -> None:
    parsed(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_within_the_text_are_ones_that_the_program_takes(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for found in re.findall(r"`harness ([^`]*)`", text):
        if "..." not in found:
            parsed(shlex.split(found))


def test_there_are_commands_to_look_at_and_a_wrong_one_is_found() -> None:
    assert len(ALL) >= 20
    with pytest.raises(click.UsageError, match="--colour"):
        parsed(["run", "--colour", "red"])


@pytest.mark.parametrize("words", [words for _, words in ALL if words and words[0] in CHEAP], ids=" ".join)
def test_cheap_commands_run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    logs = ["--logs", str(ROOT / "results" / "reference")] if words[0] == "choose" and "--logs" not in words else []
    done = CliRunner().invoke(cli.program, [*words, *logs], standalone_mode=False)
    assert done.exception is None, done.output
    assert done.return_value in (0, None), done.output


def test_the_family_of_the_twelve_steps_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {language: text for language, text in blocks(ROOT / "docs" / "family.md") if language.endswith("family")}
    (tmp_path / "toy.py").write_text(found["python family"])
    (tmp_path / "toy.toml").write_text(found["toml family"])
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    monkeypatch.setenv("VLM_PARETO_LOCKS", str(tmp_path / "locks"))
    few = ("--min-samples", "2", "--max-samples", "2", "--min-seconds", "0", "--limit", "4", "--json")
    words = ["run", "--model", str(tmp_path / "toy.toml"), "--suite", "pages", "--device", "cpu", *few]
    try:
        done = CliRunner().invoke(cli.program, [*words, "--out", str(tmp_path)], standalone_mode=False)
    finally:
        sys.modules.pop("harness.models.families.toy", None)
    assert done.exception is None, done.output
    (cell,) = json.loads(done.stdout)
    assert cell["numbers"]["visual_tokens"] == 16
    assert {row["stage"] for row in cell["stages"]} == {"preprocess", "encode", "project", "prefill", "TTFT"}


def test_the_suite_of_your_own_is_a_card(tmp_path: Path) -> None:
    (text,) = (text for language, text in blocks(ROOT / "docs" / "own.md") if language == "toml suite")
    (tmp_path / "invoices.toml").write_text(text)
    assert load_suite_card(str(tmp_path / "invoices.toml")).name == "invoices"


def test_the_run_logs_schema_is_up_to_date() -> None:
    same = log_schema.PAGE.read_text(encoding="utf-8") == log_schema.page()
    assert same, "next: python benchmarks/log_schema.py"


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{path.name}: {target}"
        for path in PAGES
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert broken == []


def test_environment_variables_are_all_explained() -> None:
    told = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for name in ("VLM_PARETO_CACHE", "VLM_PARETO_LOCKS", "HARNESS_TRACEBACK", "HARNESS_API_KEY", "HARNESS_OFFLINE"):
        assert f"`{name}`" in told
    used = {
        name
        for path in (ROOT / "harness").rglob("*.py")
        for name in re.findall(r'"((?:VLM_PARETO|HARNESS)_[A-Z_]+)"', path.read_text(encoding="utf-8"))
    }
    assert {name for name in used if f"`{name}`" not in told} == set()


def test_the_first_pictures_description_is_true() -> None:
    alt = re.search(r"!\[(.*?)\]\(reports/rendered/pareto.png\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert alt
    with (ROOT / "reports/rendered/pareto.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        side = row["model and resolution"].split()[1]
        assert f"{float(row['accuracy (points)']):.0f} " in alt[1]
        assert f"{side} px and {float(row['TTFT (ms)']):.0f} ms" in alt[1]
    assert len(rows) == alt[1].count(" px and ")


def rendered(name: str) -> list[dict[str, str]]:
    """Return the rows of a table of the rendered reports."""
    with (ROOT / "reports" / "rendered" / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def told(page: str) -> str:
    """Return a page's text in one line."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def nano() -> Iterator[tuple[str, str, list[float]]]:
    """Yield `fastvlm-nano`'s side, TTFT, and ANLS with its interval, as the rendered reports have them."""
    ttft = {
        row["resolution"]: wording.interval(number(row["median_ms"]), number(row["low_ms"]), number(row["high_ms"]))
        for row in rendered("cells")
        if row["model"] == "fastvlm-nano" and row["quantity"] == "ttft" and row["device"] == "cpu"
    }
    for row in rendered("pareto"):
        side = row["model and resolution"].split()[1]
        yield side, ttft[side], [float(row[name]) / 100 for name in SCORE]


def number(text: str) -> float | None:
    """Return a number of a table; nothing where there is none."""
    return float(text) if text else None


SCORE = ("accuracy (points)", "accuracy low", "accuracy high")


def test_what_is_said_of_the_small_model_is_what_the_reports_say() -> None:
    found = list(nano())
    assert len(found) == 4
    for side, ttft, score in found:
        median, _, brackets = ttft.partition(" ")
        time = re.escape(f"{median} ms {brackets}".strip())
        listed = re.search(rf"\| {side} \| \d+ \| {time} \| ([\d.]+) \| ([\d.]+)–([\d.]+) \|", told("docs/nano.md"))
        chosen = re.search(rf"at {side} px, {re.escape(ttft)} ms, ANLS ([\d.]+) \|", told("docs/reading.md"))
        assert listed, side
        assert chosen, side
        assert [float(text) for text in listed.groups()] == pytest.approx(score, abs=0.0006)
        assert float(chosen[1]) == pytest.approx(score[0], abs=0.0006)


def test_the_readme_tells_hits_and_misses_of_the_papers_claims() -> None:
    of_time = [row for row in rendered("claims") if row["claim"] in ("85x", "7.9x", "3.2x", "22 %", "2x", "2.3x")]
    here = [row for row in of_time if ", cpu, " in row["measured on"]]
    (paragraph,) = re.findall(r"Of the paper's claims about time.*?On an H100", told("README.md"))
    for row in here:
        assert row["measured ratio"].replace("×", "x") in paragraph, row["claim"]
    kinds = [row["verdict"].split()[0].strip(":,") for row in here]
    words = ("no", "one", "two", "three", "four", "five", "six")
    assert f"{words[len(here)]} are measured on this CPU" in paragraph
    for kind, said in (("matches", "matches? "), ("undecided", "(is|are) undecided"), ("differs", "differs? ")):
        assert re.search(f"{words[kinds.count(kind)]} {said}", paragraph), kind
    assert ("few samples without an interval" in paragraph) == all("[" not in row["measured ratio"] for row in here)


def test_every_mark_exit_code_and_setting_of_an_engine_is_explained() -> None:
    reading, reference = told("docs/reading.md"), told("docs/reference.md")
    assert [mark.symbol for mark in marks.MARKS.values() if f" {mark.symbol} " not in reading] == []
    rows = re.findall(r"\| ([\d, ]+) \| ([^|]*) \|", reference)
    for name, command in cli.program.commands.items():
        stated = (command.help or "").partition("Exit codes:")[2]
        for code in re.findall(r"\b[123]\b(?= )", stated):
            of = " ".join(where for codes, where in rows if code in codes.split(", "))
            assert f"`{name}`" in of or code == "2", f"{code} of {name}"
    for engine in plugins.names("engines"):
        for setting in plugins.load("engines", engine).SETTINGS:
            assert f"`{setting}`" in reference.partition("## Settings")[2].partition("## Exit")[0], setting


def test_every_rule_of_resolution_is_explained() -> None:
    rules = {load_model_card(name).resolution.rule for name in cards.names("models")}
    rows = re.findall(
        r"^\| ([a-z_, ]+) \| .* \| .* \|$", (ROOT / "docs/models.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    explained = {word for row in rows for word in row.split(", ")}
    assert {f"{rule}s" if rule == "multiple" else rule for rule in rules} - explained == set()


def test_cron_mails_an_error_of_which_there_is_no_verdict(tmp_path: Path) -> None:
    line = (ROOT / "docs" / "nightly.cron").read_text(encoding="utf-8").splitlines()[-1]
    program = tmp_path / "harness"
    program.write_text("#!/bin/sh\necho starting >&2; echo harness: no such checkpoint >&2; exit 2\n")
    program.chmod(0o755)
    script = line.split(maxsplit=5)[5].replace("/data/latency", str(tmp_path))
    place = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["/bin/sh", "-c", script], env=place, capture_output=True, text=True, check=False, timeout=60)
    assert "harness: no such checkpoint" in done.stdout


def test_the_citation_is_a_citation() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["version"] == harness.__version__
