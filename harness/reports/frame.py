"""Run logs read from files and folders, and as tidy DataFrames; what cannot be read is named, never silently dropped.

pandas ends here: everything else in this room works on the records themselves.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from harness import files
from harness.errors import HarnessError, LogError
from harness.reports import configuration
from harness.reports.configuration import Configuration
from harness.runlog import log as runlog
from harness.runlog.log import Log
from harness.runlog.records import SCHEMA, Pass, Sample

if TYPE_CHECKING:
    import pandas as pd

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was not used, and why."""

    log: str
    reason: str

    def __str__(self) -> str:
        return f"{self.log}: skipped: {self.reason}"


@dataclass(frozen=True, slots=True)
class Cell:
    """All logs of one cell: its fresh processes, and the parts of an isolated one."""

    configuration: Configuration
    logs: Mapping[str, Log]
    """By name, in the frame's order."""


@dataclass(frozen=True, eq=False)
class Frame:
    """Some run logs as read: `records` by name, `digests` of each file, and what was skipped."""

    records: Mapping[str, Log]
    digests: Mapping[str, str]
    skipped: tuple[Skipped, ...] = ()

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """The cells that these logs are of, in a stable order."""
        found: dict[Configuration, dict[str, Log]] = {}
        for name, log in self.records.items():
            found.setdefault(configuration.of(log), {})[name] = log
        return tuple(Cell(each, found[each]) for each in sorted(found, key=lambda one: one.order))

    @cached_property
    def samples(self) -> "pd.DataFrame":
        """A row per sample (attempt; cold and warm-up included), units in the column names, nothing computed away."""
        import pandas as pd

        rows = [row for name, log in self.records.items() for row in _of_samples(log, name)]
        return pd.DataFrame(rows, columns=None if rows else ["log", "machine", *CELL, "phase", "valid", "has_stages"])

    @cached_property
    def logs(self) -> "pd.DataFrame":
        """A row per log: cell, machine, weights, data, whether it is finished or torn."""
        import pandas as pd

        rows = [of_log(log, name) for name, log in self.records.items()]
        return pd.DataFrame(rows, columns=None if rows else ["log", "machine", "trained", "emulated", *CELL])

    def only(self, names: Iterable[str]) -> "Frame":
        """Return the frame of these logs alone."""
        keep = set(names)
        return Frame(
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
                log = _read(path)
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
    return Frame(dict(records), dict(digests), tuple(skipped))


def _read(path: Path) -> Log:
    log = runlog.read(path)
    if log.header.schema > SCHEMA:
        raise LogError(f"schema {log.header.schema} is newer than this harness reads ({SCHEMA})")
    configuration.of(log)  # a header that names no cell belongs to no row
    return log


def trained(log: Log) -> bool:
    """Return whether the weights were a checkpoint's: only then do answers mean anything."""
    header = log.header
    return header.weights.get("source", header.weights.get("kind", header.cell.get("weights"))) != "random"


def torn(log: Log) -> bool:
    """Return whether the run was cut off."""
    return not log.finished or log.torn_bytes > 0


def emulation(log: Log) -> str:
    """Return why the times are not a real machine's ("fake device", "predicted" ...), or nothing."""
    header = log.header
    if str(header.cell.get("device", "")).partition(":")[0] == "fake":
        return "fake device"
    for source in (header.device, header.effective, header.requested):
        for word in ("predicted", "emulated"):
            if str(source.get(word, "")).lower() not in ("", "false", "none", "no"):
                return word
    if any(sample.clock == "scripted" for sample in log.samples):
        return "scripted clock"
    return ""


# --- rows of the DataFrames ---

CELL = (
    "model", "model_digest", "weights", "weights_digest", "suite", "asked_suite", "suite_digest", "data", "data_digest",
    "resolution", "device", "engine", "dtype", "protocol", "seed", "settings", "limit", "isolate", "part",
    "repetition", "decode_tokens", "threads",
)  # fmt: skip
"""What a row says of its cell."""


def of_log(log: Log, name: str) -> dict[str, Value]:
    """Return what is true of the whole log, which is called `name`."""
    header, cell = log.header, configuration.of(log)
    facts: dict[str, Value] = {field: getattr(cell, field) for field in CELL if field not in ("part", "repetition")}
    return {
        "log": name,
        "key": header.key,
        "machine": cell.machine,
        "started_at": header.started_at,
        "command": header.command,
        "finished": log.finished,
        "torn": torn(log),
        "resumed": len(log.resumed),
        "stopped": log.footer.stopped if log.footer else None,
        "failures": len(log.lasting),
        "trained": trained(log),
        "emulated": emulation(log),
        "weights_notice": header.weights.get("notice", ""),
        "data_notice": header.data.get("notice", ""),
        **facts,
        "part": configuration.part(log) or None,
        "repetition": configuration.repetition(log),
        **{f"harness_{key}": value for key, value in header.harness.items()},
        **{f"machine_{key}": value for key, value in header.environment.items() if key != "machine"},
        **{f"device_{key}": value for key, value in header.device.items()},
    }


def _of_samples(log: Log, name: str) -> list[dict[str, Value]]:
    facts = of_log(log, name)
    kept = {key: facts[key] for key in ("log", "machine", "trained", "emulated", *CELL)}
    return [{**kept, **_of_sample(sample)} for sample in log.samples]


def _of_sample(sample: Sample) -> dict[str, Value]:
    row: dict[str, Value] = {
        "example": sample.example,
        "index": sample.index,
        "attempt": sample.attempt,
        "phase": sample.phase,
        "at": sample.at,
        "clock": sample.clock,
        "valid": sample.valid,
        "reasons": "; ".join(sample.reasons),
        "original_width_px": sample.original_px[0] if sample.original_px else None,
        "original_height_px": sample.original_px[1] if sample.original_px else None,
        "processed_width_px": sample.processed_px[0] if sample.processed_px else None,
        "processed_height_px": sample.processed_px[1] if sample.processed_px else None,
        "content_px": sample.content_px,
        "tiles": sample.tiles,
        "visual_tokens": sample.visual_tokens,
        "text_tokens": sample.text_tokens,
        "conversions": "; ".join(sample.conversions),
        "note": sample.note,
        "answer": sample.answer,
        "image_ids": " ".join(sample.image_ids),
        "has_stages": sample.stages is not None,
        "counts": sample.timed,
    }
    if sample.stages:
        row |= _of_stages(sample.stages)
    if sample.whole:
        row |= {
            "ttft_ns": sample.whole.ttft_ns,
            "ttft_cpu_ns": sample.whole.cpu_ns,
            "total_ns": sample.whole.total_ns,
            "output_tokens": sample.whole.output_tokens,
            **({} if sample.whole.thought_ns is None else {"thought_ns": sample.whole.thought_ns}),
            **{f"server_{name.removeprefix('server_')}": value for name, value in sample.whole.server.items()},
        }
    for key, value in sample.memory.items():
        row[key if key.endswith("_bytes") else f"{key}_bytes"] = value
    return row


def _of_stages(stages: Pass) -> dict[str, Value]:
    row: dict[str, Value] = {f"{stage}_ns": value for stage, value in stages.stage_ns.items()}
    row |= {f"{stage}_device_ns": value for stage, value in stages.device_ns.items()}
    row |= {f"{stage}_cpu_ns": value for stage, value in stages.stage_cpu_ns.items() if stage != "first token"}
    row |= {f"{stage}_peak_bytes": value for stage, value in stages.stage_peak_bytes.items()}
    row |= {f"{stage}_energy_mj": value for stage, value in stages.stage_energy_mj.items()}
    row["stages_ns"] = stages_ns(stages)
    row["tpot_ns"] = tpot_ns(stages)
    return row


def stages_ns(stages: Pass) -> int:
    """Return the sum of the stages before the first token."""
    return sum(value for stage, value in stages.stage_ns.items() if "." not in stage and stage != "decode")


def tpot_ns(stages: Pass) -> float | None:
    """Return the time per output token after the first, or None where there is only one."""
    if len(stages.piece_ns) < 2:
        return None
    return (stages.piece_ns[-1] - stages.piece_ns[0]) / (len(stages.piece_ns) - 1)
