"""Run logs of several machines in one folder: copied, and what is there twice is named.

A log's place is its machine's folder and its name, which holds the cell's key; two files that say the same run are one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from harness import files
from harness.errors import HarnessError, LogError
from harness.runlog.log import Log, find, find_shards, read

CAME, SAME, OLDER, OTHER, UNREADABLE = "copied", "there already", "an earlier state", "another run", "unreadable"


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of one log."""

    path: Path
    what: str
    """One of the words above."""
    told: str

    @property
    def problem(self) -> bool:
        """Whether somebody has to decide."""
        return self.what in (OTHER, UNREADABLE)


def merge(sources: Sequence[Path], out: Path) -> Iterator[Merged]:
    """Copy the logs at or below `sources` to `out`, each into its machine's folder, and say what became of each.

    Nothing is overwritten but an earlier state of the same run; two runs of one cell on machines of one name are both
    named, and the one that is there stays. Raises `LogError` for a source that does not exist.
    """
    for source in sources:
        if not source.exists():
            raise LogError(f"{source}: no such file or folder; next: give a run log or a folder of them")
    runs = {_run(log): log for path in _logs(out) if (log := _read(path)) is not None} if out.is_dir() else {}
    for source in sources:
        for path in _logs(source):
            if out.is_dir() and path.resolve().is_relative_to(out.resolve()):
                continue
            try:
                log = read(path)
            except HarnessError as error:
                yield Merged(path, UNREADABLE, str(error).removeprefix(f"{path}").lstrip(": "))
                continue
            yield _take(log, out, runs)


def _take(log: Log, out: Path, runs: dict[str, Log]) -> Merged:
    there = runs.get(_run(log))
    if there is not None and not _says_more(log, there):
        return Merged(log.path, SAME if log.digest == there.digest else OLDER, f"the same run as {there.path}")
    target = out / str(log.header.environment.get("machine", log.path.parent.name)) / log.path.name
    if target.exists() and (there is None or there.path != target):
        return Merged(
            log.path, OTHER, f"{target} is another run of this cell; next: measure with --again, or move one away"
        )
    finished_there = target.with_name(target.name.removesuffix(".part"))
    if finished_there != target and finished_there.exists():
        return Merged(
            log.path, OTHER, f"unfinished, and {finished_there} is another run of this cell; next: delete one"
        )
    files.write_atomically(target, log.path.read_bytes())
    if there is not None and there.path != target:
        there.path.unlink(missing_ok=True)
    runs[_run(log)] = read(target)
    return Merged(log.path, CAME, f"to {target}" + (f", in place of its earlier state {there.path}" if there else ""))


def _logs(place: Path) -> Iterator[Path]:
    yield from find(place)
    if place.is_dir():
        yield from find_shards(place)


def _read(path: Path) -> Log | None:
    try:
        return read(path)
    except HarnessError:
        return None


def _run(log: Log) -> str:
    """Return what tells a run from others: its header, which says when and where it began."""
    return files.digest_bytes(msgspec.json.encode(log.header))


def _says_more(log: Log, than: Log) -> bool:
    return (log.finished, len(log.samples), len(log.failures)) > (than.finished, len(than.samples), len(than.failures))
