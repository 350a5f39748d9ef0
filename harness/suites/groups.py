"""Rows that count only together: MMBench's rotations of one question, MME's two questions on one picture."""

from collections.abc import Callable, Hashable, Iterable, Mapping

from harness.suites.contract import Row

ROTATION = 1_000_000
"""MMBench numbers the rotations of question 5 as 1000005, 2000005 ..."""


def incomplete(task: str, docs: Mapping[int, Row], asked: Iterable[Row]) -> tuple[dict[int, str], str]:
    """Return the answered rows whose group lacks a member, each with why, and what there is to say of the rest.

    `docs` are the rows that were answered, `asked` all of them, those that failed too.
    A question with one rotation unanswered would count as right if the others are; a pair with one half stops MME's
    aggregate.
    """
    if task.startswith("mmbench"):
        return _mmbench(docs, asked)
    if task == "mme":
        return _mme(docs)
    return {}, ""


def questions(task: str, rows: Iterable[Row]) -> int:
    """Return how many questions these rows are: the rotations of one of MMBench's are right or wrong together."""
    several = list(rows)
    return len({_index(row) % ROTATION for row in several}) if task.startswith("mmbench") else len(several)


def _mmbench(docs: Mapping[int, Row], asked: Iterable[Row]) -> tuple[dict[int, str], str]:
    if all(_index(doc) < ROTATION for doc in asked):
        return {}, "no rotations of the options among these rows: each row counts by itself, once"
    groups = _by(docs, lambda doc: _index(doc) % ROTATION)
    left: dict[int, str] = {}
    for key, members in groups.items():
        options = max(sum(_there(docs[at].get(name)) for name in "ABCDE") for at in members)
        numbers = {_index(docs[at]) for at in members}
        if len(numbers) < options or key not in numbers:
            why = f"question {key}: {len(numbers)} of its {options} rotations are answered"
            left |= dict.fromkeys(members, why)
    return left, ""


def _mme(docs: Mapping[int, Row]) -> tuple[dict[int, str], str]:
    left: dict[int, str] = {}
    for key, members in _by(docs, lambda doc: (doc.get("category"), doc.get("question_id"))).items():
        if len(members) != 2:
            left |= dict.fromkeys(members, f"picture {key}: {len(members)} of its 2 questions are answered")
    return left, ""


def _by(docs: Mapping[int, Row], key: Callable[[Row], Hashable]) -> dict[Hashable, list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for at, doc in docs.items():
        groups.setdefault(key(doc), []).append(at)
    return groups


def _index(doc: Row) -> int:
    number = doc.get("index")
    return int(number) if isinstance(number, int | float | str) else 0


def _there(option: object) -> bool:
    return option is not None and str(option).strip() not in ("", "nan")
