"""A server, seen from its client: nothing to wait for, and no memory, energy or precision that we could know of.

"served:8000" is a server on this machine that listens on that port: the gate watches the machine, and takes the
server's own processes for ours. "served" is one on another machine, of which nothing can be read.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress

from harness.clock import Clock
from harness.errors import DeviceError
from harness.machine import backend
from harness.machine.device import Immediate
from harness.machine.probes import Probe, Readings, Span
from harness.machine.probes.cpu import CpuProbe

ENGINE = "openai"
BETWEEN = ("docker-proxy", "rootlessport", "ssh", "nginx", "haproxy", "caddy", "envoy")
"""What listens in place of the server: the CPU time that counts is elsewhere."""


class Served(Immediate):
    """See `device.Device`."""

    torch_name = "cpu"

    def __init__(self, name: str, clock: Clock) -> None:
        self.name, self._clock = name, clock

    def peak_bytes(self) -> int | None:
        return None

    def memory(self) -> Mapping[str, int | None]:
        return {}

    def reset_peak(self) -> None:
        return None

    def describe(self) -> Mapping[str, str]:
        where = "this machine" if port_of(self.name) else "another machine, not watched by the gate"
        return {"name": self.name, "where": where, "clock": self._clock.name, "sync": "none: the client's side of HTTP"}


class ServerProbe:
    """The CPU probe of this machine, with the server's processes counted as ours.

    Where they cannot be found, other programs' use cannot be told from the server's: nothing is refused for it.
    """

    def __init__(self, port: int, cpu: Probe | None = None, used: Callable[[int], float | None] | None = None) -> None:
        self._port, self._cpu, self._used = port, cpu or CpuProbe(), used or cpu_seconds

    def read(self) -> Readings:
        return {**self._cpu.read(), "server_cpu_s": self._used(self._port)}

    def judge(self, before: Readings, after: Readings, span: Span) -> tuple[list[str], Readings]:
        first, last = before["server_cpu_s"], after["server_cpu_s"]
        if not isinstance(first, float) or not isinstance(last, float):
            reasons, told = self._cpu.judge(before, after, span)
            return [reason for reason in reasons if reason != "contended"], {**told, "server_cpu_s": None}
        served_s = max(0.0, last - first)
        reasons, told = self._cpu.judge(before, after, Span(span.wall_ns, span.cpu_ns + round(1e9 * served_s)))
        return reasons, {**told, "server_cpu_s": round(served_s, 3)}


def cpu_seconds(port: int) -> float | None:
    """Return the CPU time of what listens on `port` here, its children included; None if that cannot be read."""
    with suppress(Exception):  # psutil raises what the platform raises; a gate must never end a run
        import psutil

        listening = [
            one.pid
            for one in psutil.net_connections(kind="tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port
        ]
        if not listening or None in listening:
            return None
        parents = [psutil.Process(pid) for pid in set(listening)]
        if any(one.name() in BETWEEN for one in parents):
            return None
        processes = {one.pid: one for parent in parents for one in (parent, *parent.children(recursive=True))}
        return sum(times.user + times.system for times in (one.cpu_times() for one in processes.values()))
    return None


def port_of(name: str) -> int | None:
    """Return the port of a server on this machine ("served:8000"), or None for one elsewhere ("served")."""
    port = name.partition(":")[2]
    return int(port) if port.isdigit() else None


def open(name: str, clock: Clock) -> Served:
    """Return the device of a server; whether it answers, only a request can tell."""
    if name != "served" and port_of(name) is None:
        raise DeviceError(f"--device {name}: a server is named by --endpoint URL; next: leave --device out")
    return Served(name, clock)


def absence(name: str) -> str:
    """Say that a server is not a device that one chooses."""
    return "needs --endpoint URL"


def dtype(name: str) -> str:
    """Return no precision: it is the server's own."""
    return "unknown"


def probes(name: str) -> list[Probe]:
    """Return what watches this machine, if the server is here."""
    port = port_of(name)
    return [ServerProbe(port), *backend.host_probes()[1:]] if port else []


def free_bytes(name: str) -> None:
    """Return nothing: a server's memory is its own."""
    return


def lock_name(name: str) -> str:
    """Return the processor for a server here: what is timed there beside it would slow it down."""
    return "cpu" if port_of(name) else name
