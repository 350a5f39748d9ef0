"""The child process that builds a suite's examples: `python -m harness.suites.builder ORDER` (a `builds.Order`, JSON).

It alone imports lmms-eval and datasets. Progress goes to stderr; stdout gets one line of JSON, {"folder"} or {"error"}.
"""

import copy
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import DataError, HarnessError, MissingPackage, UnknownName
from harness.files import cache_folder
from harness.suites import cache as builds
from harness.suites import contract, definitions, pictures
from harness.suites import task as tasks
from harness.suites.cache import Order
from harness.suites.contract import RowProblem, Unlabelled
from harness.suites.task import Task

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

BATCH_ROWS = 16
"""Rows in memory at a time: pages of a megabyte each."""

IDS = ("questionId", "question_id", "id", "pid", "index")
"""Columns by which data sets know their rows."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands."""

    file: Path
    row: int

    def __str__(self) -> str:
        return f"{self.file.name}, row {self.row}"


Rows = Iterator[tuple[dict[str, object], Place | None]]
"""Rows as Arrow gives them, each with its place: paths of images in it are relative to the file's folder."""


def main() -> int:
    """Build what argv asks for; return 0, or 1 with the error on stdout, or 130 after Ctrl-C."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print is not our answer
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    order = Order(**json.loads(sys.argv[1]))
    try:
        with builds.writing():
            folder = build(order)
    except KeyboardInterrupt:
        return 130
    except (HarnessError, OSError) as error:
        out.write(json.dumps({"error": f"suite {order.suite}: {error}"}) + "\n")
        return 1
    except Exception as error:  # noqa: BLE001 - a library's own error: one line for the user, all of it on stderr
        traceback.print_exc()
        text = (str(error).splitlines() or [""])[0]
        out.write(json.dumps({"error": f"suite {order.suite}: {type(error).__name__}: {text}"}) + "\n")
        return 1
    out.write(json.dumps({"folder": str(folder)}) + "\n")
    return 0


def build(order: Order) -> Path:
    """Build the examples of `order` and return their folder; nothing is left behind where that fails."""
    rows, total, order = source(order)
    had = builds.find(order.digest, order.limit)
    if had is not None:  # only this process could learn the digest
        return _made(order, had.folder)
    progress = Progress(order, total)
    writer = builds.Writer()
    reader = Reader(order)
    complete = True
    try:
        for index, (row, place) in enumerate(rows):
            if order.limit is not None and index >= order.limit:
                complete = False
                break
            writer.add(*reader.line(index, row, place))
            progress.report(writer.count)
        facts = reader.facts()
        check_unchanged(order)
        made = writer.finish(
            order.digest, task=order.task, source=order.source, complete=complete, rows=order.rows, **facts
        )
    except BaseException:
        writer.discard()
        raise
    progress.end(writer.count)
    return _made(order, made)


def _made(order: Order, folder: Path) -> Path:
    if order.source["kind"] == "hub":
        builds.remember(order.task, order.digest)
    return folder


class Reader:
    """Turns rows into examples; one that cannot be asked or scored becomes an example that says why."""

    def __init__(self, order: Order) -> None:
        self._order = order
        target = definitions.field(definitions.find(order.task).path, "doc_to_target")
        self._contract = contract.of(order.task, target)
        self._task: Task | None = None
        self._redrawn = self._repeated = self._short = self._count = 0
        self._problems: dict[int, str] = {}
        self._unlabelled: dict[int, str] = {}

    def line(self, index: int, row: dict[str, object], place: Place | None) -> tuple[list[bytes], builds.Line]:
        """Return the images and the facts of one example; with a problem, neither images nor a question."""
        where = str(place) if place else f"row {index}"
        self._count += 1
        try:
            return self._example(index, row, place, where)
        except RowProblem as error:
            self._problems[index] = f"{where}, {error}"
        except (MissingPackage, UnknownName, MemoryError):
            raise
        except DataError as error:
            self._problems[index] = f"{where}: {error}"
        except Exception as error:  # noqa: BLE001 - whatever a task's own code raises over a row is the row's
            text = (str(error).splitlines() or [""])[0]
            self._problems[index] = f"{where}: task {self._order.task} cannot read it: {type(error).__name__}: {text}"
        doc: dict[str, object] = {name: row[name] for name in row if name in IDS and isinstance(row[name], str | int)}
        return [], builds.Line(id=identify(index, doc), index=index, question="", references=(), doc=doc)

    def _example(
        self, index: int, row: dict[str, object], place: Place | None, where: str
    ) -> tuple[list[bytes], builds.Line]:
        doc, images = tasks.encoded(row, place.file.parent if place else None, self._contract)
        doc = self._contract.asked(doc)
        missing = ""
        try:
            votes = self._contract.votes(doc)
            doc = self._contract.labelled(doc)
            self._repeated += 0 < votes < contract.FEWEST
            self._short += contract.FEWEST <= votes < contract.ANNOTATORS
        except Unlabelled as error:
            missing = f"{where}, {error}"
        task = self._loaded(doc, bool(missing))
        self._check_pictures(images)
        question, shown = task.question(doc), task.visuals({**doc, **images})
        references = () if missing else task.references(doc)
        if not missing and not references and self._contract.references:
            missing = f"{where}, column {self._contract.references}: no references"
        if not missing:
            self._check_scoring(task, doc, references)
        self._redrawn += sum(not _untouched(image, images) for image in shown)
        if missing:
            self._unlabelled[index] = missing
        return shown, builds.Line(
            id=identify(index, doc), index=index, question=question, references=references, doc=doc
        )

    def _loaded(self, doc: dict[str, object], unlabelled: bool) -> Task:
        """Return the task, made from the first row that it takes."""
        if self._task is None:
            column = self._contract.references
            self._task = Task(
                self._order.task, {**doc, column: self._contract.stand_in} if unlabelled and column else doc
            )
        return self._task

    def _check_pictures(self, images: Mapping[str, object]) -> None:
        for column in self._contract.pictures or ():
            if not self._contract.optional and images.get(column) in (None, []):
                raise RowProblem(column, "no picture" if column in images else "is not there")

    def _check_scoring(self, task: Task, doc: dict[str, object], references: tuple[str, ...]) -> None:
        """Let the task score a right answer: what it cannot score now, it could not after hours of measuring."""
        if not (self._contract.known and self._contract.references and references):
            return
        task.results(copy.deepcopy(doc), references[0])

    def facts(self) -> builds.ReaderFacts:
        """Return what the manifest says of all rows; raises `DataError` where none can be asked."""
        if not self._count:
            raise DataError("there are no examples in the data; next: look at --data")
        if len(self._problems) == self._count or self._task is None:
            raise DataError(refusal(self._problems, self._count))
        notes = []
        if self._redrawn:
            notes.append(f"{self._redrawn} images were changed by the task itself and re-encoded as PNG")
        if self._repeated:
            notes.append(
                f"{self._repeated} questions have fewer than {contract.FEWEST} references, of which VQA accuracy takes "
                f"{contract.ANNOTATORS}: they are repeated until they are as many"
            )
        if self._short:
            notes.append(
                f"{self._short} questions have {contract.FEWEST} to {contract.ANNOTATORS - 1} references: VQA accuracy "
                "counts them as they are, as lmms-eval does, and gives less for an answer than of ten"
            )
        return {
            "max_new_tokens": self._task.max_new_tokens,
            "notes": tuple(notes),
            "problems": self._problems,
            "unlabelled": self._unlabelled,
        }


def refusal(problems: Mapping[int, str], count: int) -> str:
    """Say that no row can be asked, and why the first one cannot."""
    first = next(iter(problems.values()))
    return f"none of {count} rows can be asked: {first}" + ("" if "; next: " in first else "; next: mend the data")


def source(order: Order) -> tuple[Rows, int | None, Order]:
    """Return the rows to read, how many there are where that is known, and the order with its digest."""
    kind = order.source["kind"]
    if kind == "embedded":
        from harness.suites import pages

        count = pages.COUNT if order.limit is None else min(pages.COUNT, order.limit + 1)  # one more: to see the end
        return ((row, None) for row in pages.rows(count)), min(count, order.limit or count), order
    if kind == "local":
        files = [Path(file) for file in order.files]
        check_columns(order.task, files)
        order = with_pictures(order, files)
    else:
        files, order = published(order)
    joined = [file for file in files if is_image_table(file)] if order.task == "gqa" else []
    files = [file for file in files if file not in joined]
    rows, total = parquet_rows(files), sum(map(count_rows, files))
    if order.task == "gqa":
        rows = with_images(rows, joined)
    if kind == "local" or order.limit is None:  # of the Hub's files only as many are here as the limit needs
        order = replace(order, rows=total)
    return rows, total if order.limit is None else min(total, order.limit), order


def check_columns(task: str, files: list[Path]) -> None:
    """Refuse tables that lack a column without which no question can be asked. Raises `DataError`."""
    known = contract.of(task)
    pictures = () if known.optional or task == "gqa" else known.pictures or ()
    there = dict.fromkeys(name for file in files for name in schema_of(file).names)
    missing = [name for name in (*known.needed, *pictures) if name not in there]
    if missing:
        raise DataError(
            f"{files[0]} does not fit task {task}: it lacks {', '.join(missing)}; it has the columns "
            f"{', '.join(there)}; next: give data with the columns of {definitions.find(task).repo}"
        )


def with_pictures(order: Order, files: list[Path]) -> Order:
    """Return the order with the pictures that its tables name by path in its digest."""
    named = builds.outside(order.task, order.source)
    if named is None:
        named = sorted({(at, path) for at, file in enumerate(files) for path in paths_in(order.task, file)})
        builds.remember_outside(order.task, order.source, named)
    found = builds.with_pictures(order.source, files, named)
    return replace(order, source=found, digest=builds.digest(order.task, found))


def check_unchanged(order: Order) -> None:
    """Refuse tables and pictures that changed while they were read: no digest says what came of them.

    Raises `DataError`. What the Hub has is a commit's, which does not change.
    """
    if order.source["kind"] != "local":
        return
    files = [Path(file) for file in order.files]
    now = with_pictures(replace(order, source={"kind": "local", "files": builds.content_digests(files)}), files)
    if now.digest != order.digest:
        raise DataError(f"{files[0]}: the data changed while they were read; next: wait until they are written")


def paths_in(task: str, file: Path) -> Iterator[str]:
    """Yield the pictures that a table names by path; where its statistics say that all bytes are there, none is."""
    from pyarrow import parquet

    known = contract.of(task)
    schema = schema_of(file)
    columns = [
        name
        for name in schema.names
        if (name in known.pictures if known.pictures is not None else pictures.NAMED.fullmatch(name))
    ]
    with parquet.ParquetFile(file) as table:
        wanted = [name for name in columns if not _all_bytes(table, name)]
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=wanted) if wanted else ():
            for row in _cells(batch):
                for value in row.values():
                    yield from pictures.paths(value)


def _all_bytes(table: "parquet.ParquetFile", column: str) -> bool:
    """Return whether the file's statistics say that every picture of a column has its bytes in the table."""
    kind = str(table.schema_arrow.field(column).type)
    if "string" not in kind:
        return True
    if kind in ("string", "large_string"):
        return False
    counted = []
    for group in range(table.metadata.num_row_groups):
        chunks = table.metadata.row_group(group)
        for chunk in map(chunks.column, range(chunks.num_columns)):
            first, *rest = chunk.path_in_schema.split(".")
            if first == column and rest and rest[-1] == "bytes":
                known = chunk.is_stats_set and chunk.statistics.has_null_count
                counted.append(chunk.statistics.null_count if known else None)
    return bool(counted) and not any(nulls is None or nulls for nulls in counted)


