"""Hands cells to Slurm by submitit, the cells of one sweep as one job array; without Slurm, as jobs of this host.

What Slurm says of a job is asked with `scontrol`, and with `sacct` where a job is too old for that and there is
accounting. Nothing is read back from a job but its run log.
"""

import io
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from types import ModuleType

import psutil

from harness import parent
from harness.errors import HarnessError, MissingPackage, SettingError
from harness.measure.executor import FURTHER, Options, State, Value

ELSEWHERE = True

OPTIONS = {
    "partition": "the partition",
    "account": "the account",
    "qos": "the quality of service",
    "constraint": "features that nodes must have",
    "gpus": "GPUs of a job, as 1 or h100:1",
    "cpus": "CPU cores of a job",
    "memory": "main memory of a job, as 64G",
    "time": "time limit of a job, as 90 (minutes), 90m, 2h, 02:00:00 or 1-12; 4 hours if not said",
    "exclusive": "whole nodes, true if not said: cells that share a node time each other",
    "parallelism": "number of jobs that run at once",
    "setup": "a line of shell before the run; may be given several times",
    "name": "name of the jobs; the plan's if not said",
    "cluster": "slurm or local (jobs of this host); slurm where there is sbatch",
    "sbatch": "any other option of sbatch, as sbatch.reservation=vlm",
}
"""What may be told, with its words."""

DIRECT = {
    "partition": "slurm_partition",
    "account": "slurm_account",
    "qos": "slurm_qos",
    "constraint": "slurm_constraint",
}
WARNING_S = 30
"""So long before its time limit Slurm tells a job."""
LOCAL = "local-"
"""Before the ids of jobs of this host."""
ON_THIS_HOST = ("gpus", "time", "setup", "name", "cluster")
"""The options that jobs of this host can have."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
TAIL_BYTES = 65536

ENDS = {
    "COMPLETED": "ended",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "TIMEOUT": "ended by its time limit; next: the same command goes on with it, or --executor-option time=",
    "DEADLINE": "ended by its deadline",
    "NODE_FAIL": "its node failed; next: the same command goes on with it",
    "BOOT_FAIL": "its node did not boot; next: the same command submits it again",
    "OUT_OF_MEMORY": "out of memory; next: --executor-option memory=, or --isolate-stages",
    "PREEMPTED": "preempted; next: the same command goes on with it",
    "REVOKED": "revoked",
}
"""Slurm's states of jobs that have ended (squeue(1)), and what they mean."""


def measure(command: Sequence[str]) -> None:
    """Run one cell in its job; its exit code becomes the job's."""
    code = subprocess.call(list(command), stdin=subprocess.DEVNULL, env=parent.environment())
    if code:
        raise SystemExit(code if code > 0 else 128 - code)


def send(commands: Sequence[Sequence[str]], folder: Path, options: Options, name: str) -> list[str]:
    """Submit the commands as one array called `name`; return the jobs' ids.

    Raises `SettingError` for a value that cannot be, and `HarnessError` with Slurm's own words where it refuses.
    """
    submitit = _submitit()
    cluster = _cluster(options)
    if cluster == "local":
        parameters, commands = _local_parameters(options, name), [_set_up(command, options) for command in commands]
    else:
        parameters = _parameters(options, name)
    folder.mkdir(parents=True, exist_ok=True)
    said = io.StringIO()
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**parameters)
        with redirect_stderr(said), _exported(parent.paths()), executor.batch():
            jobs = [executor.submit(measure, [str(part) for part in command]) for command in commands]
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
        lines = [line.strip() for line in f"{said.getvalue()}\n{error}".splitlines() if line.strip()]
        words = "; ".join(dict.fromkeys(line.removeprefix("sbatch: error: ") for line in lines))
        raise HarnessError(
            f"sbatch refused: {words or type(error).__name__}; next: --executor-option, or [executor]"
        ) from error
    prefix = LOCAL if cluster == "local" else ""
    return [f"{prefix}{job.job_id}" for job in jobs]


