"""What this machine is, what would make its timings doubtful, and what is missing with the command that installs it.

Each question is a function of what was read, so that tests can ask it about machines that are not here.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from harness import parent
from harness.files import cache_folder
from harness.machine import environment
from harness.machine.devices.cpu import usable_cores
from harness.machine.probes import Readings, Span
from harness.machine.probes.nvml import Card, NvmlProbe
from harness.machine.probes.nvml import cards as nvml_cards

Level = Literal["ok", "doubt", "missing"]

BUSY_SHARE = 0.15
"""CPU use by others, as a share of the machine, while we only look."""
FEW_CORES = 4
STEAL_SHARE = 0.01
SPACE_BYTES = 20 << 30
"""FastVLM-7B's weights are 15 GB."""
LOOK_S = 1.0
GPU_BUSY_PERCENT = 10
"""A desktop at rest shows a few per cent."""
OPTIONAL = {
    "submitit": ("cells as Slurm jobs", "pip install 'vlm-pareto[slurm]'"),
    "mlx-lm": ("the MLX engine", "pip install 'vlm-pareto[apple]'"),
    "zeus-apple-silicon": ("energy by stage", "pip install 'vlm-pareto[apple]'"),
}
FOR_MACS = ("mlx-lm", "zeus-apple-silicon")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the doctor says; `next_step` is a command or an action, empty where nothing is to be done."""

    level: Level
    text: str
    next_step: str = ""


def examine() -> list[Finding]:
    """Examine this machine. Takes a few seconds: torch and torchvision are imported in a process of their own."""
    imports = try_imports()
    cards = nvml_cards()
    named = next((each.name for each in cards if each.name), None)
    gpu = named or nvidia_card()
    busy = look()
    found = [
        *machine(environment.describe("cpu"), gpu),
        *cpu(busy, usable_cores(), environment.governor(), environment.cpu_quota_cores()),
        *virtual(environment.virtual_machine(), _steal_share()),
        *threads(os.environ.get("OMP_NUM_THREADS"), usable_cores()),
        *memory(psutil.swap_memory().used, psutil.virtual_memory().total),
        *power(environment.power_source()),
        *mac(),
        *gpus(cards),
        *torch(imports, gpu),
        *torchvision(imports),
        *nvml(gpu, named is not None, environment.installed("nvidia-ml-py")),
        *extras({name: environment.installed(name) for name in OPTIONAL}, sys.platform),
        *cache(cache_folder()),
    ]
    return found


def machine(facts: dict[str, str], gpu: str | None) -> Iterator[Finding]:
    """Say what this is."""
    memory_gb = int(facts["memory_bytes"]) / 1e9
    yield Finding(
        "ok",
        f"{facts['machine']}: {facts['cpu']}, {facts['cores_usable']} cores, {memory_gb:.0f} GB, "
        f"{gpu or 'no NVIDIA GPU'}, {facts['os']}, Python {platform.python_version()}",
    )


def look() -> Readings:
    """Watch the CPU for a second, as the gate does around a sample."""
    from harness.machine.probes.cpu import CpuProbe

    probe, own = CpuProbe(), psutil.Process()
    before, used, waited = probe.read(), own.cpu_times(), LOOK_S
    psutil.cpu_percent(interval=waited)
    now = own.cpu_times()
    own_ns = round((now.user + now.system - used.user - used.system) * 1e9)
    return probe.judge(before, probe.read(), Span(round(waited * 1e9), own_ns))[1]


def cpu(seen: Readings, cores: int, governor: str | None, quota: float | None) -> Iterator[Finding]:
    """Judge load, number of cores, frequency governor and CPU quota."""
    foreign = seen.get("foreign_cores")
    if isinstance(foreign, float) and foreign > BUSY_SHARE * cores:
        yield Finding(
            "doubt",
            f"other programs use {foreign:.1f} of {cores} cores right now: many samples will be refused as contended",
            "close them, or find them with: top",
        )
    if cores < FEW_CORES:
        yield Finding(
            "doubt",
            f"{cores} cores only: whatever else runs takes a large share of the CPU",
            "compare ratios, not times, with other machines",
        )
    if governor and governor not in ("performance", "schedutil"):
        yield Finding(
            "doubt",
            f"CPU frequency governor is {governor}: clocks rise late and unevenly",
            "sudo cpupower frequency-set -g performance",
        )
    if quota is not None and quota < (os.cpu_count() or 1):
        yield Finding(
            "doubt",
            f"the container may use {quota:g} cores' worth of CPU time, then it is stopped until the next period",
            f"--threads {max(1, int(quota))}, or start the container without --cpus",
        )


def virtual(hypervisor: str | None, steal_share: float | None) -> Iterator[Finding]:
    """Judge what the hypervisor takes."""
    if steal_share is not None and steal_share > STEAL_SHARE:
        yield Finding(
            "doubt",
            f"the hypervisor took {steal_share:.1%} of the CPU time since boot",
            "use a machine with cores of its own",
        )
    elif hypervisor == "yes":
        yield Finding("ok", "a virtual machine; its hypervisor takes next to no CPU time")


def threads(setting: str | None, cores: int) -> Iterator[Finding]:
    """Judge OMP_NUM_THREADS against the cores that may be used."""
    outer = (setting or "").split(",")[0].strip()  # `4,1`: of the outer level, then of the levels within
    if outer.isdecimal() and int(outer) != cores:
        more = int(outer) > cores
        yield Finding(
            "doubt",
            f"OMP_NUM_THREADS={setting} on {cores} cores: "
            + ("threads wait for each other" if more else "cores stay idle; fine if that is meant"),
            "unset OMP_NUM_THREADS, and use --threads",
        )


def memory(swap_used: int, total: int) -> Iterator[Finding]:
    """Judge swap in use."""
    if swap_used > 0.02 * total:
        yield Finding(
            "doubt", f"{swap_used / 1e9:.1f} GB are swapped out: weights may be read from disk", "close other programs"
        )


def power(source: str | None) -> Iterator[Finding]:
    """Judge the power source."""
    if source == "battery":
        yield Finding("doubt", "the machine runs on battery: every sample will be refused", "plug it in")


def mac() -> Iterator[Finding]:
    """Judge thermal and memory pressure, low power mode, and who else uses the GPU, on a Mac."""
    if sys.platform != "darwin":
        return
    from harness.machine.probes.mac import MacProbe, parse_gpu_use, run_text

    probe = MacProbe()
    reading = probe.read()
    yield from mac_reasons(probe.judge(reading, reading, Span(1, 0))[0])
    yield from mac_gpu(parse_gpu_use(run_text("ioreg", "-r", "-c", "IOAccelerator", "-w", "0")))


def mac_gpu(use_percent: int | None) -> Iterator[Finding]:
    """Judge what others use of the GPU while we use nothing of it: no run sees that."""
    if use_percent is not None and use_percent > GPU_BUSY_PERCENT:
        yield Finding(
            "doubt",
            f"other programs use the GPU, {use_percent} % of it right now: no sample is refused for that",
            "close them; Activity Monitor names them (column % GPU)",
        )


def mac_reasons(reasons: list[str]) -> Iterator[Finding]:
    """Turn what the Mac probe says into advice."""
    said = {
        "thermal_pressure": ("macOS reports thermal pressure", "let it cool down"),
        "throttled": ("the CPU's speed is limited", "let it cool down; is the battery in?"),
        "memory_pressure": ("macOS reports that memory is short", "close other programs, or take a smaller model"),
        "low_power_mode": ("low power mode is on", "sudo pmset -a lowpowermode 0"),
    }
    for reason in reasons:
        if reason in said:
            yield Finding("doubt", *said[reason])


def gpus(cards: list[Card]) -> Iterator[Finding]:
    """Judge every NVIDIA GPU as the gate would; the numbers are NVML's, CUDA's may differ."""
    for index, card in enumerate(cards):
        probe = NvmlProbe(card, computing=False)
        reading = probe.read()
        reasons, told = probe.judge(reading, reading, Span(1, 0))
        yield from gpu_reasons(index, reasons, told)


def gpu_reasons(index: int, reasons: list[str], told: Readings) -> Iterator[Finding]:
    """Turn what the NVML probe says of one GPU into advice."""
    if "other_process_on_device" in reasons:
        yield Finding(
            "doubt",
            f"GPU {index}: {told['gpu_foreign_processes']:g} other processes compute on it: samples will be refused",
            "nvidia-smi names them; or choose another with --device cuda:NUMBER",
        )
    if "throttled" in reasons:
        yield Finding(
            "doubt",
            f"GPU {index} is slowed down ({told['gpu_reasons']}, {told['gpu_sm_mhz']} MHz, "
            f"{told['gpu_temperature_c']} °C)",
            "let it cool down; nvidia-smi -q -d PERFORMANCE tells why",
        )


def nvidia_card() -> str | None:
    """Return that there is an NVIDIA card although NVML does not answer, from the PCI bus (Linux) or nvidia-smi."""
    for path in Path("/sys/bus/pci/devices").glob("*/vendor"):
        try:
            display = path.with_name("class").read_text().startswith("0x03")
            if path.read_text().strip() == "0x10de" and display:
                return "an NVIDIA GPU"
        except OSError:
            continue
    return "an NVIDIA GPU" if shutil.which("nvidia-smi") else None


TRIAL = """
import json, sys
said = {}
try:
    import torch
    said["torch"] = torch.__version__
    said["cuda_build"] = torch.version.cuda
    said["cuda"] = torch.cuda.is_available()
    from harness.machine import backend
    said["devices"] = [kind for kind, why in backend.listed() if not why and backend.of(kind).rank]
