"""The child process that builds a suite's examples: `python -m harness.suites.builder ORDER` (a `builds.Order`, JSON).

It alone imports lmms-eval and datasets. Progress goes to stderr; stdout gets one line of JSON, {"folder"} or {"error"}.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.errors import DataError, HarnessError
from harness.files import cache_folder
from harness.suites import cache as builds
from harness.suites import definitions
from harness.suites import task as tasks
from harness.suites.cache import Order
from harness.suites.task import Task

BATCH_ROWS = 16
"""Rows in memory at a time: pages of a megabyte each."""

IDS = ("questionId", "question_id", "id", "pid", "index")
"""Columns by which data sets know their rows."""

Rows = Iterator[tuple[dict[str, Any], Path | None]]
"""Rows as Arrow gives them, each with the folder that image paths in it are relative to."""


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
    out.write(json.dumps({"folder": str(folder)}) + "\n")
    return 0


def build(order: Order) -> Path:
    """Build the examples of `order` and return their folder; nothing is left behind where that fails."""
    rows, total, order = source(order)
    progress = Progress(order, total)
    writer = builds.Writer()
    task: Task | None = None
    redrawn, complete = 0, True
    try:
        for index, (row, folder) in enumerate(rows):
            if order.limit is not None and index >= order.limit:
                complete = False
                break
            doc, images = tasks.encoded(row, folder)
            task = task or Task(order.task, doc)
            question, shown = task.question(doc), task.visuals({**doc, **images})
            redrawn += sum(not _untouched(image, images) for image in shown)
            line = {
                "id": identify(index, doc),
                "index": index,
                "question": question,
                "references": task.references(doc),
            }
            writer.add(shown, {**line, "doc": doc})
            progress.report(writer.count)
        if task is None:
            raise DataError("there are no examples in the data; next: look at --data")
        notes = (f"{redrawn} images were changed by the task itself and re-encoded as PNG",) if redrawn else ()
        made = writer.finish(
            order.digest,
            task=order.task,
            source=order.source,
            complete=complete,
            max_new_tokens=task.max_new_tokens,
            notes=notes,
        )
    except BaseException:
        writer.discard()
        raise
    if order.source["kind"] == "hub":
        builds.remember(order.task, order.digest)
    progress.end(writer.count)
    return made


def source(order: Order) -> tuple[Rows, int | None, Order]:
    """Return the rows to read, how many there are where that is known, and the order with its digest."""
    kind = order.source["kind"]
    if kind == "embedded":
        from harness.suites import pages

        count = pages.COUNT if order.limit is None else min(pages.COUNT, order.limit + 1)  # one more: to see the end
        return ((row, None) for row in pages.rows(count)), min(count, order.limit or count), order
    if kind == "local":
        files = [Path(file) for file in order.files]
    else:
        files, order = published(order)
    joined = [file for file in files if is_image_table(file)] if order.task == "gqa" else []
    files = [file for file in files if file not in joined]
    rows, total = parquet_rows(files), sum(map(count_rows, files))
    if order.task == "gqa":
        rows = with_images(rows, joined)
    return rows, total if order.limit is None else min(total, order.limit), order


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
        revision, files = hub.fetch(definition.repo, wanted, count_rows)
    found = {"kind": "hub", "repo": definition.repo, "revision": revision}
    digest = builds.digest(order.task, found)
    return files, Order(**{**order.as_dict(), "source": found, "digest": digest})


def parquet_rows(files: list[Path]) -> Rows:
    """Yield the rows of all files, in order."""
    import pyarrow
    from pyarrow import parquet

    for file in files:
        try:
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=BATCH_ROWS):
                for row in batch.to_pylist():
                    yield row, file.parent
        except pyarrow.ArrowException as error:
            raise DataError(f"{file}: not a readable Parquet file: {error}; next: fetch it again") from error


def count_rows(file: Path) -> int:
    """Return how many rows a Parquet file has."""
    import pyarrow
    from pyarrow import parquet

    try:
        return int(parquet.read_metadata(file).num_rows)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: not a readable Parquet file: {error}; next: fetch it again") from error


def is_image_table(file: Path) -> bool:
    """Return whether a file has GQA's images and not its questions."""
    from pyarrow import parquet

    names = set(parquet.read_schema(file).names)
    return {"id", "image"} <= names and "question" not in names


def with_images(rows: Rows, tables: list[Path]) -> Rows:
    """Give each row of GQA the image its `imageId` names, as the task's `process_docs` does, unless it has one."""
    images = {row["id"]: row["image"] for row, _ in parquet_rows(tables)}
    for row, folder in rows:
        if row.get("image") is None and row.get("imageId") not in images:
            raise DataError(
                f"GQA's image {row.get('imageId')!r} is not in the data; next: add a column `image`, or the Parquet "
                "files of testdev_balanced_images beside the questions"
            )
        yield {**row, "image": row.get("image") or images[row["imageId"]]}, folder


def identify(index: int, doc: Mapping[str, Any]) -> str:
    """Return an example's id: its position, and the row's own id where it has one (they repeat in some data sets)."""
    own = next((str(doc[name]) for name in IDS if doc.get(name) not in (None, "")), "")
    return f"{index}-{re.sub(r'[^A-Za-z0-9_.-]+', '_', own)}" if own else str(index)


def _untouched(image: bytes, columns: Mapping[str, Any]) -> bool:
    files = [item for value in columns.values() for item in (value if isinstance(value, list) else [value])]
    return not image or any(isinstance(file, tasks.Encoded) and file.data is image for file in files)


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
