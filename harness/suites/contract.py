"""What a row must have for its task, checked row by row before anything is measured: a bad row is one failed example.

lmms-eval's scorers take what they are given: a string where a list of references belongs is scored letter by letter, an
index of -1 is the last option. Here every shape that the published data have, or a JSON text of it, is brought into the
one that the task reads; everything else is refused by row and column.
"""

import ast
import contextlib
import io
import itertools
import json
import math
import tokenize
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from harness.errors import DataError

Row = Mapping[str, object]

Item = TypeVar("Item")

ANNOTATORS = 10
"""References of a question in VQA accuracy: an answer counts fully where three of the other nine gave it."""

FEWEST = 4
"""With fewer references no answer could count fully: three must agree with it beside the one that is left out."""


class RowProblem(DataError):
    """A row that cannot be asked or scored: which column, and why."""

    def __init__(self, column: str, why: str) -> None:
        self.column, self.why = column, why
        super().__init__(f"column {column}: {why}")


class Unlabelled(RowProblem):
    """A row without references: a test split, for which only some server knows the answers."""


@dataclass(frozen=True, slots=True)
class Contract:
    """What a task's rows must have; `read` brings references into the shape that its scorer takes."""

    references: str | None
    """The column of references, or None where none are read here (a judge has them)."""
    read: Callable[[Row, object], object]
    stand_in: object = "x"
    """References that the task's constructor, which looks at one row, accepts where a row has none."""
    needed: tuple[str, ...] = ("question",)
    """Columns that may not be null, beside references and pictures."""
    lists: tuple[str, ...] = ()
    """Those of them that hold options: a list, or a JSON text of one."""
    pictures: tuple[str, ...] | None = ("image",)
    """Columns of pictures; None where only their names tell (a task that is not known here)."""
    several: bool = False
    """Whether a picture column holds a list."""
    optional: bool = False
    """Whether a question may come without its picture."""
    or_empty: tuple[str, ...] = ()
    """Columns of text whose null means that there is none: the task would write the word None into the question."""
    known: bool = True
    """Whether the task is one whose scorer was read: a right answer is then scored once, to see that it can be."""

    def asked(self, doc: Row) -> dict[str, object]:
        """Return the row with its options as lists; raises `RowProblem` where the question cannot be asked."""
        made = dict(doc)
        for name in self.needed:
            if name not in doc:
                raise RowProblem(name, f"is not there; the row has {', '.join(doc)}")
            if _blank(doc[name]):
                raise RowProblem(name, "is null" if doc[name] is None else "is empty")
        if _blank(made.get("question", "?")):  # of a task that is not known here
            raise RowProblem("question", "is null" if made["question"] is None else "is empty")
        for name in self.or_empty:
            if name in made and made[name] is None:
                made[name] = ""
        for name in self.lists:
            made[name] = _options(name, doc[name])
        if self.read is _mmmu and isinstance(made.get("options"), list):  # its task wants the text of a list
            made["options"] = repr(made["options"])
        return made

    def labelled(self, doc: Row) -> dict[str, object]:
        """Return the row with references as the scorer takes them; raises `Unlabelled` without any, or `RowProblem`."""
        if self.references is None:
            return dict(doc)
        if self.references not in doc:
            near = [name for name in doc if name.startswith(self.references.rstrip("s"))]
            hint = f" (there is a column {near[0]}, which task and data set do not know)" if near else ""
            raise Unlabelled(self.references, f"is not there{hint}")
        value = doc[self.references]
        if absent(value):
            raise Unlabelled(self.references, "no references")
        return {**doc, self.references: self.read(doc, value)}

    def votes(self, doc: Row) -> int:
        """Return how many references VQA accuracy has to count in this row; 0 for other tasks."""
        value = doc.get(self.references or "")
        return len(_once(_answers(self.references or "", value))) if self.read in (_ten, _structs) else 0


def of(task: str, target: str | None = None) -> Contract:
    """Return the contract of `task`; of one not known here, with its column of references where its file names one."""
    known = CONTRACTS.get(task) or CONTRACTS.get(task.removesuffix("_lite"))
    return known or Contract(target, lambda _, value: value, needed=(), pictures=None, known=False)


def absent(value: object) -> bool:
    """Return whether references are none at all: null, empty, or what data sets write for them (-1, "?")."""
    if isinstance(value, str):
        text = value.strip()
        return text in ("", "-1", "?") or (text[:1] == "[" and (found := _listed(text)) is not None and absent(found))
    if isinstance(value, Mapping):
        return "answer" in value and absent(value["answer"])
    if isinstance(value, list | tuple):
        return all(item is None or (isinstance(item, str | Mapping) and absent(item)) for item in value)
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value == -1)


