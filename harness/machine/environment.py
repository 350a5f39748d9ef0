"""What machine this is, as a flat dict of texts: enough to say why two runs differ, and nothing private.

Neither host name nor user name nor paths; package versions come from their metadata, so torch is not imported.
"""

import os
import platform
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from harness import __version__
from harness.machine import awake, backend
from harness.machine.devices.cpu import model_name, usable_cores
from harness.machine.probes import mac

PACKAGES = [
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "transformers",
    "timm",
    "safetensors",
    "accelerate",
    "tokenizers",
    "datasets",
    "lmms_eval",
    "nvidia-ml-py",
    "mlx",
    "mlx-lm",
    "coremltools",
    "zeus-apple-silicon",
]
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
VARIABLES = [
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "OMP_WAIT_POLICY",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "GOMP_CPU_AFFINITY",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "ONEDNN_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING",
    "CUDA_MODULE_LOADING",
    "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "PYTORCH_ENABLE_MPS_FALLBACK",
    "PYTORCH_MPS_HIGH_WATERMARK_RATIO",
    "PYTORCH_MPS_LOW_WATERMARK_RATIO",
    "PYTORCH_MPS_FAST_MATH",
    "PYTORCH_MPS_PREFER_METAL",
    "MLX_DISABLE_COMPILE",
    "MLX_ENABLE_TF32",
    "MLX_MAX_MB_PER_BUFFER",
    "MLX_MAX_OPS_PER_BUFFER",
    "MLX_METAL_FAST_SYNCH",
    "MLX_METAL_GPU_ARCH",
    "MLX_SDPA_BLOCKS",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "MALLOC_ARENA_MAX",
    "TOKENIZERS_PARALLELISM",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HARNESS_OFFLINE",
    "HARNESS_POOL",
    "PYTHONHASHSEED",
]
"""Environment variables that change timings or what is loaded; none of them names a person or a place."""


