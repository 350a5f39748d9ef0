"""Apple GPUs: a friendly refusal elsewhere; on a Mac, synchronize really waits."""

import time
import warnings
from collections.abc import Iterator

import pytest
import torch

from harness import plugins
from harness.clock import Monotonic, Scripted
from harness.errors import DeviceError
from harness.machine import backend
from harness.machine.devices import mps
from harness.measure import gate

on_a_mac = torch.backends.mps.is_available()


def test_there_is_one() -> None:
    with pytest.raises(DeviceError, match="--device mps"):
        plugins.load("devices", "mps").open("mps:1", Monotonic())


@pytest.mark.skipif(on_a_mac, reason="there is an Apple GPU here")
def test_elsewhere_the_next_step_is_named() -> None:
    with pytest.raises(DeviceError, match=r"no Apple GPU.*next: --device cpu"):
        plugins.load("devices", "mps").open("mps", Monotonic())


@pytest.mark.skipif(not on_a_mac, reason="no Apple GPU here")
def test_sync_waits_for_the_work() -> None:
    device = plugins.load("devices", "mps").open("mps", Monotonic())
    x = torch.randn(2048, 2048, device="mps")
    device.sync()
    start = time.perf_counter_ns()
    for _ in range(50):
        x = x @ x * 1e-3
    asked_ns = time.perf_counter_ns() - start
    device.sync()
    assert time.perf_counter_ns() - start > 2 * asked_ns
    assert device.stamp() is None
    assert device.memory()["allocated_bytes"] > 0


@pytest.fixture
def watched() -> Iterator[list[str]]:
    """Fallbacks are noted, other warnings are shown (in this list), and everything is put back at the end."""
    shown = []
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *others: shown.append(str(message))
        mps.FALLEN.clear()
        mps.watch_fallbacks(torch)
        mps.watch_fallbacks(torch)  # a second device in the process changes nothing
        yield shown
    torch.set_warn_always(False)
    mps.FALLEN.clear()


def fall_back(operator: str) -> None:
    """Warn as torch's MPSFallback.mm does."""
    warnings.warn(
        f"The operator '{operator}' is not currently supported on the MPS backend and will fall back to run on the CPU."
        " This may have performance implications. (Triggered internally at MPSFallback.mm:11.)",
        UserWarning,
        stacklevel=2,
    )


def test_operators_that_fall_back_are_told_by_name_and_refuse_nothing(watched: list[str]) -> None:
    clock = Scripted()
    watcher = gate.Gate([mps.FallbackProbe()], clock)
    verdicts = []
    for operators in ([], ["aten::col2im", "aten::linalg_svd.U"], ["aten::col2im"]):
        before = watcher.before()
        clock.advance(1_000_000)
        for operator in operators:
            fall_back(operator)
        verdicts.append(watcher.after(before, 1_000_000, 1_000_000))
    assert all(verdict.valid for verdict in verdicts)
    named = "aten::col2im+aten::linalg_svd.U"
    assert [verdict.readings.get("cpu_fallback") for verdict in verdicts] == [None, named, named]
    assert torch.is_warn_always_enabled()  # else torch would tell of the first operator alone
    assert watched == []


def test_other_warnings_are_left_alone(watched: list[str]) -> None:
    warnings.warn("the sky is falling", UserWarning, stacklevel=1)
    assert mps.FALLEN == {}
    assert watched == ["the sky is falling"]


@pytest.mark.parametrize(("value", "allowed"), [(None, False), ("0", False), ("1", True)])
def test_whether_a_fallback_is_an_error_is_the_users_choice(
    monkeypatch: pytest.MonkeyPatch, value: str | None, allowed: bool
) -> None:
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    if value is not None:
        monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", value)
    assert mps.fallback_allowed() is allowed
    assert any(isinstance(probe, mps.FallbackProbe) for probe in backend.of("mps").probes())
