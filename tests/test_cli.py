"""The program as its users meet it: real processes and logs, the fake model in real time, a tiny FastVLM's answers."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nursery
import pytest

from harness.runlog import log as runlog

FAST = ["--set", "encode_ms=2", "--set", "prefill_ms=3", "--set", "preprocess_ms=0.2", "--decode-tokens", "2"]
FAKE = ["run", "--model", "fake", "--device", "fake", "--suite", "pages", "--min-seconds", "0", *FAST]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def environment(cache: Path) -> dict[str, str]:
    return {
        **os.environ,
        "VLM_PARETO_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "118",
    }


@pytest.fixture
def harness(tmp_path: Path, environment: dict[str, str]) -> Run:
    def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        if not options:
            return nursery.opened().run(list(arguments), tmp_path, environment)
        command = [sys.executable, "-m", "harness", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, **options
        )

    return run


def only_log(folder: Path) -> Path:
    (path,) = runlog.find(folder)
    return path


def test_a_signal_is_heard_as_soon_as_the_programs_first_line_runs() -> None:
    """What is imported before the handlers are set is a time in which a signal ends the program without a word."""
    program = "import sys; import harness.__main__; print(*sys.modules)"
    told = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}).stdout.split()  # fmt: skip
    assert "harness.__main__" in told
    slow = {"importlib.metadata", "click", "msgspec", "json", "email", "subprocess", "inspect"}
    assert not slow & set(told)


def test_a_python_that_throws_docstrings_away_is_refused_in_one_line() -> None:
    """Without them transformers cannot be imported; a variable that is meant for all programs gives way."""
    command = [sys.executable, "-OO", "-m", "harness", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["harness: python -OO throws away what transformers needs; next: without it"]
    del command[1]
    asked = {**os.environ, "PYTHONOPTIMIZE": "2"}
    assert not subprocess.run(command, capture_output=True, timeout=60, check=False, env=asked).returncode


def test_help_needs_no_torch(harness: Run, tmp_path: Path, environment: dict[str, str]) -> None:
    code = """
import sys
from harness import cli
sys.argv = ["harness", "--help"]
try:
    cli.main()
except SystemExit:
    print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not {"torch", "pandas", "lmms_eval", "matplotlib", "transformers"} & loaded


def test_a_run_ends_with_one_table_and_the_logs_path(harness: Run, tmp_path: Path) -> None:
    done = harness(*FAKE, "--limit", "12")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert Path(tmp_path / lines[-1]) == only_log(tmp_path / "results")
    for word in (
        "preprocess",
        "encode",
        "project",
        "prefill",
        "TTFT",
        "residual",
        "not scored: random weights",
        "embedded ‡",
    ):
        assert word in done.stdout
    assert "measuring pages fake" in done.stderr
    again = harness(*FAKE, "--limit", "12")
    assert "measured already" in again.stderr
    assert again.stdout == done.stdout
    shown = harness("show", lines[-1], "--json")
    stages = {row["stage"]: row["median_ms"] for row in json.loads(shown.stdout)[0]["stages"]}
    assert stages["encode"] >= 2.0  # the fake is never early; how late it is, this machine's load decides
    assert stages["prefill"] >= 3.0
    assert stages["TTFT"] >= 5.7


