"""One cell's answers split over several jobs or devices, and their logs put together to the log of the one cell.

The first shard times, alone on its device, as a whole run does, and answers the beginning of the order; the others
answer the rest of it and time nothing. The order is the cell's own (`sampling.draw`), so the whole log has the samples
that a run in one piece would have, in the same order.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from harness.errors import HarnessError, LogError
from harness.measure import request as requests
from harness.measure.asked import Asked
from harness.measure.cell import Cell
from harness.measure.executor import Ended, became
from harness.runlog import conditions
from harness.runlog.log import SHARD, Log, Writer, read
from harness.runlog.records import Counted, Failure, Footer, Header, Line, Resumed, Sample

LONGEST_NAME = 250


def path_of(whole: Path, shard: int, shards: int) -> Path:
    """Return where the log of one shard lies: beside the whole one, under a name that no report reads."""
    return whole.with_name(f"{whole.name}.shard{shard}of{shards}"[-LONGEST_NAME:])


def share(order: Sequence[int], shard: int, shards: int) -> frozenset[int]:
    """Return the positions that shard 1, 2, ... answers: a stretch of the order, the first one's at its beginning."""
    ends = [len(order) * part // shards for part in (shard - 1, shard)]
    return frozenset(order[ends[0] : ends[1]])


def whole(asked: Asked) -> Asked:
    """Return the wish that a shard is a part of."""
    return replace(asked, shard=0, shards=1)


def count(wanted: Iterable[Asked]) -> int:
    """Return how many cells these are, the shards of one counted once."""
    return sum(asked.shard < 2 for asked in wanted)


def gathered(ended: Iterable[Ended], notify: Callable[[str], None], leave: bool = False) -> Iterator[Ended]:
    """Yield what became of each cell: shards are told, and put together when all of them have ended.

    A cell of which some shards were not heard of is told too, unless they were left to a queue.
    """
    cells: dict[str, list[Ended]] = {}
    whose: dict[str, Asked] = {}
    for one in ended:
        if one.asked is None or not one.asked.shard:
            yield one
            continue
        request = requests.of(whole(one.asked))
        mine = cells.setdefault(request, [])
        mine.append(one)
        whose[request] = one.asked
        notify(f"{one.title}: {one.message}")
        if len(mine) == one.asked.shards:
            yield _together(cells.pop(request), one.asked)
    for request, some in cells.items() if not leave else ():
        asked = whose[request]
        told = f"only {len(some)} of {asked.shards} shards; next: the same command measures the others"
        yield Ended(requests.title(whole(asked)), None, 1, told, whole(asked))


def _together(ended: Sequence[Ended], asked: Asked) -> Ended:
    """Return what became of a cell whose shards have all ended."""
    title = requests.title(whole(asked))
    already = [one.path for one in ended if one.path and SHARD not in one.path.name]
    if already:
        found = became(already[0])
        return Ended(title, already[0], found.code, found.says(" already"), already=True)
    for one in ended:
        if one.path is None:
            return Ended(title, None, one.code or 1, f"not all shards are measured: {one.title}: {one.message}")
    paths, request = [one.path for one in ended if one.path], requests.of(whole(asked))
    try:
        path = merge(paths, request)
    except HarnessError as error:
        there = _there(paths)
        if there is None:
            return Ended(title, None, error.exit_code, str(error))
        path = there
    found = became(path)
    return Ended(title, path, found.code, found.says(f" in {asked.shards} shards"))


def _there(shards: Sequence[Path]) -> Path | None:
    """Return the whole log, where another process has put these shards together meanwhile; they are gone then."""
    for shard in shards:
        key = shard.name.partition(SHARD)[0].rpartition("-")[2]  # the beginning of a long name is not a shard's
        for path in shard.parent.glob(f"*-{key}.jsonl"):
            try:
                log = read(path)
            except LogError:
                continue
            if log.header.key == key and log.finished and not log.cut_short:
                return path
    return None


@dataclass(frozen=True, slots=True)
class _Shard:
    """The log of one shard, read once: another process may put the same shards together, and remove them."""

    log: Log
    lines: tuple[Line, ...]
    """Its records between header and footer, in the order of the file."""


def _read(path: Path) -> _Shard:
    log = read(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise LogError(f"{path}: cannot be read: {error.strerror}; next: the same command") from error
    decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
    records = [decoder.decode(line) for line in lines if line.strip()]
    return _Shard(log, tuple(record for record in records if not isinstance(record, Header | Footer)))


def merge(paths: Sequence[Path], request: str) -> Path:
    """Write the whole log of a cell from its shards', which are removed then; return where it lies.

    Raises `LogError` where they are not the shards of one cell, or some are not finished.
    """
    parts = sorted((_read(path) for path in paths), key=lambda part: _number(part.log))
    first = parts[0].log
    _check([part.log for part in parts])
    cell = Cell(**first.header.cell)  # type: ignore[arg-type]
    path = cell.path(first.path.parent.parent, first.path.parent.name)
    if not path.is_file():
        _write(path, parts, request)
    there = read(path)
    if not there.finished or there.cut_short:
        raise LogError(f"{path}: an unfinished run of the same cell; next: move it away, then again")
    if there.header.started_at == first.header.started_at:  # else the cell was measured in one piece: both stay
        for part in parts:
            part.log.path.unlink(missing_ok=True)
    return path


def _write(path: Path, parts: Sequence[_Shard], request: str) -> None:
    """Write the whole log, unless another process does so first."""
    with Writer(path) as writer:
        left = writer.open()
        if path.is_file():
            if left is None:
                writer.part.unlink(missing_ok=True)
            return
        if left is not None:
            if left.header.started_at != parts[0].log.header.started_at:
                raise LogError(f"{writer.part}: an unfinished run of the same cell; next: move it away, then again")
            writer.empty()
        for record in _lines(parts, request):
            if isinstance(record, Footer):
                writer.finish(record)
            else:
                writer.append(record)


def _number(log: Log) -> int:
    return int(str(log.header.requested.get("shard", 0)))


def _check(logs: Sequence[Log]) -> None:
    first = logs[0]
    wanted = int(str(first.header.requested.get("shards", 0)))
    if [_number(log) for log in logs] != list(range(1, wanted + 1)):
        raise LogError(f"{first.path}: {len(logs)} of {wanted} shards; next: the same command measures the others")
    for log in logs:
        if log.header.key != first.header.key:
            raise LogError(f"{log.path}: is of another cell than {first.path}; next: move one away")
        if not log.finished or log.cut_short:
            raise LogError(f"{log.path}: is not finished; next: the same command goes on with it")


@dataclass(slots=True)
class _Whole:
    """The whole log as far as it is written."""

    lines: int = 1
    samples: int = 0
    failures: int = 0
    answered: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    counted: set[tuple[int, int, int]] = field(default_factory=set)

    def take(self, record: Line) -> bool:
        """Return whether a record belongs into the whole log.

        An example that another shard has timed is not answered again, and one that fails in both has failed once.
        """
        if isinstance(record, Counted):
            shape = (record.visual_tokens, record.tiles, record.text_tokens)
            new = shape not in self.counted
            self.counted.add(shape)
            self.lines += new
            return new
        example = record.example if isinstance(record, Sample | Failure) else None
        if example is not None and example in self.answered:
            return False
        if isinstance(record, Failure) and example in self.failed:
            return False
        self.samples += isinstance(record, Sample) and record.phase == "timed"
        self.failures += isinstance(record, Failure)
        self.lines += 1
        return True


def _lines(parts: Sequence[_Shard], request: str) -> Iterator[Line]:
    """Yield the whole log: the first shard's, then what each other one has answered, each as a process of its own."""
    logs, made = [part.log for part in parts], _Whole()
    yield _header(logs, request)
    for number, part in enumerate(parts):
        if number:
            header = part.log.header
            yield Resumed(
                started_at=header.started_at,
                environment=header.environment,
                device=header.device,
                lines_kept=made.lines,
                bytes_dropped=0,
                shard=f"{number + 1}/{len(parts)}",
            )
            made.lines += 1
        yield from (record for record in part.lines if made.take(record))
        made.answered |= {each.example for each in part.log.samples if each.phase == "timed" and each.valid}
        made.failed |= {each.example for each in part.log.failures if each.example}
    footers = [log.footer for log in logs if log.footer]
    # What stopped the first one stopped the timing; but where one gave up, the answers are not all there.
    stopped = next((one.stopped for one in footers if one.stopped == "failures"), footers[0].stopped)
    yield msgspec.structs.replace(
        footers[0],
        samples=made.samples,
        failures=made.failures,
        refused=sum(one.refused for one in footers),
        stopped=stopped,
    )


def _header(logs: Sequence[Log], request: str) -> Header:
    """Return the first shard's header as the whole run's, with a doubt where the others answered elsewhere."""
    header = logs[0].header
    doubts = [*header.effective.get("doubts", []), *_apart(logs)]  # type: ignore[misc]
    return msgspec.structs.replace(
        header,
        request=request,
        command=re.sub(r" --shards \d+ --shard \d+", "", header.command),
        requested={**header.requested, "shard": 0},
        effective={**header.effective, "shards": len(logs), **({"doubts": doubts} if doubts else {})},
    )


def _apart(logs: Sequence[Log]) -> Iterator[str]:
    """Say under what different conditions the shards have answered: devices, packages, the harness itself.

    Only the first one has timed, so what says no more than how fast something runs may differ.
    """
    models = sorted({log.header.device.get("model", "") for log in logs})
    if len(models) > 1:
        yield f"answers come from several kinds of device: {', '.join(models)}; next: one kind, by a constraint"
    told = [
        f"{name} {', then '.join(values)}"
        for name, values in conditions.differences([log.header for log in logs]).items()
        if name not in (*conditions.OF_TIMES, "device's model")
    ]
    if told:
        yield f"its shards answered under different conditions ({'; '.join(told)}); next: measure all under the same"
