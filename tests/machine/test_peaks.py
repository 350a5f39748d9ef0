"""Rooflines: by hand, and a peak of this machine that is measured once."""

import json
from pathlib import Path

import pytest

from harness.machine import peaks
from harness.machine.devices import cpu


def test_the_fake_device_has_no_peak() -> None:
    assert peaks.measure("fake", "float32") is None


def test_the_peak_is_kept_and_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path))
    monkeypatch.setattr(peaks, "LONG_ENOUGH_NS", 1)
    monkeypatch.setattr(cpu, "PEAK_COPY_BYTES", 1 << 22)
    assert peaks.known("cpu") is None
    peaks.keep("cpu", "float32", 1)
    peak = peaks.known("cpu", "float32")
    assert 1e8 < peak.flops_per_s < 1e15
    assert 1e8 < peak.bytes_per_s < 1e14
    assert "random data" in peak.how
    assert peaks.known("cpu", "bfloat16") is None
    assert peaks.known("cuda") is None
    (file,) = (tmp_path / "peaks").iterdir()
    entries = json.loads(file.read_text())
    assert list(entries) == ["float32 1 threads"]
    entries["float32 1 threads"]["flops_per_s"] = 42.0
    file.write_text(json.dumps(entries))
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert peaks.measure("cpu", "float32").flops_per_s == 42.0
    file.write_text("{broken")
    assert peaks.known("cpu") is None


def test_measuring_runs_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path))
    peak = peaks.measure("cpu", "float32")
    assert peak is not None
    assert peak == peaks.known("cpu", "float32")
