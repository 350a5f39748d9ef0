"""The run log's schema as a page, made from harness/runlog/records.py: `python benchmarks/log_schema.py` writes it."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "harness" / "runlog" / "records.py"
PAGE = ROOT / "docs" / "runlog.md"
HEAD = """# The run log, line by line

Made from `harness/runlog/records.py` by `python benchmarks/log_schema.py`; a test holds it up to date. Change it there.

A log is a file of JSON lines in UTF-8, `results/<machine>/<cell>.jsonl`; while it is measured it ends in `.part`. The
first line is a `header`, the last a `footer`; one without a footer is unfinished and is resumed by the same command.
Each line has a `kind`. Fields at their default are left out. A field that a reader does not know is passed over; a log
of a newer schema is refused. Names ending in `_ns` are nanoseconds, in `_mj` millijoules, in `_px` pixels.

Read it with `harness.load` ([python.md](python.md)), `harness show --json`, or any JSON reader.
"""


def page() -> str:
    """Return the page."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name != "Record"]
    schema = next(
        ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SCHEMA"
    )
    return HEAD + f"\nSchema {schema}.\n" + "".join(map(_section, classes))


def _section(node: ast.ClassDef) -> str:
    tag = next((ast.literal_eval(word.value) for word in node.keywords if word.arg == "tag"), None)
    title = f"`kind: {tag}`" if tag else f"`{node.name}`, inside other lines"
    lines = [f"| `{name}` | {kind} | {default} | {told} |" for name, kind, default, told in _fields(node)]
    table = "\n".join(["| field | type | default | what |", "|--|--|--|--|", *lines])
    return f"\n## {title}\n\n{_joined(ast.get_docstring(node) or '')}\n\n{table}\n"


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str, str, str]]:
    for at, statement in enumerate(node.body):
        if not isinstance(statement, ast.AnnAssign):
            continue
        after = node.body[at + 1] if at + 1 < len(node.body) else None
        told = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            told = _joined(str(after.value.value))
        default = f"`{ast.unparse(statement.value)}`" if statement.value is not None else "required"
        kind = ast.unparse(statement.annotation).replace("|", "or")
        yield ast.unparse(statement.target), kind, default, told


def _joined(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
