"""Run logs → one tidy DataFrame, a row per sample; what cannot be read is named, never silently dropped."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pandas as pd

from harness import files
from harness.errors import HarnessError, LogError
from harness.reports import rows
from harness.runlog import log as runlog
from harness.runlog.log import Log
from harness.runlog.records import SCHEMA


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that gave no rows, and why."""

    log: str
    reason: str

    def __str__(self) -> str:
        return f"{self.log}: skipped: {self.reason}"


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """All samples of some run logs.

    `samples` has a row per sample (attempt, cold and warm-up included), `logs` a row per log with machine, weights and
    data, `records` the logs as read, by the name in column `log`, `digests` the digest of each file.
    """

    samples: pd.DataFrame
    logs: pd.DataFrame
    records: Mapping[str, Log]
    digests: Mapping[str, str]
    skipped: tuple[Skipped, ...] = ()

    def only(self, names: Iterable[str]) -> "Frame":
        """Return the frame of these logs alone."""
        keep = set(names)
        return Frame(
            self.samples[self.samples["log"].isin(keep)].reset_index(drop=True),
            self.logs[self.logs["log"].isin(keep)].reset_index(drop=True),
            {name: log for name, log in self.records.items() if name in keep},
            {name: digest for name, digest in self.digests.items() if name in keep},
        )


def load(*places: Path) -> Frame:
    """Read all run logs at or below `places`, recursively, in a stable order.

    A log that is no log, is broken or of a future schema, and a second copy of the same run, becomes a `Skipped`.
    Raises `LogError` only for a place that does not exist.
    """
    records: dict[str, Log] = {}
    digests: dict[str, str] = {}
    skipped: list[Skipped] = []
    first: dict[str, str] = {}
    for place in places:
        if not place.exists():
            raise LogError(f"{place}: no such file or folder; next: give a run log or a folder of them")
        for path in runlog.find(place):
            name = path.name if place.is_file() else path.relative_to(place).as_posix()
            if name in records:
                name = path.as_posix()
            try:
                log = runlog.read(path)
                if log.header.schema > SCHEMA:
                    raise LogError(f"schema {log.header.schema} is newer than this harness reads ({SCHEMA})")
            except (HarnessError, OSError) as error:
                skipped.append(Skipped(name, str(error).removeprefix(f"{path}").lstrip(": ")))
                continue
            run = files.digest_bytes(msgspec.json.encode(log.header))
            if run in first and _says_more(records[first[run]], log):
                skipped.append(Skipped(name, f"the same run as {first[run]}"))
                continue
            if run in first:
                skipped.append(Skipped(first[run], f"an earlier state of the run in {name}"))
                del records[first[run]], digests[first[run]]
            first[run] = name
            records[name], digests[name] = log, log.digest
            if log.repeated:
                told = f"line {log.repeated[0]}" + f" and {len(log.repeated) - 1} more" * (len(log.repeated) > 1)
                skipped.append(Skipped(name, f"only {told}: a copy of a line above, counted once"))
    return frame(records, digests, skipped)


def _says_more(log: Log, than: Log) -> bool:
    """Return whether `log` is the fuller record of the two, which begin with the same header: the same run."""
    return (log.finished, len(log.samples), len(log.failures)) >= (than.finished, len(than.samples), len(than.failures))


def frame(records: Mapping[str, Log], digests: Mapping[str, str], skipped: Iterable[Skipped] = ()) -> Frame:
    """Return the frame of logs that were read already."""
    samples = pd.DataFrame([row for name, log in records.items() for row in rows.of_samples(log, name)])
    logs = pd.DataFrame([rows.of_log(log, name) for name, log in records.items()])
    if samples.empty:
        samples = pd.DataFrame(columns=["log", "phase", "valid", "has_stages", *rows.CELL])
    if logs.empty:
        logs = pd.DataFrame(columns=["log", "machine", "trained", "emulated", *rows.CELL])
    return Frame(samples, logs, dict(records), dict(digests), tuple(skipped))