def published(order: Order) -> tuple[list[Path], Order]:
    """Fetch the Parquet files of the task's split from the Hub (or its cache), as many as the limit needs."""
    from harness import hub

    definition = definitions.find(order.task)
    wanted = [(definition.config, definition.split, order.limit)]
    if order.task == "gqa":
        wanted.append(("testdev_balanced_images", definition.split, None))
    if order.offline:
        revision, files = hub.cached(definition.repo, wanted)
    else:
        revision, files = hub.fetch(definition.repo, wanted, addresses(definition.repo), count_rows)
    found: dict[str, object] = {"kind": "hub", "repo": definition.repo, "revision": revision}
    digest = builds.digest(order.task, found)
    return files, replace(order, source=found, digest=digest)


def addresses(repo: str) -> Callable[[str | None, str, str], Sequence[str]]:
    """Return what says which files a configuration and split of `repo` consist of: `datasets` reads its layout."""

    def listed(config: str | None, split: str, revision: str) -> Sequence[str]:
        import datasets

        builder = datasets.load_dataset_builder(repo, config, revision=revision)
        return [str(address) for address in builder.config.data_files[split]]

    return listed


def parquet_rows(files: list[Path]) -> Rows:
    """Yield the rows of all files, in order; a cell that cannot be read is `pictures.Broken`."""
    import pyarrow
    from pyarrow import parquet

    for file in files:
        try:
            number = 0
            with parquet.ParquetFile(file) as table:
                for batch in table.iter_batches(batch_size=BATCH_ROWS):
                    for row in _cells(batch):
                        yield row, Place(file, number)
                        number += 1
        except (pyarrow.ArrowException, OSError) as error:
            raise _unreadable(file, error) from error


