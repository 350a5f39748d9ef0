"""Several devices of this host, one cell on each at a time: which they are, and what each process sees of the machine.

A device's module says what is there (`present`) and how a process comes to see some of it alone (`seeing`). The cores
are divided among the devices, those of a device's own memory node first where the system tells.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import parent
from harness.errors import DeviceError, HarnessError, SettingError
from harness.machine import backend
from harness.machine.devices.cpu import usable

NAME = "HARNESS_POOL"
"""The variable by which a process, and its log, know what share of the machine it has."""


@dataclass(frozen=True, slots=True)
class Member:
    """One device of a pool."""

    device: str
    cores: tuple[int, ...]
    """Its share of the cores; empty where there are too few, or the system cannot bind processes to them."""
    environment: Mapping[str, str]
    """What its processes get beside their parent's environment."""


def is_pool(device: str) -> bool:
    """Return whether `--device` names several devices, as cuda:all or cuda:0,cuda:1."""
    return "," in device or device.endswith(":all")


def kind(device: str) -> str:
    """Return the kind of a pool's devices, which is what each of its processes calls its own."""
    return device.partition(":")[0]


def devices(text: str) -> list[str]:
    """Return the devices that a pool's text names. Raises `DeviceError` or `SettingError` for what cannot be one."""
    of = backend.of(kind(text))
    present = of.present()
    if not present:
        raise DeviceError(
            f"--device {text}: {of.absence() or 'this kind of device has no pool'}; next: name one device"
        )
    every = text == f"{kind(text)}:all"
    chosen = list(present) if every else [part.strip() for part in text.split(",")]
    for name in chosen:
        if name not in present:
            raise DeviceError(f"--device {text}: no {name!r} here; known: {', '.join(present)}, or {kind(text)}:all")
    if len(set(chosen)) < len(chosen):
        raise SettingError(f"--device {text}: names a device twice; next: name each once")
    cards = {backend.of(name).card() for name in chosen}
    if len(cards) > 1:  # else chance would decide which of them a cell is measured on
        told = ", ".join(sorted(str(card) for card in cards))
        raise SettingError(f"--device {text}: devices of several kinds ({told}); next: name those of one kind")
    return chosen


def looked_at(text: str) -> list[str]:
    """Return `devices`, asked in a process of its own. Raises `SettingError` with what is said there.

    Whoever looks at CUDA's devices keeps seeing those that were visible then, whatever CUDA_VISIBLE_DEVICES says later.
    """
    command = [*parent.python(), "-m", "harness.machine.pool", text]
    environment = parent.surroundings()
    child = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    try:
        answer = json.loads((child.stdout.splitlines() or [b""])[-1])
    except ValueError:
        answer = {"refused": f"--device {text}: the look at it ended with exit code {child.returncode}; next: "
                  "`harness doctor`"}  # fmt: skip
    if "refused" in answer:
        raise SettingError(str(answer["refused"]))
    return [str(name) for name in answer["devices"]]


def members(text: str) -> list[Member]:
    """Return the pool's devices, each with its share of the machine."""
    names = devices(text)
    shares = divided([backend.of(name).cores() for name in names], usable())
    fewest = min(map(len, shares))  # where cores have one thread or two: chance must not decide how many a cell has
    made = []
    for name, cores in zip(names, shares, strict=True):
        threads = fewest or max(1, len(usable()) // len(names))
        told = f"{name}, one of {len(names)}; " + (f"cores {ranges(cores)}" if cores else "cores not divided")
        # A number of threads of the user's own stays: the log has it, and a doubt if there are fewer cores.
        threading = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
        made.append(Member(name, cores, {**backend.of(name).seeing([name]), NAME: told, **threading}))
    return made


def divided(near: Sequence[Sequence[int]], cores: Sequence[int]) -> list[tuple[int, ...]]:
    """Return a share of `cores` for each device, of those `near` it where that is known; none where they are too few.

    Shares do not overlap, are equally large, and have whole physical cores: the threads of one must not be two
    devices', or each would be slowed by the other and not see by whom.
    """
    alike: dict[int, list[int]] = {}
    for core in sorted(cores):
        alike.setdefault(_physical(core), []).append(core)
    left = [tuple(threads) for _, threads in sorted(alike.items())]
    size = len(left) // len(near)
    if not size or not hasattr(os, "sched_setaffinity"):
        return [()] * len(near)
    shares: list[list[tuple[int, ...]]] = []
    for own in near:
        shares.append([threads for threads in left if set(threads) <= set(own)][:size])
        left = [threads for threads in left if threads not in shares[-1]]
    for share in shares:  # what its own node did not have
        share += left[: size - len(share)]
        left = [threads for threads in left if threads not in share]
    return [tuple(sorted(core for threads in share for core in threads)) for share in shares]


def _physical(core: int) -> int:
    """Return the first of the threads that share a core with this one."""
    try:
        return cores_of(Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text())[0]
    except (OSError, ValueError, IndexError):
        return core


def near_pci(address: str) -> tuple[int, ...]:
    """Return the cores beside a PCI device (Linux' `local_cpulist`); empty where that is not told."""
    try:
        text = Path("/sys/bus/pci/devices", address, "local_cpulist").read_text()
        return cores_of(text)
    except (OSError, ValueError):
        return ()


def cores_of(text: str) -> tuple[int, ...]:
    """Read a list of cores as the kernel writes it: "0-3,8"."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def ranges(cores: Sequence[int]) -> str:
    """Write a list of cores as the kernel does."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


@contextmanager
def bound(cores: Sequence[int]) -> Iterator[None]:
    """Start processes meanwhile on these cores alone, which they inherit from this thread."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _answer(text: str) -> dict[str, object]:
    try:
        return {"devices": devices(text)}
    except HarnessError as error:
        return {"refused": str(error)}


if __name__ == "__main__":  # see `looked_at`
    sys.stdout.write(json.dumps(_answer(sys.argv[1])) + "\n")
