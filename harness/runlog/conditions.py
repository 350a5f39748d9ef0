"""What a number depends on that no cell holds: packages, variables, driver, the harness itself; as run logs say it."""

from collections.abc import Sequence

from harness.runlog.log import Log

OF_NO_MATTER = ("env_HF_HUB_OFFLINE", "env_HF_DATASETS_OFFLINE", "env_HARNESS_OFFLINE", "env_PYTHONHASHSEED")
"""They decide where files come from, which the digests tell, or nothing that is timed."""
POOL = "env_HARNESS_POOL"
OF_A_MEMBER = (POOL, "env_CUDA_VISIBLE_DEVICES")
"""A pool decides anew for each cell which of its devices measures it: one is as good as another."""
OTHERS = ("python", "cpu_quota_cores", "cores_usable", "preloaded")
OF_THE_MACHINE = (*OTHERS, "os", "kernel", "cpu", "mac_model", "cpu_governor", "power")
OF_TIMES = (
    "cpu_quota_cores", "cores_usable", "kernel", "cpu_governor", "power", "CUDA_VISIBLE_DEVICES",
    "mac_model", "device's gpu_cores", "device's threads", "device's power_limit_w", "device's ecc", "device's mig",
)  # fmt: skip
"""They say how fast something runs, or on which of several alike, and nothing of what a model answers."""
OF_THE_DEVICE = (
    "model",
    "gpu_cores",
    "driver",
    "cuda",
    "cudnn",
    "metal",
    "isa",
    "threads",
    "power_limit_w",
    "ecc",
    "mig",
)


def of(log: Log) -> dict[str, str]:
    """Return what a log's header says of the conditions that it was measured under."""
    header = log.header
    facts = {
        name.removeprefix("env_").removeprefix("package_"): value
        for name, value in header.environment.items()
        if (name.startswith(("env_", "package_")) and name not in OF_NO_MATTER) or name in OF_THE_MACHINE
    }
    facts |= {f"device's {name}": value for name, value in header.device.items() if name in OF_THE_DEVICE}
    return facts | {f"harness {name}": value for name, value in header.harness.items()}


def differences(logs: Sequence[Log]) -> dict[str, tuple[str, ...]]:
    """Return what these logs differ in, with its values, the oldest log's first.

    What a log does not say is no difference, for older harnesses said less and what runs needs its own packages; only a
    variable that is not set is one.
    """
    facts = [of(log) for log in sorted(logs, key=lambda log: log.header.started_at)]
    variables = {name.removeprefix("env_") for log in logs for name in log.header.environment if name[:4] == "env_"}
    pooled = any(POOL in log.header.environment for log in logs)
    found = {}
    for name in sorted({name for each in facts for name in each}):
        unset = "not set" if name in variables else ""
        values = dict.fromkeys(value for each in facts if (value := each.get(name, unset)))
        if len(values) > 1 and not (pooled and f"env_{name}" in OF_A_MEMBER):
            found[name] = tuple(values)
    return found
