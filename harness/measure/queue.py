"""Cells as jobs of a queue: submitted once, watched, and collected by what was asked, also by a later command.

What was submitted is kept beside the logs, one small file a request in `<out>/jobs/sent`. So the same command never
submits what is measured or still queued, wherever it is given, and a killed or interrupted one collects later.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from harness import files
from harness.errors import HarnessError
from harness.measure import command, shards
from harness.measure import request as requests
from harness.measure.asked import Asked
from harness.measure.executor import Ended, Executor, State, became

Notify = Callable[[str], None]

POLL_S = 5.0
"""Between two questions to the queue; a controller has thousands of users."""
GRACE_S = 20.0
"""A shared file system shows a log some seconds after the job that wrote it has ended."""
LOCK_S = 60.0
MOST_JOBS = 1000
"""Of one array: Slurm takes 1001 as it comes."""


class StillQueued(HarnessError):
    """An interrupt while jobs of a queue go on."""

    exit_code = 130


class Sent(msgspec.Struct, frozen=True):
    """What is kept of a submission."""

    request: str
    job: str
    executor: str
    title: str
    at: str


@dataclass(frozen=True, slots=True)
class Row:
    """One cell in `harness sweep --status`."""

    title: str
    job: str
    state: str
    log: str


class _Folder:
    """`<out>/jobs`: the executor's own files, and what was sent."""

    def __init__(self, out: Path) -> None:
        self.path = (out / requests.JOBS).resolve()

    def sent(self, request: str) -> Sent | None:
        """Return what was submitted last for a request; None for nothing, or what cannot be read."""
        try:
            return msgspec.json.decode((self.path / "sent" / f"{request}.json").read_bytes(), type=Sent)
        except (OSError, msgspec.MsgspecError):
            return None

    def keep(self, sent: Sent) -> None:
        """Write down what was submitted."""
        files.write_atomically(self.path / "sent" / f"{sent.request}.json", msgspec.json.encode(sent))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let no other sweep submit into this folder meanwhile (where the file system has locks)."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as file:
            if files.locked(file, LOCK_S) is False:
                raise HarnessError(f"{self.path}: another sweep is submitting; next: the same command when it is done")
            yield


def run_all(wanted: Sequence[Asked], again: bool, by: Executor, notify: Notify) -> Iterator[Ended]:
    """Submit what is neither measured nor queued, and yield what becomes of each cell as its job ends.

    Raises `StillQueued` at an interrupt: the jobs go on, unless told to cancel them.
    """
    logs, folder = requests.Logs(Path(asked.out) for asked in wanted), _Folder(Path(wanted[0].out))
    with folder.alone():
        cells = _fresh(wanted, logs) if again else {requests.of(asked): asked for asked in wanted}
        done = logs.finished(cells)
        left = {request: asked for request, asked in cells.items() if request not in done}
        jobs = _queued(left, folder, by)
        unsent = [request for request in left if request not in jobs]
        if jobs:
            notify(f"{len(jobs)} cells are queued already: {_ids(list(jobs.values()))}")
        jobs |= _send(unsent, left, folder, by, notify)
    try:
        yield from _collect(cells, done, jobs, logs, folder, by, notify)
    except KeyboardInterrupt:
        measured = logs.finished(cells)
        unfinished = [job for request, job in jobs.items() if request not in measured]
        raise _interrupted(unfinished, folder, by) from None
    except GeneratorExit:  # whoever reads this was interrupted
        if by.cancel:
            _cancel(list(jobs.values()), folder, by)
        raise


def _collect(
    cells: Mapping[str, Asked],
    done: Mapping[str, Path],
    jobs: Mapping[str, str],
    logs: requests.Logs,
    folder: _Folder,
    by: Executor,
    notify: Notify,
) -> Iterator[Ended]:
    """Say how to collect and to cancel; yield what was measured before, and then what is measured now."""
    if jobs:
        collect = "the same command collects" + ("" if by.leave else " if this one is interrupted")
        notify(f"{collect}; harness sweep --status tells; cancel: {by.queue.how_to_cancel(list(jobs.values()))}")
    for request, path in done.items():
        asked = cells[request]
        found = became(path)
        yield Ended(
            requests.title(asked), path, found.code, found.says(" already") + stood_in(path), asked, already=True
        )
    if not by.leave:
        left = {request: cells[request] for request in jobs}
        yield from _Watch(left, jobs, logs, folder, by, notify).run()


def status(wanted: Sequence[Asked], by: Executor) -> list[Row]:
    """Return how each cell is: measured, queued (in the queue's own words), ended without a log, or not submitted."""
    logs, folder = requests.Logs(Path(asked.out) for asked in wanted), _Folder(Path(wanted[0].out))
    cells = {requests.of(asked): asked for asked in wanted}
    done = logs.finished(cells)
    sent = {request: one for request in cells if (one := folder.sent(request))}
    states = by.queue.look([one.job for request, one in sent.items() if request not in done], folder.path)
    rows = []
    for request, asked in cells.items():
        job = sent[request].job if request in sent else ""
        state = states.get(job)
        told = "measured" if request in done else state.told if state else "not submitted"
        log = done.get(request) or (state.log if state else None)
        rows.append(Row(requests.title(asked), job, told, str(log or "")))
    return rows


def stood_in(path: Path) -> str:
    """Say what the job had to use in place of what was asked: its machine's caches decide, not this host's."""
    header = requests.first_line(path)
    if header is None:
        return ""
    notices = {"weights": header.weights.get("notice", ""), "data": header.data.get("notice", "")}
    told = [text for text in notices.values() if text]
    return f"; note: {'; '.join(told)}" if told else ""


