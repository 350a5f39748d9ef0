"""Which nights there are, and what their run logs say: broken, invalid, or a point of the series.

History is the run logs themselves: `<out>/<night>/against-<baseline>/{checkpoint,baseline}/<machine>/*.jsonl`, or
`<out>/<night>/alone/checkpoint/...`. Nothing else is kept, so histories merge by copying folders.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal

from harness import hub
from harness.errors import DataError, SettingError
from harness.machine import environment
from harness.measure import cell as cells
from harness.measure.asked import Asked
from harness.reports import frame
from harness.reports.frame import Frame, Skipped
from harness.runlog.log import Log
from harness.track import contents, ratios
from harness.track.contents import Content
from harness.track.ratios import Times

State = Literal["missing", "unready", "broken", "invalid", "valid"]
"""`unready`: trouble that may pass (half-written files, no memory tonight); the same command tries again."""


@dataclass(frozen=True, slots=True)
class Night:
    """One checkpoint: a folder, or a commit of a Hub repository that becomes one when it is needed."""

    name: str
    folder: Path | None = None
    repo: str = ""
    commit: str = ""

    def fetched(self, patterns: Sequence[str]) -> Path:
        """Return the checkpoint's folder, downloading it if need be."""
        if self.folder is not None:
            return self.folder
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.repo, revision=self.commit, allow_patterns=list(patterns)))
        except Exception as error:
            raise DataError(
                f"{self.repo} at {self.commit}: cannot be downloaded ({type(error).__name__}: {error}); "
                "next: check the network and the token, or give a folder"
            ) from error


@dataclass(frozen=True, slots=True)
class Series:
    """What must be equal for nights to be points of one series."""

    machine: str
    device: str
    engine: str
    dtype: str
    resolution: int
    model: str
    suite: str
    protocol: str

    @property
    def title(self) -> str:
        """A readable name."""
        rest = [] if self.protocol == "ttft" else [self.protocol]
        parts = [self.model, self.suite, f"{self.resolution}px", self.device, self.engine, self.dtype, *rest]
        return " ".join([*parts, "on", self.machine])

    def has(self, log: Log) -> bool:
        """Return whether `log` belongs to the series."""
        cell = log.header.cell
        named = {name: cell.get(name) for name in ("device", "engine", "dtype", "resolution", "model", "protocol")}
        machine = log.header.environment.get("machine") or log.path.parent.name
        mine = {name: getattr(self, name) for name in named}
        return named == mine and machine == self.machine and cell.get("asked_suite") == self.suite


