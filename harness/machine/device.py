"""What the measurer needs of a device: to wait for it, to ask its memory, and to read its own clock if it has one."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable


class Device(Protocol):
    """One device, opened. What its kind answers for itself, opened or not, is `backend.Backend`.

    It may have `doubts`, sentences as a model has them: what makes times doubtful once a model is on it.
    """

    @property
    def name(self) -> str:
        """As the user asked for it: "cpu", "cuda:1", "mps", "fake"."""
        ...

    @property
    def torch_name(self) -> str:
        """The torch device string that models are put on."""
        ...

    def sync(self) -> None:
        """Return when everything asked of the device is done."""
        ...

    def stamp(self) -> object | None:
        """Record a time stamp in the device's own stream (a CUDA event), without waiting; None where there is none."""
        ...

    def elapsed_ns(self, earlier: object, later: object) -> int | None:
        """Return nanoseconds between two stamps, after a `sync`."""
        ...

    def peak_bytes(self) -> int | None:
        """Return the highest allocation since `reset_peak`, in bytes; None where the device cannot tell."""
        ...

    def memory(self) -> Mapping[str, int | None]:
        """Return allocated_bytes, reserved_bytes and rss_bytes now; None where it cannot tell."""
        ...

    def reset_peak(self) -> None:
        """Start a new peak."""
        ...

    def describe(self) -> Mapping[str, str]:
        """Return what the log says about the device: name, driver, memory, threads, clock ..."""
        ...


class Unclocked:
    """A device without a clock of its own."""

    def stamp(self) -> None:
        return None

    def elapsed_ns(self, earlier: object, later: object) -> int | None:
        return None


class Immediate(Unclocked):
    """A device whose work is done when a call returns: torch's operators on a CPU, the answer of a server."""

    def sync(self) -> None:
        return None


class WorkMeter(Protocol):
    """Counts the time in which the device computes; it may slow the host down, so nothing is timed meanwhile."""

    def cut(self) -> None:
        """Wait for the device: here one span ends and the next begins. The first began when counting did."""
        ...

    def close(self) -> Sequence[int]:
        """Stop counting, and return how long the device computed in each span, in nanoseconds."""
        ...


@runtime_checkable
class CountsWork(Protocol):
    """A device that can tell how long it computed: its kernels' own time, not the time from one event to another."""

    @property
    def work_method(self) -> str:
        """By what it is counted."""
        ...

    def work(self) -> WorkMeter:
        """Begin to count."""
        ...
