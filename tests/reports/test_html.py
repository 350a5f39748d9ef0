"""The page: it stands alone, is well formed and labelled, and works in a real browser, sorting included."""

import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import synthetic_logs

from harness.reports import frame, measured, render
from harness.reports.accuracy import Accuracy
from harness.reports.card import ReportCard

VOID = {"meta", "link", "br", "img", "input", "hr"}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("logs")
    for side, encode in ((256, 300.0), (512, 33.0), (1024, 116.3)):
        times = {"preprocess": 4.0, "encode": encode, "prefill": 50.5}
        path = folder / f"{side}.jsonl"
        synthetic_logs.write(path, resolution=side, times_ms=times, weights="random", data="embedded")
    synthetic_logs.write(
        folder / "ov.jsonl", model="llava-onevision-0.5b", resolution=1152,
        times_ms={"encode": 2721.4, "prefill": 9000.0}, weights="random", data="embedded",
    )  # fmt: skip
    for number, side in enumerate((256, 384, 512, 640, 768, 896, 1024)):
        synthetic_logs.write(
            folder / f"scored-{side}.jsonl", model="fastvlm-1.5b", resolution=side, suite="docvqa", n=30, data="local",
            times_ms={"encode": 10.0 * 2**number, "prefill": 20.0},
        )  # fmt: skip
    (folder / "<junk>.jsonl").write_text("x\n")
    logs, known = frame.load(folder), {}
    for cell in (cell for cell in logs.cells if cell.configuration.suite == "docvqa"):
        right = cell.configuration.resolution / 1200
        scores = tuple(float(question / 60 < right) for question in range(60))
        clusters = tuple(map(str, range(60)))
        known[cell.configuration] = Accuracy("ANLS", right, right - 0.05, right + 0.05, 60, "", scores, clusters)
    data = measured.gather(logs, known)
    card = ReportCard(
        title="A page & its <title>",
        kind="page",
        name="page",
        reports=("pareto", "breakdown", "cells", "claims", "fastvlm-table6"),
    )
    return render.contents(render.build(card, data), card, ("html",))["page.html"].decode()


class Checker(HTMLParser):
    """Checks that tags are balanced and ids unique, and collects what the tests ask about."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    return checker


def test_it_is_well_formed_and_labelled(checked: Checker) -> None:
    assert checked.open == []
    assert len(checked.ids) == len(set(checked.ids))
    tags = [tag for tag, _ in checked.tags]
    assert tags.count("h1") == 1
    assert tags.count("caption") == tags.count("table")
    scopes = {attributes.get("scope") for tag, attributes in checked.tags if tag == "th"}
    assert scopes == {"col", "colgroup", "row"}
    assert all(
        a.get("role") == "img" and a.get("aria-labelledby") in checked.ids for t, a in checked.tags if t == "svg"
    )
    headed = [a for tag, a in checked.tags if tag == "th" and "aria-sort" in a]
    assert len(headed) == tags.count("button") > 50
    assert all(a["aria-sort"] == "none" and a["data-at"] for a in headed)


def test_it_stands_alone(page: str, checked: Checker) -> None:
    assert not [a for tag, a in checked.tags if tag in ("link", "img", "iframe") or (tag == "script" and "src" in a)]
    assert "url(http" not in page
    assert "@import" not in page
    targets = re.findall(r'(?:xlink:)?href="([^"]+)"', page)
    assert targets
    assert all(target.startswith("#") and target[1:] in checked.ids for target in targets)
    assert all(f"#{name}" not in targets or name in checked.ids for name in re.findall(r"url\(#([^)]+)\)", page))


def test_text_is_escaped_and_marks_are_there(page: str) -> None:
    assert "A page &amp; its &lt;title&gt;" in page
    assert "&lt;junk&gt;.jsonl" in page
    assert "<junk>" not in page
    assert '<abbr title="random weights' in page
    assert "prefers-color-scheme: dark" in page


def test_points_say_their_values_on_hover(page: str) -> None:
    assert re.search(r'id="breakdown-bar-0-encode">\s*<title>fastvlm-0.5b 256 px: encode \d', page)


def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if not found:
        pytest.skip("no Chromium here: the page is not seen in a real browser")
    return found


def run_in_browser(path: Path, profile: Path, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
        "--disable-background-networking", "--disable-sync", f"--user-data-dir={profile}", *more,
    )  # fmt: skip
    return subprocess.run(
        [browser(), *arguments, path.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )


ASKED = """<script>
const said = {}, one = (sheet, wanted) => [...sheet.querySelectorAll(wanted)];
const cells = document.querySelector("#cells .sheet"), paper = document.querySelector("#fastvlm-table6 .sheet");
const heads = one(cells, "thead th");
const column = name => heads.findIndex(head => head.textContent.startsWith(name));
const values = at => one(cells, "tbody tr").map(row => row.children[at].dataset.sort ?? "none");
said.up = (heads[column("encode")].querySelector("button").click(), values(column("encode")));
said.down = (heads[column("encode")].querySelector("button").click(), values(column("encode")));
said.sorted = heads[column("encode")].getAttribute("aria-sort");
for (const name of ["accuracy_up", "accuracy_down"])
  said[name] = (heads[column("accuracy")].querySelector("button").click(), values(column("accuracy")));
