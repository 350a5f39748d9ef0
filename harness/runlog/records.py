"""The run log's lines. Every quantity carries its unit; raw nanoseconds are kept for ever, summaries never."""

from typing import Annotated

import msgspec

from harness.errors import passes

SCHEMA = 1
# What a line may say is checked where it is read: nobody measured a negative time, or one of 300 years.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"""FLOPs, bytes, tokens: what fits a column of int64."""
Ns = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""Nanoseconds, up to 104 days: sums and medians of them stay exact."""
Ttft = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
"""Nanoseconds to the first piece: no model answers in none."""


WHOLE = ("seed", "repetition", "limit", "decode_tokens", "threads", "minimum_samples", "maximum_samples", "concurrency")
KINDS: dict[str, tuple[type, ...]] = {
    "settings": (dict,), "load": (list, tuple), "isolate": (bool,), **dict.fromkeys(WHOLE, (int, type(None))),
}  # fmt: skip
"""What a cell's fields are that are not just any text, number, truth or nothing."""


class Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", omit_defaults=True):
    """One line of a run log."""


class Header(Record, frozen=True, tag="header"):
    """What was asked and what was done about it, before anything is measured."""

    schema: int
    cell: dict[str, object]
    """The cell, all of it (`cells.Cell.as_dict`)."""
    key: str
    command: str
    started_at: str
    harness: dict[str, str]
    """version, a digest of the code that measures, and in the harness's own checkout the git commit (with `+dirty`)."""
    environment: dict[str, str]
    device: dict[str, str]
    requested: dict[str, object]
    effective: dict[str, object]
    cards: dict[str, str]
    """Digests by card: `model`, `suite`."""
    weights: dict[str, str]
    """source (local, hub, random ...), location, digest, notice."""
    data: dict[str, str]
    """origin (hub, local, embedded), name, digest, examples, notice, unscored (why nothing can be scored), and of the
    Hub's data repository and revision."""
    suite_card: dict[str, object] = {}
    """The suite's card, all of it: what scores the answers, wherever the card's file is then. Older logs lack it."""
    request: str = ""
    """The digest of what was asked (`measure.request`): by it a host that knows no key finds the log."""

    def __post_init__(self) -> None:
        """Refuse a cell that no run could have had: readers group and sort by its values."""
        for name, value in self.cell.items():
            plain = KINDS.get(name, (str, int, float, type(None)))
            if not isinstance(value, plain) or (name in WHOLE and isinstance(value, bool)):
                raise ValueError(f"the cell's {name} is a {type(value).__name__}")
        for name, value in self.effective.items():
            peak = name.startswith("peak_") and name.endswith("_per_s")
            if peak and not (isinstance(value, int | float) and value > 0):
                raise ValueError(f"{name} is {value!r}: no machine does nothing")


class Resumed(Record, frozen=True, tag="resumed"):
    """The same run went on in a new process: everything below was measured there."""

    started_at: str
    environment: dict[str, str]
    device: dict[str, str]
    lines_kept: Count
    bytes_dropped: Count
    shard: str = ""
    """Which part of the whole's answers ("2/3"), where several jobs have given them."""