except Exception as error:
    said["torch_error"] = f"{type(error).__name__}: {error}".splitlines()[0]
try:
    import torchvision
    said["torchvision"] = torchvision.__version__
except Exception as error:
    said["torchvision_error"] = f"{type(error).__name__}: {error}".splitlines()[0]
print(json.dumps(said))
"""


def try_imports() -> dict[str, object]:
    """Import torch and torchvision in a process of its own, so that a broken pair breaks nothing here."""
    try:
        done = subprocess.run(
            [*parent.python(), "-c", TRIAL],
            env=parent.surroundings(), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        said: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {
            "torch_error": "the import ended without a word",
            "torchvision_error": "the import ended without a word",
        }
    return said


REINSTALL = "pip install --upgrade --force-reinstall torch torchvision"
"""Both at once: each torchvision is made for one torch, and only asking for both lets pip choose a pair."""


def torch(said: dict[str, Any], gpu: str | None) -> Iterator[Finding]:
    """Judge torch's build against the machine."""
    if "torch" not in said:
        yield Finding("missing", f"torch cannot be imported ({said.get('torch_error')})", REINSTALL)
        return
    version = said["torch"]
    if gpu and not said.get("cuda_build"):
        yield Finding("missing", f"there is {gpu}, but torch {version} is built without CUDA", REINSTALL)
    elif gpu and not said.get("cuda"):
        yield Finding(
            "missing",
            f"there is {gpu} and torch {version} for CUDA {said['cuda_build']}, but no GPU answers",
            "nvidia-smi: does it list the GPU? Then its driver is too old for this CUDA: update the driver",
        )
    else:
        yield Finding("ok", f"torch {version} runs on {', '.join(said.get('devices', ['cpu']))}")