@contextmanager
def _exported(variables: Mapping[str, str]) -> Iterator[None]:
    """Have jobs inherit these variables: submitit starts its own Python in the sweep's folder, and imports us there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _submitit() -> ModuleType:
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise MissingPackage("submitit", "the executor 'submitit'", "slurm") from error
    module: ModuleType = submitit
    return module


def _cluster(options: Options) -> str:
    asked = options.get("cluster", "slurm" if shutil.which("sbatch") else "local")
    if asked not in ("slurm", "local"):
        raise SettingError(f"executor option cluster={asked}: known: slurm, local")
    if asked == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise SettingError(
            "executor option cluster=slurm: there is no sbatch and srun here; next: log in to the cluster"
        )
    if asked == "local":
        _check_local(options)
    return str(asked)


def _check_local(options: Options) -> None:
    """Refuse what jobs of this host cannot have: submitit would drop it without a word."""
    for option, value in options.items():
        shared = option == "exclusive" and not _truth(option, value)
        if option not in ON_THIS_HOST and not shared:
            where = "jobs of this host cannot have it" if "cluster" in options else "there is no Slurm (sbatch) here"
            raise SettingError(
                f"executor option {option}={_told(value)}: {where}; next: leave it out, or log in to the cluster"
            )
    if not str(options.get("gpus", 0)).isdecimal():
        raise SettingError(f"executor option gpus={_told(options['gpus'])}: of this host write a number")


def _told(value: Value) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _local_parameters(options: Options, name: str) -> dict[str, object]:
    return {"name": _name(name), "timeout_min": minutes(options.get("time", 240))}


def _set_up(command: Sequence[str], options: Options) -> list[str]:
    """Return the command of a job of this host, after its lines of shell, with the GPUs that are visible here.

    submitit would hide all GPUs, or show the first ones whatever is visible here; and with its own `setup` an interrupt
    reaches the shell instead of the run. A line that fails ends the job: nothing is measured in half an environment.
    """
    gpus = _visible(options.get("gpus"))
    see = f"unset {VISIBLE}" if gpus is None else f"export {VISIBLE}={shlex.quote(gpus)}"
    shell = shutil.which("bash") or "sh"  # `module load` is a function of bash's
    return [shell, "-c", "\n".join(["set -e", see, *_lines(options), 'exec "$@"']), "setup", *map(str, command)]


def _visible(gpus: Value | None) -> str | None:
    """Return which GPUs a job of this host sees: so many of those that are visible here; None where all are."""
    here = os.environ.get(VISIBLE)
    if gpus is None:
        return here
    names = [part.strip() for part in here.split(",") if part.strip()] if here is not None else None
    count = int(str(gpus))
    if names is not None and count > len(names):
        raise SettingError(f"executor option gpus={gpus}: {VISIBLE}={here} shows {len(names)}; next: fewer")
    return ",".join(names[:count] if names is not None else map(str, range(count)))


def _lines(options: Options) -> list[str]:
    """Return the lines of shell that come before a run."""
    setup = options.get("setup", ())
    return list(setup) if isinstance(setup, tuple) else [str(setup)]


def _name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name) or "vlm-pareto"


def _parameters(options: Options, name: str) -> dict[str, object]:
    """Return submitit's parameters for Slurm."""
    told: dict[str, object] = {
        "name": _name(name),
        "timeout_min": minutes(options.get("time", 240)),
        "slurm_exclusive": _truth("exclusive", options.get("exclusive", True)) or None,
        "slurm_signal_delay_s": WARNING_S,
        "slurm_setup": _lines(options),
        "slurm_additional_parameters": {
            key.removeprefix(FURTHER): value for key, value in options.items() if key.startswith(FURTHER)
        },
    }
    told |= {theirs: str(options[ours]) for ours, theirs in DIRECT.items() if ours in options}
    if "gpus" in options:
        gpus = options["gpus"]
        told["slurm_gpus_per_node"] = int(gpus) if str(gpus).isdecimal() else str(gpus)  # type: ignore[arg-type]
    if "memory" in options:
        told["slurm_mem"] = str(options["memory"])
    for ours, theirs in (("cpus", "cpus_per_task"), ("parallelism", "slurm_array_parallelism")):
        if ours in options:
            told[theirs] = _count(ours, options[ours])
    return told


