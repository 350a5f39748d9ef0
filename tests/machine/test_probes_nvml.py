"""NVIDIA cards through the real gate, by a library that answers from a table: readings reported publicly."""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from harness.clock import Scripted
from harness.machine import backend
from harness.machine.devices import cuda
from harness.machine.probes import nvml
from harness.machine.probes.nvml import Card, NvmlProbe
from harness.measure.gate import Gate, Verdict

SECOND = 1_000_000_000
OURS = 7
IDLE, SET, CAP, THERMAL = 0x1, 0x2, 0x4, 0x20


class NVMLError_NotFound(Exception):  # noqa: N801 - pynvml's own name
    pass


class FakeNvml:
    """Answers from a table; None is "not supported", a list gives one answer after the other and keeps the last."""

    def __init__(self, **table: Any) -> None:
        self.table = {
            "nvmlDeviceGetMaxClockInfo": 1980,
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetCurrentClocksEventReasons": 0,
            "nvmlDeviceGetTemperature": 40,
            "nvmlDeviceGetPowerUsage": 250_000,
            "nvmlDeviceGetComputeRunningProcesses": (OURS,),
            "nvmlDeviceGetProcessUtilization": {OURS: 90},
            "nvmlSystemGetProcessName": "python",
        } | table
        self.now_us = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self.table:
            raise AttributeError(name)

        def answer(*arguments: Any) -> Any:
            value = self.table[name]
            if isinstance(value, list):
                value = value.pop(0) if len(value) > 1 else value[0]
            if value is None:
                raise RuntimeError("Not Supported")
            if name == "nvmlDeviceGetComputeRunningProcesses":
                return [SimpleNamespace(pid=pid) for pid in value]
            if name == "nvmlDeviceGetProcessUtilization":
                return self._use(value)
            return value(*arguments) if callable(value) else value

        return answer

    def _use(self, percent: dict[int, int]) -> list[SimpleNamespace]:
        if not percent:
            raise NVMLError_NotFound("Not Found")
        self.now_us += 1000
        return [SimpleNamespace(pid=pid, smUtil=use, timeStamp=self.now_us) for pid, use in percent.items()]


def verdicts(count: int, library: FakeNvml | None = None, **table: Any) -> list[Verdict]:
    """Judge `count` samples of a second each."""
    clock = Scripted()
    card = Card(library or FakeNvml(**table), "handle")
    gate = Gate([NvmlProbe(card, lambda: frozenset({OURS}))], clock)
    found = []
    for _ in range(count):
        before = gate.before()
        clock.advance(SECOND)
        found.append(gate.after(before, SECOND, SECOND))
    return found


# --- Cards under normal load: shared/facts/devices.md ---

CARDS = {
    "RTX 3090, stock": (2100, [1695, 1680, 1695, 1710, 1695, 1680], CAP, "steadily capped"),
    "RTX 4090": (3105, [2520, 2625, 2580, 2535, 2610, 2550], CAP, "steadily capped"),
    "H100 PCIe, 0.79": (1755, [1384, 1395, 1380, 1384, 1410, 1384], CAP, "steadily capped"),
    "H100 PCIe, 0.89": (1755, [1560, 1545, 1560, 1575, 1560, 1545], CAP, "steadily capped"),
    "H200 NVL": (1785, [1635, 1635, 1620, 1635, 1650, 1635], CAP | THERMAL, "steadily capped"),
    "H100 SXM, -lgc 1410, no application clocks": (1980, [1410] * 6, 0, "locked"),
    "H100 SXM, -lgc 1500, capped": (1980, [1500] * 6, CAP, "locked"),
    "A100, locked at its base clock": (1410, [1095] * 6, 0, "locked"),
    "V100, application clocks": (1530, [1005] * 6, SET, "locked"),
    "L4": (2040, [1200, 1185, 1215, 1200, 1200, 1185], CAP, "steadily capped"),
    "H100 SXM, free": (1980, [1980] * 6, 0, "free"),
}


@pytest.mark.parametrize("card", CARDS)
def test_steady_load_is_valid_and_its_state_is_said(card: str) -> None:
    maximum, clocks, bits, state = CARDS[card]
    table = {"nvmlDeviceGetMaxClockInfo": maximum, "nvmlDeviceGetCurrentClocksEventReasons": bits}
    # NVML is asked before and after each sample.
    found = verdicts(6, nvmlDeviceGetClockInfo=[mhz for mhz in clocks for _ in range(2)], **table)
    assert [verdict.reasons for verdict in found] == [()] * 6
    assert found[-1].readings["gpu_clock"] == state
    share = found[-1].readings["gpu_clock_share"]
    assert isinstance(share, float)
    assert share == pytest.approx(clocks[-1] / maximum, abs=0.001)


