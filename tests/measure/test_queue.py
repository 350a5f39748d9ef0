"""Cells as jobs of a queue, on a queue that is scripted here: its jobs run when the test says so, in this process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import pytest

from harness import plugins
from harness.cli import program
from harness.errors import SettingError, UnknownName
from harness.measure import executor, job, queue, request, sweep
from harness.measure.asked import Asked
from harness.measure.executor import Executor, State
from harness.measure.executors import submitit
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
            program.main(self.commands[one][3:], standalone_mode=False)
            self.states[one] = State(False, "ended (COMPLETED, exit 0:0)")


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, built: Path) -> Scripted:
    made, load = Scripted(), plugins.load

    def loaded(group: str, name: str) -> ModuleType:
        return made if name == "scripted" else load(group, name)  # type: ignore[return-value]

    monkeypatch.setattr(plugins, "load", loaded)
    monkeypatch.setattr(queue, "POLL_S", 0.0)
    monkeypatch.setattr(queue, "GRACE_S", 0.0)
    monkeypatch.setenv("VLM_PARETO_CACHE", str(built))
    return made


BY = Executor("scripted", {}, "night")


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


@pytest.mark.parametrize(("cancel", "words"), [(False, "the jobs go on: 100_0; collect"), (True, "cancelled 100_0")])
def test_an_interrupt_says_how_to_collect(tmp_path: Path, scripted: Scripted, cancel: bool, words: str) -> None:
    def interrupted(jobs: Sequence[str], folder: Path) -> dict[str, State]:
        if jobs:
            raise KeyboardInterrupt
        return {}

    scripted.look = interrupted  # type: ignore[method-assign]
    with pytest.raises(queue.StillQueued, match=words) as caught:
        list(sweep.run_all(wishes(tmp_path / "out", 64), by=replace(BY, cancel=cancel)))
    assert caught.value.exit_code == 130
    assert scripted.cancelled == (["100_0"] if cancel else [])


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
