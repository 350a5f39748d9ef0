"""What logs of one cell may differ in without a word, and what they may not."""

from pathlib import Path

import pytest
import synthetic_logs

from harness.machine import pool
from harness.runlog import conditions, log


def differing(folder: Path, before: dict[str, object], after: dict[str, object]) -> dict[str, tuple[str, ...]]:
    """Return what two logs differ in whose headers were made with these arguments; the later one is written first."""
    second = synthetic_logs.write(folder / "a.jsonl", started_at="2026-11-24T12:00:00.000+00:00", **after)
    first = synthetic_logs.write(folder / "b.jsonl", **before)
    return conditions.differences([log.read(second).header, log.read(first).header])


def member(number: int) -> dict[str, object]:
    """Return the environment of a member of a pool of two, as `machine/pool.py` makes it."""
    told = f"cuda:{number}, one of 2; cores {8 * number}-{8 * number + 7}"
    return {"environment": {"env_HARNESS_POOL": told, "env_CUDA_VISIBLE_DEVICES": str(number)}}


def code(commit: str, digest: str) -> dict[str, object]:
    return {"commit": commit, "harness": {"code": digest}}


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"commit": "aaa"}, {"commit": "bbb"}, {"harness commit": ("aaa", "bbb")}),
        ({"environment": {"package_torch": "1"}}, {"environment": {"package_torch": "2"}}, {"torch": ("1", "2")}),
        ({"environment": {"env_OMP_NUM_THREADS": "1"}}, {}, {"OMP_NUM_THREADS": ("1", "not set")}),
        ({"of_device": {"driver": "550"}}, {"of_device": {"driver": "560"}}, {"device's driver": ("550", "560")}),
        ({"of_device": {"gpu_cores": "7"}}, {"of_device": {"gpu_cores": "8"}}, {"device's gpu_cores": ("7", "8")}),
        (
            {"environment": {"mac_model": "MacBookAir10,1"}},
            {"environment": {"mac_model": "Macmini9,1"}},
            {"mac_model": ("MacBookAir10,1", "Macmini9,1")},
        ),
        ({"environment": {"package_torch": "1"}}, {}, {}),
        ({"environment": {"env_HF_HUB_OFFLINE": "1"}}, {}, {}),
        ({"environment": {"memory_bytes": "1"}}, {"environment": {"memory_bytes": "2"}}, {}),
        (member(0), member(1), {}),
        (member(0), {}, {"HARNESS_POOL": ("one of 2", "not set")}),
        (
            member(0),
            {"environment": {"env_HARNESS_POOL": "cuda:0, one of 4; cores 0-3"}},
            {"HARNESS_POOL": ("one of 2", "one of 4")},
        ),
        (code("aaa", "c1"), code("bbb", "c1"), {}),
        (code("aaa", "c1"), code("bbb", "c2"), {"harness commit": ("aaa", "bbb")}),
        (code("aaa+dirty", "c1"), code("aaa+dirty", "c2"), {"harness code": ("c1", "c2")}),
        (code("aaa", "c1"), {"commit": "bbb"}, {"harness commit": ("aaa", "bbb")}),
    ],
)
def test_differences_are_told_with_the_older_value_first(
    tmp_path: Path, before: dict[str, object], after: dict[str, object], told: dict[str, tuple[str, ...]]
) -> None:
    assert differing(tmp_path, before, after) == told


def test_between_cells_what_is_alike_is_left_out_and_each_has_a_text(tmp_path: Path) -> None:
    """Which of several devices of a model, what only read files, and what one cell alone differs in, is no matter."""
    said: list[dict[str, str]] = [
        {"package_torch": "1", "package_datasets": "1", "env_CUDA_VISIBLE_DEVICES": "0", "package_timm": "1"},
        {"package_torch": "2", "package_datasets": "2", "env_CUDA_VISIBLE_DEVICES": "1"},
        {"package_torch": "1", "package_timm": "2"},
        {"package_torch": "2", "package_timm": "2"},
    ]
    headers = [log.read(synthetic_logs.write(tmp_path / f"{at}.jsonl", environment=each)).header
               for at, each in enumerate(said)]  # fmt: skip
    first, second, third, fourth = headers
    assert conditions.between([[first], [second]]) == {"torch": ("1", "2")}
    assert conditions.between([[first], [third, fourth]]) == {"torch": ("1", "1 and 2"), "timm": ("1", "2")}
    assert conditions.between([[first], [second], [third]])["timm"] == ("1", "", "2")
    assert conditions.between([[third, fourth]]) == {}


def test_the_pools_variable_is_the_pools() -> None:
    assert f"env_{pool.NAME}" == conditions.POOL
