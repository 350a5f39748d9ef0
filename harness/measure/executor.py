"""By which executor cells run, and with which options; what became of a cell, and what a queue says of a job.

An executor is a plug-in. One that runs cells here has `submit(commands, folder, options)` and yields (position, exit
code). One that hands them to a queue has `ELSEWHERE = True` and `send`, `look`, `cancel` (see `queue.py`). `OPTIONS`
names the options that it takes, each with its words.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from harness import plugins
from harness.errors import HarnessError, SettingError, UnknownName
from harness.machine import backend
from harness.measure.asked import Asked, Setting
from harness.runlog.log import read
from harness.runlog.records import STOPPED

Value = Setting | tuple[str, ...]
Options = Mapping[str, Value]

FURTHER = "sbatch."
"""Options of this beginning are handed on as they are, where the executor knows `sbatch`."""


@dataclass(frozen=True, slots=True)
class State:
    """What the queue says of one job."""

    live: bool
    """Whether it waits or runs, so that a result may still come."""
    told: str
    """In words, with the queue's own: state, reason, exit."""
    code: int = 0
    """The exit code of what has ended; 1 where nothing tells."""
    log: Path | None = None
    """Where the job's messages lie."""


class Queue(Protocol):
    """An executor that hands cells to a queue."""

    OPTIONS: Mapping[str, str]

    def send(self, commands: Sequence[Sequence[str]], folder: Path, options: Options, name: str) -> list[str]:
        """Submit the commands, of one kind, as `name`; return the jobs' ids in their order."""
        ...

    def look(self, jobs: Sequence[str], folder: Path) -> Mapping[str, State]:
        """Ask how the jobs are."""
        ...

    def cancel(self, jobs: Sequence[str]) -> None:
        """End the jobs."""
        ...

    def how_to_cancel(self, jobs: Sequence[str]) -> str:
        """Return the command that ends them."""
        ...


class Here(Protocol):
    """An executor that runs cells on this host."""

    def submit(
        self, commands: Sequence[Sequence[str]], folder: Path, options: Options | None = None
    ) -> Iterator[tuple[int, int]]:
        """Run each command in a process of its own and yield (its position, its exit code) as it ends."""
        ...


@dataclass(frozen=True, slots=True)
class Executor:
    """An executor by its name, and what it is told."""

    name: str = "local"
    options: Options = field(default_factory=dict)
    title: str = "vlm-pareto"
    """What jobs are called in a queue."""
    leave: bool = False
    """Whether to leave once jobs are submitted."""
    cancel: bool = False
    """Whether an interrupt ends the jobs too."""

    @property
    def elsewhere(self) -> bool:
        """Whether cells run in jobs on other machines, so that this one need not have device, weights and data."""
        return bool(getattr(plugins.load("executors", self.name), "ELSEWHERE", False))

    @property
    def queue(self) -> Queue:
        """The plug-in that hands cells to a queue."""
        return cast("Queue", plugins.load("executors", self.name))

    @property
    def here(self) -> Here:
        """The plug-in that runs cells on this host."""
        return cast("Here", plugins.load("executors", self.name))

    def check(self) -> "Executor":
        """Refuse an executor that there is not, and options that it does not have; return the same."""
        known: Mapping[str, str] = getattr(plugins.load("executors", self.name), "OPTIONS", {})
        for name in self.options:
            if name in known and name != "sbatch":
                continue
            if "sbatch" not in known or not name.startswith(FURTHER) or name == FURTHER:
                listed = [f"{FURTHER}NAME" if each == "sbatch" else each for each in known]
                raise UnknownName(f"option of the executor {self.name}", name, listed)
        return self


def options(texts: Sequence[str], table: Mapping[str, object]) -> dict[str, Value]:
    """Return the options of a plan's `[executor]` and those of the command line, which beat it.

    A text given twice is a list (`setup` has several lines).
    """
    found: dict[str, Value] = {}
    for name, value in table.items():
        if isinstance(value, dict):
            found |= {f"{name}.{key}": _value(f"{name}.{key}", one) for key, one in value.items()}
        else:
            found[name] = _value(name, value)
    said: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"--executor-option {text}: write NAME=VALUE, as partition=gpu")
        said.setdefault(name.strip(), []).append(value)
    return found | {name: values[0] if len(values) == 1 else tuple(values) for name, values in said.items()}


def _value(name: str, value: object) -> Value:
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(value)
    if isinstance(value, str | int | float | bool):
        return value
    raise SettingError(
        f"[executor] {name} = {str(value)[:60]}: write a text, a number, true or false, or a list of texts"
    )


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of one cell: its log if there is one, and in words how it went."""

    title: str
    path: Path | None
    code: int
    message: str
    asked: Asked | None = None
    """What was asked, where it matters: of shards."""
    already: bool = False
    """Whether it was measured before: that tells nothing of the pace."""


@dataclass(frozen=True, slots=True)
class Became:
    """What a run made of its cell, by its log."""

    code: int
    """0 where all that was asked for is there, else 1: what `harness run` would end with."""
    word: str
    """`measured` only where something was, and nothing ended the run too early."""
    detail: str = ""

    def says(self, where: str = "") -> str:
        """Return it as a line: `measured in job 7: 2 examples failed, the last by OutputError: ...`."""
        return f"{self.word}{where}" + (f": {self.detail}" if self.detail else "")


def became(path: Path) -> Became:
    """Say what the run of this log made of its cell: that its process ended well says nothing of the examples."""
    try:
        log = read(path)
    except HarnessError as error:
        return Became(error.exit_code, "not measured", str(error))
    lasting = log.lasting
    last = (*log.failures, *lasting)[-1] if log.failures else None
    told = f"{last.error}: {(last.message.splitlines() or [''])[0][:200]}" if last else ""
    again = "next: the same command goes on with it"
    if log.footer is None:
        return Became(1, "not finished", again)
    if log.cut_short:
        return Became(1, "cut short", f"{told}; {again}")
    if log.footer.stopped == "failures":
        return Became(1, "gave up", f"{STOPPED['failures']}, the last by {told}")
    counts = any(sample.phase == "timed" and sample.valid for sample in log.samples)
    if not counts and (lasting or log.footer.stopped != "shard"):  # a shard of what is not scored has nothing to do
        return Became(
            1, "nothing measured", f"every example failed, the last by {told}" if told else "no sample counts"
        )
    if lasting:
        failed = "1 example" if len(lasting) == 1 else f"{len(lasting)} examples"
        return Became(1, "measured", f"{failed} failed, the last by {told}")
    return Became(0, "measured")


INTERRUPTED = (130, -2, -15)
KILLED = (137, -9)


def in_words(code: int, device: str) -> str:
    """Say what an exit code of a cell's process means."""
    if code in KILLED:
        return f"killed, probably for want of memory; next: {backend.less_memory(device)}"
    return f"exit code {code}"