const filter = cells.querySelector("input[type=search]"), shown = sheet => one(sheet, "tbody tr:not([hidden])").length;
filter.value = "onevision"; filter.dispatchEvent(new Event("input"));
said.filtered = [shown(cells), cells.querySelector("output").textContent];
const tick = one(cells, "fieldset label").find(label => label.textContent.trim() === "suite").querySelector("input");
tick.click();
said.columns = [one(cells, "thead th[hidden]").length, one(cells, "tbody tr")[0].children[1].hidden];
said.measured = shown(paper);
paper.querySelector(".tools > button").click();
said.all = shown(paper);
said.folded = document.querySelector("#claims").closest("details").open;
location.hash = "#claims";
said.style = [matchMedia("(prefers-color-scheme: dark)").matches, getComputedStyle(document.body).backgroundColor];
setTimeout(() => { said.unfolded = document.querySelector("#claims").closest("details").open;
  said.height = document.documentElement.scrollHeight;
  document.body.dataset.said = JSON.stringify(said); }, 50);
</script></body>"""


@pytest.fixture(scope="module")
def said(page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a real browser, in the dark, made of the page when it was used."""
    folder = tmp_path_factory.mktemp("browser")
    path = folder / "page.html"
    path.write_text(page.replace("</body>", ASKED), encoding="utf-8")
    dark = "--blink-settings=preferredColorScheme=0"
    done = run_in_browser(path, folder / "profile", dark, "--virtual-time-budget=2000", "--dump-dom")
    found = re.search(r'data-said="([^"]+)"', done.stdout)
    assert found, done.stderr[-2000:]
    return dict(json.loads(unescape(found[1])))


def test_a_head_sorts_both_ways(said: dict[str, Any]) -> None:
    rising = [float(value) for value in said["up"]]
    assert len(rising) > 8
    assert rising == sorted(rising)
    assert [float(value) for value in said["down"]] == sorted(rising, reverse=True)
    assert said["sorted"] == "descending"


def test_what_is_not_scored_comes_last_either_way(said: dict[str, Any]) -> None:
    up, down = said["accuracy_up"], said["accuracy_down"]
    scored = len(up) - up.count("none")
    assert 0 < scored < len(up)
    for values in (up, down):
        assert "none" not in values[:scored]
    assert [float(value) for value in up[:scored]] == sorted(float(value) for value in down[:scored])


def test_rows_are_filtered_and_counted_and_columns_are_chosen(said: dict[str, Any]) -> None:
    assert said["filtered"] == [1, "1 of 11 rows"]
    assert said["columns"] == [1, True]


def test_a_paper_table_shows_what_was_measured_and_the_rest_on_demand(said: dict[str, Any]) -> None:
    assert 0 < said["measured"] < said["all"]
    assert said["all"] == 47


def test_a_link_unfolds_its_section(said: dict[str, Any]) -> None:
    assert (said["folded"], said["unfolded"]) == (False, True)


def test_the_page_follows_the_theme_and_stays_short(said: dict[str, Any]) -> None:
    assert said["style"] == [True, "rgb(21, 23, 26)"]
    assert said["height"] <= 8000


def test_published_measured_and_verdict_have_columns_of_their_own(page: str) -> None:
    part = page[page.index('id="fastvlm-table6"') :]
    group = re.search(r'<th scope="colgroup" colspan="3" data-at="(\d+)">encode \(ms\)</th>', part)
    assert group
    row = part[part.index(">R2") :]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row[: row.index("</tr>")])
    at = int(group[1]) - 1  # the row's head is no td
    assert cells[at].startswith("2721.4")
    assert "×" in cells[at + 1]
    assert "·" not in cells[at + 1]
    assert cells[at + 2].startswith(("matches", "differs"))
    assert part.index("Published · measured here") < part.index("<table>"), "the key stands above"


def test_the_first_screen_has_the_figure_the_choice_and_the_claims(page: str) -> None:
    front = page[page.index('<section class="front"') : page.index('<nav aria-label="Contents"')]
    assert front.count('class="plot"') == 1
    assert "Which to take" in front
    assert re.search(r"<td[^>]*>fastvlm-1.5b at \d+ px", front)
    assert "claims could be measured here" in front
    assert "not run here" not in front


def test_a_real_browser_paints_it(page: str, tmp_path: Path) -> None:
    path, picture = tmp_path / "page.html", tmp_path / "page.png"
    path.write_text(page, encoding="utf-8")
    run_in_browser(path, tmp_path / "profile", f"--screenshot={picture}", "--window-size=1000,1400")
    from PIL import Image

    with Image.open(picture) as image:
        colours = image.convert("RGB").getcolors(1 << 22)
    assert colours
    assert {(0x00, 0x72, 0xB2), (255, 255, 255)} <= {colour for _, colour in colours}, (
        "the figure is on the first screen"
    )
