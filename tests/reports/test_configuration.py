"""A cell is written by the measuring half and read by the reporting half, which cannot import it: lists agree."""

from dataclasses import fields

from harness.measure.cell import Cell
from harness.reports.configuration import Configuration

NOT_TOLD_APART = {
    "part": "parts and processes of one cell are brought together",
    "repetition": "parts and processes of one cell are brought together",
    "suite_digest": "its prompts and data are in data_digest",
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