def test_a_clock_that_falls_is_throttled_until_it_is_steady_again() -> None:
    clocks = [1980] * 6 + [1900, 1700, 1640, 1500, 1400, 1395, 1400, 1400, 1400, 1400]
    library = FakeNvml(nvmlDeviceGetClockInfo=[mhz for mhz in clocks for _ in range(2)])
    found = verdicts(len(clocks), library)
    refused = [not verdict.valid for verdict in found]
    assert refused[:7] == [False] * 7
    assert refused[7:14] == [True] * 7
    assert found[9].readings["gpu_clock"] == "falling"
    assert refused[14:] == [False] * 2, "a clock that has settled lower is what the card can keep up"


def test_a_fall_is_noticed_before_anything_was_steady() -> None:
    assert [verdict.valid for verdict in verdicts(2, nvmlDeviceGetClockInfo=[1980, 1980, 1500, 1500])] == [True, False]


def test_heat_narrows_what_is_allowed() -> None:
    clocks = [1980] * 10 + [1900, 1900]
    cool = verdicts(6, nvmlDeviceGetClockInfo=list(clocks))
    hot = verdicts(6, nvmlDeviceGetClockInfo=list(clocks), nvmlDeviceGetCurrentClocksEventReasons=[0] * 11 + [THERMAL])
    assert (cool[-1].reasons, hot[-1].reasons) == ((), ("throttled",))


@pytest.mark.parametrize("bit", nvml.SLOWDOWNS)
def test_what_the_hardware_does_to_protect_itself_is_throttling(bit: int) -> None:
    assert verdicts(1, nvmlDeviceGetCurrentClocksEventReasons=bit)[0].reasons == ("throttled",)
    before = verdicts(1, nvmlDeviceGetCurrentClocksEventReasons=[bit, 0])[0]
    assert before.reasons == ("throttled",), "before the sample counts too"


def test_a_clock_that_has_gone_to_sleep_says_nothing() -> None:
    found = verdicts(
        6, nvmlDeviceGetClockInfo=[1980] * 10 + [300], nvmlDeviceGetCurrentClocksEventReasons=[0] * 11 + [1]
    )
    assert found[-1].valid
    assert found[-1].readings["gpu_clock"] is None


def test_a_card_that_tells_nothing_refuses_nothing() -> None:
    (verdict,) = verdicts(1, **dict.fromkeys(FakeNvml().table))
    assert verdict.valid


def test_readings_are_named() -> None:
    readings = verdicts(1, nvmlDeviceGetCurrentClocksEventReasons=0x44, nvmlDeviceGetClockInfo=990)[0].readings
    assert readings["gpu_reasons"] == "sw_power_cap+hw_thermal_slowdown"
    assert (readings["gpu_clock_share"], readings["gpu_power_w"], readings["gpu_temperature_c"]) == (0.5, 250.0, 40)


# --- Company ---

NONE, OTHER = (), ("other_process_on_device",)
FROM_HOST = 90210


@pytest.mark.parametrize(
    ("listed", "use", "name", "reasons"),
    [
        ((OURS,), {OURS: 90}, "python", NONE),
        ((OURS, 8), {OURS: 90}, "python", NONE),  # holds memory, computes nothing
        ((OURS, 8), {OURS: 90, 8: 2}, "python", NONE),
        ((OURS, 8), {OURS: 90, 8: 40}, "python", OTHER),
        ((OURS, 8), {8: 40}, "python", OTHER),
        ((OURS, 8), {OURS: 90, 8: 40}, "/usr/bin/nvidia-cuda-mps-server", NONE),
        ((OURS, 8), {}, "python", NONE),
        # In a container: the host's numbers, ours not among them. One user is we.
        ((FROM_HOST,), {FROM_HOST: 90}, "python", NONE),
        ((FROM_HOST, FROM_HOST + 1), {FROM_HOST: 90}, "python", NONE),
        ((FROM_HOST, FROM_HOST + 1), {FROM_HOST: 90, FROM_HOST + 1: 30}, "python", OTHER),
        # No use by process (MIG, old drivers): those listed count, where their numbers are ours.
        ((OURS, 8), None, "python", OTHER),
        ((OURS, 8), None, "nvidia-cuda-mps-server", NONE),
        ((FROM_HOST, FROM_HOST + 1), None, "python", NONE),
        (None, None, "python", NONE),
    ],
)
def test_company_is_who_computes(
    listed: tuple[int, ...] | None, use: dict[int, int] | None, name: str, reasons: tuple[str, ...]
) -> None:
    def named(pid: int) -> str:
        return "python" if pid == OURS else name

    table = {"nvmlDeviceGetComputeRunningProcesses": listed, "nvmlDeviceGetProcessUtilization": use}
    assert verdicts(1, nvmlSystemGetProcessName=named, **table)[0].reasons == reasons


