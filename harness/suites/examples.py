"""From a suite card to examples: built once from the task's data by a child process, cached, and read back lazily.

Order: `--data PATH`, the cached build, the Hub, the card's embedded stand-in. Nothing heavy is imported here; the child
(`suites/builder.py`) imports lmms-eval and datasets, and only when something is to be built.
"""

import json
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

from harness import hub, parent
from harness.errors import CardError, DataError
from harness.files import cache_folder, hub_folder, hub_revision
from harness.suites import cache as builds
from harness.suites import definitions, tables
from harness.suites.cache import Build, Order
from harness.suites.card import SuiteCard, load_suite_card

Origin = Literal["hub", "local", "embedded"]

PROBE_SECONDS = 4.0
"""How long we wait for the Hub to answer at all."""


@dataclass(frozen=True, slots=True)
class Example:
    """One question about one or more images."""

    id: str
    """Position in the data set, and the row's own id where it has one: `12-920013`."""
    index: int
    images: tuple[bytes, ...]
    """Encoded image files as the data set has them."""
    question: str
    """The full text with the task's own prompt around it."""
    max_new_tokens: int
    references: tuple[str, ...]
    """The right answers, each once, for people to read."""
    image_ids: tuple[str, ...]
    """Digest of each image file."""
    doc: dict[str, object]
    """The row without its images: what the task's scorer needs."""
    problem: str = ""
    """Why it cannot be measured: where its row stands, the column and what is wrong; then nothing else is there."""


class Examples(Sequence[Example]):
    """The examples of a build; an example's images are read when it is taken, and checked against their digests."""

    def __init__(self, build: Build, max_new_tokens: int, indices: range, problems: Mapping[int, str]) -> None:
        self._build = build
        self._max_new_tokens = max_new_tokens
        self._indices = indices
        self._problems = problems
        self._sizes: dict[str, tuple[int, int]] = {}

    def glance(self, at: int) -> "Glance":
        """Return an example's shape without reading its images; a file that many questions share is opened once."""
        from harness import images  # an image library: whoever measures has it loaded by now

        line = self._build.line(self._indices[at])
        for digest in line.images:
            if digest not in self._sizes:
                with self._build.open_image(digest) as file:
                    self._sizes[digest] = images.size_of(file)
        return Glance(line.id, line.images, line.question, tuple(self._sizes[digest] for digest in line.images))

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, at: int) -> Example: ...
    @overload
    def __getitem__(self, at: slice) -> "Examples": ...
    def __getitem__(self, at: int | slice) -> "Example | Examples":
        if isinstance(at, slice):
            return Examples(self._build, self._max_new_tokens, self._indices[at], self._problems)
        line = self._build.line(self._indices[at])
        problem = self._problems.get(line.index, "")
        return Example(
            id=line.id,
            index=line.index,
            images=() if problem else tuple(self._build.image(digest) for digest in line.images),
            question=line.question,
            max_new_tokens=self._max_new_tokens,
            references=line.references,
            image_ids=line.images,
            doc=line.doc,
            problem=problem,
        )


@dataclass(frozen=True, slots=True)
class Glance:
    """An example whose images are not read, only looked at: their sizes come from the files' headers."""

    id: str
    image_ids: tuple[str, ...]
    question: str
    sizes: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Suite:
    """The examples of one run, and where they come from."""

    card: SuiteCard
    """The card of the suite whose data these are: that of `pages` where it stands in for another."""
    origin: Origin
    name: str
    digest: str
    """Of the data, the task, lmms-eval's version and the builder; not of the limit: example 7 is the same in all."""
    notice: str
    """What the user must be told about the data."""
    examples: Sequence[Example]
    unscored: str = ""
    """Why no answer can be scored: there are no references."""
    repository: str = ""
    revision: str = ""
    """Of the Hub's data set, where the data are from there."""

    @property
    def facts(self) -> dict[str, str]:
        """What a log's header says of the data beside where they come from."""
        known = {"unscored": self.unscored, "repository": self.repository, "revision": self.revision}
        return {name: text for name, text in known.items() if text}


