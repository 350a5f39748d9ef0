"""Quantities as people read them."""

import pytest

from harness.units import milliseconds, size, some


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, "–"),
        (740, "740 ns"),
        (1_500, "1.50 µs"),
        (16_640_000, "16.6 ms"),
        (512_000_000, "512 ms"),
        (4.66e9, "4.66 s"),
    ],
)
def test_times_have_three_digits(ns: float | None, text: str) -> None:
    assert milliseconds(ns) == text


def test_bytes_are_decimal() -> None:
    assert [size(n) for n in (None, 999, 1_240_000_000, 22.06e9)] == ["–", "999 B", "1.24 GB", "22.1 GB"]


@pytest.mark.parametrize(("count", "text"), [(0, ""), (2, "a, b"), (3, "a, b and 1 more"), (5, "a, b and 3 more")])
def test_of_many_names_the_first_are_said_and_how_many_more(count: int, text: str) -> None:
    assert some(iter("abcde"[:count]), 2) == text
