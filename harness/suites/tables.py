"""Which Parquet files of a folder are the task's: by configuration, split and shard, in their names and folders' names.

Nothing is guessed: files of other splits and configurations are left out and named; a missing shard, two versions of
one table or folders between which nothing decides are refused.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DataError
from harness.suites.cache import content_digests
from harness.suites.definitions import Definition
from harness.units import some

SPLITS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "testdev": "testdev", "testmini": "testmini", "lite": "lite",
}  # fmt: skip
"""Words for splits in names of files and folders, as the Hub's libraries read them, and what they mean."""

PLAIN_FOLDERS = ("data", "default", "parquet", "dataset")
"""Folders whose names say nothing of a configuration."""

SHARD = re.compile(r"(?P<stem>.*?)-(?P<at>\d{5})-of-(?P<of>\d{5})(?P<rest>.*)")
COPY = re.compile(r"\(\d+\)|\bcopy\b|\bcopy of\b|\bbackup\b|\bold\b|~|\.bak", re.IGNORECASE)

GQA_IMAGES = "testdev_balanced_images"
"""The configuration of GQA's pictures, which its questions are joined with."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The task's tables, and what is to be said about the choice."""

    files: tuple[Path, ...]
    said: str


@dataclass(frozen=True, slots=True)
class Table:
    """One Parquet file and what its name and folders say."""

    path: Path
    name: str
    """Relative to the folder given."""
    split: str
    """The word for a split, or nothing."""
    folders: tuple[str, ...]
    """Folders that may be a configuration."""


def choose(place: Path, definition: Definition) -> Chosen:
    """Return the task's tables at `place`, a Parquet file or a folder of them. Raises `DataError`."""
    if place.is_file():
        return Chosen((place,), _of_file(place, definition))
    if not place.is_dir():
        what = "neither a file nor a folder" if place.exists() else "no such file or folder"
        raise DataError(f"--data {place}: {what}; next: give a Parquet file or a folder of them")
    found = [path for path in sorted(place.rglob("*.parquet")) if _visible(path, place)]
    odd = [path.relative_to(place).as_posix() for path in found if not path.is_file()]
    if odd:  # left out without a word, a link to a file that is gone would be rows that are not asked
        raise DataError(f"--data {place}: {_names(odd)}: a broken link, or no regular file; next: mend or remove it")
    tables = [_table(path, place, definition) for path in found]
    if not tables:
        raise DataError(f"--data {place}: no Parquet files in it; next: give a Parquet file or a folder of them")
    mine = _of_split(place, tables, definition)
    mine = _of_configuration(place, mine, definition)
    mine, copies = _without_copies(place, mine)
    _check_shards(place, mine)
    left = [table.name for table in tables if table not in mine and table not in copies]
    said = f"{len(mine)} of {len(tables)} files: {_names([table.name for table in mine])}"
    said += f"; left out: {_names(left)}" if left else ""
    said += f"; left out as copies: {_names([table.name for table in copies])}" if copies else ""
    return Chosen(tuple(table.path for table in mine), said + _of_place(place, mine, definition))


def _visible(path: Path, place: Path) -> bool:
    """Leave out hidden files and folders: macOS's `._x.parquet` holds notes, `.cache` the Hub's client's own."""
    return not path.is_dir() and not any(part.startswith(".") for part in path.relative_to(place).parts)


def _of_file(file: Path, definition: Definition) -> str:
    said = []
    split = _split(file.stem, definition)
    if split and SPLITS.get(split, split) != SPLITS.get(definition.split, definition.split):
        said.append(f"its name says {split}, the task's split is {definition.split}")
    shard = SHARD.fullmatch(file.stem)
    if shard and int(shard["of"]) > 1:
        said.append(f"one of {int(shard['of'])} files: the others are left out")
    return "; ".join(said)


def _of_place(place: Path, mine: list[Table], definition: Definition) -> str:
    """Say where the folder's own name is that of another configuration or split than the task's."""
    said = ""
    beside = definition.config and place.name != definition.config and (place.parent / definition.config).is_dir()
    if beside and not any(definition.config in table.folders for table in mine):
        said += f"; this folder is {place.name}, the task's configuration {definition.config} lies beside it"
    meaning = SPLITS.get(place.name.lower())
    if meaning and not any(table.split for table in mine) and meaning != SPLITS.get(definition.split, definition.split):
        said += f"; this folder is called {place.name}, the task's split is {definition.split}"
    return said


def _table(path: Path, place: Path, definition: Definition) -> Table:
    parts = path.relative_to(place).parts[:-1]
    split, of_folders = _split(path.stem, definition), [_split(part, definition) for part in parts]
    split = split or next(filter(None, reversed(of_folders)), "")
    named = (definition.config, GQA_IMAGES)
    folders = tuple(
        part
        for part, word in zip(parts, of_folders, strict=True)
        if part in named or not (word or part.lower() in PLAIN_FOLDERS)
    )
    return Table(path, path.relative_to(place).as_posix(), split, folders)


