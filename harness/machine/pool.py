"""Several devices of this host, one cell on each at a time: which they are, and what each process sees of the machine.

A device's module says what is there (`present`) and how a process comes to see some of it alone (`seeing`). The cores
are divided among the devices, those of a device's own memory node first where the system tells.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.errors import DeviceError, SettingError
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


def members(text: str) -> list[Member]:
    """Return the pool's devices, each with its share of the machine."""
    names = devices(text)
    shares = divided([backend.of(name).cores() for name in names], usable())
    made = []
    for name, cores in zip(names, shares, strict=True):
        threads = len(cores) or max(1, len(usable()) // len(names))
        told = f"{name}, one of {len(names)}; " + (f"cores {ranges(cores)}" if cores else "cores not divided")
        # A number of threads of the user's own stays: the log has it, and a doubt if there are fewer cores.
        threading = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)}
        made.append(Member(name, cores, {**backend.of(name).seeing([name]), NAME: told, **threading}))
    return made


def divided(near: Sequence[Sequence[int]], cores: Sequence[int]) -> list[tuple[int, ...]]:
    """Return a share of `cores` for each device, of those `near` it where that is known; none where they are too few.

    Shares do not overlap and are equally large.
    """
    if len(cores) < len(near) or not hasattr(os, "sched_setaffinity"):
        return [()] * len(near)
    size, left = len(cores) // len(near), sorted(cores, key=lambda core: (_physical(core), core))
    shares: list[list[int]] = []
    for own in near:
        shares.append([core for core in left if core in own][:size])
        left = [core for core in left if core not in shares[-1]]
    for share in shares:  # what its own node did not have
        share += left[: size - len(share)]
        left = [core for core in left if core not in share]
    return [tuple(share) for share in shares]


def _physical(core: int) -> int:
    """Return the first of the threads that share a core with this one: two devices must not share it."""
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