def _count(name: str, value: Value) -> int:
    if not str(value).isdecimal() or int(str(value)) < 1:
        raise SettingError(f"executor option {name}={value}: write a whole number from 1")
    return int(str(value))


def _truth(name: str, value: Value) -> bool:
    text = str(value).lower()
    if text not in ("true", "false"):
        raise SettingError(f"executor option {name}={value}: write true or false")
    return text == "true"


def minutes(value: Value) -> int:
    """Return a time limit in minutes, rounded up: Slurm's own forms (sbatch(1), --time), and 90m, 2h, 1d."""
    text = str(value).strip().lower()
    unit = re.fullmatch(r"(\d+)([mhd])", text)
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")] if re.fullmatch(r"\d+(:\d+){0,2}", rest) else []
    if unit:
        seconds = int(unit[1]) * {"m": 60, "h": 3600, "d": 86400}[unit[2]]
    elif parts and dash and days.isdecimal():
        seconds = int(days) * 86400 + sum(part * size for part, size in zip(parts, (3600, 60, 1), strict=False))
    elif parts and not dash:
        sizes = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}[len(parts)]
        seconds = sum(part * size for part, size in zip(parts, sizes, strict=True))
    else:
        seconds = 0
    if seconds < 1:
        raise SettingError(f"executor option time={value}: write 90 (minutes), 90m, 2h, 02:00:00 or 1-12:00")
    return math.ceil(seconds / 60)


def cancel(jobs: Sequence[str]) -> None:
    """End the jobs; those that have ended already are left alone."""
    for job in jobs:
        if job.startswith(LOCAL) and (process := _process(job)):
            with suppress(psutil.Error, OSError):
                process.send_signal(signal.SIGINT)
    theirs = [job for job in jobs if not job.startswith(LOCAL)]
    if theirs:
        _run("scancel", *theirs)


def how_to_cancel(jobs: Sequence[str]) -> str:
    """Return the command that ends the jobs."""
    own = [job.removeprefix(LOCAL) for job in jobs if job.startswith(LOCAL)]
    arrays = list(dict.fromkeys(job.partition("_")[0] for job in jobs if not job.startswith(LOCAL)))
    return shlex.join(["kill", "-INT", *own] if own else ["scancel", *arrays])


def look(jobs: Sequence[str], folder: Path) -> dict[str, State]:
    """Return how the jobs are. A controller that does not answer leaves them as they were: they live."""
    found = {job: _of_process(job, folder) for job in jobs if job.startswith(LOCAL)}
    theirs = [job for job in jobs if job not in found]
    silent = False
    for array in dict.fromkeys(job.partition("_")[0] for job in theirs):
        code, text, error = _run("scontrol", "--oneliner", "show", "job", array)
        told = dict(records(text))
        found |= {job: _of_record(job, told[job], folder) for job in theirs if job in told}
        silent |= code != 0 and "invalid job id" not in error.lower()
    missing = [job for job in theirs if job not in found]
    if missing and not silent:
        found |= _from_accounting(missing, folder)
    for job in missing:
        live = State(True, "not told: the controller does not answer")
        gone = State(False, f"ended; Slurm does not know it any more{_words(job, folder)}", 1, _log(job, folder))
        found.setdefault(job, live if silent else gone)
    return found


