"""Sweeps on a real Slurm of this host: two nodes, one after the other what happens on clusters. `nox -s slurm`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness.runlog import log

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

TOOLS = ("slurmctld", "slurmd", "sbatch", "srun", "munged")
CELL = ("--model", "fake", "--suite", "pages", "--limit", "3", "--min-samples", "3", "--min-seconds", "0", "--device")


@dataclass(frozen=True)
class Cluster:
    """A Slurm that runs, and a folder of its own for each test."""

    root: Path
    script: Path
    out: Path

    def environment(self) -> dict[str, str]:
        """Return the environment of a login host: no device, and locks and caches of the test alone."""
        return {
            **os.environ,
            "SLURM_CONF": str(self.root / "slurm.conf"),
            "VLM_PARETO_LOCKS": str(self.root / "locks"),
            "VLM_PARETO_CACHE": str(self.root / "cache"),
            "HARNESS_OFFLINE": "1",
        }

    def harness(self, *arguments: str, code: int = 0) -> str:
        """Run `harness sweep` to its end; return all it said."""
        done = subprocess.run(
            self.command(*arguments), capture_output=True, text=True, env=self.environment(), timeout=240, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of a sweep on this cluster."""
        return [sys.executable, "-m", "harness", "sweep", "--executor", "submitit", "--out", str(self.out), *arguments]

    def tool(self, *command: str) -> str:
        """Run one of Slurm's tools."""
        return subprocess.run(
            command, capture_output=True, text=True, env=self.environment(), timeout=60, check=True
        ).stdout

    def ids(self) -> list[str]:
        """Return the jobs that were submitted into this folder, as written down there."""
        return sorted(json.loads(path.read_text())["job"] for path in (self.out / "jobs" / "sent").glob("*.json"))

    def wait_for(self, job: str, *states: str, seconds: float = 60) -> str:
        """Wait until the job is in one of the states; return what Slurm says of it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            told = self.tool("scontrol", "--oneliner", "show", "job", job)
            if re.search(rf"JobState=({'|'.join(states)})", told):
                return told
            time.sleep(0.5)
        raise AssertionError(f"{job} is not {states}: {told}")


@pytest.fixture(scope="session")
def slurm(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm without accounting, brought up for the session on loopback."""
    if not os.environ.get("VLM_PARETO_SLURM"):
        pytest.skip("brings up a Slurm on this host: `nox -s slurm` runs it")
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    script = shared / "slurm_local.sh"
    if missing or not script.is_file():
        pytest.skip(f"no Slurm can be brought up here: {', '.join(missing) or script} is missing")
    if os.getuid() != 0:
        pytest.skip("only root can bring up a Slurm")
    root = tmp_path_factory.mktemp("slurm")
    (root / "locks").mkdir()
    environment = {**os.environ, "SLURM_ROOT": str(root)}
    subprocess.run(["bash", str(script), "up", "2"], env=environment, check=True, timeout=120, capture_output=True)
    try:
        yield Cluster(root, script, root)
    finally:
        subprocess.run(["bash", str(script), "down"], env=environment, check=False, timeout=120, capture_output=True)


