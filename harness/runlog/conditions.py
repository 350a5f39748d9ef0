"""What a number depends on that no cell holds: packages, variables, driver, the harness itself; as run logs say it."""

import re
from collections.abc import Sequence

from harness.runlog.records import Header

OF_NO_MATTER = ("env_HF_HUB_OFFLINE", "env_HF_DATASETS_OFFLINE", "env_HARNESS_OFFLINE", "env_PYTHONHASHSEED")
"""They decide where files come from, which the digests tell, or nothing that is timed."""
POOL = "env_HARNESS_POOL"
WHICH_DEVICE = "CUDA_VISIBLE_DEVICES"
OF_A_MEMBER = (POOL, f"env_{WHICH_DEVICE}")
"""A pool decides anew for each cell which of its devices measures it: one is as good as another."""
OTHERS = ("python", "cpu_quota_cores", "cores_usable", "preloaded")
OF_THE_MACHINE = (*OTHERS, "os", "kernel", "cpu", "mac_model", "cpu_governor", "power")
OF_TIMES = (
    "cpu_quota_cores", "cores_usable", "kernel", "cpu_governor", "power", WHICH_DEVICE, "HARNESS_POOL",
    "mac_model", "device's gpu_cores", "device's threads", "device's power_limit_w", "device's ecc", "device's mig",
)  # fmt: skip
"""They say how fast something runs, or on which of several alike, and nothing of what a model answers."""
OF_THE_DEVICE = (
    "model", "gpu_cores", "driver", "cuda", "cudnn", "metal", "isa", "threads", "power_limit_w", "ecc", "mig",
)  # fmt: skip
ALIKE = (WHICH_DEVICE, "datasets", "lmms_eval", "safetensors", "nvidia_ml_py", "zeus_apple_silicon")
"""No matter between two cells: which of several devices of one model, packages that only read files (the digests tell
of what) or meters."""
OURS = "harness "


def of(header: Header) -> dict[str, str]:
    """Return what a log's header says of the conditions that it was measured under; of a pool, its size alone."""
    facts = {
        name.removeprefix("env_").removeprefix("package_"): _size(value) if name == POOL else value
        for name, value in header.environment.items()
        if (name.startswith(("env_", "package_")) and name not in OF_NO_MATTER) or name in OF_THE_MACHINE
    }
    facts |= {f"device's {name}": value for name, value in header.device.items() if name in OF_THE_DEVICE}
    return facts | {f"{OURS}{name}": value for name, value in header.harness.items()}


def differences(headers: Sequence[Header]) -> dict[str, tuple[str, ...]]:
    """Return what these logs differ in, with its values, the oldest log's first.

    What a log does not say is no difference, for older harnesses said less and what runs needs its own packages; only a
    variable that is not set is one.
    """
    facts = _facts(sorted(headers, key=lambda header: header.started_at))
    found = {}
    for name in sorted({name for each in facts for name in each}):
        values = tuple(dict.fromkeys(each[name] for each in facts if name in each))
        if len(values) > 1:
            found[name] = values
    return _of_one_code(found, facts)


def between(cells: Sequence[Sequence[Header]]) -> dict[str, tuple[str, ...]]:
    """Return what cells were not measured alike in: for each a text, empty where none of its logs says it.

    What only the logs of one cell differ in is not here: `differences` of that cell tells it.
    """
    every = [header for headers in cells for header in headers]
    known = iter(_facts(every))
    facts = [[next(known) for _ in headers] for headers in cells]
    found = {}
    for name in differences(every):
        texts = tuple(" and ".join(dict.fromkeys(each[name] for each in mine if name in each)) for mine in facts)
        if name not in ALIKE and len({text for text in texts if text}) > 1:
            found[name] = texts
    return found


def _facts(headers: Sequence[Header]) -> list[dict[str, str]]:
    """Return the conditions of each log, with the variables that only others have set."""
    variables = {name for each in headers for name in each.environment if name.startswith("env_")}
    unset = {name.removeprefix("env_"): "not set" for name in variables if name not in OF_NO_MATTER}
    facts = [{**unset, **of(header)} for header in headers]
    if POOL in variables:
        for each in facts:
            each.pop(WHICH_DEVICE, None)
    return facts


def _size(pool: str) -> str:
    found = re.search(r"one of \d+", pool)
    return found[0] if found else pool


def _of_one_code(found: dict[str, tuple[str, ...]], facts: Sequence[dict[str, str]]) -> dict[str, tuple[str, ...]]:
    """Leave out names of the harness that say the same: where all logs tell its code, that decides."""
    code, names = f"{OURS}code", (f"{OURS}commit", f"{OURS}version")
    if all(code in each for each in facts):
        left_out = [code] if code in found and any(name in found for name in names) else []
        left_out += [] if code in found else names
        return {name: values for name, values in found.items() if name not in left_out}
    return found