def test_what_was_there_before_us_is_no_company() -> None:
    table = {"nvmlDeviceGetComputeRunningProcesses": (OURS, 8)}
    found = verdicts(2, nvmlDeviceGetProcessUtilization=[{8: 90}, {OURS: 90}], **table)
    assert [verdict.reasons for verdict in found] == [(), ()]


def test_our_launcher_is_no_company() -> None:
    import os

    assert {os.getpid(), os.getppid()} <= nvml.family()


def test_the_doctor_only_looks() -> None:
    library = FakeNvml(nvmlDeviceGetComputeRunningProcesses=(8,), nvmlDeviceGetProcessUtilization={8: 50})
    assert NvmlProbe(Card(library, "handle"), computing=False).read()["gpu_foreign_processes"] == 1.0


# --- The right card ---

SLOW, FAST = "11111111-aaaa-bbbb-cccc-000000000001", "22222222-aaaa-bbbb-cccc-000000000002"
MIG = "MIG-33333333-aaaa-bbbb-cccc-000000000003"


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """NVML lists the slow card first, CUDA the fast one (its default order)."""
    handles = {f"GPU-{SLOW}": "slow", f"GPU-{FAST}": "fast", MIG: "instance"}

    def missing(*_: Any) -> Any:
        raise RuntimeError("Not Found")

    names = {"slow": "NVIDIA T400", "fast": "NVIDIA GeForce RTX 4090"}
    module = ModuleType("pynvml")
    module.nvmlInit = lambda: None  # type: ignore[attr-defined]
    module.nvmlDeviceGetHandleByUUID = lambda uuid: handles.get(uuid) or missing()  # type: ignore[attr-defined]
    module.nvmlDeviceGetHandleByPciBusId = lambda pci: {"00000000:41:00.0": "fast"}.get(pci) or missing()  # type: ignore[attr-defined]
    module.nvmlDeviceGetUUID = lambda handle: next(u for u, h in handles.items() if h == handle)  # type: ignore[attr-defined]
    module.nvmlDeviceGetName = lambda handle: names[handle]  # type: ignore[attr-defined]
    module.nvmlDeviceGetDeviceHandleFromMigDeviceHandle = lambda part: "fast"  # type: ignore[attr-defined]
    module.nvmlDeviceGetTotalEnergyConsumption = lambda handle: {"slow": 5, "fast": 7}[handle]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    order = [
        SimpleNamespace(uuid=FAST, pci_domain_id=0, pci_bus_id=0x41, pci_device_id=0),
        SimpleNamespace(uuid=SLOW, pci_domain_id=0, pci_bus_id=0x01, pci_device_id=0),
    ]
    seen = {"order": order, "handles": handles}
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(seen["order"]))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: seen["order"][index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: names[handles[f"GPU-{seen['order'][index].uuid}"]])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return seen


def handle_of(name: str) -> Any:
    card = cuda.nvml_card(name)
    return card and card.handle


def test_cudas_order_is_not_nvmls(two_cards: dict[str, Any]) -> None:
    assert (handle_of("cuda"), handle_of("cuda:0"), handle_of("cuda:1")) == ("fast", "fast", "slow")


def test_visible_devices_by_uuid(two_cards: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"GPU-{SLOW}")
    two_cards["order"][:] = two_cards["order"][1:]  # as CUDA does
    assert handle_of("cuda:0") == "slow"


def test_by_address_where_the_uuid_is_not_told(two_cards: dict[str, Any]) -> None:
    two_cards["order"][0].uuid = ""
    assert handle_of("cuda:0") == "fast"


@pytest.mark.parametrize("told_by_cuda", [True, False])
def test_a_mig_instance(two_cards: dict[str, Any], monkeypatch: pytest.MonkeyPatch, told_by_cuda: bool) -> None:
    """Processes are the instance's, clocks the whole card's; its energy is everybody's, so nobody's."""
    if told_by_cuda:
        two_cards["order"][0].uuid = MIG.removeprefix("MIG-")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", MIG)
    card = cuda.nvml_card("cuda")
    assert card
    assert (card.handle, card.part, card.uuid) == ("fast", "instance", MIG)
    assert backend.of("cuda").counter() is None
    assert backend.of("cuda").lock_name() == MIG.lower()


def test_lock_machine_and_energy_are_the_cards(two_cards: dict[str, Any]) -> None:
    from harness.machine import environment

    first, same, second = (backend.of(name) for name in ("cuda", "cuda:0", "cuda:1"))
    assert first.lock_name() == same.lock_name() != second.lock_name()
    for name, word in (("cuda:0", "rtx-4090"), ("cuda:1", "t400")):
        environment.machine_name.cache_clear()
        assert environment.machine_name(name).endswith(word)
    environment.machine_name.cache_clear()
    assert "rtx" not in environment.machine_name("cpu")
    counters = [backend.of(name).counter() for name in ("cuda:0", "cuda:1")]
    assert [counter and counter.read_mj() for counter in counters] == [7.0, 5.0]
    environment.machine_name.cache_clear()
