"""A server as a device: what is told of it, and a gate that does not take the server for company."""

import http.server

import psutil
import pytest

from harness.clock import Monotonic
from harness.errors import DeviceError
from harness.machine import backend
from harness.machine.devices import served
from harness.machine.probes import Readings, Span
from harness.machine.probes.cpu import CpuProbe, CpuTimes

S = 1_000_000_000


def judged(busy_s: float, server_s: tuple[float | None, float | None]) -> tuple[list[str], Readings]:
    times, used = iter([CpuTimes(0.0, 0.0), CpuTimes(busy_s, 0.0)]), iter(server_s)
    cpu = CpuProbe(times=lambda: next(times), load=lambda: 0.0, mhz=lambda: None, cores=2)
    probe = served.ServerProbe(8000, cpu, lambda port: next(used))
    return probe.judge(probe.read(), probe.read(), Span(wall_ns=S, cpu_ns=S // 10))


def test_the_servers_own_work_is_not_company() -> None:
    assert judged(1.1, (5.0, 6.0)) == (
        [],
        {"load_1min": 0.0, "foreign_cores": 0.0, "steal_cores": 0.0, "server_cpu_s": 1.0},
    )


def test_others_beside_the_server_are() -> None:
    assert judged(1.6, (5.0, 6.0))[0] == ["contended"]


def test_a_server_whose_processes_cannot_be_read_is_not_taken_for_company() -> None:
    reasons, told = judged(1.6, (None, None))
    assert reasons == []
    assert told["server_cpu_s"] is None


def test_only_a_server_here_is_watched() -> None:
    here, elsewhere = backend.of("served:8000"), backend.of("served")
    assert any(isinstance(probe, served.ServerProbe) for probe in here.probes())
    assert elsewhere.probes() == []
    assert (here.lock_name(), elsewhere.lock_name()) == ("cpu", "served")


def test_the_process_that_listens_is_found() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        used = served.cpu_seconds(server.server_port)
        assert used is not None
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]  # a nursery of tests may be one of them
        assert used <= sum(sum(one.cpu_times()[:2]) for one in family) + 1
        port = server.server_port
    assert served.cpu_seconds(port) is None


def test_its_name_is_the_endpoints() -> None:
    with pytest.raises(DeviceError, match="named by --endpoint"):
        served.open("served:here", Monotonic())
    assert "another machine" in served.open("served", Monotonic()).describe()["where"]
    assert backend.best() != "served"