@pytest.fixture
def cluster(slurm: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """The running Slurm with a results folder of the test's own; its jobs are cancelled at the end."""
    mine = replace(slurm, out=tmp_path / "out")
    yield mine
    for job in mine.ids():
        subprocess.run(["scancel", job], env=mine.environment(), check=False, capture_output=True)


def finished(out: Path) -> list[Path]:
    return [path for path in log.find(out) if log.read(path).finished]


SLOW = ("--set", "prefill_ms=30000", "--executor-option", "exclusive=false")


def test_four_cells_are_one_array_with_options_and_a_second_call_submits_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    plan = tmp_path / "night.toml"
    plan.write_text(
        'model = "fake"\nsuite = "pages"\ndevice = "fake"\nlimit = 3\nminimum_samples = 3\nminimum_seconds = 0\n'
        '[executor]\nby = "submitit"\npartition = "main"\nconstraint = "h100"\ngpus = 1\ncpus = 2\nmemory = "1G"\n'
        'time = "20m"\nparallelism = 2\nsetup = ["export SAID=yes", "hostname"]\nsbatch.comment = "vlm"\n'
        "[[grid]]\nres = [256, 512, 768, 1024]\n"
    )
    command = ["--plan", str(plan)]
    dry = cluster.harness(*command, "--dry-run")
    assert "device: fake, opened in the job" in dry
    assert "4 cells" in dry
    assert not cluster.out.exists()
    said = cluster.harness(*command, "--submit")
    jobs = cluster.ids()
    array = jobs[0].partition("_")[0]
    assert jobs == [f"{array}_{index}" for index in range(4)]
    assert "submitted 4 jobs as 'night'" in said
    assert f"scancel {array}" in said
    told = cluster.tool("scontrol", "--oneliner", "show", "job", array)
    for option in (
        "JobName=night", "Partition=main", "Features=h100", "TresPerNode=gres:gpu:1", "CPUs/Task=2",
        "MinMemoryNode=1G", "TimeLimit=00:20:00", "ArrayTaskThrottle=2", "OverSubscribe=NO", "Comment=vlm",
    ):  # fmt: skip
        assert option in told, option
    assert "SAID=yes" in (cluster.out / "jobs" / f"{array}_submission.sh").read_text()
    assert f"{array}_3" in cluster.harness(*command, "--status")
    collected = cluster.harness(*command)
    assert "submitted" not in collected
    queued = re.search(r"(\d) cells are queued already", collected)
    done = collected.count("measured already")
    assert done + (int(queued[1]) if queued else 0) == 4  # the first may have ended meanwhile
    assert done + collected.count("measured in job") == 4
    assert len(finished(cluster.out)) == 4
    third = cluster.harness(*command)
    assert third.count("measured already") == 4
    assert "submitted" not in third
    assert cluster.ids() == jobs
    assert cluster.harness(*command, "--status").count("measured") == 4


def test_the_submitting_host_needs_no_device_and_a_job_that_fails_says_why(cluster: Cluster) -> None:
    """There is no GPU here: it is the jobs that look for one, and do not find it."""
    said = cluster.harness(*CELL, "cuda", "--executor-option", "exclusive=false", code=1)
    assert "submitted 1 jobs" in said
    assert re.search(r"job \d+: failed \(FAILED.*exit 2:0\): harness: --device cuda: ", said)
    assert re.search(r"its messages: \S+_0_log.err", said)


def test_a_cancelled_job_is_told_and_submitted_again(cluster: Cluster) -> None:
    cluster.harness(*CELL, "fake", *SLOW, "--submit")
    (job,) = cluster.ids()
    cluster.wait_for(job, "RUNNING")
    watching = subprocess.Popen(
        cluster.command(*CELL, "fake", *SLOW), stderr=subprocess.PIPE, text=True, env=cluster.environment()
    )
    time.sleep(4)
    cluster.tool("scancel", job)
    said = watching.communicate(timeout=90)[1]
    assert watching.returncode == 1
    assert re.search(rf"job {job}: cancelled \(CANCELLED", said), said
    assert cluster.harness(*CELL, "fake", *SLOW, "--status").count("cancelled")
    assert "submitted 1 jobs" in cluster.harness(*CELL, "fake", *SLOW, "--submit")


def test_a_time_limit_is_told(cluster: Cluster) -> None:
    said = cluster.harness(*CELL, "fake", *SLOW, "--executor-option", "time=1", code=1)
    assert "ended by its time limit" in said
    assert "exit" in said


def test_what_sbatch_refuses_is_one_line(cluster: Cluster) -> None:
    said = cluster.harness(*CELL, "fake", "--executor-option", "partition=nowhere", code=2)
    (line,) = [line for line in said.splitlines() if line.startswith("harness: ")]
    assert "sbatch refused: invalid partition specified: nowhere" in line
    assert "Traceback" not in said
    assert cluster.harness(*CELL, "fake", "--status").count("not submitted") == 1


def interrupted(cluster: Cluster, command: list[str]) -> "subprocess.Popen[str]":
    """Start the command, and press Ctrl-C once its jobs are submitted."""
    asking = subprocess.Popen(
        cluster.command(*command),
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=cluster.environment(),
    )
    assert asking.stderr
    while "the same command collects" not in asking.stderr.readline():
        assert asking.poll() is None
    asking.send_signal(signal.SIGINT)
    return asking


def test_ctrl_c_leaves_the_jobs_and_the_same_command_collects(cluster: Cluster) -> None:
    command = [*CELL, "fake", "--set", "prefill_ms=1500", "--executor-option", "exclusive=false"]
    asking = interrupted(cluster, command)
    said = asking.communicate(timeout=60)[1]
    assert asking.returncode == 130
    (job,) = cluster.ids()
    assert f"the jobs go on: {job}; collect: the same command; cancel: scancel {job}" in said
    collected = cluster.harness(*command)
    assert "submitted" not in collected
    assert f"measured in job {job}" in collected


def test_an_interrupt_cancels_where_it_is_told_to(cluster: Cluster) -> None:
    asking = interrupted(cluster, [*CELL, "fake", *SLOW, "--cancel-on-interrupt"])
    assert "cancelled" in asking.communicate(timeout=60)[1]
    (job,) = cluster.ids()
    cluster.wait_for(job, "CANCELLED")


def test_a_node_that_dies_gives_its_job_to_another(cluster: Cluster) -> None:
    """Last, as it takes a node away: the job is requeued, resumes its torn log and is collected."""
    command = [*CELL, "fake", "--set", "prefill_ms=4000", "--executor-option", "exclusive=false"]
    cluster.harness(*command, "--submit")
    (job,) = cluster.ids()
    node = re.search(r"NodeList=(n\d)", cluster.wait_for(job, "RUNNING"))
    assert node
    time.sleep(12)
    daemon = cluster.root / "pid" / f"slurmd-{node[1]}.pid"
    children = subprocess.run(["pgrep", "-f", f"slurmstepd: .*{job}"], capture_output=True, text=True, check=False)
    for number in [daemon.read_text().strip(), *children.stdout.split()]:
        os.kill(int(number), signal.SIGKILL)
    cluster.tool("scontrol", "update", f"nodename={node[1]}", "state=down", "reason=killed")
    said = cluster.harness(*command)
    assert f"measured in job {job}" in said
    assert "Restarts=1" in cluster.tool("scontrol", "--oneliner", "show", "job", job)
    assert len(finished(cluster.out)) == 1
