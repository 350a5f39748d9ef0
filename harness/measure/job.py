"""A job: a cell with everything that is needed to measure it. Preparing one downloads, but measures nothing."""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from harness import cards
from harness.clock import Monotonic
from harness.errors import LogError, SettingError
from harness.machine import backend, environment
from harness.measure import cell, conditions, shards
from harness.measure import request as requests
from harness.measure.asked import Asked, Protocol
from harness.measure.cell import Cell
from harness.models import weights
from harness.models.card import ModelCard, load_model_card
from harness.models.weights import Source
from harness.runlog.log import Log, Writer, complete, read
from harness.suites import examples
from harness.suites.card import SuiteCard
from harness.suites.examples import Suite


@dataclass(frozen=True, slots=True)
class Job:
    """A cell with everything that is needed to measure it."""

    asked: Asked
    wished: Asked
    """What was asked, as it was asked: the request is of that, and a process that is to measure it is asked that."""
    cell: Cell
    card: ModelCard
    suite_card: SuiteCard
    source: Source
    suite: Suite
    path: Path
    notices: tuple[str, ...]
    decisions: tuple[str, ...] = ()
    """What was decided by trial, and why: for the log."""

    @property
    def request(self) -> str:
        """The digest of what was asked (`request.of`), by which a host that knows no key finds the log."""
        return requests.of(self.wished)

    @property
    def finished(self) -> bool:
        """Whether a finished log of this very cell is there already."""
        return self.measured is not None

    @property
    def log(self) -> Path | None:
        """Where the finished log lies."""
        measured = self.measured
        return measured.path if measured else None

    @property
    def measured(self) -> Log | None:
        """The finished log, read now: of this very cell, or of this shard of it."""
        for path in dict.fromkeys((self.whole, self.path)):
            if path.is_file():
                log = read(path)
                if log.finished and not log.cut_short:
                    return log
        return None

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is doubtful before anything is measured: which of two saves the weights are, and whose card it is."""
        found = [self.source.notice] if self.source.trained and self.source.notice else []
        name = self.card.name
        if name in cards.names("models") and load_model_card(name).digest != self.card.digest:
            found.append(f"its card is not {name}, but one of this name; next: give the card's file a name of its own")
        return tuple(found)

    @property
    def total(self) -> int:
        """How many examples are to be done: a shard's, or all."""
        count = len(self.suite.examples)
        return len(shards.share(range(count), self.asked.shard, self.asked.shards)) if self.asked.shard else count

    @property
    def begun(self) -> frozenset[str]:
        """The examples that an unfinished run of it has measured already."""
        for path in (Writer(self.path).part, self.path):
            with suppress(LogError):
                if path.is_file():
                    return read(path).done
        return frozenset()

    @property
    def whole(self) -> Path:
        """Where the log of the whole cell lies, or will lie."""
        return self.cell.path(Path(self.asked.out), self.path.parent.name)

    def since(self, pooled: bool = False) -> str:
        """Say what of a finished log's conditions is not so now: its numbers are not what this command would measure.

        `pooled`: this command would have a member of a pool measure it.
        """
        log = self.measured
        since = conditions.since(log, self.cell.device, pooled) if log else ""
        unasked = "whether the server is the same was not asked" if self.cell.endpoint else ""
        return ", ".join(filter(None, [since, unasked]))

    @property
    def scored(self) -> bool:
        """Whether the answers will be scored, so that every example must be answered."""
        answering = self.asked.protocol == "ttft" and not self.cell.part
        return self.source.trained and answering and not self.suite.unscored


def expand(asked: Asked, protocols: tuple[Protocol, ...], processes: int, here: bool = True) -> list[Asked]:
    """Return the runs that one command means: protocols × parts × processes, each to be a process of its own."""
    card = cell.settle(asked, here).card
    parts: list[str | None] = [*card.part_names] if asked.isolate and card.llm else [None]
    runs = [
        replace(asked, protocol=protocol, part=part, repetition=asked.repetition + process)
        for protocol in protocols
        for part in parts
        for process in range(processes)
    ]
    return [one for each in runs for one in split(each)]