def _fresh(wanted: Sequence[Asked], logs: requests.Logs) -> dict[str, Asked]:
    """Return each cell as its next repetition that has no log, the same one for all shards of it.

    History is never overwritten; what is left of a repetition that is not whole yet is measured first.
    """
    cells: dict[str, Asked] = {}
    chosen: dict[str, Asked] = {}
    for asked in wanted:
        began = requests.of(shards.whole(asked))
        if began not in chosen:
            one, taken = shards.whole(asked), {requests.of(each) for each in chosen.values()}
            while requests.of(one) in taken or logs.finished({requests.of(one): one}):
                one = replace(one, repetition=one.repetition + 1)
            chosen[began] = one
        again = replace(asked, repetition=chosen[began].repetition)
        cells[requests.of(again)] = again
    return cells


def _queued(cells: Mapping[str, Asked], folder: _Folder, by: Executor) -> dict[str, str]:
    """Return the jobs, by request, that were submitted for these cells and may still give a log."""
    sent = {request: one.job for request in cells if (one := folder.sent(request)) and one.executor == by.name}
    states = by.queue.look(list(sent.values()), folder.path) if sent else {}
    return {request: job for request, job in sent.items() if job in states and states[job].live}


def _send(
    unsent: Sequence[str], cells: Mapping[str, Asked], folder: _Folder, by: Executor, notify: Notify
) -> dict[str, str]:
    """Submit the cells, as arrays of one name, and write down which job is whose."""
    jobs: dict[str, str] = {}
    for start in range(0, len(unsent), MOST_JOBS):
        part = unsent[start : start + MOST_JOBS]
        # In a job one waits for the device: whoever shares the node will end.
        asked = [replace(cells[request], wait=True, out=str(Path(cells[request].out).resolve())) for request in part]
        commands = [[*command.interpreter(), *command.arguments(one), "--bare"] for one in asked]
        ids = by.queue.send(commands, folder.path, by.options, by.title)
        for request, job in zip(part, ids, strict=True):
            at = datetime.now(UTC).isoformat(timespec="seconds")
            folder.keep(Sent(request, job, by.name, requests.title(cells[request]), at))
            jobs[request] = job
        notify(f"submitted {len(ids)} jobs as {by.title!r}: {_ids(ids)}")
    return jobs


def _ids(jobs: Sequence[str]) -> str:
    return ", ".join(jobs) if len(jobs) <= 8 else f"{jobs[0]}, {jobs[1]} ... {jobs[-1]}"


@dataclass(slots=True)
class _Watch:
    """The jobs of one sweep being waited for."""

    left: dict[str, Asked]
    jobs: Mapping[str, str]
    logs: requests.Logs
    folder: _Folder
    by: Executor
    notify: Notify

    def run(self) -> Iterator[Ended]:
        """Yield what became of each cell; a log counts, however its job ended."""
        ended_s: dict[str, float] = {}
        said = ""
        while self.left:
            states = self.by.queue.look([self.jobs[request] for request in self.left], self.folder.path)
            done = self.logs.finished(self.left)
            for request, asked in list(self.left.items()):
                state = states.get(self.jobs[request], State(False, "the queue does not know the job", 1))
                since_s = time.monotonic() - ended_s.setdefault(request, time.monotonic()) if not state.live else 0
                if state.live:
                    ended_s.pop(request, None)
                if request not in done and (state.live or since_s < (0 if state.code else GRACE_S)):
                    continue
                del self.left[request]
                yield self._ended(request, asked, done.get(request), state)
            said = self._say(states, said)
            if self.left:
                time.sleep(POLL_S if not ended_s.keys() & self.left.keys() else 1.0)

    def _ended(self, request: str, asked: Asked, path: Path | None, state: State) -> Ended:
        title = requests.title(asked)
        if path:
            found = became(path)
            told = found.says(f" in job {self.jobs[request]}") + stood_in(path)
            return Ended(title, path, found.code, told, asked)
        log = f"; its messages: {state.log}" if state.log else ""
        return Ended(title, None, state.code or 1, f"job {self.jobs[request]}: {state.told}{log}", asked)

    def _say(self, states: Mapping[str, State], said: str) -> str:
        """Say how many jobs are in which state, when that has changed."""
        told = [states[self.jobs[request]].told for request in self.left if self.jobs[request] in states]
        text = ", ".join(f"{told.count(one)} {one}" for one in dict.fromkeys(told))
        if text and text != said:
            self.notify(f"jobs: {text}")
        return text


def _cancel(jobs: Sequence[str], folder: _Folder, by: Executor) -> list[str]:
    """End the jobs that live, and return them: the number of one that has ended may be another process's now."""
    states = by.queue.look(jobs, folder.path)
    live = [job for job in jobs if job in states and states[job].live]
    by.queue.cancel(live)
    return live


def _interrupted(jobs: Sequence[str], folder: _Folder, by: Executor) -> StillQueued:
    """Return what to say at an interrupt; cancel the jobs where that was wished."""
    if not jobs:
        return StillQueued("interrupted; all is measured; next: the same command shows it")
    if by.cancel:
        told = _ids(_cancel(jobs, folder, by)) or "nothing, as no job is left"
        return StillQueued(f"interrupted; cancelled {told}; next: the same command submits what is not measured")
    cancel = by.queue.how_to_cancel(jobs)
    return StillQueued(f"interrupted; the jobs go on: {_ids(jobs)}; collect: the same command; cancel: {cancel}")
