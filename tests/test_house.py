"""Rules of the house that a machine can look after: what is long, what is loosely typed, what the sdist holds."""

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LONGEST = 60
"""Lines of a function: one screen."""
MOST_ANYS = 100
"""Imports and sentences counted; what other libraries leave untyped has names in models/foreign.py."""


def functions(path: Path) -> list[tuple[str, int]]:
    tree = ast.parse(path.read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(f"{path.relative_to(ROOT)}: {node.name}", (node.end_lineno or 0) - node.lineno + 1) for node in found]


def test_a_function_fits_a_screen() -> None:
    every = [one for path in (ROOT / "harness").rglob("*.py") for one in functions(path)]
    assert len(every) > 500
    assert [one for one in every if one[1] > LONGEST] == []


def test_any_is_written_where_it_is_meant_and_nowhere_else() -> None:
    words = [word for path in (ROOT / "harness").rglob("*.py") for word in re.findall(r"\bAny\b", path.read_text())]
    assert len(words) < MOST_ANYS


def test_the_sdist_has_all_that_its_tests_need() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        include = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {"CONTRIBUTING.md", "training", "benchmarks", "tests"} <= set(include)