def split(asked: Asked) -> list[Asked]:
    """Return the shards of a run whose answers are to be split; what scores nothing stays whole."""
    if asked.shards == 1 or asked.shard:
        return [asked]
    if asked.protocol != "ttft" or asked.part:
        return [replace(asked, shards=1)]
    return [replace(asked, shard=number) for number in range(1, asked.shards + 1)]


def prepare(asked: Asked) -> Job:
    """Find weights and data for what was asked, and name its cell. Downloads, but measures nothing."""
    settled, wished = cell.settle(asked), asked
    asked, card = settled.asked, settled.card
    bucket = settled.settings.get("text_bucket", 0)
    if bucket and asked.protocol == "paper":
        raise SettingError(f"text_bucket={bucket}: --protocol paper has no text to pad; next: leave one out")
    # The device first: who asked for one that is not here should not wait for data and weights to learn it.
    backend.of(settled.device).open(Monotonic())
    source = _source(settled)
    if asked.no_stand_in and source.kind == "random" and asked.weights != "random" and card.adapter != "fake":
        raise SettingError(f"--no-stand-in: {source.notice}; next: --weights FOLDER, or `--weights random`")
    suite = examples.open_suite(settled.suite, asked.data, asked.limit, asked.offline)
    if asked.no_stand_in and suite.name != settled.suite.name:
        raise SettingError(f"--no-stand-in: {suite.notice}")
    notices = (*settled.notices, *settled.decisions, *(text for text in (source.notice, suite.notice) if text))
    named = Cell(
        model=card.name,
        model_digest=card.digest,
        weights=source.kind,
        weights_digest=source.digest,
        suite=suite.name,
        asked_suite=settled.suite.name,
        suite_digest=suite.card.digest,
        data=suite.origin,
        data_digest=suite.digest,
        resolution=settled.resolution,
        device=settled.device,
        engine=asked.engine,
        dtype=settled.dtype,
        protocol=asked.protocol,
        seed=asked.seed,
        settings=dict(settled.settings),
        limit=asked.limit,
        isolate=settled.isolate,
        part=asked.part,
        repetition=asked.repetition,
        decode_tokens=asked.decode_tokens,
        threads=asked.threads,
        minimum_samples=asked.minimum_samples,
        minimum_seconds=asked.minimum_seconds,
        maximum_samples=asked.maximum_samples,
        maximum_seconds=asked.maximum_seconds,
        precision=asked.precision,
        endpoint=asked.endpoint or "",
        concurrency=asked.concurrency,
        load=asked.load_levels,
    )
    path = _path(named, asked)
    complete(path)
    return Job(asked, wished, named, card, settled.suite, source, suite, path, notices, settled.decisions)


def _path(named: Cell, asked: Asked) -> Path:
    path = named.path(Path(asked.out), environment.machine_name(named.device))
    return shards.path_of(path, asked.shard, asked.shards) if asked.shard else path


def _source(settled: cell.Settled) -> Source:
    asked = settled.asked
    if asked.endpoint:
        served: Source = cell.engine(asked.engine).source(asked.model, asked.endpoint, asked.weights)
        return served
    return weights.resolve(settled.card, asked.weights, asked.offline, settled.settings)


def afresh(job: Job, taken: Collection[Path] = ()) -> Job:
    """Return `job` as the next repetition of its cell that has no log yet: history is never overwritten.

    A shard goes with its whole: what is left of a repetition that is not whole yet is measured first. `taken` are the
    (whole) logs that other runs of the same command will write.
    """
    while job.whole.is_file() or job.whole in taken:
        job = repeated(job, job.cell.repetition + 1)
    return job


def repeated(job: Job, repetition: int) -> Job:
    """Return `job` as this repetition of its cell."""
    again = replace(job.cell, repetition=repetition)
    asked, wished = (replace(one, repetition=repetition) for one in (job.asked, job.wished))
    return replace(job, asked=asked, wished=wished, cell=again, path=_path(again, asked))