def test_a_run_that_is_killed_is_resumed(harness: Run, tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = [*FAKE, "--limit", "30", "--precision", "0", "--max-seconds", "60", "--set", "prefill_ms=60"]
    child = subprocess.Popen(
        [sys.executable, "-m", "harness", *arguments], cwd=tmp_path, env=environment, stderr=subprocess.PIPE
    )
    part: list[Path] = []
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        part = list(tmp_path.rglob("*.part"))
        if part and part[0].read_bytes().count(b'"phase":"timed"') >= 5:
            break
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = [s for s in runlog.read(part[0]).samples if s.phase == "timed"]
    assert 5 <= len(before) < 30
    with part[0].open("ab") as file:
        file.write(b'{"kind":"sample","exam')  # what a dying process leaves
    done = harness(*arguments)
    assert done.returncode == 0, done.stderr
    log = runlog.read(only_log(tmp_path / "results"))
    timed = [s for s in log.samples if s.phase == "timed"]
    assert timed[: len(before)] == before
    assert len(timed) == len({s.example for s in timed}) == 30
    assert log.footer
    assert log.footer.samples == 30
    assert log.resumed[0].bytes_dropped == 22


def test_an_interrupted_run_says_so_and_keeps_its_samples(tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = [*FAKE, "--precision", "0", "--set", "prefill_ms=60"]
    child = subprocess.Popen(
        [sys.executable, "-m", "harness", *arguments], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        part = list(tmp_path.rglob("*.part"))
        if part and part[0].read_bytes().count(b'"phase":"timed"') >= 3:
            break
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 130
    assert stderr.splitlines()[-1] == "harness: interrupted; what was measured is kept; next: the same command resumes"
    assert len(runlog.read(only_log(tmp_path / "results")).samples) >= 3


def test_ctrl_c_reaches_a_sweep_and_its_child_and_is_said_once(tmp_path: Path, environment: dict[str, str]) -> None:
    arguments = ["sweep", *FAKE[1:], "--precision", "0", "--set", "prefill_ms=60"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "harness", *arguments],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as in a terminal, whose Ctrl-C goes to the whole group
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        part = list(tmp_path.rglob("*.part"))
        if part and part[0].read_bytes().count(b'"phase":"timed"') >= 3:
            break
        time.sleep(0.05)
    os.killpg(sweep.pid, signal.SIGINT)
    _, stderr = sweep.communicate(timeout=60)
    assert sweep.returncode == 130
    assert [line for line in stderr.splitlines() if "interrupted" in line] == [
        "harness: interrupted; what was measured is kept; next: the same command resumes"
    ]


def test_a_full_disk_is_one_line_and_loses_nothing(harness: Run, tmp_path: Path) -> None:
    def small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (24_000, 24_000))

    harness(*FAKE, "--limit", "40")  # builds the examples before the disk is full
    done = harness(*FAKE, "--limit", "40", "--precision", "0", preexec_fn=small_disk)
    assert done.returncode == 2
    assert "everything before is kept; next: free space, then the same command resumes" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    part = next(tmp_path.rglob("*.part"))
    assert runlog.read(part).samples


def test_a_closed_pipe_is_one_line(tmp_path: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "harness", "list", "suites"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(write)
    assert done.returncode == 141
    assert "the reader of stdout has gone" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--model", "fastvlm-05b"], "unknown model 'fastvlm-05b' (did you mean 'fastvlm-0.5b'?)"),
        (["run", "--suite", "docqa"], "unknown suite 'docqa' (did you mean 'docvqa'?)"),
        (["run", "--res", "1000"], "takes multiples of 64"),
        (["run", "--device", "cuda:77"], "cuda:77"),
        (["run", "--device", "gpu"], "gpu"),
        (["run", "--weights", "/nowhere"], "--weights /nowhere: no such folder; next:"),
        (["run", "--data", "/nowhere.parquet"], "/nowhere.parquet"),
        (["run", "--model", "fastvlm-0.5b", "--set", "pruning=1"], "unknown setting of fastvlm-0.5b 'pruning'"),
        (["run", "--limit", "0"], "--limit 0: must be from 1"),
        (["sweep", "--res", "256,abc"], "--res abc: write whole numbers"),
        (["sweep", "--model", "fake", "--res", "1000"], "no cell of this grid can be measured"),
        (["show", "."], "no run log was found in .; next:"),
        (["show", ".", "--json"], "no run log was found in .; next:"),
    ],
)
def test_bad_input_is_one_line_that_says_what_and_what_next(harness: Run, arguments: list[str], said: str) -> None:
    done = harness(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_misspelt_card_field_is_guessed(harness: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'title = "x"\nadapter = "fake"\nlicence = "none"\n[resolution]\nrule = "any"\ndefault = 64\n'
    )
    done = harness("run", "--model", "mine.toml", "--device", "fake")
    assert done.returncode == 2
    assert "mine.toml: " in done.stderr
    assert "unknown field `licence` (did you mean 'license'?)" in done.stderr


def test_a_local_checkpoint_gives_scored_answers(harness: Run, tmp_path: Path, shared: Path, tiny_fastvlm: Any) -> None:
    """A tiny checkpoint in Apple's layout, on real pages: its own answers, scored by lmms-eval's own function."""
    arguments = ["run", "--model", str(tiny_fastvlm.card), "--weights", str(tiny_fastvlm.weights), "--suite", "docvqa"]
    arguments += ["--data", str(shared / "data" / "docvqa_mini"), "--res", "256", "--limit", "5", "--max-seconds", "10"]
    done = harness(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert result["accuracy"]["metric"] == "ANLS"
    assert result["accuracy"]["n"] == 5
    assert 0.0 <= result["accuracy"]["value"] <= 1.0
    log = runlog.read(only_log(tmp_path / "results"))
    answered = {s.example: s.answer for s in log.samples if s.phase == "timed"}
    assert len(answered) == 5
    assert log.header.weights["source"] == "local"
    assert log.header.data["name"] == "docvqa"
    assert all(s.references for s in log.samples)


def test_docvqa_without_data_is_pages_by_name_everywhere(harness: Run, tmp_path: Path) -> None:
    done = harness(
        "run", "--model", "fake", "--device", "fake", "--suite", "docvqa", "--limit", "8", "--min-seconds", "0", *FAST
    )
    assert done.returncode == 0, done.stderr
    assert "pages" in done.stderr
    path = only_log(tmp_path / "results")
    assert path.name.startswith("pages-fake-")
    assert runlog.read(path).header.cell["suite"] == "pages"
    assert "standing in for docvqa" in done.stdout


def test_check_finds_nothing_wrong(harness: Run) -> None:
    done = harness("check")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].endswith("0 wrong")


def test_list_says_what_can_run_here(harness: Run) -> None:
    tables = json.loads(harness("list", "--json").stdout)
    assert set(tables) == {"models", "suites", "devices", "reports"}
    suites = {row["suite"]: row for row in tables["suites"]}
    assert suites["pages"]["data"] == "ships with the package"
    assert suites["mmvet"]["scored"] == "needs a judge"
    assert {row["device"]: row["here"] for row in tables["devices"]}["cpu"] == "yes"


def test_a_sweep_skips_what_is_there_and_survives_failures(harness: Run, tmp_path: Path) -> None:
    grid = ["sweep", "--model", "fake", "--suite", "pages", "--res", "256,512,1000", "--device", "fake", "--limit", "6"]
    grid += ["--min-seconds", "0", *FAST]
    listed = harness(*grid, "--dry-run")
    assert "2 cells" in listed.stdout
    assert "left out: --res 1000" in listed.stderr
    done = harness(*grid)
    assert done.returncode == 0, done.stderr
    assert len(list(runlog.find(tmp_path / "results"))) == 2
    again = harness(*grid)
    assert again.stderr.count("measured already") == 2


def test_flags_beat_the_plan(harness: Run, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(
        'limit = 3\nsuite = "pages"\nminimum_seconds = 0\n[grid]\nmodel = "fake"\ndevice = "fake"\nres = [256]\n'
    )
    done = harness("sweep", "--plan", "plan.toml", "--limit", "2", *FAST)
    assert done.returncode == 0, done.stderr
    assert runlog.read(only_log(tmp_path / "results")).header.cell["limit"] == 2


def test_a_log_that_cannot_be_read_is_named_beside_the_others(harness: Run, tmp_path: Path) -> None:
    harness(*FAKE, "--limit", "2")
    (tmp_path / "results" / "other.jsonl").write_text("not a log\n")
    done = harness("show", "results")
    assert done.returncode == 1
    assert "TTFT" in done.stdout
    assert "other.jsonl: skipped: " in done.stderr


def test_an_experiment_prints_its_ratios_and_verdict(harness: Run) -> None:
    done = harness("experiment", "aa", "--pairs", "6", *FAST, "--json")  # the fake model, unless another is named
    result = json.loads(done.stdout)
    assert [each["name"] for each in result["ratios"]] == ["preprocess", "encode", "project", "prefill", "ttft"]
    assert all(each["n"] == 6 for each in result["ratios"])
    assert done.returncode == (0 if result["passed"] else 1)


@pytest.mark.parametrize(("told", "given"), [("4,1", "1"), ("abc", "1"), ("4", None), (None, None)])
def test_a_list_of_threads_is_kept_from_numexpr(
    monkeypatch: pytest.MonkeyPatch, told: str | None, given: str | None
) -> None:
    """OpenMP takes a number for each level of nesting; numexpr, which pandas loads, would raise ValueError."""
    from harness import cli

    monkeypatch.setenv("NUMEXPR_NUM_THREADS", "")
    monkeypatch.delenv("NUMEXPR_NUM_THREADS")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if told:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    cli._spare_numexpr()
    assert os.environ.get("NUMEXPR_NUM_THREADS") == given