def _split(name: str, definition: Definition) -> str:
    """Return the first word for a split in a name, or nothing."""
    known = {*SPLITS, definition.split}
    if name in (definition.config, GQA_IMAGES):
        return ""
    return next((word for word in re.split(r"[^a-z]+", name.lower()) if word in known), "")


def _of_split(place: Path, tables: list[Table], definition: Definition) -> list[Table]:
    exact = [table for table in tables if table.split == definition.split]
    if exact:
        return exact
    meaning = SPLITS.get(definition.split, definition.split)
    near = [table for table in tables if SPLITS.get(table.split) == meaning]
    words = sorted({table.split for table in near})
    if len(words) > 1:
        raise DataError(
            f"--data {place}: files of {' and '.join(words)}, and the task's split is {definition.split}; next: give "
            "the one that is meant"
        )
    others = sorted({table.split for table in tables if table.split})
    if not near and others:
        raise DataError(
            f"--data {place}: no file of the task's split {definition.split}, only {', '.join(others)} "
            f"({_names([table.name for table in tables])}); next: give a file by its path if that is meant"
        )
    return near or tables


def _of_configuration(place: Path, tables: list[Table], definition: Definition) -> list[Table]:
    wanted = [definition.config] if definition.config else []
    if definition.repo.endswith("/GQA"):
        wanted.append(GQA_IMAGES)
    mine = [table for table in tables if set(wanted) & set(table.folders)]
    if mine:
        return mine
    found = sorted({"/".join(table.folders) for table in tables})
    if len(found) == 1 and (not found[0] or not definition.config):
        return tables
    named = ", ".join(name or "the folder itself" for name in found)
    which = f"the task's configuration is {definition.config}" if definition.config else "nothing says which is meant"
    raise DataError(f"--data {place}: files in {named}; {which}; next: give the folder that is meant, by its path")


def _without_copies(place: Path, tables: list[Table]) -> tuple[list[Table], list[Table]]:
    """Split off files with the same bytes as another's; refuses a file called a copy with bytes of its own."""
    if len(tables) < 2:
        return tables, []
    kept: dict[str, Table] = {}
    copies = []
    by_name = sorted(tables, key=lambda table: (bool(COPY.search(table.path.stem)), len(table.name), table.name))
    digests = dict(zip(tables, content_digests([table.path for table in tables]), strict=True))
    for table in by_name:
        first = kept.setdefault(digests[table], table)
        if first is not table:
            copies.append(table)
        elif COPY.search(table.path.stem) and len(tables) > 1:
            raise DataError(
                f"--data {place}: {table.name} is called a copy and has other content than the rest; next: take it "
                "out of the folder, or give the file that is meant"
            )
    return [table for table in tables if table not in copies], copies


def _check_shards(place: Path, tables: Sequence[Table]) -> None:
    """Refuse a table of which a file is missing, and two versions of one. Raises `DataError`."""
    families: dict[tuple[Path, str], dict[int, dict[int, list[str]]]] = {}
    numbered: dict[Path, set[int]] = {}
    for table in tables:
        shard, folder = SHARD.fullmatch(table.path.stem), table.path.parent
        if shard:
            of = families.setdefault((folder, shard["stem"]), {}).setdefault(int(shard["of"]), {})
            of.setdefault(int(shard["at"]), []).append(table.name)
        elif re.fullmatch(r"\d{4,}", table.path.stem):  # as the Hub's own conversion names them
            numbered.setdefault(folder, set()).add(int(table.path.stem))
    for (_, stem), counts in families.items():
        _check_family(place, stem, counts)
    for folder, numbers in numbered.items():
        gaps = [f"{folder.name}/{at:04}.parquet" for at in range(max(numbers)) if at not in numbers]
        if gaps:
            raise DataError(f"--data {place}: missing: {_names(gaps)}; next: fetch it, or give one file by its path")


def _check_family(place: Path, stem: str, counts: dict[int, dict[int, list[str]]]) -> None:
    versions = [names for shards in counts.values() for names in shards.values() if len(names) > 1]
    if len(counts) > 1:
        versions = [[name for shards in counts.values() for names in shards.values() for name in names]]
    if versions:
        raise DataError(f"--data {place}: two versions of one table: {_names(versions[0])}; next: take one away")
    ((count, shards),) = counts.items()
    missing = [f"{stem}-{at:05}-of-{count:05}.parquet" for at in range(count) if at not in shards]
    if missing:
        raise DataError(
            f"--data {place}: {len(missing)} of {count} files missing: {_names(missing)}; next: fetch what is missing, "
            "or give one file by its path"
        )


def _names(names: Sequence[str]) -> str:
    return some(names, 3)
