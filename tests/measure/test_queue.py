"""Cells as jobs of a queue, on a queue that is scripted here: its jobs run when the test says so, in this process."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from harness import plugins
from harness.cli import program
from harness.errors import SettingError, UnknownName
from harness.measure import executor, job, queue, request, shards, sweep
from harness.measure.asked import Asked
from harness.measure.command import interpreter
from harness.measure.executor import Executor, State
from harness.measure.executors import submitit
from harness.models.families.fake import FakeModel
from harness.runlog import log


@dataclass
class Scripted:
    """A queue whose jobs wait, until `release` runs them."""

    ELSEWHERE = True
    OPTIONS = {"partition": "the partition", "sbatch": "any other"}
    commands: dict[str, list[str]] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    at_once: bool = False

    def send(
        self, commands: Sequence[Sequence[str]], folder: Path, options: Mapping[str, object], name: str
    ) -> list[str]:
        ids = [f"{100 + len(self.names)}_{index}" for index in range(len(commands))]
        self.names.append(name)
        self.commands |= {one: list(command) for one, command in zip(ids, commands, strict=True)}
        self.states |= dict.fromkeys(ids, State(True, "pending (Resources)"))
        if self.at_once:
            self.release(*ids)
        return ids

    def look(self, jobs: Sequence[str], folder: Path) -> dict[str, State]:
        return {one: self.states[one] for one in jobs if one in self.states}

    def cancel(self, jobs: Sequence[str]) -> None:
        self.cancelled += jobs

    def how_to_cancel(self, jobs: Sequence[str]) -> str:
        return f"end {' '.join(jobs)}"

    def release(self, *jobs: str) -> None:
        """Run the jobs, as nodes would."""
        for one in jobs:
            program.main(self.commands[one][len(interpreter()) :], standalone_mode=False)
            self.states[one] = State(False, "ended (COMPLETED, exit 0:0)")


class Inline:
    """Runs cells in this process, one after the other, as `local` does in others."""

    @staticmethod
    def submit(
        commands: Sequence[Sequence[str]], folder: Path, options: Mapping[str, object]
    ) -> Iterator[tuple[int, int]]:
        for position, command in enumerate(commands):
            program.main(list(command[len(interpreter()) :]), standalone_mode=False)
            yield position, 0


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, built: Path) -> Scripted:
    made, load = Scripted(), plugins.load

    def loaded(group: str, name: str) -> ModuleType:
        own: dict[str, object] = {"scripted": made, "inline": Inline}
        return own.get(name) or load(group, name)  # type: ignore[return-value]

    monkeypatch.setattr(plugins, "load", loaded)
    monkeypatch.setattr(queue, "POLL_S", 0.0)
    monkeypatch.setattr(queue, "GRACE_S", 0.0)
    monkeypatch.setenv("VLM_PARETO_CACHE", str(built))
    return made


BY = Executor("scripted", {}, "night")
INLINE = Executor("inline")


def wishes(out: Path, *sides: int, **more: object) -> list[Asked]:
    one = Asked(
        model="fake", device="fake", suite="pages", limit=1, minimum_seconds=0.0, minimum_samples=1, out=str(out)
    )
    return [replace(one, maximum_samples=1, res=side, **more) for side in sides or (64, 128)]  # type: ignore[arg-type]


def test_a_sweep_is_submitted_once_and_collected_by_a_later_command(tmp_path: Path, scripted: Scripted) -> None:
    wanted, said = wishes(tmp_path / "out"), list[str]()
    assert list(sweep.run_all(wanted, by=replace(BY, leave=True), notify=said.append)) == []
    assert said[0] == "submitted 2 jobs as 'night': 100_0, 100_1"
    assert "end 100_0 100_1" in said[1]
    assert [row.state for row in queue.status(wanted, BY)] == ["pending (Resources)"] * 2
    assert list(sweep.run_all(wanted, by=replace(BY, leave=True), notify=said.append)) == []
    assert scripted.names == ["night"]
    scripted.release("100_0", "100_1")
    ended = list(sweep.run_all(wanted, by=BY, notify=said.append))
    assert [one.message.partition(";")[0] for one in ended] == ["measured already"] * 2
    assert scripted.names == ["night"]
    assert {row.state for row in queue.status(wanted, BY)} == {"measured"}
    assert all("--wait" in command for command in scripted.commands.values())


def test_a_log_is_found_by_what_was_asked_wherever_a_nodes_name_put_it(tmp_path: Path, scripted: Scripted) -> None:
    wanted = wishes(tmp_path / "out")
    scripted.at_once = True
    first = list(sweep.run_all(wanted, by=BY))
    assert [one.code for one in first] == [0, 0]
    assert "random weights" in first[0].message  # what the node had to use instead is said
    (folder,) = {one.path.parent for one in first if one.path}
    folder.rename(folder.with_name("linux-some-node-h100"))
    assert all("measured already" in one.message for one in sweep.run_all(wanted, by=BY))
    others = wishes(tmp_path / "out", decode_tokens=3)
    assert {row.state for row in queue.status(others, BY)} == {"not submitted"}


def test_the_log_of_another_card_is_not_taken_for_the_cells(tmp_path: Path, scripted: Scripted) -> None:
    card = tmp_path / "mine.toml"
    card.write_text((Path(__file__).parent.parent.parent / "models" / "fake.toml").read_text())
    wanted = wishes(tmp_path / "out", 64, model=str(card))
    scripted.at_once = True
    assert [one.code for one in sweep.run_all(wanted, by=BY)] == [0]
    assert [row.state for row in queue.status(wanted, BY)] == ["measured"]
    card.write_text(card.read_text().replace("encode_ms = 10.0", "encode_ms = 11.0"))
    assert [row.state for row in queue.status(wanted, BY)] != ["measured"]


def test_a_job_that_ended_without_a_log_is_submitted_again(tmp_path: Path, scripted: Scripted) -> None:
    wanted = wishes(tmp_path / "out", 64)
    list(sweep.run_all(wanted, by=replace(BY, leave=True)))
    scripted.states["100_0"] = State(False, "out of memory (OUT_OF_MEMORY, exit 0:125)", 137, tmp_path / "100_0.err")
    list(sweep.run_all(wanted, by=replace(BY, leave=True)))
    assert len(scripted.names) == 2


def test_what_became_of_a_job_names_state_and_messages(tmp_path: Path, scripted: Scripted) -> None:
    wanted = wishes(tmp_path / "out", 64)

    def failing(jobs: Sequence[str], folder: Path) -> dict[str, State]:
        return {one: State(False, "cancelled (CANCELLED, exit 0:15)", 143, tmp_path / "log.err") for one in jobs}

    scripted.look = failing  # type: ignore[method-assign]
    (ended,) = sweep.run_all(wanted, by=BY)
    assert (ended.code, ended.path) == (143, None)
    assert ended.message == f"job 100_0: cancelled (CANCELLED, exit 0:15); its messages: {tmp_path / 'log.err'}"


@pytest.mark.parametrize(
    ("cancel", "words"), [(False, "the jobs go on: 100_0, 100_1; collect"), (True, "cancelled 100_0; next")]
)
def test_an_interrupt_says_how_to_collect(tmp_path: Path, scripted: Scripted, cancel: bool, words: str) -> None:
    look, once = scripted.look, list[str]()

    def interrupted(jobs: Sequence[str], folder: Path) -> dict[str, State]:
        if jobs and not once:
            once.extend(jobs)
            scripted.states["100_1"] = State(False, "failed (FAILED, exit 1:0)", 1)
            raise KeyboardInterrupt
        return look(jobs, folder)

    scripted.look = interrupted  # type: ignore[method-assign]
    with pytest.raises(queue.StillQueued, match=words) as caught:
        list(sweep.run_all(wishes(tmp_path / "out", 64, 128), by=replace(BY, cancel=cancel)))
    assert caught.value.exit_code == 130
    assert scripted.cancelled == (["100_0"] if cancel else [])  # the other has ended, and its number is another's


def test_again_is_another_repetition(tmp_path: Path, scripted: Scripted) -> None:
    wanted = wishes(tmp_path / "out", 64)
    scripted.at_once = True
    list(sweep.run_all(wanted, by=BY))
    list(sweep.run_all(wanted, again=True, by=BY))
    assert sorted(int(str(log.read(path).header.cell["repetition"])) for path in log.find(tmp_path / "out")) == [0, 1]


def test_shards_are_jobs_and_one_cell(tmp_path: Path, scripted: Scripted) -> None:
    wanted = [shard for one in wishes(tmp_path / "out", 64, shards=2) for shard in job.split(one)]
    scripted.at_once, told = True, list[str]()
    (ended,) = sweep.run_all(wanted, by=BY, notify=told.append)
    assert ended.message == "measured in 2 shards"
    assert sum("shard 2/2: measured in job 100_1" in line for line in told) == 1
    assert list(log.find(tmp_path / "out")) == [ended.path]
    (again,) = sweep.run_all(wanted, by=BY)
    assert (again.message, again.path, len(scripted.names)) == ("measured already", ended.path, 1)


def test_shards_measured_again_are_of_one_repetition_though_one_failed(tmp_path: Path, scripted: Scripted) -> None:
    wanted = [shard for one in wishes(tmp_path / "out", 64, shards=2) for shard in job.split(one)]
    scripted.at_once = True
    (first,) = sweep.run_all(wanted, by=BY)
    send, scripted.at_once = scripted.send, False

    def half(commands: Sequence[Sequence[str]], folder: Path, options: Mapping[str, object], name: str) -> list[str]:
        ids = send(commands, folder, options, name)
        scripted.release(ids[0])
        scripted.states |= {one: State(False, "failed (FAILED, exit 2:0)", 2) for one in ids[1:]}
        return ids

    scripted.send = half  # type: ignore[method-assign]
    (failed,) = sweep.run_all(wanted, again=True, by=BY)
    assert (failed.code, failed.path) == (2, None)
    (again,) = sweep.run_all(wanted, again=True, by=BY)
    assert again.message == "measured in 2 shards"
    assert again.path
    assert again.path != first.path
    header = log.read(again.path).header
    assert header.cell["repetition"] == 1
    assert header.request == request.of(replace(shards.whole(wanted[0]), repetition=1))


def test_shards_measured_again_here_have_their_own_repetitions_request(tmp_path: Path, scripted: Scripted) -> None:
    wanted = [shard for one in wishes(tmp_path / "out", 64, shards=2) for shard in job.split(one)]
    whole = shards.whole(wanted[0])
    for repetition in range(2):
        (ended,) = sweep.run_all(wanted, again=bool(repetition), by=INLINE)
        assert (ended.code, ended.message) == (0, "measured in 2 shards")
        assert ended.path
        assert log.read(ended.path).header.request == request.of(replace(whole, repetition=repetition))


@pytest.mark.parametrize("again", [False, True])
def test_what_was_measured_here_is_not_submitted(tmp_path: Path, scripted: Scripted, again: bool) -> None:
    """A process that is handed the decisions of this host would leave them as what was asked."""
    wanted = wishes(tmp_path / "out")
    assert [one.code for one in sweep.run_all(wanted, by=INLINE)] == [0, 0]
    if again:
        list(sweep.run_all(wanted, again=True, by=INLINE))
        wanted = [replace(one, repetition=1) for one in wanted]
    assert [one.message.partition(";")[0] for one in sweep.run_all(wanted, by=BY)] == ["measured already"] * 2
    assert scripted.names == []


def test_a_cell_measured_in_other_words_is_submitted_once(tmp_path: Path, scripted: Scripted) -> None:
    """The job knows by the key that it is measured, and notes where: its log has the request of other words."""
    (asked,) = wishes(tmp_path / "out", 64, dtype="float32")
    (measured,) = sweep.run_all([asked], by=INLINE)
    scripted.at_once = True
    for _ in range(2):
        (ended,) = sweep.run_all([replace(asked, dtype=None)], by=BY)
        assert (ended.code, ended.path) == (0, measured.path)
    assert scripted.names == ["night"]
    again = replace(asked, dtype=None, repetition=1)
    assert queue.status([again], BY)[0].state == "not submitted"  # the note is of that one cell


def failing(*_: object) -> Iterator[None]:
    raise ValueError("no such layer")
    yield


@pytest.mark.parametrize("by", [INLINE, BY])
def test_a_cell_whose_every_example_failed_is_not_measured(
    tmp_path: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch, by: Executor
) -> None:
    monkeypatch.setattr(FakeModel, "answer", failing)
    scripted.at_once = True
    for where in ("", " already"):
        (ended,) = sweep.run_all(wishes(tmp_path / "out", 64), by=by)
        assert (ended.code, ended.path is None) == (1, False)
        assert "every example failed, the last by ValueError: no such layer" in ended.message
        assert ended.message.startswith(f"nothing measured{where}")


def test_a_process_that_ends_well_without_its_log_has_measured_nothing(
    tmp_path: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Inline, "submit", lambda commands, folder, options: [(0, 0)])
    (ended,) = sweep.run_all(wishes(tmp_path / "out", 64), by=INLINE)
    assert (ended.code, ended.path) == (1, None)
    assert "not with this cell's log" in ended.message


def test_the_submitting_host_asks_no_device_and_no_folder(tmp_path: Path) -> None:
    """A CUDA device that is not here, and a checkpoint that only the nodes see."""
    common = Asked(device="cuda", suite="pages", weights="/nodes/only")
    wanted, refused = sweep.grid({"model": ["fake", "/nodes/only/checkpoint"]}, common, here=False)
    assert [one.model for one in wanted] == ["fake", "/nodes/only/checkpoint"]
    assert [one.dtype for one in wanted] == [None, None]
    assert refused == []
    assert "weights: the folder /nodes/only on the job's host" in request.looked_for(wanted[0], tmp_path)
    with pytest.raises(SettingError, match="--device: say which"):
        sweep.check_named(True, False, [({}, {})])
    sweep.check_named(True, False, [({"device": ["cuda"]}, {})])


def test_a_local_run_leaves_its_request_in_the_log(
    tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(built))
    (asked,) = wishes(tmp_path / "out", 64)
    assert job.prepare(asked).request == request.of(asked)
    assert request.of(replace(asked, wait=True, out="elsewhere")) == request.of(asked)
    assert request.of(replace(asked, seed=1)) != request.of(asked)


def test_options_are_known_or_refused(tmp_path: Path) -> None:
    plan = tmp_path / "night.toml"
    plan.write_text(
        '[executor]\nby = "submitit"\npartition = "gpu"\nsetup = ["a"]\nsbatch.reservation = "r"\n[[grid]]\n'
    )
    by = sweep.read_executor(plan, None, ("partition=big", "setup=b", "setup=c"))
    assert by == Executor("submitit", {"partition": "big", "setup": ("b", "c"), "sbatch.reservation": "r"}, "night")
    assert by.elsewhere
    assert sweep.read_plan(plan) == [({}, {})]
    with pytest.raises(UnknownName, match=r"'partitions' \(did you mean 'partition'\?\); known: account.*sbatch.NAME"):
        sweep.read_executor(None, "submitit", ("partitions=gpu",))
    with pytest.raises(UnknownName, match="known: none"):
        sweep.read_executor(None, "local", ("partition=gpu",))
    with pytest.raises(SettingError, match="write NAME=VALUE"):
        executor.options(["partition"], {})


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), (90, 90), ("90m", 90), ("2h", 120), ("1d", 1440), ("02:00:00", 120), ("1:30", 2), ("1-12", 2160),
     ("1-12:30", 2190), ("0-00:00:30", 1)],
)  # fmt: skip
def test_time_limits_are_read_as_slurm_reads_them(text: str | int, minutes: int) -> None:
    assert submitit.minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "soon", "1:2:3:4", "2 h", "-1", "1-"])
def test_a_time_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="time="):
        submitit.minutes(text)


TOLD = """\
JobId=604 ArrayJobId=601 ArrayTaskId=2-3%2 JobName=x JobState=PENDING Reason=JobArrayTaskLimit StartTime=Unknown
JobId=603 ArrayJobId=601 ArrayTaskId=1 JobName=x JobState=RUNNING Reason=None NodeList=n2 EndTime=2026-11-25T22:44:34
JobId=602 ArrayJobId=601 ArrayTaskId=0 JobName=x JobState=OUT_OF_MEMORY Reason=OutOfMemory ExitCode=0:125
JobId=77 JobName=x JobState=CANCELLED Reason=None ExitCode=0:15
"""


def test_what_slurm_says_is_read_of_every_part_of_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        submitit, "_run", lambda *command: (0, TOLD, "") if command[0] == "scontrol" else (1, "", "off")
    )
    states = submitit.look(["601_0", "601_1", "601_3", "77", "601_9"], tmp_path)
    assert states["601_0"].told.startswith("out of memory; next: --executor-option memory=")
    assert states["601_0"].told.endswith("(OUT_OF_MEMORY, reason OutOfMemory, exit 0:125)")
    assert (states["601_0"].live, states["601_0"].code) == (False, 253)
    assert states["601_1"].told == "running on n2, at most until 2026-11-25T22:44:34"
    assert states["601_3"].told == "pending (JobArrayTaskLimit)"
    assert states["77"].told == "cancelled (CANCELLED, exit 0:15)"
    assert states["601_9"].told == "ended; Slurm does not know it any more"
    assert states["77"].log == tmp_path / "77_0_log.err"


def test_a_controller_that_does_not_answer_ends_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        submitit, "_run", lambda *_: (1, "", "slurm_load_jobs error: Unable to contact slurm controller")
    )
    assert submitit.look(["601_0"], tmp_path)["601_0"].live


def test_accounting_knows_what_the_controller_forgot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forgot = (1, "", "slurm_load_jobs error: Invalid job id specified")
    kept = (0, "601_0|CANCELLED by 1000|0:15\n601_1|COMPLETED|0:0\n", "")
    monkeypatch.setattr(submitit, "_run", lambda *command: forgot if command[0] == "scontrol" else kept)
    states = submitit.look(["601_0", "601_1"], tmp_path)
    assert (states["601_0"].told, states["601_0"].code) == ("cancelled (CANCELLED, exit 0:15)", 143)
    assert (states["601_1"].live, states["601_1"].code) == (False, 0)


def test_the_line_that_says_most_of_a_jobs_messages_is_told(tmp_path: Path) -> None:
    path = tmp_path / "7_0_log.err"
    path.write_text("harness: cuda: no GPU; next: --device cpu\nsrun: error: n1: task 0: Exited with exit code 2\n")
    assert submitit._words("7", tmp_path) == ": harness: cuda: no GPU; next: --device cpu"
    state = submitit._ended("7", "FAILED", "NonZeroExitCode", "2:0", tmp_path)
    assert state.told == "failed (FAILED, reason NonZeroExitCode, exit 2:0): harness: cuda: no GPU; next: --device cpu"
    path.write_text("submitit INFO - Job not requeued because: timed-out and not checkpointable.\nsrun: error: x\n")
    assert submitit._ended("7", "FAILED", "NonZeroExitCode", "1:0", tmp_path).told.startswith("ended by its time limit")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"partition": "gpu"}, r"partition=gpu: there is no Slurm \(sbatch\) here; next: leave it out, or log in"),
        ({"sbatch.reservation": "vlm"}, "sbatch.reservation=vlm: there is no Slurm"),
        ({"cluster": "local", "parallelism": 2}, "parallelism=2: jobs of this host cannot have it"),
        ({"cluster": "local", "exclusive": True}, "exclusive=True: jobs of this host cannot have it"),
        ({"gpus": "h100:1"}, "gpus=h100:1: of this host write a number"),
    ],
)
def test_what_jobs_of_this_host_cannot_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, executor.Value], words: str
) -> None:
    monkeypatch.setattr(submitit.shutil, "which", lambda name: None)
    with pytest.raises(SettingError, match=words):
        submitit._cluster(options)


def test_what_jobs_of_this_host_can_have_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitit.shutil, "which", lambda name: None)
    assert submitit._cluster({"gpus": 1, "time": "2h", "setup": ("a", "b"), "exclusive": "false"}) == "local"


SHOW = [sys.executable, "-c", "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ.get('SAID'))"]


@pytest.mark.parametrize(
    ("here", "gpus", "seen"), [(None, None, "None"), ("2,3", None, "2,3"), ("2,3", 1, "2"), (None, 2, "0,1")]
)
def test_a_job_of_this_host_has_its_lines_of_shell_and_its_gpus(
    monkeypatch: pytest.MonkeyPatch, here: str | None, gpus: int | None, seen: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if here is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", here)
    options: dict[str, executor.Value] = {"setup": ("export SAID='it is so'",)} | ({"gpus": gpus} if gpus else {})
    command = submitit._set_up(SHOW, options)
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # as submitit sets it
    assert (
        subprocess.run(command, env=hidden, capture_output=True, text=True, check=True).stdout == f"{seen} it is so\n"
    )
    options["setup"] = ("false", "true")
    assert subprocess.run(submitit._set_up(SHOW, options), capture_output=True, check=False).stdout == b""
    if here and gpus:
        with pytest.raises(SettingError, match="shows 2"):
            submitit._set_up(SHOW, {"gpus": 3})


def test_a_job_of_this_host_runs_and_is_cancelled_by_its_own_number_alone(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    wait = [sys.executable, "-c", f"import time; open({str(tmp_path / 'up')!r}, 'w').close(); time.sleep(60)"]
    options: dict[str, executor.Value] = {"cluster": "local", "setup": f"touch {shlex.quote(str(tmp_path / 'set up'))}"}
    (mine,) = submitit.send([wait], tmp_path / "jobs", options, "x")
    process = psutil.Process(int(mine.removeprefix("local-")))
    while not (tmp_path / "up").exists():
        assert process.is_running()
    assert (tmp_path / "set up").exists()
    assert process.environ()["PYTHONSAFEPATH"] == "1"  # it, too, imports this package, wherever it starts
    assert "PYTHONSAFEPATH" not in os.environ
    assert submitit.look([mine], tmp_path / "jobs")[mine].live
    assert not submitit.look([mine], tmp_path / "others")[mine].live
    stranger = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    submitit.cancel([f"local-{stranger.pid}", mine])
    process.wait(60)
    stranger.communicate(b"")
    assert stranger.returncode == 0
    assert not submitit.look([mine], tmp_path / "jobs")[mine].live