def _cells(batch: "pyarrow.RecordBatch") -> Iterator[dict[str, object]]:
    """Yield a batch's rows; where one cell cannot be read, only that cell is lost."""
    try:
        yield from batch.to_pylist()
    except (ValueError, OverflowError):
        for at in range(batch.num_rows):
            yield {name: _cell(batch.column(name)[at]) for name in batch.schema.names}


def _cell(value: "pyarrow.Scalar") -> object:
    try:
        return value.as_py()
    except (ValueError, OverflowError) as error:
        return pictures.Broken(f"cannot be read: {error}")


def _unreadable(file: Path, error: Exception) -> DataError:
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"{file}: cannot be read: {error.strerror}; next: look at the file")
    if file.name.startswith("._"):
        return DataError(f"{file}: notes that macOS keeps beside a file, no table; next: give {file.name[2:]}")
    text = (str(error).splitlines() or [""])[0]
    return DataError(f"{file}: not a readable Parquet file: {text}; next: fetch it again")


def count_rows(file: Path) -> int:
    """Return how many rows a Parquet file has."""
    import pyarrow
    from pyarrow import parquet

    try:
        return int(parquet.read_metadata(file).num_rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def schema_of(file: Path) -> "pyarrow.Schema":
    """Return the columns of a Parquet file."""
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_schema(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def is_image_table(file: Path) -> bool:
    """Return whether a file has GQA's images and not its questions."""
    names = set(schema_of(file).names)
    return {"id", "image"} <= names and "question" not in names


def with_images(rows: Rows, tables: list[Path]) -> Rows:
    """Give each row of GQA the image its `imageId` names, as the task's `process_docs` does, unless it has one."""
    images = {row["id"]: row["image"] for row, _ in parquet_rows(tables)}
    for row, place in rows:
        image = row.get("image")
        if image is None:
            image = images.get(row.get("imageId")) or pictures.Broken(
                f"GQA's image {row.get('imageId')!r} is not in the data; next: add a column `image`, or the Parquet "
                "files of testdev_balanced_images beside the questions"
            )
        yield {**row, "image": image}, place


def identify(index: int, doc: Mapping[str, object]) -> str:
    """Return an example's id: its position, and the row's own id where it has one (they repeat in some data sets)."""
    own = next((str(doc[name]) for name in IDS if doc.get(name) not in (None, "")), "")
    return f"{index}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', own)}" if own else str(index)


def _untouched(image: bytes, columns: Mapping[str, object]) -> bool:
    files = [item for value in columns.values() for item in (value if isinstance(value, list) else [value])]
    return not image or any(isinstance(file, pictures.Encoded) and file.data is image for file in files)


class Progress:
    """Says on stderr how far the build is: one line overwritten on a terminal, a line every five seconds elsewhere."""

    def __init__(self, order: Order, total: int | None) -> None:
        self._name, self._of = order.suite, f" of {total}" if total is not None else ""
        self._last_s = time.monotonic()
        self._say(f"{self._name}: building examples{self._of} (once; kept in {cache_folder()})")

    def report(self, count: int) -> None:
        """Say how many examples are done, if it is time to."""
        pause_s = 0.2 if sys.stderr.isatty() else 5.0
        if time.monotonic() - self._last_s > pause_s:
            self._last_s = time.monotonic()
            self._say(f"{self._name}: {count}{self._of} examples built", "\r" if sys.stderr.isatty() else "\n")

    def end(self, count: int) -> None:
        """Say that it is done."""
        self._say(f"{self._name}: {count} examples built")

    def _say(self, text: str, end: str = "\n") -> None:
        sys.stderr.write(text + end)
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
