"""Where lmms-eval keeps a task's definition: found and read as YAML, without importing lmms-eval (8 s, torch)."""

import difflib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness.errors import DataError, MissingPackage, UnknownName


@dataclass(frozen=True, slots=True)
class Definition:
    """What a task's YAML says about its data set."""

    path: Path
    repo: str
    """The data set's id on the Hub."""
    config: str | None
    split: str


def release() -> str:
    """Return the installed lmms-eval's version."""
    try:
        return version("lmms_eval")
    except PackageNotFoundError as error:
        raise MissingPackage("lmms_eval", "the suites' definitions") from error


@cache
def find(task: str) -> Definition:
    """Find the definition of `task`; an unknown name lists its neighbours."""
    root = _root()
    named = re.compile(rf"^task:\s*[\"']?{re.escape(task)}[\"']?\s*(?:#.*)?$", re.MULTILINE)
    likely = sorted(root.rglob(f"{task}.yaml"))
    rest = (path for path in sorted(root.rglob("*.yaml")) if path not in likely)
    for path in (*likely, *rest):
        if named.search(path.read_text(encoding="utf-8", errors="replace")):
            repo, split = _field(path, "dataset_path"), _field(path, "test_split") or _field(path, "validation_split")
            if repo and split:
                return Definition(path, repo, _field(path, "dataset_name"), split)
    known = [path.stem for path in root.rglob("*.yaml")]
    raise UnknownName("lmms-eval task", task, difflib.get_close_matches(task, known, n=8, cutoff=0.4))


def _root() -> Path:
    spec = importlib.util.find_spec("lmms_eval")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage("lmms_eval", "the suites' definitions")
    return Path(next(iter(spec.submodule_search_locations))) / "tasks"


def field(path: Path, name: str) -> str | None:
    """Return a top-level field that is a plain word, from the task's file or from what it includes; else None."""
    value = _field(path, name)
    return value if value and re.fullmatch(r"\w+", value) else None


def _field(path: Path, name: str) -> str | None:
    """Return the value of a top-level field, from the file itself or from what it includes."""
    fields = _read(path)
    value = fields.get(name)
    if isinstance(value, str) and value:
        return value
    included = fields.get("include")
    return _field(path.parent / included, name) if isinstance(included, str) else None


@cache
def _read(path: Path) -> Mapping[str, object]:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc] # yaml has no types here
        """YAML without the functions that lmms-eval's files name: nothing is imported, they are read as None."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: None)
    try:
        found = yaml.load(path.read_text(encoding="utf-8", errors="replace"), Loader)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not readable as YAML: {error}; next: install lmms_eval anew") from error
    return found if isinstance(found, dict) else {}
