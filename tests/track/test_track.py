"""`harness track` from the checkpoints to the exit code: real processes, a tiny FastVLM, and nights told apart."""

import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from xml.etree import ElementTree

import nursery
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from harness import cli, plugins
from harness.clock import Monotonic
from harness.errors import OutputError, UnknownName
from harness.machine.devices import fake
from harness.measure.asked import Asked
from harness.measure.passes import Bench, time_whole
from harness.models.card import load_model_card
from harness.models.families import fastvlm
from harness.models.families.fake import FakeModel
from harness.models.protocol import Event, Options, Request
from harness.models.weights import Source
from harness.runlog import log as runlog
from harness.track import nights
from harness.track import track as tracking

# One test process measures the nights once for all tests of this file.
pytestmark = pytest.mark.xdist_group("track")
ROOT = Path(__file__).parents[2]
QUESTIONS = 12


def run(folder: Path, cache: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program in `folder`."""
    known = {**os.environ, "VLM_PARETO_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    known.pop("GITHUB_ACTIONS", None)
    return nursery.opened().run(list(arguments), folder, {**known, **environment})


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def write_suite(path: Path, answers: list[str]) -> None:
    """Write DocVQA's columns with pictures of our own: a page of coloured boxes for each question."""
    rng = random.Random(0)
    rows = []
    for number, answer in enumerate(answers):
        image = Image.new("RGB", (200, 260), (255, 255, 255))
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            x, y = rng.randrange(160), rng.randrange(220)
            draw.rectangle((x, y, x + 40, y + 30), fill=tuple(rng.randrange(256) for _ in range(3)))
        out = io.BytesIO()
        image.save(out, "PNG")
        rows.append(
            {
                "questionId": str(number),
                "question": "What is the date of the letter?",
                "question_types": ["others"],
                "image": {"bytes": out.getvalue(), "path": None},
                "docId": number,
                "ucsf_document_id": "",
                "ucsf_document_page_no": "",
                "answers": [answer],
                "data_split": "val",
            }
        )
    pd.DataFrame(rows).to_parquet(path)


def baseline_answers(weights: Path, card: Path, suite: Path, side: int) -> list[str]:
    """Return what the checkpoint answers, asked as the suite asks: these are made the right answers."""
    device = fake.open("fake", Monotonic())
    options = Options(side=side, device="cpu", dtype="float32")
    model = fastvlm.load(load_model_card(str(card)), Source("local", weights), options)
    question = "What is the date of the letter?\nAnswer the question using a single word or phrase."
    answers = []
    for image in pd.read_parquet(suite)["image"]:
        request = Request((image["bytes"],), question, 32)
        answers.append(time_whole(model, request, Bench(device, Monotonic()))[2])
    model.close()
    return answers


class Tracked(NamedTuple):
    """What tracking each night came to."""

    folder: Path
    cache: Path
    card: Path
    done: dict[str, subprocess.CompletedProcess[str]]
    verdicts: dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def tracked(tiny_fastvlm: Any, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    """Nights of a tiny FastVLM: the baseline, saved anew, a damaged layer, half a file.

    Measured on the fake device's clockwork (a CPU without the probes that refuse samples on a busy test machine).
    """
    folder = tmp_path_factory.mktemp("track")
    write_suite(folder / "suite.parquet", ["-"] * QUESTIONS)
    write_suite(folder / "suite.parquet", baseline_answers(*tiny_fastvlm, folder / "suite.parquet", 128))  # type: ignore[call-arg]
    for night in NIGHTS:
        copy = folder / "kept" / night
        shutil.copytree(tiny_fastvlm.weights, copy)
        file = copy / "model.safetensors"
        tensors = load_file(file)
        if night == RESAVED:
            save_file(dict(reversed(tensors.items())), file, metadata={"format": "pt", "step": "2000"})
        elif night == DAMAGED:
            name = "model.layers.1.mlp.down_proj.weight"
            tensors[name] = 8 * torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(1))
            save_file(tensors, file, metadata={"format": "pt"})
        elif night == TRUNCATED:
            file.write_bytes(file.read_bytes()[:-4096])
    result = Tracked(folder, cache, tiny_fastvlm.card, {}, {})
    # Only ×4 counts: how noisy this machine is, is not what is tested.
    for present in ([BASELINE, RESAVED, DAMAGED, TRUNCATED], [BASELINE, RESAVED, DAMAGED], [BASELINE, RESAVED]):
        track(result, present, "3")
    return result


def track(result: Tracked, present: list[str], effect: str, samples: int = QUESTIONS) -> None:
    """Track the folder `nightlies`; where there is a folder `kept`, with only these nights in it."""
    if (result.folder / "kept").is_dir():
        shutil.rmtree(result.folder / "nightlies", ignore_errors=True)
        for night in present:
            shutil.copytree(result.folder / "kept" / night, result.folder / "nightlies" / night)
    common = ["track", "nightlies", "--model", str(result.card), "--suite", "docvqa", "--data", "suite.parquet"]
    common += ["--res", "128", "--device", "fake", "--threads", "1", "--min-seconds", "0", "--decode-tokens", "2"]
    common += ["--max-samples", str(samples), "--precision", "0.001", "--max-seconds", "30", "--min-effect", effect]
    last, to = present[-1], f"verdict-{present[-1]}"
    result.done[last] = run(result.folder, result.cache, *common, "--verdict", to, GITHUB_ACTIONS="true")
    assert (result.folder / to / "verdict.json").is_file(), result.done[last].stderr
    result.verdicts[last] = json.loads((result.folder / to / "verdict.json").read_text())


NIGHTS = BASELINE, RESAVED, TRAINING_FORM, DAMAGED, TRUNCATED = [f"2026-11-0{n}" for n in range(1, 6)]


def test_a_harmless_change_is_fine(tracked: Tracked) -> None:
    verdict, done = tracked.verdicts[RESAVED], tracked.done[RESAVED]
    assert done.returncode == 0, done.stdout + done.stderr
    assert verdict["verdict"] == "OK"
    assert verdict["accuracy"]["difference"] == 0
    assert verdict["accuracy"]["before"] > 0.95
    assert verdict["accuracy"]["answers_changed"] == 0
    assert {one["name"] for one in verdict["ratios"]} >= {"ttft", "encode", "prefill"}


def test_a_damaged_layer_is_a_regression_of_the_answers(tracked: Tracked) -> None:
    verdict, done = tracked.verdicts[DAMAGED], tracked.done[DAMAGED]
    assert done.returncode == 1, done.stdout + done.stderr
    assert verdict["stage"] == "answers"
    assert (verdict["first_bad"], verdict["last_good"]) == (DAMAGED, RESAVED)
    accuracy = verdict["accuracy"]
    assert accuracy["high"] < 0
    assert accuracy["images"] == QUESTIONS
    assert accuracy["changed"][0]["score_after"] < accuracy["changed"][0]["score_before"]
    assert all(one["before"] != one["after"] for one in accuracy["changed"])
    error = next(line for line in done.stdout.splitlines() if line.startswith("::error title=REGRESSION%3A"))
    assert "answers are worse" in error


@pytest.mark.slow
def test_an_encoder_in_training_form_is_a_regression_of_the_encoder(
    tiny_fastvlm: Any, cache: Path, tmp_path: Path
) -> None:
    """Random weights twice, re-parameterised and not, on 60 pictures: the encoder takes about 1.4 times as long."""
    write_suite(tmp_path / "suite.parquet", ["-"] * 60)
    for night, form in ((BASELINE, "true"), (TRAINING_FORM, "false")):
        shutil.copytree(tiny_fastvlm.weights, tmp_path / "nightlies" / night)
        text = f'weights = "random"\n[settings]\nreparameterised = {form}\n'
        (tmp_path / "nightlies" / night / "nightly.toml").write_text(text)
    result = Tracked(tmp_path, cache, tiny_fastvlm.card, {}, {})
    track(result, [BASELINE, TRAINING_FORM], "0.1", 60)
    verdict, done = result.verdicts[TRAINING_FORM], result.done[TRAINING_FORM]
    assert done.returncode == 1, done.stdout + done.stderr
    assert verdict["stage"] == "encode"
    assert verdict["first_bad"] == TRAINING_FORM
    assert next(one["low"] for one in verdict["ratios"] if one["name"] == "encode") > 1.1
    assert "in each of 3 runs" in verdict["reasons"][0]
    assert verdict["accuracy"]["word"] == "NOT SCORED"
    assert not verdict["accuracy"]["changed"]


def test_a_checkpoint_that_does_not_load_is_broken_and_no_crash(tracked: Tracked) -> None:
    """Half a file may still be being written: that night is tried again. Unchanged the next time, it is broken."""
    first, verdict = tracked.done[TRUNCATED], tracked.verdicts[TRUNCATED]
    assert first.returncode == 2, first.stdout + first.stderr
    assert "not measured tonight: model.safetensors has " in verdict["reasons"][0]
    track(tracked, [BASELINE, RESAVED, DAMAGED, TRUNCATED], "3")
    verdict, done = tracked.verdicts[TRUNCATED], tracked.done[TRUNCATED]
    tracked.done[TRUNCATED] = first
    assert done.returncode == 3, done.stdout + done.stderr
    assert verdict["verdict"] == "BROKEN"
    assert "model.safetensors: not a readable safetensors file" in verdict["reasons"][0]
    assert "Traceback" not in done.stderr
    junit = ElementTree.parse(tracked.folder / f"verdict-{TRUNCATED}" / "junit.xml").getroot()
    assert junit.get("failures") == "1"
    (log,) = runlog.find(tracked.folder / "results" / "nightly" / TRUNCATED)
    assert runlog.read(log).failures[0].stage == "load"


def test_every_output_is_there_and_reads_back(tracked: Tracked) -> None:
    folder = tracked.folder / f"verdict-{DAMAGED}"
    assert (folder / "verdict.md").read_text().startswith(f"# REGRESSION: {DAMAGED} against {BASELINE}")
    junit = ElementTree.parse(folder / "junit.xml").getroot()
    failed = [case.get("name") for case in junit if case.find("failure") is not None]
    assert failed == ["accuracy"]
    hud = json.loads((folder / "pytorch-hud.json").read_text())
    assert {"ttft_ms", "accuracy"} <= {record["metric"]["name"] for record in hud}
    assert all(record["benchmark"]["extra_info"]["verdict"] == "REGRESSION" for record in hud)
    assert json.loads((folder / "github-action-benchmark.json").read_text())
    history = pd.read_csv(folder / "history.csv")
    assert list(history.iloc[:, 0]) == [BASELINE, RESAVED, DAMAGED]


def test_the_history_page_in_a_browser_marks_the_regression(tracked: Tracked, tmp_path: Path) -> None:
    page = tracked.folder / f"verdict-{DAMAGED}" / "history.html"
    assert re.search(rf"<title>{DAMAGED}: TTFT [\d.]+ ms, .*WORSE answers</title>", page.read_text())
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not browser:
        pytest.skip("no Chromium here: the page is not seen in a real browser")
    seen = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom",
         page.as_uri()], capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert f"REGRESSION: {DAMAGED} against {BASELINE}" in seen.stdout, seen.stderr[-2000:]
    assert "WORSE answers" in seen.stdout