def series(asked: Asked) -> Series:
    """Return the series of what is asked, on this machine."""
    settled = cells.settle(asked)
    return Series(
        environment.machine_name(settled.device),
        settled.device,
        asked.engine,
        settled.dtype,
        settled.resolution,
        settled.card.name,
        settled.suite.name,
        asked.protocol,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What the logs say of one night. `rounds` are (baseline, candidate) pairs of runs of layer 1."""

    night: str
    state: State
    reason: str = ""
    candidate: Frame | None = None
    baseline: Frame | None = None
    rounds: tuple[tuple[Times, Times], ...] = ()
    median_ns: float | None = None
    n: int = 0
    refused: int = 0
    at: str = ""
    fingerprint: tuple[tuple[str, str], ...] = ()
    interleaved: bool = True
    torn: bool = False
    """Whether a run of either is unfinished, or trouble that may pass ended it; the same command resumes it."""
    given_up: str = ""
    """Which run ended after too many failures in a row, and why: what is left of it says nothing of the rest."""
    skipped: tuple[Skipped, ...] = ()
    changed: str = ""
    """How the checkpoint, or the question, differs from what an earlier log under this name was measured on."""

    repetitions: int = 0
    """How often it was measured: the number of the next run."""

    @property
    def is_point(self) -> bool:
        """Whether the night counts for the history: the median of what was left before a run was given up does not."""
        return self.state == "valid" and not self.given_up


@dataclass(frozen=True, slots=True)
class Discovered:
    """The checkpoints in a folder, oldest first, and a line for each folder in it that is none."""

    nights: tuple[Night, ...]
    notices: tuple[str, ...] = ()


def discover(folder: Path) -> Discovered:
    """Return the checkpoint folders in `folder` by name, numbers by their value (step-100 after step-20).

    A link to another of them (`latest`) is that other one, and not a night of its own.
    """
    if not folder.is_dir():
        raise SettingError(f"{folder}: no such folder; next: give a folder of checkpoint folders, or --repo ID")
    found = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if not found:
        raise SettingError(f"{folder}: has no folder in it; next: one folder for each nightly checkpoint")
    found.sort(key=lambda path: natural(path.name))
    real = {path.resolve(): path.name for path in found if not path.is_symlink()}
    kept, notices = [], []
    for path in found:
        if path.is_symlink() and path.resolve() in real:
            notices.append(f"{path.name} is a link to {real[path.resolve()]}, which is tracked under its own name")
        elif not contents.is_checkpoint(path):
            notices.append(f"{path.name} holds no weights and no config.json: not a checkpoint, left out")
        else:
            real.setdefault(path.resolve(), path.name)
            kept.append(Night(path.name, path))
    if not kept:
        raise SettingError(
            f"{folder}: no folder in it holds weights ({notices[0]}); next: give the checkpoints' folder"
        )
    return Discovered(tuple(kept), tuple(notices))


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return what sorts names as people do."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def of_repo(repo: str, revision: str | None = None) -> list[Night]:
    """Return the commits of a Hub repository, oldest first, as nights named by date and commit."""
    return [
        Night(f"{made_at:%Y-%m-%d-%H%M}-{commit[:8]}", None, repo, commit)
        for made_at, commit in hub.commits(repo, revision)
    ]


def job_folder(out: Path, night: str, baseline: str | None) -> Path:
    """Return where one job's logs of a night lie."""
    return out / night / (f"against-{baseline}" if baseline else "alone")


@dataclass(frozen=True, slots=True)
class Expected:
    """What a night's logs must be of: the series, and what both checkpoints hold now (None: anything)."""

    series: Series
    mine: Content | None = None
    theirs: Content | None = None
    their_series: Series | None = None


def read(out: Path, night: str, expected: Expected, baseline: str | None) -> Reading:
    """Read a night: the job against `baseline` if there is one, else any job."""
    first = job_folder(out, night, baseline)
    others = sorted((path for path in (out / night).glob("*") if path.is_dir() and path != first), reverse=True)
    skipped: list[Skipped] = []
    chosen: Reading | None = None
    for folder in [first, *others]:
        if chosen is not None and chosen.state != "missing":
            break
        beside = bool(baseline) and folder == first
        found = _read_job(folder, night, expected, beside)
        skipped += found.skipped
        changed = found.changed or (chosen.changed if chosen else "")
        chosen = replace(found, changed=changed)
    assert chosen
    return replace(chosen, skipped=tuple(skipped))


def _read_job(folder: Path, night: str, expected: Expected, beside: bool) -> Reading:
    mine, skipped, changed = _logs(folder / "checkpoint", night, expected.series, expected.mine)
    others = None
    if beside:
        series = expected.their_series or expected.series
        others, more, _ = _logs(folder / "baseline", night, series, expected.theirs)
        skipped = (*skipped, *more)
    return replace(reading(night, mine, others, skipped), changed=changed)


def reading(night: str, mine: Frame, theirs: Frame | None, skipped: tuple[Skipped, ...] = ()) -> Reading:
    """Return what the logs of a candidate, and those of the baseline beside it, come to."""
    if not mine.records:
        return Reading(night, "missing", "not measured", skipped=skipped)
    logs = sorted(mine.records.values(), key=_repetition)
    timed = [sample for log in logs for sample in log.samples if sample.phase == "timed"]
    failures = [failure for log in logs for failure in log.failures]
    others = sorted(theirs.records.values(), key=_repetition) if theirs else []
    done = [log for log in logs if _done(log)]
    found = Reading(
        night,
        "valid",
        candidate=mine,
        baseline=theirs,
        at=logs[0].header.started_at,
        fingerprint=fingerprint(logs[0]),
        refused=sum(not sample.valid for sample in timed),
        torn=not all(map(_done, (*logs, *others))),
        repetitions=1 + max(map(_repetition, logs)),
        skipped=skipped,
    )
    if failures and not timed:
        passing = all(failure.passing for failure in failures)
        return replace(found, state="unready" if passing else "broken", reason=failures[-1].message)
    found = replace(found, given_up=_given_up(logs, "tonight") or _given_up(others, "the baseline beside it"))
    times = {id(log): ratios.times(log) for log in done}
    ttfts = [row["ttft"] for one in times.values() for row in one.values()]
    if not ttfts:
        reasons = Counter(reason for sample in timed for reason in sample.reasons)
        told = ", ".join(f"{reason} {count} times" for reason, count in reasons.most_common())
        why = "the run did not finish" if found.torn else f"the gate refused every sample ({told or 'no reason kept'})"
        return replace(found, state="invalid", reason=why)
    rounds, turns = [], True
    for other in others:
        for log in done:
            both = (ratios.times(other), times[id(log)])
            if _repetition(log) == _repetition(other) and all(both):
                rounds.append(both)
                turns = turns and ratios.interleaved(other, log)
    return replace(found, rounds=tuple(rounds), median_ns=median(ttfts), n=len(ttfts), interleaved=turns)


def _done(log: Log) -> bool:
    return log.finished and not log.cut_short


def _given_up(logs: Sequence[Log], whose: str) -> str:
    for log in logs:
        if log.footer and log.footer.stopped == "failures" and log.failures:
            last = log.failures[-1]
            return f"a run of {whose} was given up after too many failures in a row ({last.stage}: {last.message})"
    return ""


def _repetition(log: Log) -> int:
    return int(str(log.header.cell.get("repetition") or 0))


def _logs(folder: Path, night: str, wanted: Series, content: Content | None) -> tuple[Frame, tuple[Skipped, ...], str]:
    """Return the logs that count, what could not be read, and what a log under this name was measured on instead."""
    if not folder.is_dir():
        return frame.frame({}, {}), (), ""
    found = frame.load(folder)
    skipped = tuple(Skipped(f"{night}/{one.log}", one.reason) for one in found.skipped)
    mine = {name: log for name, log in found.records.items() if wanted.has(log)}
    unlike = {name: told for name, log in mine.items() if content and (told := content.unlike(log))}
    last = max(unlike, key=lambda name: mine[name].header.started_at, default=None)
    return found.only(name for name in mine if name not in unlike), skipped, unlike[last] if last else ""


ENVIRONMENT = ("os", "kernel", "architecture", "python", "cpu", "cores", "cores_usable", "cpu_quota_cores",
               "cpu_governor", "virtual_machine", "container", "harness", "preloaded")  # fmt: skip
UNIMPORTANT = ("env_HF_HUB_OFFLINE", "env_HF_DATASETS_OFFLINE", "env_HARNESS_OFFLINE", "env_PYTHONHASHSEED")
ASKED = ("suite_digest", "seed", "limit", "sampling", "decode_tokens", "isolate")
DEVICE = ("model", "driver", "cuda", "cudnn", "threads", "isa", "power_limit_w", "os", "metal")


def fingerprint(log: Log) -> tuple[tuple[str, str], ...]:
    """Return what must stay the same for times to be of one segment: system, driver, packages, data, card."""
    header = log.header
    facts = {
        name: value
        for name, value in header.environment.items()
        if name in ENVIRONMENT or (name.startswith(("package_", "env_")) and name not in UNIMPORTANT)
    }
    facts |= {f"device {name}": value for name, value in header.device.items() if name in DEVICE}
    facts["data"] = str(header.cell.get("data_digest"))
    facts["card"] = str(header.cell.get("model_digest"))
    facts["sampling"] = str(header.cell.get("sampling"))  # other examples are timed: another level is no news
    facts |= {name: str(header.cell.get(name)) for name in ASKED if name in header.cell}
    return tuple(sorted(facts.items()))


def difference(before: Reading, after: Reading) -> str:
    """Say what of the fingerprint changed: `os Debian 12 → Debian 13`; nothing where it did not."""
    old, new = dict(before.fingerprint), dict(after.fingerprint)
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return ", ".join(f"{name} {old.get(name, 'none')} → {new.get(name, 'none')}" for name in names)


def segment(readings: Sequence[Reading]) -> tuple[list[Reading], str]:
    """Return the valid nights since the last change of the fingerprint, and what had changed then."""
    points = [reading for reading in readings if reading.is_point]
    for index in range(len(points) - 1, 0, -1):
        changed = difference(points[index - 1], points[index])
        if changed:
            return points[index:], f"new segment from {points[index].night}: {changed}"
    return points, ""
