"""What a kind of device answers for itself, asked of its own module (`devices/<kind>.py`, or an entry point's).

A module must have `open(name, clock)`. Whatever else it leaves out is answered here as for a device of which nothing
more is known: the host's own probes, no energy counter, no roofline. So a device is added by one file.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar, cast

from harness import plugins
from harness.clock import Clock, Monotonic
from harness.errors import LESS_MEMORY, DeviceError, HarnessError, UnknownName
from harness.machine.device import Device
from harness.machine.probes import Probe

if TYPE_CHECKING:
    from harness.machine.energy import Counter

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Backend:
    """One device as the user names it ("cuda:1"), and the module that knows it.

    Every answer below is the module's function or constant of the same name; a name in capitals is a constant there.
    """

    name: str
    module: ModuleType

    def _ask(self, what: str, otherwise: Callable[[], Answer], *arguments: object) -> Answer:
        function = getattr(self.module, what, None)
        return otherwise() if function is None else cast("Answer", function(self.name, *arguments))

    def _constant(self, what: str, otherwise: Answer) -> Answer:
        return cast("Answer", getattr(self.module, what, otherwise))

    def open(self, clock: Clock) -> Device:
        """Return the device, ready; raises `DeviceError` with the next step where it is not here."""
        return cast("Device", self.module.open(self.name, clock))

    def absence(self) -> str:
        """Return why the device cannot be used here; empty where it can."""
        return self._ask("absence", self._refusal)

    def _refusal(self) -> str:
        try:
            self.open(Monotonic())
        except HarnessError as error:
            return str(error)
        return ""

    def dtype(self) -> str:
        """Return the precision that it runs natively and that is taken where none is asked for."""
        return self._ask("dtype", lambda: "float32")

    def doubts(self, dtype: str) -> Sequence[str]:
        """Return what makes every timing on it doubtful, e.g. that `dtype` is emulated."""
        return self._ask("doubts", tuple[str, ...], dtype)

    def small_dtype(self) -> str:
        """Return a precision of two bytes that it runs natively, as advice where memory is short; empty without one."""
        return self._ask("small_dtype", str)

    def probes(self) -> list[Probe]:
        """Return what watches a run on it."""
        return self._ask("probes", host_probes)

    def counter(self) -> "Counter | None":
        """Return its energy counter; None where it has none."""
        return self._ask("counter", lambda: None)

    def free_bytes(self) -> int | None:
        """Return the memory that a model can have there now; None where that cannot be told."""
        return self._ask("free_bytes", free_host_bytes)

    def lock_name(self) -> str:
        """Return the name of the physical device: what has the same one must not be timed at the same time."""
        return self._ask("lock_name", lambda: self.name)

    def spelling(self) -> str:
        """Return the one way to write its name: a device that may be written in two ways must not be two cells."""
        return self._ask("spelling", lambda: self.name)

    def present(self) -> Sequence[str]:
        """Return the devices of this kind that are here, as a pool has them ("cuda:0", "cuda:1"); none: no pools."""
        return self._ask("present", tuple[str, ...])

    def seeing(self, devices: Sequence[str]) -> dict[str, str]:
        """Return the environment in which a process sees these devices alone, the first as the kind's own name."""
        return self._ask("seeing", dict[str, str], devices)

    def cores(self) -> Sequence[int]:
        """Return the cores beside the device; none where that is not told."""
        return self._ask("cores", tuple[int, ...])

    def card(self) -> str | None:
        """Return the accelerator's name for the machine's name; None where the processor's says it all."""
        return self._ask("card", lambda: None)

    def trial_clock(self) -> Clock:
        """Return the clock of a self-test."""
        return self._ask("trial_clock", Monotonic)

    def plant(self, fault: str) -> None:
        """Have the opened device be faulty, for a self-test of the self-test; real devices cannot be."""
        if not hasattr(self.module, "plant") and fault:
            raise DeviceError(f"--fault {fault}: a real device cannot be told to fail; next: --device fake")
        self._ask("plant", lambda: None, fault)

    @property
    def only_card(self) -> str:
        """The one model that it runs; empty: any."""
        return self._constant("CARD", "")

    @property
    def engine(self) -> str:
        """The engine that it belongs to; torch's devices are of several."""
        return self._constant("ENGINE", "torch")

    @property
    def rank(self) -> int:
        """Of the devices that are here the one of the highest rank is taken where none is asked for; 0 is never."""
        return self._constant("RANK", 0)

    @property
    def peak_copy_bytes(self) -> int:
        """How much is copied to measure its peak through torch, well beyond its caches; 0: torch's peak is not its."""
        return self._constant("PEAK_COPY_BYTES", 0)


def of(device: str) -> Backend:
    """Return who answers for `device` ("cuda:1"); raises `UnknownName` or what importing its module raises."""
    kind = device.partition(":")[0]
    if kind not in plugins.names("devices"):
        raise UnknownName("device", device, plugins.names("devices"))
    module = plugins.load("devices", kind)
    if not callable(getattr(module, "open", None)):
        raise DeviceError(f"--device {device}: its plug-in {module.__name__} has no open(name, clock); next: repair it")
    return Backend(device, module)


def listed() -> list[tuple[str, str]]:
    """Return every kind of device and why it is not here (empty: it is)."""
    rows = []
    for kind in plugins.names("devices"):
        try:
            rows.append((kind, of(kind).absence()))
        except HarnessError as error:
            rows.append((kind, str(error)))
    return rows


def best() -> str:
    """Return the device that is taken where none is named: of those that are here, the one of the highest rank."""
    ranked = []
    for kind in plugins.names("devices"):
        try:
            backend = of(kind)
        except HarnessError:
            continue  # a broken plug-in must not keep the others from working; `harness check` names it
        if backend.rank > 0:
            ranked.append((backend.rank, kind, backend))
    for _, kind, backend in sorted(ranked, key=lambda each: each[0], reverse=True):
        if not backend.absence():
            return kind
    return "cpu"


def less_memory(device: str) -> str:
    """Return what to try when memory does not suffice; a smaller precision only where the device has it."""
    try:
        small = of(device).small_dtype()
    except HarnessError:
        small = ""
    return f"--dtype {small}, {LESS_MEMORY}" if small else LESS_MEMORY


def host_probes() -> list[Probe]:
    """Return what watches the processor and the power source, for every device."""
    from harness.machine.probes import cpu, mac

    return [cpu.CpuProbe(), mac.MacProbe() if sys.platform == "darwin" else cpu.BatteryProbe()]


def free_host_bytes() -> int:
    """Return the main memory that is free."""
    import psutil

    return int(psutil.virtual_memory().available)