def test_a_night_is_measured_once(tracked: Tracked) -> None:
    assert "measuring 2026" in tracked.done[TRUNCATED].stderr
    assert "measuring 2026" not in tracked.done[DAMAGED].stderr


def test_the_workflow_is_valid_and_runs_what_exists() -> None:
    workflow = yaml.safe_load((ROOT / "docs" / "workflows" / "nightly.yml").read_text())
    assert workflow["name"]
    assert {"schedule", "workflow_dispatch"} <= set(workflow[True])  # YAML 1.1 reads the key `on` as true
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(("uses" in step) != ("run" in step) for step in steps)
    command = next(step["run"] for step in steps if "harness track" in step.get("run", ""))
    options = {option for parameter in cli.track.params for option in parameter.opts}
    used = set(re.findall(r"(?<!\S)(--[a-z-]+)", command))
    assert used <= options, used - options


def test_the_cron_example_uses_options_that_exist() -> None:
    text = (ROOT / "docs" / "nightly.cron").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#") and "=" not in line.split()[0]]
    assert all(len(line.split()) > 5 for line in lines)
    options = {option for parameter in cli.track.params for option in parameter.opts}
    assert set(re.findall(r"(?<!\S)(--[a-z-]+)", " ".join(lines))) <= options


def test_no_hub_is_one_line(tmp_path: Path, cache: Path) -> None:
    done = run(tmp_path, cache, "track", "--repo", "apple/FastVLM-0.5B", "--device", "cpu")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "harness: --repo apple/FastVLM-0.5B: offline mode: the Hub was not contacted"
    )
    assert "next: unset HF_HUB_OFFLINE" in done.stderr
    assert "Traceback" not in done.stderr