def open_suite(card: SuiteCard, data: str | None = None, limit: int | None = None, offline: bool = False) -> Suite:
    """Return the examples of `card`; `limit` takes the first N.

    `data` is a Parquet file or a folder of them, with the columns of the task's data set. Raises `DataError`.
    """
    if card.origin == "embedded":
        if data is not None:
            raise DataError(f"--data {data}: the suite {card.name} is made by the program; next: leave --data out")
        return _embedded(card, limit, "")
    told = definitions.unfit(card.task, card.metric)
    if told:
        raise DataError(f"suite {card.name}: {told}")
    if data is not None:
        return _local(card, Path(data).expanduser(), limit)
    build, why = _hub(card, limit, offline)
    if build is not None:
        return _suite(card, "hub", build, limit, why)
    repo = definitions.find(card.task).repo
    if card.stand_in:
        notice = (
            f"{card.name}: {why}; the embedded suite `{card.stand_in}` stands in for it, and its scores are not "
            f"those of {card.name}; next: run once where the Hub can be reached, or give --data PATH"
        )
        return _embedded(load_suite_card(card.stand_in), limit, notice)
    raise DataError(
        f"suite {card.name}: {why}; next: run once where the Hub can be reached, or give --data PATH "
        f"(Parquet files with the columns of {repo})"
    )


def present(card: SuiteCard) -> bool:
    """Return whether the card's own data are on this machine (a limited build counts)."""
    return card.origin == "embedded" or builds.remembered(card.task, None, any_size=True) is not None


def _embedded(card: SuiteCard, limit: int | None, notice: str) -> Suite:
    from harness.suites import pages  # an image library and fonts: only where they are needed

    source = {"kind": "embedded", "name": card.name, "version": str(pages.VERSION), "count": pages.COUNT}
    return _suite(card, "embedded", _local_build(card, source, limit, []), limit, notice)


def _local(card: SuiteCard, path: Path, limit: int | None) -> Suite:
    chosen = tables.choose(path, definitions.find(card.task))
    source: dict[str, object] = {"kind": "local", "files": builds.content_digests(chosen.files)}
    named = builds.outside(card.task, source)
    files = [str(file.absolute()) for file in chosen.files]
    if named is None:  # only the child, which can read tables, learns which pictures they name
        build = _make(Order(task=card.task, suite=card.name, source=source, limit=limit, files=files))
    else:
        build = _local_build(card, builds.with_pictures(source, chosen.files, named), limit, files, source)
    rows = "" if build.manifest.rows is None else f", {build.manifest.rows} rows"
    said = f"{card.name}: data from {path}{rows}" + (f" ({chosen.said})" if chosen.said else "")
    return _suite(card, "local", build, limit, said)


def _local_build(
    card: SuiteCard,
    source: dict[str, object],
    limit: int | None,
    files: list[str],
    tables: dict[str, object] | None = None,
) -> Build:
    """Return the build of `source`; `tables` is the source without the pictures that its tables name by path."""
    digest = builds.digest(card.task, source)
    build = builds.find(digest, limit)
    if build is None:
        order = Order(task=card.task, suite=card.name, source=tables or source, limit=limit, digest=digest, files=files)
        build = _make(order)
    return build


def _hub(card: SuiteCard, limit: int | None, offline: bool) -> tuple[Build | None, str]:
    """Return the build of the published data and what is to be said of it, or None and why it cannot be had.

    A build is of one revision; where the Hub's cache has moved on to another, the examples are built anew from that.
    """
    repo = definitions.find(card.task).repo
    build, main = builds.remembered(card.task, limit), hub_revision(repo)
    if build is not None and (not main or build.revision == main):
        return build, ""
    kept = builds.remembered(card.task, None, any_size=True)
    some = f" (only its first {kept.count} examples are built: --limit {kept.count} uses them)" if kept else ""
    unreachable = "the Hub was not contacted (offline mode)" if hub.is_offline(offline) else _unreachable()
    if unreachable and not any((hub_folder(repo) / "snapshots").rglob("*.parquet")):
        return None, f"{repo} is not in the cache ({cache_folder()}){some}, and {unreachable}"
    order = Order(task=card.task, suite=card.name, source={"kind": "hub"}, limit=limit, offline=bool(unreachable))
    try:
        return _make(order), ""
    except DataError as error:
        why = str(error).removeprefix(f"suite {card.name}: ").partition("; next:")[0]
        if build is not None:
            return build, f"{card.name}: of revision {build.revision[:12]}, as the one in the Hub's cache fails: {why}"
        return None, f"{why}{some}" + (f", and {unreachable}" if unreachable else "")


