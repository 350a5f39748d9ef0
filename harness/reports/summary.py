"""What each cell came to: medians with 95 % intervals, residual, tokens, memory, accuracy, and every mark and doubt.

Fresh processes of one cell (repetitions) are one summary; so are the parts of an isolated cell, whose medians are added
up.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from harness import stats
from harness.errors import HarnessError
from harness.models.card import load_model_card
from harness.models.protocol import STAGES
from harness.reports import checks, configuration, hardware, served
from harness.reports import frame as logs_
from harness.reports.accuracy import Accuracy
from harness.reports.configuration import Configuration
from harness.reports.frame import Cell, Frame
from harness.reports.hardware import Hardware
from harness.reports.marks import MARKS, symbols
from harness.runlog import conditions
from harness.runlog.log import Log
from harness.runlog.records import Header, Sample
from harness.stats import Estimate, Percentile

Parts = tuple[tuple[float, ...], ...]
"""Raw samples behind a time: a tuple for each part whose medians are added up (one, unless stages were isolated)."""
PERCENTILES = (0.90, 0.95, 0.99)
UNASKED = Accuracy("", reason="scores were not asked for")


@dataclass(frozen=True, slots=True)
class Process:
    """What is true of a cell's runs as a whole."""

    trained: bool
    emulated: str
    """Why the times are not a real machine's, or nothing."""
    route: str
    """By which code: `own`, `auto` (transformers' classes), or nothing where the log does not say."""
    torn: bool
    failures: int
    count: int
    """Fresh processes."""
    stopped: str
    """Which rules ended the runs; nothing where they were cut off."""
    repositories: tuple[str, ...]
    """The Hub's, `OWNER/NAME@COMMIT`, that the weights came from, where the logs say so."""
    weights_notice: str
    data_notice: str
    clock: str
    sync: str
    started_at: str
    image_backend: str
    """By which library images were resized, in the log's words; nothing where it does not say."""


@dataclass(frozen=True, slots=True, eq=False)
class Times:
    """Medians with their intervals, from the samples that count: timed, valid and with a stage pass.

    Where the gate refused every sample, from the refused ones: `valid` is then 0 and a mark says so.
    """

    additive: bool
    """TTFT is a sum of stages that were timed apart."""
    missing: str
    """Parts and stages without which there is no sum."""
    n: int
    valid: int
    """Samples that count; answers made for their score alone are no samples of times."""
    refused: int
    median_ns: Mapping[str, Estimate]
    """By `ttft`, stage (also `encode.siglip`, `encode+project`), `tpot` and `cold_ttft`; what was measured."""
    series_ns: Mapping[str, Parts]
    """The raw samples of `ttft` and the stages."""
    ttft_percentiles: tuple[Percentile, ...] = ()
    residual_percent: float | None = None
    between_process_percent: float | None = None
    energy_mj: Mapping[str, float] = field(default_factory=dict)
    without_tpot: str = ""
    """How many answers of a server have no time per token, and why."""

    def of(self, name: str) -> Estimate | None:
        """Return the median of `ttft`, a stage (`encode+project`), `tpot` or `cold_ttft`; None: it was not measured."""
        return self.median_ns.get(name)

    def ns(self, name: str) -> float | None:
        """Return the same without its interval."""
        found = self.median_ns.get(name)
        return found.value if found else None

    def parts_ns(self, names: Sequence[str]) -> list[tuple[float, ...]]:
        """Return the raw samples whose medians add up to the sum of these times."""
        return [part for name in names for part in self.series_ns.get(name, ()) if part]


@dataclass(frozen=True, slots=True)
class Tokens:
    """What the model saw: medians over the timed samples."""

    visual: float | None
    visual_low: float | None
    visual_high: float | None
    text: float | None
    tiles: float | None
    content_px: float | None
    original_px: str
    """Width × height."""
    processed_px: str

    @property
    def content_px_per_token(self) -> float | None:
        """How many pixels of the image each visual token stands for."""
        return self.content_px / self.visual if self.content_px and self.visual else None


@dataclass(frozen=True, slots=True)
class Memory:
    """The largest memory use of any sample, and whose it is (the device allocator's, the process's)."""

    peak_bytes: int | None
    of: str
    not_told: str = ""
    """Whose memory is not in it ("Core ML's"); nobody's."""

    @property
    def whole_bytes(self) -> int | None:
        """The peak, where nothing is missing from it: only such a one is compared with a budget."""
        return None if self.not_told else self.peak_bytes


