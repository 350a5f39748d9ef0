"""What logs say of the hardware: clocks in words, clocks that moved, and what the device itself doubted."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.reports import hardware
from harness.runlog.log import Log
from harness.runlog.records import Header, Pass, Sample


def log(
    readings: Sequence[dict[str, float | str | None]] = (),
    effective: dict[str, object] | None = None,
    dtype: str = "float32",
    device: dict[str, str] | None = None,
) -> Log:
    header = Header(
        schema=1, cell={"dtype": dtype}, key="", command="", started_at="", harness={}, environment={},
        device=device or {}, requested={}, effective=effective or {}, cards={}, weights={}, data={},
    )  # fmt: skip
    samples = [
        Sample(example=str(i), index=i, attempt=1, phase="timed", at="", clock="", stages=Pass(), readings=each)
        for i, each in enumerate(readings)
    ]
    return Log(Path("a.jsonl"), header, tuple(samples))


def reading(mhz: float, state: str = "steadily capped", share: float = 0.81) -> dict[str, float | str | None]:
    return {"gpu_sm_mhz": mhz, "gpu_clock": state, "gpu_clock_share": share, "gpu_reasons": "sw_power_cap"}


def test_a_steady_cap_is_said_and_no_doubt() -> None:
    found = hardware.of([log([reading(1695), reading(1680), reading(1710)])])
    assert found.clock == "steadily capped: 1695 MHz, 81% of its maximum (sw_power_cap)"
    assert found.doubts == ()


def test_a_clock_that_moved_is_a_doubt() -> None:
    (doubt,) = hardware.of([log([reading(1980, "free", 1.0), reading(1640)])]).doubts
    assert doubt.startswith("the GPU's clock moved within the cell, from 1640 to 1980 MHz")


def test_a_very_low_clock_is_a_doubt_however_steady() -> None:
    (doubt,) = hardware.of([log([reading(300, "locked", 0.15)] * 3)]).doubts
    assert "15% of its maximum clock" in doubt


@pytest.mark.parametrize(
    ("dtype", "device", "effective", "expected"),
    [
        ("bfloat16", {"bf16_native": "no"}, {}, ["bfloat16 is emulated"]),  # logs from before devices answered
        ("float32", {"bf16_native": "no"}, {}, []),
        ("bfloat16", {"bf16_native": "amx_bf16"}, {}, []),
        ("bfloat16", {}, {"doubts": ["bfloat16 is emulated: x", "cpu was not locked"]}, ["bfloat16", "cpu was not"]),
    ],
)
def test_what_the_device_doubted(
    dtype: str, device: dict[str, str], effective: dict[str, object], expected: list[str]
) -> None:
    found = hardware.of([log((), effective, dtype, device)]).doubts
    assert len(found) == len(expected)
    assert all(text.startswith(start) for text, start in zip(found, expected, strict=True))
