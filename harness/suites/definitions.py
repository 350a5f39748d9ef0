"""Where lmms-eval keeps a task's definition: found and read as YAML, without importing lmms-eval (8 s, torch)."""

import difflib
import importlib.util
import re
from collections.abc import Callable, Mapping
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


@dataclass(frozen=True, slots=True)
class Function:
    """A function that a task's YAML names."""

    name: str


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
        if named.search(path.read_text(encoding="utf-8", errors="replace")) or (
            path in likely and _field(path, "task") == task  # V*Bench's own file leaves its name to what it includes
        ):
            repo, split = _field(path, "dataset_path"), _field(path, "test_split") or _field(path, "validation_split")
            if repo and split:
                return Definition(path, repo, _field(path, "dataset_name"), split)
    known = [path.stem for path in root.rglob("*.yaml")]
    raise UnknownName("lmms-eval task", task, difflib.get_close_matches(task, known, n=8, cutoff=0.4))


JOINS_IMAGES = "gqa_process_docs"
"""The one function over a task's whole table that is done here too: GQA's rows get their images from another table."""

PLAIN = "generate_until"
"""The one way of asking that is measured here: a question and its images go in, one answer comes out."""


def unfit(task: str, metric: str) -> str:
    """Return why `task` cannot be measured and called by `metric` as lmms-eval would do it, or nothing where it can.

    Read from the task's file, before any data are fetched; a loaded `Task` says the same of what the file leaves open.
    """
    path = find(task).path
    process = _value(path, "process_docs")
    name = process.name if isinstance(process, Function) else None
    told = unasked(task, name, str(_value(path, "output_type") or PLAIN))
    metrics = _value(path, "metric_list")
    for one in metrics if isinstance(metrics, list) else []:
        if isinstance(one, Mapping) and one.get("metric") == metric and one.get("higher_is_better") is False:
            told = told or lesser(task, metric)
    return told


def unasked(task: str, process: str | None, output: str) -> str:
    """Return why a task whose table passes through `process`, and that asks by `output`, is not asked here."""
    if process is not None and process != JOINS_IMAGES:
        return (
            f"task {task} passes its table through {process}, which chooses or changes rows and is not done here; "
            "next: take a task without process_docs, or one whose data need none"
        )
    if output != PLAIN:
        return (
            f"task {task} asks by {output}, and here each question is asked once, in one pass; "
            f"next: take a task whose output_type is {PLAIN}"
        )
    return ""


def lesser(task: str, metric: str) -> str:
    """Say that a metric of which less is better is not one to name first."""
    return (
        f"of {metric} of task {task} less is better, and tables and verdicts take more of a score for better; "
        "next: name another metric of the task in the card, and this one under [also]"
    )


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
    value = _value(path, name, lambda found: isinstance(found, str) and found != "")
    return value if isinstance(value, str) else None


def _value(path: Path, name: str, counts: Callable[[object], bool] = lambda _: True) -> object:
    """Return what a file says of `name`, or else the first of those that it includes; None where none says it."""
    fields = _read(path)
    if name in fields and counts(fields[name]):
        return fields[name]
    included = fields.get("include")
    for one in included if isinstance(included, list) else [included]:
        if isinstance(one, str) and (found := _value(path.parent / one, name, counts)) is not None:
            return found
    return None


@cache
def _read(path: Path) -> Mapping[str, object]:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc] # yaml has no types here
        """YAML without the functions that lmms-eval's files name: nothing is imported, only their names are read."""

    Loader.add_multi_constructor("!", lambda loader, suffix, node: Function(str(node.value).rpartition(".")[2]))
    try:
        found = yaml.load(path.read_text(encoding="utf-8", errors="replace"), Loader)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not readable as YAML: {error}; next: install lmms_eval anew") from error
    return found if isinstance(found, dict) else {}