class Commits(BaseHTTPRequestHandler):
    """As much of the Hub as listing a repository's commits needs."""

    def do_GET(self) -> None:
        found = self.path.startswith("/api/models/me/nightly/commits/main")
        rows = [
            {"id": commit * 40, "title": "x", "message": "", "date": date, "authors": []}
            for commit, date in (("b", "2026-11-02T03:00:00.000Z"), ("a", "2026-11-01T03:00:00.000Z"))
        ]
        body = json.dumps(rows if found and "p=1" not in self.path else []).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_repositorys_commits_are_nights_oldest_first(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Commits)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = "from harness.track import nights; print(*[n.name for n in nights.of_repo('me/nightly')])"
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HARNESS_OFFLINE")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
        env={**kept, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_CACHE": str(tmp_path)},
    )  # fmt: skip
    server.shutdown()
    server.server_close()
    assert done.stdout.split() == ["2026-11-01-0300-aaaaaaaa", "2026-11-02-0300-bbbbbbbb"], done.stderr


# --- in this process, with the fake model ---


def fake_nights(root: Path, *names: str) -> tuple[nights.Night, ...]:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "nightly.toml").write_text('weights = "random"\n')
    return nights.discover(root).nights


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the child's command run here, as the command line runs it; the list names what was measured."""
    told: list[str] = []

    def submit(commands: Sequence[Sequence[str]], folder: Path, options: object) -> Iterator[tuple[int, int]]:
        for position, command in enumerate(commands):
            said = list(command)[command.index("compare") :]
            told.append(Path(said[2]).name)
            yield position, cli.program.main(said, standalone_mode=False) or 0

    real = plugins.load
    local = SimpleNamespace(submit=submit)
    monkeypatch.setattr(plugins, "load", lambda kind, name: local if kind == "executors" else real(kind, name))
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path / "cache"))
    return told