@dataclass(frozen=True, slots=True)
class Basis:
    """On what the times rest: how many distinct images of how many, and which part of the suite is shaped like them."""

    images: int
    suite_images: int
    share_of_shapes: float | None
    """Share of the suite's examples that have a shape (tiles, tokens, pixels) which was timed."""


@dataclass(frozen=True, slots=True, eq=False)
class CellSummary:
    """One measured cell."""

    cell: Configuration
    logs: tuple[str, ...]
    process: Process
    times: Times
    tokens: Tokens
    memory: Memory
    hardware: Hardware
    accuracy: Accuracy
    marks: tuple[str, ...]
    doubts: tuple[str, ...]
    basis: Basis | None = None
    """None where the logs do not say it: those of before 2026-11-25, and runs that were cut off."""
    headers: tuple[Header, ...] = ()
    """Of its logs: under what it was measured (see `likeness`)."""

    @property
    def mark(self) -> str:
        """The marks' symbols."""
        return symbols(self.marks)


def summaries(frame: Frame, accuracies: Mapping[Configuration, Accuracy] | None = None) -> tuple[CellSummary, ...]:
    """Return what each cell of `frame` came to, in a stable order, with its accuracy (`accuracy.of`)."""
    return tuple(_summary(cell, (accuracies or {}).get(cell.configuration, UNASKED)) for cell in frame.cells)


def _summary(cell: Cell, accuracy: Accuracy) -> CellSummary:
    about, logs = cell.configuration, list(cell.logs.values())
    process, times, found = _process(logs), _times(about, logs), hardware.of(logs)
    return CellSummary(
        about,
        tuple(cell.logs),
        process,
        times,
        _tokens(logs),
        _memory(logs),
        found,
        accuracy,
        _marks(about, process, times),
        (*_doubts(about, process, times, logs), *found.doubts),
        _basis(logs),
        tuple(log.header for log in logs),
    )


# --- which samples count ---


@dataclass(frozen=True, slots=True)
class Timed:
    """A sample that counts for times, and where it comes from."""

    part: str
    process: int
    sample: Sample
    ends_counted: bool = True
    """Whether the cell's server counts the token that ends an answer."""

    @property
    def pace(self) -> served.Pace | None:
        """The time per token of a server's answer, or why it has none; None for any other model."""
        whole = self.sample.whole
        return served.pace(whole, self.ends_counted) if whole and whole.server else None

    def ns(self, name: str) -> float | None:
        """Return one of its times."""
        stages, whole = self.sample.stages, self.sample.whole
        if name == "ttft":
            return whole.ttft_ns if whole else None
        if name == "tpot" and (pace := self.pace):
            return pace.ns
        if stages is None:
            return None
        if name == "tpot":
            return logs_.tpot_ns(stages)
        return logs_.stages_ns(stages) if name == "stages" else stages.stage_ns.get(name)


def timed(logs: Sequence[Log]) -> list[Timed]:
    """Return the samples that count for times: timed, valid, and not answered for their score alone.

    Where the gate refused every one, those are returned all the same: a doubt then says that no figure may be quoted.
    """
    found = _offered(logs)
    return [one for one in found if one.sample.valid] or found


def _offered(logs: Sequence[Log]) -> list[Timed]:
    """Return the samples that were made to be timed, those too that the gate refused.

    Answers that were made for their score alone are of the same phase; the gate never looks at them. What a sample of
    the cell joins is joined in all (`_joined`).
    """
    joined, ends = _joined_names(logs), served.ends_counted(served.passes(logs))
    return [
        Timed(configuration.part(log), number, _joined(sample, joined), ends)
        for log, number in zip(logs, _processes(logs), strict=True)
        for sample in log.samples
        if sample.phase == "timed" and sample.timed
    ]


def _joined_names(logs: Sequence[Log]) -> tuple[str, ...]:
    """Return the stages that were timed as one in some sample of the cell, such as `encode+project`."""
    return tuple(sorted({name for stages in _stage_names(logs) for name in stages if "+" in name}))


def _joined(sample: Sample, names: Sequence[str]) -> Sample:
    """Return the sample with these stages as one, where it has them apart.

    A model may divide encode and project for one page and not for the next: a median of encode over the pages that it
    divides would be one of small pages alone.
    """
    stages = sample.stages
    if stages is None or not names:
        return sample
    tables = ("stage_ns", "device_ns", "stage_cpu_ns", "stage_energy_mj")
    changed = {table: _added_up(getattr(stages, table), names) for table in tables}
    return msgspec.structs.replace(sample, stages=msgspec.structs.replace(stages, **changed))