class Pass(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One answer, timed. A stage pass syncs the device after every event, a whole pass only at the first piece."""

    stage_ns: dict[str, Ns] = {}
    """Host time by stage; parts of a stage as `encode.siglip`. Empty in a whole pass."""
    device_ns: dict[str, Ns] = {}
    """The device's own clock (CUDA events) over the same stages, where it has one."""
    stage_cpu_ns: dict[str, Ns] = {}
    ttft_ns: Ttft | None = None
    cpu_ns: Ns | None = None
    """CPU time of the process until the first piece."""
    piece_ns: tuple[Ns, ...] = ()
    """When each piece came, from the start of the pass; the first is TTFT."""
    total_ns: Ns = 0
    output_tokens: Count = 0
    stage_peak_bytes: dict[str, Count] = {}
    stage_energy_mj: dict[str, float] = {}
    thought_ns: Ns | None = None
    """When a server's first reasoning text came; TTFT waits for the answer's own text."""
    thoughts_ns: tuple[Ns, ...] = ()
    """When each of them came. Logs of before 2026-11-26 have the first one's time alone."""
    server: dict[str, int | float | str] = {}
    """What a server counted (`prompt_tokens`, `output_tokens`, `cached_tokens`), timed by its own clock (`server_...`),
    and how its answer came (`chunks`, `bytes_sent`). There, `piece_ns` are times of chunks, which are not tokens."""


class Sample(Record, frozen=True, tag="sample"):
    """One example, measured once: a stage pass, a whole pass, what the model saw, what it answered."""

    example: str
    index: Count
    """Position in the suite's order."""
    attempt: Count
    phase: str
    """cold (first request of the process), warmup, timed."""
    at: str
    clock: str
    stages: Pass | None = None
    whole: Pass | None = None
    original_px: tuple[Count, Count] | None = None
    processed_px: tuple[Count, Count] | None = None
    content_px: Count | None = None
    tiles: Count | None = None
    visual_tokens: Count | None = None
    text_tokens: Count | None = None
    conversions: tuple[str, ...] = ()
    note: str = ""
    answer: str | None = None
    asked_tokens: Count | None = None
    """How long the answer was allowed to be: one of as many tokens was cut off. Older logs do not say."""
    references: tuple[str, ...] = ()
    image_ids: tuple[str, ...] = ()
    """Digest of each image: what accuracy intervals are clustered by."""
    doc: dict[str, object] = {}
    """The suite's own row without its images: what lmms-eval's scorer needs."""
    valid: bool = True
    reasons: tuple[str, ...] = ()
    """Why the gate refused the sample, by name."""
    readings: dict[str, float | str | None] = {}
    """What the gate read: load, steal, frequency, temperature, throttle reasons ..."""
    memory: dict[str, Count | None] = {}
    new_shape: bool = False
    """The process met this shape (tiles, visual and text tokens) here for the first time: not a timed sample."""
    counts: bool | None = None
    """Whether its times count, or it was answered for its score alone; None: there is a stage pass if they do."""

    answer_tokens: Count | None = None
    """How many tokens an answer has that was made for its score alone: there is no pass that says it."""
    shared: str = ""
    """What such an answer shared with other questions about its images; empty where it was answered alone."""
    finish: str = ""
    """Why a server ended such an answer ("stop", "length"); of one that was timed, `whole.server` says it."""

    @property
    def timed(self) -> bool:
        """Whether its times count (if it is of the phase `timed`, and valid)."""
        return self.stages is not None if self.counts is None else self.counts


class Failure(Record, frozen=True, tag="failure"):
    """An example, or the whole cell, that could not be measured: a record, never a score."""

    example: str | None
    index: Count | None
    stage: str
    error: str
    message: str
    traceback: str
    at: str
    doc: dict[str, object] = {}

    @property
    def passing(self) -> bool:
        """Whether this is the machine's trouble, which may pass, and not the example's or the checkpoint's own."""
        return passes(self.error, self.message)


class Counted(Record, frozen=True, tag="counted"):
    """FLOPs and weight bytes by stage for examples with these token counts; and the machine's measured peak."""

    visual_tokens: Count
    text_tokens: Count
    tiles: Count
    flops: dict[str, Count]
    weight_bytes: dict[str, Count]
    note: str = ""
    """Why nothing was counted."""


class Loaded(Record, frozen=True, tag="loaded"):
    """A server timed under load: a closed loop of `concurrency` requests at a time; never mixed with requests alone."""

    concurrency: Count
    wall_ns: Ns
    ttft_ns: tuple[Ns, ...] = ()
    """Of each request, in the order in which they were sent; the first ones meet an idle server."""
    total_ns: tuple[Ns, ...] = ()
    output_tokens: tuple[Count, ...] = ()
    failures: tuple[str, ...] = ()


class Busy(Record, frozen=True, tag="busy"):
    """How long the device computed in each stage of one answer, in a pass of its own that was not timed."""

    stage_busy_ns: dict[str, Count]
    """`decode` is `pieces` tokens together; `first token` what came between prefill and the first one."""
    stage_ns: dict[str, Count]
    """What the same stages of the same example took in a timed pass."""
    pieces: Count
    method: str
    note: str = ""
    """Why there is no figure."""


class StageEnergy(msgspec.Struct, frozen=True, kw_only=True):
    """What one stage draws, in millijoules: beyond the idle device, with the bounds that the counter's steps allow."""

    above_idle_mj: float
    low_mj: float
    high_mj: float
    gross_mj: float
    repetitions: Count


class Energy(Record, frozen=True, tag="energy"):
    """What stages draw that are too short for the counter: repeated back to back, in passes of their own."""

    stages: dict[str, StageEnergy]
    idle_w: float | None
    method: str
    note: str = ""


STOPPED = {
    "precision": "the median is as sure as --precision asks",
    "maximum_samples": "--max-samples reached",
    "maximum_seconds": "--max-seconds reached",
    "examples": "every example was timed",
    "shard": "its share of the answers, which the first shard times",
    "failures": "too many failures in a row",
}
"""A footer's `stopped` in words."""


class Footer(Record, frozen=True, tag="footer"):
    """The run ended by itself: nothing more will come."""

    ended_at: str
    samples: Count
    failures: Count
    stopped: str
    """Which rule fired: precision, maximum_samples, maximum_seconds, examples (no more of them)."""
    refused: Count = 0
    note: str = ""
    rests_on: dict[str, float] = {}
    """What the figures rest on: distinct images and shapes timed, of how many (`sampling.Timed.facts`)."""


Line = Header | Resumed | Sample | Failure | Counted | Loaded | Busy | Energy | Footer