def _unreachable() -> str:
    """Return why the Hub cannot be reached, or nothing; within `PROBE_SECONDS`, even where a name lookup hangs."""
    import urllib.error
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    outcome = [f"{endpoint} did not answer within {PROBE_SECONDS:g} s"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=PROBE_SECONDS):
                outcome[0] = ""
        except urllib.error.HTTPError:
            outcome[0] = ""
        except (OSError, ValueError) as error:
            outcome[0] = f"{endpoint} cannot be reached ({getattr(error, 'reason', error)})"

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PROBE_SECONDS + 0.5)
    return outcome[0]


def _suite(card: SuiteCard, origin: Origin, build: Build, limit: int | None, notice: str) -> Suite:
    longest, other = _length(card, build)
    count = build.count if limit is None else min(limit, build.count)
    if not count:
        raise DataError(f"suite {card.name}: there are no examples in the data; next: look at --data")
    problems, unscored = _contract(card, build, count)
    failing = f"{len(problems)} of {count} rows cannot be asked, or have no references: the log names them"
    notes = (notice, *build.notes, failing if problems else "", other)
    notice = "; ".join(part for part in notes if part)
    return Suite(
        card,
        origin,
        card.name,
        build.digest,
        "; ".join(part for part in (notice, unscored) if part),
        Examples(build, longest, range(count), problems),
        unscored,
        str(build.manifest.source.get("repo", "")),
        build.revision,
    )


def _length(card: SuiteCard, build: Build) -> tuple[int, str]:
    """Return the most tokens of an answer, and what is to be said where lmms-eval's command would allow others."""
    mine, own = card.max_new_tokens, build.max_new_tokens
    if mine is None and own is None:
        raise CardError(
            f"suite {card.name}: task {card.task} states no limit on answers; next: max_new_tokens in its card"
        )
    if mine is not None and mine < 1:
        raise CardError(f"suite {card.name}: max_new_tokens = {mine} in its card; next: give a number from 1 on")
    if mine is not None and own is not None and mine != own:
        return mine, f"answers have up to {mine} tokens, as the card says; lmms-eval gives task {card.task} {own}"
    return mine or own or 0, ""


def _contract(card: SuiteCard, build: Build, count: int) -> tuple[dict[int, str], str]:
    """Return the problems of the first `count` examples, and why none of them can be scored, where none has references.

    Where some have references, an example without them is a problem: it would be measured and count for nothing.
    """
    problems = {index: text for index, text in build.manifest.problems.items() if index < count}
    unlabelled = {index: text for index, text in build.manifest.unlabelled.items() if index < count}
    if len(problems) == count:
        raise DataError(
            f"suite {card.name}: none of the first {count} rows can be asked: {next(iter(problems.values()))}"
        )
    if len(problems) + len(unlabelled) == count:
        return problems, f"not scored: no references ({next(iter(unlabelled.values()))})"
    return dict(sorted({**problems, **unlabelled}.items())), ""


def _make(order: Order) -> Build:
    """Let a child process build; its progress goes to our stderr, its one line of result comes back."""
    child = subprocess.run(
        [*parent.python(), "-m", "harness.suites.builder", json.dumps(order.as_dict())],
        env=parent.surroundings(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        check=False,
    )
    try:
        answer = json.loads(child.stdout or b"{}")
    except json.JSONDecodeError:
        answer = {}
    if "folder" in answer:
        build = builds.read(Path(answer["folder"]))
        if build is not None:
            return build
    raise DataError(
        answer.get("error")
        or f"suite {order.suite}: building its examples failed (exit {child.returncode}); next: read the lines above"
    )
