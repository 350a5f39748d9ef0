"""What a cell's logs say of the hardware itself: its clock, how busy it was, what it drew, and what to doubt."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.models.protocol import STAGES
from harness.runlog.log import Log
from harness.runlog.records import StageEnergy

LAUNCH_BOUND = 0.5
"""Share of a stage in which the device computes; below it the stage is the host's."""
SMALLEST_STAGE = 0.05
"""Share of all stages below which a stage is too short to speak of."""
MOVED = 0.10
"""Spread of a GPU's clock over the samples that count, of the highest."""
SLOW_CLOCK = 0.5
"""Share of the maximum clock from which down a clock needs a word even when it is steady."""
ON_THE_DEVICE = (*STAGES[1:], "decode")


@dataclass(frozen=True, slots=True, eq=False)
class Hardware:
    """What the logs of one cell say of what it ran on."""

    clock: str
    """In words; empty where no clock was read."""
    busy_share: Mapping[str, float]
    """By stage, how long the device computed over how long the stage took."""
    energy: Mapping[str, StageEnergy]
    idle_w: float | None
    doubts: tuple[str, ...]

    def launch_bound(self, stage: str) -> bool:
        """Return whether the host, launching work, took longer over the stage than the device."""
        share = self.busy_share.get(stage)
        return share is not None and share < LAUNCH_BOUND


def of(logs: Sequence[Log]) -> Hardware:
    """Return what these logs of one cell say."""
    clock, clock_doubts = _clock(logs)
    busy = _busy(logs)
    energies = [each for log in logs for each in log.energy]
    return Hardware(
        clock,
        {stage: share for stage, (share, _) in busy.items()},
        {stage: drawn for each in energies for stage, drawn in each.stages.items()},
        next((each.idle_w for each in energies if each.idle_w is not None), None),
        tuple(dict.fromkeys([*_told(logs), *clock_doubts, *_launch_bound(busy)])),
    )


def _told(logs: Sequence[Log]) -> Iterator[str]:
    """Yield what the device itself doubted when the run began."""
    for log in logs:
        told = log.header.effective.get("doubts")
        if isinstance(told, list):
            yield from map(str, told)
        elif log.header.cell.get("dtype") == "bfloat16" and log.header.device.get("bf16_native") == "no":
            yield "bfloat16 is emulated: this CPU has no instructions for it; next: --dtype float32"


def _clock(logs: Sequence[Log]) -> tuple[str, list[str]]:
    good = [
        each.readings for log in logs for each in log.samples if each.phase == "timed" and each.valid and each.timed
    ]
    known = [each for each in good if each.get("gpu_clock") and isinstance(each.get("gpu_sm_mhz"), int | float)]
    if not known:
        return "", []
    clocks_mhz = [float(each["gpu_sm_mhz"] or 0) for each in known]
    states = [str(each["gpu_clock"]) for each in known]
    state = max(dict.fromkeys(states), key=states.count)
    shares = [float(share) for each in known if isinstance(share := each.get("gpu_clock_share"), int | float)]
    at = f"{np.median(clocks_mhz):.0f} MHz" + (f", {np.median(shares):.0%} of its maximum" if shares else "")
    why = " ".join(sorted({str(each["gpu_reasons"]) for each in known if each.get("gpu_reasons")})).replace("+", ", ")
    text = f"{state}: {at}" + (f" ({why})" if why and state != "free" else "")
    doubts = []
    if max(clocks_mhz) - min(clocks_mhz) > MOVED * max(clocks_mhz):
        doubts.append(
            f"the GPU's clock moved within the cell, from {min(clocks_mhz):.0f} to {max(clocks_mhz):.0f} MHz; "
            "let it warm up first, or lock its clock (nvidia-smi -lgc)"
        )
    if shares and np.median(shares) < SLOW_CLOCK:
        doubts.append(
            f"the GPU ran at {np.median(shares):.0%} of its maximum clock; compare only with runs at the same clock"
        )
    return text, doubts


def _busy(logs: Sequence[Log]) -> dict[str, tuple[float, float]]:
    """Return by stage the share of it in which the device computed, and the stage's share of all of them."""
    found: dict[str, list[tuple[float, float]]] = {}
    for log in logs:
        for each in log.busy:
            whole = sum(each.stage_ns.get(stage, 0) for stage in STAGES)
            for stage in ON_THE_DEVICE:
                took, worked = each.stage_ns.get(stage, 0), each.stage_busy_ns.get(stage)
                if took and worked is not None:
                    found.setdefault(stage, []).append((min(1.0, worked / took), took / whole if whole else 1.0))
    return {
        stage: (float(np.median([share for share, _ in pairs])), float(np.median([part for _, part in pairs])))
        for stage, pairs in found.items()
    }


def _launch_bound(busy: Mapping[str, tuple[float, float]]) -> list[str]:
    low = {stage: share for stage, (share, part) in busy.items() if share < LAUNCH_BOUND and part >= SMALLEST_STAGE}
    if not low:
        return []
    stages = ", ".join(f"{share:.0%} of {stage}" for stage, share in low.items())
    return [
        f"launch-bound: the device is busy {stages}; the rest is the host launching work; compare with a compiled "
        "model or CUDA graphs before you judge the device by these times"
    ]