def torchvision(said: dict[str, object]) -> Iterator[Finding]:
    """Judge whether torchvision fits torch: timm and transformers import it, and die with a wrong pair."""
    if "torchvision" in said:
        yield Finding("ok", f"torchvision {said['torchvision']} fits")
        return
    error = str(said.get("torchvision_error"))
    absent = "No module named 'torchvision'" in error
    text = "torchvision is not installed" if absent else f"torchvision does not fit torch ({error})"
    yield Finding("missing", f"{text}: timm needs it", REINSTALL)


def nvml(gpu: str | None, answers: bool, package: str | None) -> Iterator[Finding]:
    """Judge whether GPU clocks and throttling can be watched."""
    if not gpu or answers:
        return
    if package is None:
        yield Finding("missing", "GPU clocks and throttling cannot be watched without NVML", "pip install nvidia-ml-py")
    else:
        yield Finding(
            "missing",
            "NVML does not answer: GPU clocks and throttling cannot be watched",
            "install NVIDIA's driver; in a container: --gpus all with the utility capability",
        )


def extras(versions: dict[str, str | None], system: str) -> Iterator[Finding]:
    """Name optional packages that are absent; those for Macs on Macs alone."""
    for name, (purpose, command) in OPTIONAL.items():
        if versions.get(name) is None and (name not in FOR_MACS or system == "darwin"):
            yield Finding("ok", f"optional: {name} is not installed ({purpose})", command)


def cache(folder: Path) -> Iterator[Finding]:
    """Judge whether the cache folder can be written, and the space there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".trial-{os.getpid()}"
        trial.write_text("")
        trial.unlink()
    except OSError as error:
        yield Finding(
            "missing", f"the cache folder {folder} cannot be written: {error.strerror}", "set VLM_PARETO_CACHE"
        )
        return
    free = shutil.disk_usage(folder).free
    if free < SPACE_BYTES:
        yield Finding(
            "doubt",
            f"{free / 1e9:.1f} GB are free at {folder}; a 7B checkpoint takes 15 GB",
            "free some space, or set VLM_PARETO_CACHE and HF_HOME to another disk",
        )
    else:
        yield Finding("ok", f"cache folder {folder}, {free / 1e9:.0f} GB free")


def _steal_share() -> float | None:
    from harness.machine.probes.cpu import cpu_times

    times = cpu_times()
    if times is None or sys.platform == "darwin":
        return None
    total = sum(psutil.cpu_times())
    return times.steal_s / total if total else None