def describe(device: str) -> dict[str, str]:
    """Return what the log's header says about this machine, named after `device`, and its software."""
    facts: dict[str, str | None] = {
        "machine": machine_name(device),
        "os": _system(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cpu": model_name(),
        "mac_model": mac.model_identifier() if sys.platform == "darwin" else None,
        "kept_awake": awake.kept(),
        "cores": str(os.cpu_count()),
        "cores_physical": str(psutil.cpu_count(logical=False)),
        "cores_usable": str(usable_cores()),
        "cpu_quota_cores": _number(cpu_quota_cores()),
        "cpu_governor": governor(),
        "virtual_machine": virtual_machine(),
        "container": "yes" if in_container() else None,
        "memory_bytes": str(psutil.virtual_memory().total),
        "swap_used_bytes": str(psutil.swap_memory().used),
        "power": power_source(),
        "harness": __version__,
        "preloaded": _preloaded(),
        **{f"package_{name.replace('-', '_')}": installed(name) for name in PACKAGES},
        **{f"env_{name}": os.environ.get(name) for name in VARIABLES},
    }
    return {name: value for name, value in facts.items() if value is not None}


@cache
def machine_name(device: str) -> str:
    """Return a short name for results folders: `linux-amd-epyc-9b45-2c`, `linux-xeon-8480c-26c-h200`,
    `mac-m1-8c-7g`.

    The accelerator in it is the one that `device` is: what else is in the machine has no part in its times.
    """
    system = {"darwin": "mac", "linux": "linux", "win32": "windows"}.get(sys.platform, sys.platform)
    return slug(system, f"{model_name()}{generation()}", os.cpu_count() or 1, backend.of(device).card())


def generation() -> str:
    """Return the CPU's family and model in numbers where its name has none, as ` family 25 model 17`; else nothing.

    Clouds hide which CPU it is: "AMD EPYC" may have instructions for bfloat16 or emulate them, one day and the next.
    """
    try:
        lines = (PROC / "cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    named = facts.get("model name", "").split("@")[0]
    if not named or re.search(r"\d", named) or not facts.get("cpu family") or not facts.get("model"):
        return ""
    return f" family {facts['cpu family']} model {facts['model']}"


def slug(system: str, cpu: str, cores: int, gpu: str | None) -> str:
    """Put a machine's name together from brand texts, without their decoration."""
    text = cpu.split("@")[0].split(" with ")[0]
    text = re.sub(
        r"\((r|tm|c)\)|®|™|\b\d+-core\b|\b(cpu|processor|genuine|gold|platinum|silver|apple)\b", " ", text, flags=re.I
    )
    words = re.findall(r"[a-z0-9]+", text.lower())
    if system == "mac":  # one name of a chip stands for several numbers of cores, of the CPU and of the GPU
        of_gpu = re.match(r"(\d+)-core", gpu or "")
        return "-".join([system, *words, f"{cores}c", *([f"{of_gpu[1]}g"] if of_gpu else [])])
    graphics = re.findall(r"[a-z0-9]+", re.sub(r"\b(nvidia|geforce|tesla|graphics|device)\b", " ", (gpu or "").lower()))
    return "-".join([system, *words, f"{cores}c", *graphics])


def installed(package: str) -> str | None:
    """Return a package's version without importing it, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_quota_cores() -> float | None:
    """Return the CPU quota in cores: the least of our control group (version 2 or 1) and those around it, or None."""
    found = []
    for path in _quota_files():
        try:
            words = path.read_text().split()
            period = words[1] if len(words) > 1 else path.with_name("cpu.cfs_period_us").read_text()
            quota = int(words[0]) if words[0] != "max" else -1
            if quota > 0:
                found.append(quota / int(period))
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue
    return min(found, default=None)


def _quota_files() -> Iterator[Path]:
    """Yield where a quota may stand, from our own control group up to the root of what we see."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    groups = {kinds: Path(group) for _, kinds, group in (line.split(":", 2) for line in lines if line.count(":") > 1)}
    older = next((group for kinds, group in groups.items() if "cpu" in kinds.split(",")), Path("/"))
    for root, group, name in (
        (CGROUP, groups.get("", Path("/")), "cpu.max"),
        (CGROUP / "cpu", older, "cpu.cfs_quota_us"),
    ):
        inner = root / group.relative_to("/") if group.is_absolute() and ".." not in group.parts else root
        yield from (folder / name for folder in (inner, *inner.parents) if folder.is_relative_to(root))


def governor() -> str | None:
    """Return the frequency governors of the cores (Linux with cpufreq), or None."""
    names = set()
    for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"):
        try:
            names.add(path.read_text().strip())
        except OSError:
            continue
    return "+".join(sorted(names)) or None


def virtual_machine() -> str | None:
    """Return "yes" when the CPU says that a hypervisor runs below us, "no" when not, None where it does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return ("yes" if " hypervisor" in flags[1] else "no") if flags else None


def in_container() -> bool:
    """Return whether this looks like a container."""
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists() or "KUBERNETES_SERVICE_HOST" in os.environ:
        return True
    try:
        return any(word in Path("/proc/1/cgroup").read_text() for word in ("docker", "kubepods", "containerd", "lxc"))
    except OSError:
        return False


def power_source() -> str | None:
    """Return "mains" or "battery"; None where there is no battery."""
    if sys.platform == "darwin":
        return mac.parse_power_source(mac.run_text("pmset", "-g", "batt"))
    from harness.machine.probes.cpu import plugged_in

    plugged = plugged_in()
    return None if plugged is None else "mains" if plugged else "battery"


def _system() -> str:
    if sys.platform == "darwin":
        return f"macOS {platform.mac_ver()[0]}"
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.version()}"


def _preloaded() -> str | None:
    """Return the libraries of LD_PRELOAD by name alone (an allocator there changes timings)."""
    names = [Path(part).name for part in re.split(r"[ :]", os.environ.get("LD_PRELOAD", "")) if part]
    return "+".join(names) or None


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:g}"