def _added_up(table: Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    found = dict(table)
    for name in names:
        within = [one for one in found if one != name and set(one.split("+")) <= set(name.split("+"))]
        if within:
            found[name] = found.get(name, 0) + sum(found.pop(one) for one in within)
    return found


def _processes(logs: Sequence[Log]) -> list[int]:
    """Return which fresh process of the cell each log is of; the parts of an isolated cell have the same numbers.

    Not by the repetition alone: logs of several folders may have the same one.
    """
    order = sorted(logs, key=lambda log: (configuration.repetition(log), log.header.started_at))
    numbers: dict[int, int] = {}
    seen: Counter[str] = Counter()
    for log in order:
        numbers[id(log)] = seen[configuration.part(log)]
        seen[configuration.part(log)] += 1
    return [numbers[id(log)] for log in logs]


def _images(logs: Sequence[Log], samples: Sequence[Timed]) -> list[str] | None:
    """Return the image of each sample, which the intervals of their times are clustered by.

    None where all of the suite's images were timed (then none was left to chance), or one is not named.
    """
    if any(_all_images(log) for log in logs) or any(not one.sample.image_ids for one in samples):
        return None
    return [" ".join(one.sample.image_ids) for one in samples]


def _all_images(log: Log) -> bool:
    rests_on = log.footer.rests_on if log.footer else {}
    return bool(rests_on) and rests_on.get("images", 0) >= rests_on.get("suite_images", 1)


def _values(samples: Sequence[Timed], name: str) -> tuple[float, ...]:
    return tuple(float(value) for one in samples if (value := one.ns(name)) is not None)


def _by_part(samples: Sequence[Timed]) -> list[list[Timed]]:
    names = sorted({one.part for one in samples if one.part})
    return [[one for one in samples if one.part == name] for name in names]


# --- times ---


def _times(about: Configuration, logs: Sequence[Log]) -> Times:
    good = timed(logs)
    additive = about.isolate or about.protocol == "paper"
    wanted = ("encode", "prefill") if about.protocol == "paper" else STAGES
    inner = {name for one in good if one.sample.stages for name in one.sample.stages.stage_ns if {".", "+"} & {*name}}
    series = {stage: parts for stage in STAGES if (parts := _parts(good, (stage,), about.isolate))}
    medians = {stage: _added(logs, good, (stage,), about.isolate) for stage in series}
    missing = _missing(about, good, series, wanted) if additive else ""
    shown: tuple[str, ...] = () if missing else wanted if additive else ("ttft",)
    ttft = _parts(good, shown, about.isolate)
    if ttft and (total := _added(logs, good, shown, about.isolate)).n:
        series["ttft"], medians["ttft"] = ttft, total
    medians |= {name: found for name in (*sorted(inner), "tpot") if (found := _median(logs, good, name)).n}
    cold = [Timed("", 0, sample) for log in logs for sample in log.samples if sample.phase == "cold"]
    if starts := _values(cold, "ttft"):
        medians["cold_ttft"] = stats.median_interval(starts)  # one a process, whatever its image
    offered = [one.sample for one in _offered(logs)]
    return Times(
        additive=additive,
        missing=missing,
        n=min((len(part) for part in _by_part(good)), default=0) if about.isolate else len(good),
        valid=sum(sample.valid for sample in offered),
        refused=sum(not sample.valid for sample in offered),
        median_ns=medians,
        series_ns=series,
        ttft_percentiles=() if additive or not ttft else tuple(stats.percentile(ttft[0], q) for q in PERCENTILES),
        residual_percent=None if additive else _residual(good),
        between_process_percent=_between_processes(good, wanted if additive else ("ttft",), about.isolate),
        energy_mj=dict(_energies(good)),
        without_tpot=served.without_pace([pace for one in good if (pace := one.pace)]),
    )


def _passes(good: Sequence[Timed], names: Sequence[str], isolate: bool) -> list[tuple[list[Timed], list[str]]]:
    """Return the samples of each part that was loaded alone (or all samples), and which of these times it has.

    Every encoder's process prepares the images for all of them: that counts once, where it took longest.
    """
    loaded = _by_part(good) if isolate else [list(good)]
    prepared = [float(np.median(_values(mine, "preprocess") or (-1.0,))) for mine in loaded]
    found = []
    for number, mine in enumerate(loaded):
        once = number == prepared.index(max(prepared))
        here = [name for name in names if (once or name != "preprocess") and _values(mine, name)]
        found += [(mine, here)] if here else []
    return found


def _parts(good: Sequence[Timed], names: Sequence[str], isolate: bool) -> Parts:
    """Return the samples of these times, a tuple for each time and part whose medians are to be added up."""
    return tuple(_values(mine, name) for name in names for mine, _ in _passes(good, (name,), isolate))


def _added(logs: Sequence[Log], good: Sequence[Timed], names: Sequence[str], isolate: bool) -> Estimate:
    """Return the sum of the medians of these times: those of the same passes wander together, those of parts do not."""
    each = []
    for mine, here in _passes(good, names, isolate):
        rows = [one for one in mine if all(one.ns(name) is not None for name in here)]
        values = [_values(rows, name) for name in here]
        each.append(stats.sum_of_medians(values, together=True, clusters=_images(logs, rows)))
    return stats.sum_of_estimates(each)


def _median(logs: Sequence[Log], good: Sequence[Timed], name: str) -> Estimate:
    """Return the median of one time over all samples that have it."""
    rows = [one for one in good if one.ns(name) is not None]
    return stats.median_interval(_values(rows, name), clusters=_images(logs, rows))


def _residual(good: Sequence[Timed]) -> float | None:
    pairs = [(whole, one.ns("stages")) for one in good if (whole := one.ns("ttft")) is not None]
    shares = [100 * (whole - stages) / whole for whole, stages in pairs if stages is not None and whole]
    return float(np.median(shares)) if shares else None


def _missing(about: Configuration, good: Sequence[Timed], series: Mapping[str, Parts], wanted: Sequence[str]) -> str:
    stages = [f"stage {stage}" for stage in wanted if stage not in series and stage != "project"]
    return ", ".join([*_missing_parts(about, good), *stages])


def _missing_parts(about: Configuration, good: Sequence[Timed]) -> list[str]:
    if not about.isolate:
        return []
    try:
        wanted = load_model_card(about.model).part_names
    except HarnessError:
        wanted = ["llm"]
    if wanted and "llm" not in wanted:
        return []
    present = {one.part for one in good}
    return [f"part {part}" for part in wanted if part not in present]


def _between_processes(good: Sequence[Timed], names: Sequence[str], isolate: bool) -> float | None:
    """Return how far apart the processes lie, in percent of their median; where a sum is shown, by their sums."""
    found: list[list[float]] = []
    for number in sorted({one.process for one in good}):
        mine = [one for one in good if one.process == number]
        found.append([float(np.median(values)) for values in _parts(mine, names, isolate)])
    complete = max((len(medians) for medians in found), default=0)
    totals = [sum(medians) for medians in found if medians and len(medians) == complete]
    if len(totals) < 2:
        return None
    return float(100 * (max(totals) - min(totals)) / np.median(totals))


def _energies(good: Sequence[Timed]) -> Iterator[tuple[str, float]]:
    for stage in STAGES:
        values = [
            value
            for one in good
            if one.sample.stages and (value := one.sample.stages.stage_energy_mj.get(stage)) is not None
        ]
        if values:
            yield stage, float(np.median(values))


# --- the rest ---


def _process(logs: Sequence[Log]) -> Process:
    first = logs[0].header
    return Process(
        trained=all(logs_.trained(log) for log in logs),
        emulated=next(filter(None, map(logs_.emulation, logs)), ""),
        route=str(first.effective.get("route") or ""),
        torn=any(logs_.torn(log) for log in logs),
        failures=sum(len(log.lasting) for log in logs),
        count=len(set(_processes(logs))),
        stopped=", ".join(sorted({log.footer.stopped for log in logs if log.footer})),
        repositories=tuple(sorted({name for log in logs if (name := log.header.weights.get("repository"))})),
        weights_notice=next(filter(None, (log.header.weights.get("notice", "") for log in logs)), ""),
        data_notice=next(filter(None, (log.header.data.get("notice", "") for log in logs)), ""),
        clock=str(first.device.get("clock") or ""),
        sync=str(first.device.get("sync") or ""),
        started_at=min(log.header.started_at for log in logs),
        image_backend=str(first.effective.get("image_backend") or ""),
    )


def _tokens(logs: Sequence[Log]) -> Tokens:
    seen = [sample for log in logs for sample in log.samples if sample.phase == "timed"]

    def positive(values: Sequence[int | None]) -> list[int]:
        return [value for value in values if value]

    def middle(values: Sequence[int | None]) -> float | None:
        present = positive(values)
        return float(np.median(present)) if present else None

    def sides(pairs: Sequence[tuple[int, int] | None]) -> str:
        present = [pair for pair in pairs if pair]
        return "×".join(f"{float(np.median(values)):.0f}" for values in zip(*present, strict=True))

    visual = positive([sample.visual_tokens for sample in seen])
    return Tokens(
        visual=middle(visual),
        visual_low=float(min(visual)) if visual else None,
        visual_high=float(max(visual)) if visual else None,
        text=middle([sample.text_tokens for sample in seen]),
        tiles=middle([sample.tiles for sample in seen]),
        content_px=middle([sample.content_px for sample in seen]),
        original_px=sides([sample.original_px for sample in seen]),
        processed_px=sides([sample.processed_px for sample in seen]),
    )


def _basis(logs: Sequence[Log]) -> Basis | None:
    """Return what the times rest on; of several processes or parts, the least share that one of them saw."""
    told = [log.footer.rests_on for log in logs if log.footer and log.footer.rests_on]
    if not told or len(told) < len(logs):
        return None
    images = {one.sample.image_ids for one in timed(logs) if one.sample.image_ids}
    shares = [facts["share_of_suite_of_these_shapes"] for facts in told if "share_of_suite_of_these_shapes" in facts]
    total = max(int(facts.get("suite_images", 0)) for facts in told)
    return Basis(len(images), total, min(shares, default=None))


def _memory(logs: Sequence[Log]) -> Memory:
    samples = [sample for log in logs for sample in log.samples]
    peaks = [value for sample in samples if sample.stages for value in sample.stages.stage_peak_bytes.values()]
    device = logs[0].header.device
    # logs of before 26 November 2026 do not say it
    older = "Core ML's" if logs[0].header.cell.get("engine") == "coreml+mlx" else ""
    not_told = str(device.get("memory_not_told", older))
    if peaks:
        return Memory(max(peaks), str(device.get("peak_memory") or "device allocator"), not_told)
    told = [sample.memory.get(name) for sample in samples for name in ("rss_bytes", "allocated_bytes")]
    whole = [value for value in told if value is not None]
    return Memory(max(whole), "process", not_told) if whole else Memory(None, "", not_told)


def _marks(about: Configuration, process: Process, times: Times) -> tuple[str, ...]:
    """Return the marks that the cell must carry wherever it is shown."""
    present = {
        "random": not process.trained,
        "embedded": about.data == "embedded",
        "isolated": about.isolate,
        "paper": about.protocol == "paper",
        "auto": process.route == "auto",
        "emulated": bool(process.emulated),
        "served": bool(about.endpoint),
        "torn": process.torn,
        "refused": bool(times.n) and not times.valid,
    }
    return tuple(mark for mark in MARKS if present.get(mark))


def _stage_names(logs: Sequence[Log]) -> Iterator[Iterable[str]]:
    return (sample.stages.stage_ns for log in logs for sample in log.samples if sample.stages)


def _why_joined(logs: Sequence[Log], name: str) -> str:
    """Return why these stages are one: of all samples, or of some and then of all (`_joined`)."""
    all_names = [set(one.stages.stage_ns) for log in logs for one in log.samples if one.stages and one.phase == "timed"]
    divided = sum(name not in names and name.partition("+")[0] in names for names in all_names)
    if not divided:
        return "nothing in this model divides them"
    return f"nothing divides them in {len(all_names) - divided} of {len(all_names)} samples; the others' are added up"


def _doubts(about: Configuration, process: Process, times: Times, logs: Sequence[Log]) -> tuple[str, ...]:
    """Return in words what makes the cell doubtful."""
    found = []
    if times.missing:
        found.append(f"incomplete: {times.missing} not measured")
    for name in _joined_names(logs):
        found.append(f"{name.replace('+', ' and ')} are timed as one: {_why_joined(logs, name)}")
    if process.failures:
        found.append(f"{process.failures} examples failed")
    if times.n == 0:
        found.append("no timed sample")
    elif not times.valid:
        found.append(
            "the gate refused every sample: these figures are of refused ones, do not quote them; see `harness doctor`"
        )
    found += served.doubts(logs)
    found += [f"{doubt.text}; {doubt.advice}" for doubt in _examined(about, process, times, logs)]
    return tuple(found)


def _examined(about: Configuration, process: Process, times: Times, logs: Sequence[Log]) -> list[checks.Doubt]:
    offered = [one.sample for one in _offered(logs)]
    if not offered:
        return checks.examine(checks.Measured(finished=not process.torn))
    good = timed(logs)
    rows = [] if times.additive else [one for one in good if one.ns("ttft") is not None]
    if not about.endpoint:  # a server tells no stages to compare TTFT with
        rows = [one for one in rows if one.ns("stages") is not None]
    host, device = _clocks(good)
    others = {} if rows else _headlines(about, good)
    cell = checks.Measured(
        _values(rows, "ttft"),
        () if about.endpoint else _values(rows, "stages"),
        others_ns=None if rows else {what: [ns for _, ns in found] for what, found in others.items()},
        images={"TTFT": _images(logs, rows)}
        | {what: _images(logs, [one for one, _ in found]) for what, found in others.items()},
        valid=[sample.valid for sample in offered],
        reasons=[list(sample.reasons) for sample in offered],
        cold_ns=None if times.additive else times.ns("cold_ttft"),
        host_ns=host,
        device_ns=device,
        finished=not process.torn,
    )
    differing = conditions.differences([log.header for log in logs])
    together = (checks.mixed(differing, len(logs)), checks.apart(times.between_process_percent))
    return checks.examine(cell) + [doubt for doubt in (*together, *_of_samples(logs, good)) if doubt]


def _of_samples(logs: Sequence[Log], good: Sequence[Timed]) -> list[checks.Doubt | None]:
    """Return the doubts about which samples there are: of two speeds, without the slow ones, of few images."""
    by_shape: dict[tuple[object, ...], list[float]] = {}
    for one in good:
        value = one.ns("ttft") or one.ns("stages")
        if value is not None:
            value -= one.ns("preprocess") or 0  # it is the page's: two kinds of pages are no two speeds
            key = (one.part, one.process, one.sample.tiles, one.sample.visual_tokens)
            by_shape.setdefault(key, []).append(value)
    none_valid = any(not one.sample.valid for one in good)  # then the refused ones are those that are shown
    refused = () if none_valid else _values([one for one in _offered(logs) if not one.sample.valid], "ttft")
    images = {sample.image_ids for sample in (one.sample for one in good) if sample.image_ids}
    totals = [int(log.footer.rests_on["suite_images"]) for log in logs if log.footer and log.footer.rests_on]
    few = checks.few_images(len(images), max(totals, default=None), len(good)) if images and totals else None
    return [checks.two_speeds(by_shape.values()), checks.left_out(_values(good, "ttft"), refused), few]


def _headlines(about: Configuration, good: Sequence[Timed]) -> dict[str, list[tuple[Timed, float]]]:
    """Return the series that are quoted where there is no end-to-end pass, each by its name in a doubt.

    They are the encoder's and the prefill's sum in the paper's protocol, of each part by itself where parts were
    loaded one by one, and all stages of a model without an LLM.
    """
    wanted = ("encode", "prefill") if about.protocol == "paper" else STAGES

    def sums(samples: Sequence[Timed]) -> list[tuple[Timed, float]]:
        times = [(one, [ns for stage in wanted if (ns := one.ns(stage)) is not None]) for one in samples]
        return [(one, sum(each)) for one, each in times if each]

    if about.isolate:
        return {f"part {mine[0].part}": found for mine in _by_part(good) if (found := sums(mine))}
    names = [stage for stage in wanted if any(one.ns(stage) is not None for one in good)]
    return {" + ".join(names): sums(good)} if names else {}


def _clocks(good: Sequence[Timed]) -> tuple[list[float], list[float]]:
    """Return, sample by sample, the host's and the device's own time of the stages that both clocks saw."""
    passes = [one.sample.stages for one in good if one.sample.stages]
    stages = [s for s in STAGES if any(s in p.device_ns for p in passes) and any(s in p.stage_ns for p in passes)]
    if not stages:
        return [], []
    host = [float(sum(p.stage_ns.get(stage, 0) for stage in stages)) for p in passes]
    return host, [float(sum(p.device_ns.get(stage, 0) for stage in stages)) for p in passes]