STAGES_MS = dict.fromkeys(("preprocess_ms", "encode_ms", "project_ms", "prefill_ms", "decode_ms"), 0.5)


def wish(root: Path, known: tuple[nights.Night, ...], **more: Any) -> tracking.Wish:
    asked = Asked(
        model="fake", device="fake", suite="pages", limit=3, minimum_seconds=0, minimum_samples=3, maximum_samples=3,
        decode_tokens=2, settings=STAGES_MS, offline=True,
    )  # fmt: skip
    return tracking.Wish(asked, known, root / "out", minimum_effect=3.0, **more)


def test_a_night_is_measured_once_more_when_it_is_named(tmp_path: Path, measured: list[str]) -> None:
    """On top of what is there: no log is touched. A name that is none is guessed."""
    known = fake_nights(tmp_path / "nights", "n1", "n2")
    tracking.track(wish(tmp_path, known), lambda _: None)
    assert set(measured) == {"n1", "n2"}
    kept = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.jsonl")}
    measured.clear()
    tracking.track(wish(tmp_path, known), lambda _: None)
    assert measured == []
    tracking.track(wish(tmp_path, known, again=("n2",)), lambda _: None)
    assert set(measured) == {"n2"}
    now = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.jsonl")}
    assert {path: now[path] for path in kept} == kept
    assert len(now) > len(kept)
    with pytest.raises(UnknownName, match="unknown checkpoint of --again 'n3'"):
        tracking.track(wish(tmp_path, known, again=("n3",)), lambda _: None)


def test_a_checkpoint_that_fails_at_a_question_is_a_regression(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers the others as fast as the baseline, and its log is finished."""
    known = fake_nights(tmp_path / "nights", "n1", "n2")
    (tmp_path / "nights" / "n2" / "nightly.toml").write_text('weights = "random"\n[settings]\nanswer = "NaN"\n')
    real = FakeModel.answer

    def answer(self: FakeModel, request: Request) -> Iterator[Event]:
        if "claim number" in request.question and self.describe()["answer"] == "NaN":
            raise OutputError("logits that are not finite", "prefill")
        yield from real(self, request)

    monkeypatch.setattr(FakeModel, "answer", answer)
    verdict = tracking.track(wish(tmp_path, known), lambda _: None).verdict
    assert verdict.accuracy
    assert verdict.accuracy.lost == 1
    assert (verdict.code, verdict.stage, verdict.first_bad) == (1, "answers", "n2")


def test_a_default_baseline_that_moved_is_said(tmp_path: Path, measured: list[str]) -> None:
    """The oldest night was thrown away: yesterday's ratios were against another checkpoint than today's."""
    known = fake_nights(tmp_path / "nights", "n1", "n2", "n3")
    first = tracking.track(wish(tmp_path, known), lambda _: None).verdict
    assert not any("the baseline is" in notice for notice in first.notices)
    left = known[1:]
    moved = "the baseline is n2 now: n1, with which earlier nights were compared, is not among the checkpoints any more"
    verdict = tracking.track(wish(tmp_path, left), lambda _: None).verdict
    assert any(notice.startswith(moved) for notice in verdict.notices)
    pinned = tracking.track(wish(tmp_path, left, baseline="n2"), lambda _: None).verdict
    assert not any("the baseline is" in notice for notice in pinned.notices)