def _blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value == []


def _listed(value: str) -> object:
    """Return the list that a JSON text (or Python's own) spells, or None where it spells none."""
    found = None
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(value)
    if found is None:
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
            found = None if _runs_together(value) else ast.literal_eval(value)
    return found if isinstance(found, list) else None


def _runs_together(value: str) -> bool:
    """Return whether two texts stand without a comma between (numpy prints lists so): Python would make one of them."""
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(value).readline) if token.type != tokenize.NL]
    return any(pair == (tokenize.STRING, tokenize.STRING) for pair in itertools.pairwise(kinds))


def _options(column: str, value: object) -> list[str]:
    found = _listed(value) if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or len(found) < 1:
        raise RowProblem(column, f"{value!r} is no list of options")
    if any(_blank(option) for option in found):
        raise RowProblem(column, f"an option is null or empty: {found!r}")
    return [_plain_text(column, option) for option in found]


def _plain_text(column: str, value: object) -> str:
    """Return a text, or a number as one writes it; a float that counts (pandas makes them of integers) without `.0`."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowProblem(column, f"{value!r} is no text")
    return str(int(value)) if value == int(value) else repr(value)


def _answers(column: str, value: object) -> list[object]:
    """Return several references as a list of what each is, whatever they come in; nulls are left out."""
    if isinstance(value, str):
        found = _listed(value.strip()) if value.strip().startswith("[") else None
        if isinstance(found, list) and all(item is None or isinstance(item, str | Mapping) for item in found):
            value = found
        elif value.strip()[:2] in ("['", '["', "[{"):
            raise RowProblem(column, f"{value[:60]!r} looks like a list and cannot be read as one")
        elif len(value) > 1 and value[0] == value[-1] == '"':
            with contextlib.suppress(ValueError):
                value = json.loads(value)
    if isinstance(value, Mapping) and isinstance(value.get("answer"), list):  # a struct of lists
        names = [name for name, part in value.items() if isinstance(part, list)]
        value = [dict(zip(names, parts, strict=True)) for parts in zip(*(value[name] for name in names), strict=True)]
    items = list(value) if isinstance(value, list | tuple) else [value]
    return [item for item in items if item is not None]


def _texts(doc: Row, value: object, column: str = "answers") -> list[str]:
    return [_plain_text(column, item) for item in _answers(column, value)]


def _ten(doc: Row, value: object) -> list[str]:
    items = _once(_answers("answers", value))
    texts = [_plain_text("answers", item.get("answer") if isinstance(item, Mapping) else item) for item in items]
    return _repeated(texts)


def _structs(doc: Row, value: object) -> list[dict[str, object]]:
    """VQAv2: each reference needs an id of its own, or equal answers of several people are taken for one."""
    items = _once(_answers("answers", value))
    made: list[dict[str, object]] = [dict(item) if isinstance(item, Mapping) else {"answer": item} for item in items]
    made = [{**item, "answer": _plain_text("answers", item.get("answer"))} for item in made]
    ids = [item.get("answer_id") for item in made]
    if None in ids or len(set(map(str, ids))) < len(ids) or len(made) < FEWEST:
        made = [{**item, "answer_id": at} for at, item in enumerate(_repeated(made), 1)]
    return made


def _repeated(items: list[Item]) -> list[Item]:
    """Repeat fewer references than `FEWEST` until they are ten at least, so that a right answer can count fully.

    From four on, the scorer's own rule works and is left alone: repeating nine would count each of them double.
    """
    return items * math.ceil(ANNOTATORS / len(items)) if len(items) < FEWEST else items


def _once(items: list[Item]) -> list[Item]:
    """Return references as they were before they were repeated: logs of builders before the third have 9 as 18.

    Of exactly ten nobody can tell, and people may have given five answers twice: those are left alone.
    """
    if len(items) <= ANNOTATORS:
        return items
    said = [item.get("answer") if isinstance(item, Mapping) else item for item in items]
    for size in range(1, ANNOTATORS):
        times = math.ceil(ANNOTATORS / size)
        if said == said[:size] * times:
            return items[:size]
    return items


def _text(doc: Row, value: object, column: str = "answer") -> str:
    found = _listed(value) if isinstance(value, str) and value.strip()[:2] in ("['", '["') else value
    if isinstance(found, list | tuple):
        if len(found) != 1:
            raise RowProblem(column, f"{len(found)} references where the task takes one: {found!r}")
        found = found[0]
    return _plain_text(column, found if found is not None else value)


def _yes_or_no(doc: Row, value: object) -> str:
    text = _text(doc, value)
    if text.strip().lower() not in ("yes", "no"):
        raise RowProblem("answer", f"{value!r} is neither yes nor no")
    return text


def _letter_of(options: list[str]) -> Callable[[Row, object], str]:
    """Return the reader of a letter among those whose option, in a column of its own, is there."""

    def read(doc: Row, value: object) -> str:
        letter = _text(doc, value).strip().upper()
        known = [name[-1].upper() for name in options if not _blank(doc.get(name)) and doc.get(name) != "nan"]
        if letter not in known:
            raise RowProblem("answer", f"{value!r} is none of the options {', '.join(known)}")
        return letter

    return read


def _index_of(options: str, kind: type[int] | type[str]) -> Callable[[Row, object], int | str]:
    """Return the reader of a position in the column `options`, from 0, as the scorer wants it."""

    def read(doc: Row, value: object) -> int | str:
        try:
            at = int(_text(doc, value))
        except ValueError:
            raise RowProblem("answer", f"{value!r} is no index of the options (0 is the first)") from None
        there = len(_options(options, doc[options]))
        if not 0 <= at < there:
            raise RowProblem("answer", f"index {at} is out of range: there are {there} options")
        return kind(at)

    return read


def _mmmu(doc: Row, value: object) -> object:
    kind = doc["question_type"]
    if kind not in ("multiple-choice", "open"):
        raise RowProblem("question_type", f"{kind!r} is neither multiple-choice nor open")
    if kind == "open":
        return value
    options = _options("options", doc["options"])
    letter = _text(doc, value).strip()
    known = [chr(ord("A") + at) for at in range(len(options))]
    if letter not in known:
        raise RowProblem("answer", f"{value!r} is none of the options {', '.join(known)}")
    return letter


def _unread(doc: Row, value: object) -> object:
    return value


OCRBENCH_KINDS = (
    "Regular Text Recognition",
    "Irregular Text Recognition",
    "Artistic Text Recognition",
    "Handwriting Recognition",
    "Digit String Recognition",
    "Non-Semantic Text Recognition",
    "Scene Text-centric VQA",
    "Doc-oriented VQA",
    "Key Information Extraction",
    "Handwritten Mathematical Expression Recognition",
)
"""OCRBench's ten kinds of question: its aggregate knows no other."""