def records(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield id and fields of each job in the output of `scontrol --oneliner show job`, the parts of an array singly."""
    for line in text.splitlines():
        fields = dict(re.findall(r"(\S+?)=(\S*)", line))
        if "JobId" not in fields:
            continue
        if "ArrayTaskId" not in fields:
            yield fields["JobId"], fields
            continue
        for part in fields["ArrayTaskId"].partition("%")[0].split(","):
            first, _, last = part.partition("-")
            for index in range(int(first), int(last.partition(":")[0] or first) + 1):
                yield f"{fields['ArrayJobId']}_{index}", fields


def _of_record(job: str, fields: Mapping[str, str], folder: Path) -> State:
    state, reason = fields["JobState"], fields.get("Reason", "None")
    if state in ENDS:
        return _ended(job, state, reason, fields.get("ExitCode", "0:0"), folder)
    told = state.lower()
    if state == "PENDING":
        told = f"pending ({reason})" + (f", expected at {at}" if (at := fields.get("StartTime", "")).count(":") else "")
    elif state == "RUNNING":
        told = f"running on {fields.get('NodeList', '?')}, at most until {fields.get('EndTime', '?')}"
    return State(True, told, 0, _log(job, folder))


def _ended(job: str, state: str, reason: str, exit_text: str, folder: Path) -> State:
    code, _, number = exit_text.partition(":")
    words = _words(job, folder)
    if "not requeued because: timed-out" in words:
        state, words = "TIMEOUT", ""
    facts = [state, *([f"reason {reason}"] if reason not in ("None", "") else []), f"exit {exit_text}"]
    value = int(code or 0) or (128 + int(number or 0) if number.isdecimal() and int(number) else 0)
    return State(
        False, f"{ENDS[state]} ({', '.join(facts)}){words}", value or int(state != "COMPLETED"), _log(job, folder)
    )


def _from_accounting(jobs: Sequence[str], folder: Path) -> dict[str, State]:
    """Return the states of jobs that have left the controller's memory, where there is accounting."""
    wanted = ",".join(dict.fromkeys(job.partition("_")[0] for job in jobs))
    code, text, _ = _run(
        "sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,ExitCode", "-j", wanted
    )
    found = {}
    for line in text.splitlines() if code == 0 else ():
        job, state, exit_text = [*line.split("|"), "", ""][:3]
        state = state.partition(" ")[0]  # "CANCELLED by 1000"
        if job in jobs and state in ENDS:
            found[job] = _ended(job, state, "", exit_text, folder)
    return found


def _of_process(job: str, folder: Path) -> State:
    """Return how a job of this host is: it lives as long as its process."""
    log = _log(job, folder)
    if _process(job, folder):
        return State(True, "running on this host", 0, log)
    return State(False, f"ended{_words(job, folder)}", 0 if not _words(job, folder) else 1, log)


CONTROLLER = "submitit.local._local"
"""In the command line of what runs a job of this host, before the folder of its messages."""


def _process(job: str, folder: Path | None = None) -> psutil.Process | None:
    """Return the process of a job of this host while it runs; its number may be that of a stranger's by now."""
    try:
        process = psutil.Process(int(job.removeprefix(LOCAL)))
        words = process.cmdline()
        if process.status() == psutil.STATUS_ZOMBIE or CONTROLLER not in words:
            return None
    except (psutil.Error, ValueError):
        return None
    return process if folder is None or str(folder) in words else None


def _log(job: str, folder: Path) -> Path:
    """Return where a job's messages lie (submitit's own names)."""
    number = job.removeprefix(LOCAL)
    return folder / f"{number}_0_log.err"


def _words(job: str, folder: Path) -> str:
    """Return the error line that says most: submitit's of the time limit, ours, or the last of Slurm's."""
    try:
        with _log(job, folder).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    for sign in ("not requeued because: ", "harness: ", "error: "):
        if told := [line.strip() for line in lines if sign in line]:
            return f": {told[-1][:300]}"
    return ""


def _run(*command: str) -> tuple[int, str, str]:
    """Run a tool of Slurm's; return its exit code, its output and its errors."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        return 127, "", str(error)
    return done.returncode, done.stdout, done.stderr
