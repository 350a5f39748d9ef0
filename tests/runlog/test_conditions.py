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
    return conditions.differences([log.read(second), log.read(first)])


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
        (
            {"environment": {"env_HARNESS_POOL": "0 of 2", "env_CUDA_VISIBLE_DEVICES": "0"}},
            {"environment": {"env_HARNESS_POOL": "1 of 2", "env_CUDA_VISIBLE_DEVICES": "1"}},
            {},
        ),
    ],
)
def test_differences_are_told_with_the_older_value_first(
    tmp_path: Path, before: dict[str, object], after: dict[str, object], told: dict[str, tuple[str, ...]]
) -> None:
    assert differing(tmp_path, before, after) == told


def test_the_pools_variable_is_the_pools() -> None:
    assert f"env_{pool.NAME}" == conditions.POOL
