"""A cell is written by the measuring half and read by the reporting half, which cannot import it: lists agree."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import synthetic_logs

from harness.measure.cell import Cell
from harness.reports import configuration, frame
from harness.reports.configuration import Configuration
from harness.runlog import log

NOT_TOLD_APART = {
    "part": "parts and processes of one cell are brought together",
    "repetition": "parts and processes of one cell are brought together",
    "minimum_samples": "how long was measured makes no other cell",
    "minimum_seconds": "how long was measured makes no other cell",
    "maximum_samples": "how long was measured makes no other cell",
    "maximum_seconds": "how long was measured makes no other cell",
    "precision": "how long was measured makes no other cell",
    "sampling": "which examples were timed makes no other cell",
    "load": "a series of its own beside the cell",
}
"""Fields of a cell that its logs may differ in, and why."""


def test_every_field_of_a_cell_is_read_or_left_out_on_purpose() -> None:
    written, read = ({field.name for field in fields(kind)} for kind in (Cell, Configuration))
    assert written - read == set(NOT_TOLD_APART)
    assert read - written == {"machine"}  # from the log's environment


@pytest.mark.parametrize("name", [field.name for field in fields(Configuration)])
def test_no_two_cells_have_one_name(tmp_path: Path, name: str) -> None:
    """Exporters find a run again by it, and `choose` names its winner so."""
    one = configuration.of(log.read(synthetic_logs.write(tmp_path / "a.jsonl")))
    before = getattr(one, name)
    other: object = not before if isinstance(before, bool) else 7 if isinstance(before, int | None) else "x"
    assert replace(one, **{name: other}).name != one.name
    assert replace(one, seed=None).name != one.name, "a seed of 0 is one"


@pytest.mark.parametrize("name", ["suite_digest", "asked_suite", "data"])
def test_another_metric_or_length_of_answer_is_another_cell(tmp_path: Path, name: str) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl")
    synthetic_logs.write(tmp_path / "b.jsonl", seed=1, of_cell={name: "another"})
    first, second = frame.load(tmp_path).cells
    assert first.configuration.name != second.configuration.name


@pytest.mark.parametrize(("limit", "told"), [(11, 11), (12, 12), (13, None)])
def test_a_limit_beyond_the_suite_is_none(tmp_path: Path, limit: int, told: int | None) -> None:
    """Of twelve examples: the whole suite is called by no limit, and may stand beside a published score."""
    assert configuration.of(log.read(synthetic_logs.write(tmp_path / "a.jsonl", n=12, limit=limit))).limit == told
