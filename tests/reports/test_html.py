"""The page: it stands alone, is well formed and labelled, and works in a real browser, sorting included."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import synthetic_logs

from harness.reports import frame, measured, render
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
    (folder / "<junk>.jsonl").write_text("x\n")
    data = measured.gather(frame.load(folder), {})
    card = ReportCard(
        title="A page & its <title>",
        kind="page",
        name="page",
        reports=("breakdown", "cells", "claims", "fastvlm-table6"),
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
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in checked.tags if tag == "th")
    assert all(
        a.get("role") == "img" and a.get("aria-labelledby") in checked.ids for t, a in checked.tags if t == "svg"
    )
    headed = [a for tag, a in checked.tags if tag == "th" and a["scope"] == "col"]
    assert all(a.get("aria-sort") == "none" for a in headed)


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


CLICKS = """<script>
const heads = [...document.querySelectorAll("#cells thead th")];
const encode = heads.findIndex(head => head.textContent.startsWith("encode"));
const column = () => [...document.querySelectorAll("#cells tbody tr")].map(row => row.children[encode].dataset.sort);
const said = [];
for (const times of [1, 2]) {
  heads[encode].querySelector("button").click();
  said.push(heads[encode].getAttribute("aria-sort") + " " + column().join(" "));
}
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
document.body.dataset.said = said.join("; ") + "; " + dark + "; " + getComputedStyle(document.body).backgroundColor;
</script></body>"""


def test_a_real_browser_sorts_it_and_follows_the_theme(page: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", CLICKS), encoding="utf-8")
    for number, (theme, background) in enumerate((("1", "rgb(255, 255, 255)"), ("0", "rgb(21, 23, 26)"))):
        done = run_in_browser(
            path, tmp_path / f"profile{number}", f"--blink-settings=preferredColorScheme={theme}", "--dump-dom"
        )
        said = re.search(r'data-said="([^"]+)"', done.stdout)
        assert said, done.stderr[-2000:]
        up, down, dark, seen = said[1].split("; ")
        assert up.startswith("ascending")
        rising = [float(value) for value in up.split()[1:]]
        assert len(rising) == 4
        assert rising == sorted(rising)
        assert [float(value) for value in down.split()[1:]] == sorted(rising, reverse=True)
        assert (dark, seen) == (str(theme == "0").lower(), background)


def test_a_real_browser_paints_it(page: str, tmp_path: Path) -> None:
    path, picture = tmp_path / "page.html", tmp_path / "page.png"
    path.write_text(page, encoding="utf-8")
    run_in_browser(path, tmp_path / "profile", f"--screenshot={picture}", "--window-size=1000,1400")
    from PIL import Image

    with Image.open(picture) as image:
        colours = image.convert("RGB").getcolors(1 << 22)
    assert colours
    assert {(0x00, 0x72, 0xB2), (255, 255, 255)} <= {colour for _, colour in colours}, (
        "the encoder's bars are on the page"
    )