def _ocrbench(doc: Row, value: object) -> object:
    if doc["question_type"] not in OCRBENCH_KINDS:
        raise RowProblem("question_type", f"{doc['question_type']!r} is none of OCRBench's {len(OCRBENCH_KINDS)} kinds")
    return _texts(doc, value, "answer")


_SEED = ("choice_a", "choice_b", "choice_c", "choice_d")
_DOCUMENTS = Contract("answers", _texts, ["x"])
_JUDGED = Contract(None, _unread)

CONTRACTS = {
    "docvqa_val": _DOCUMENTS,
    "infovqa_val": _DOCUMENTS,
    "textvqa_val": Contract("answers", _ten, ["x"]),
    "vqav2_val": Contract("answers", _structs, [{"answer": "x", "answer_id": 1}]),
    "chartqa": Contract("answer", _text, needed=("question", "type")),
    "ocrbench": Contract("answer", _ocrbench, ["x"], ("question", "question_type", "dataset")),
    "gqa": Contract("answer", _text),
    "pope": Contract("answer", _yes_or_no, "yes"),
    "realworldqa": Contract("answer", _text),
    "ai2d": Contract("answer", _index_of("options", str), "0", ("question", "options"), ("options",)),
    "scienceqa_img": Contract(
        "answer", _index_of("choices", int), 0, ("question", "choices"), ("choices",), optional=True, or_empty=("hint",)
    ),
    "seedbench": Contract("answer", _letter_of([*_SEED]), "A", ("question", "data_type", *_SEED), several=True),
    "mmbench_en_dev_static": Contract("answer", _letter_of([*"ABCDE"]), "A", ("index", "question", "A", "B")),
    "mmmu_val": Contract(
        "answer",
        _mmmu,
        "A",
        ("question", "question_type"),
        pictures=tuple(f"image_{at}" for at in range(1, 8)),
        optional=True,
    ),
    "mmvet": _JUDGED,
    "llava_in_the_wild": _JUDGED,
    "mathvista_testmini_format": Contract(None, _unread, pictures=("decoded_image",)),
}
"""By lmms-eval's name of the task: those of the suites that ship, whose scorers were read for this."""
