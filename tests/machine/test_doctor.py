"""The doctor on machines that are not here: what is doubtful, what is missing, and the exact command."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from harness.machine import doctor
from harness.machine.doctor import Finding


def one(findings: Iterable[Finding], level: str) -> Finding:
    (finding,) = list(findings)
    assert finding.level == level
    return finding


def test_this_machine() -> None:
    found = doctor.examine()
    assert [finding.text for finding in found if "runs on cpu" in finding.text]
    assert {finding.level for finding in found} <= {"ok", "doubt", "missing"}
    assert found[0].level == "ok"
    assert all(finding.next_step for finding in found if finding.level != "ok")
    assert any("torch " in finding.text for finding in found)


def test_the_doctor_itself_imports_no_torch() -> None:
    code = "import sys; from harness.machine import doctor; doctor.machine; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


GPU = "NVIDIA H200"
GOOD = {"torch": "2.15.0", "cuda_build": "13.2", "cuda": True, "devices": ["cpu", "cuda"], "torchvision": "0.29.2"}


def test_a_torch_without_cuda_beside_a_gpu() -> None:
    finding = one(doctor.torch({**GOOD, "torch": "2.15.0+cpu", "cuda_build": None, "cuda": False}, GPU), "missing")
    assert "built without CUDA" in finding.text
    assert finding.next_step == "pip install --upgrade --force-reinstall torch torchvision"
    assert one(doctor.torch({**GOOD, "cuda_build": None, "devices": ["cpu"]}, None), "ok").text.endswith("cpu")


def test_a_gpu_that_does_not_answer() -> None:
    assert "driver" in one(doctor.torch({**GOOD, "cuda": False}, GPU), "missing").next_step
    assert one(doctor.torch(GOOD, GPU), "ok").text.endswith("cpu, cuda")
    assert one(doctor.torch({"torch_error": "ImportError: libfoo"}, None), "missing").next_step == doctor.REINSTALL


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ("RuntimeError: operator torchvision::nms does not exist", "does not fit torch"),
        ("ModuleNotFoundError: No module named 'torchvision'", "is not installed"),
    ],
)
def test_a_torchvision_that_does_not_match(error: str, text: str) -> None:
    finding = one(doctor.torchvision({"torch": "2.13.0+cpu", "torchvision_error": error}), "missing")
    assert text in finding.text
    assert finding.next_step == doctor.REINSTALL
    assert one(doctor.torchvision(GOOD), "ok")


def test_a_broken_torchvision_is_found_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "torch.py").write_text("import os; os._exit(11)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "torch_error" in doctor.try_imports()
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open')")
    said = doctor.try_imports()
    assert said["torchvision_error"] == "RuntimeError: operator torchvision::nms does not exist"
    assert said["torch_error"] == "ImportError: libcudart.so.13: cannot open"


def texts(findings: Iterable[Finding]) -> str:
    return " | ".join(f"{finding.text} -> {finding.next_step}" for finding in findings)


def test_what_makes_timings_doubtful() -> None:
    quiet = {"foreign_cores": 0.1}
    assert list(doctor.cpu(quiet, 8, "performance", None)) == []
    said = texts(doctor.cpu({"foreign_cores": 3.0}, 2, "powersave", 0.5))
    for part in ("3.0 of 2 cores", "2 cores only", "powersave", "cpupower frequency-set -g performance", "--threads 1"):
        assert part in said
    assert "battery" in one(doctor.power("battery"), "doubt").text
    assert list(doctor.power("mains")) == list(doctor.power(None)) == []
    assert one(doctor.memory(10**9, 8 * 10**9), "doubt")
    assert list(doctor.memory(0, 8 * 10**9)) == []
    assert "5.0%" in one(doctor.virtual("yes", 0.05), "doubt").text
    assert one(doctor.virtual("yes", 0.0), "ok")
    assert one(doctor.threads("16", 2), "doubt").next_step.startswith("unset OMP_NUM_THREADS")
    assert list(doctor.threads("2", 2)) == list(doctor.threads(None, 2)) == []
    assert one(doctor.threads("4,1", 2), "doubt").text.startswith("OMP_NUM_THREADS=4,1 on 2 cores: threads wait")
    assert list(doctor.threads("2,1", 2)) == list(doctor.threads("abc", 2)) == []


def test_gpus_and_macs() -> None:
    told = {
        "gpu_foreign_processes": 2.0,
        "gpu_reasons": "hw_thermal_slowdown",
        "gpu_sm_mhz": 900,
        "gpu_temperature_c": 91,
    }
    said = texts(doctor.gpu_reasons(1, ["throttled", "other_process_on_device"], told))
    assert "GPU 1: 2 other processes" in said
    assert "hw_thermal_slowdown, 900 MHz, 91 °C" in said
    assert texts(doctor.mac_reasons(["low_power_mode", "on_battery"])).endswith("sudo pmset -a lowpowermode 0")
    assert one(doctor.nvml(GPU, False, None), "missing").next_step == "pip install nvidia-ml-py"
    assert list(doctor.nvml(GPU, True, "13")) == list(doctor.nvml(None, False, None)) == []


def test_others_on_a_macs_gpu_are_said_for_no_sample_shows_them() -> None:
    assert "31 % of it right now" in one(doctor.mac_gpu(31), "doubt").text
    assert list(doctor.mac_gpu(3)) == list(doctor.mac_gpu(None)) == []


def test_optional_packages_for_macs_are_named_on_macs() -> None:
    nothing = dict.fromkeys(doctor.OPTIONAL)
    assert "mlx-lm" not in texts(doctor.extras(nothing, "linux"))
    assert "vlm-pareto[apple]" in texts(doctor.extras(nothing, "darwin"))


def test_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert next(doctor.cache(tmp_path / "new")).level in ("ok", "doubt")
    (tmp_path / "file").write_text("")
    assert one(doctor.cache(tmp_path / "file"), "missing").next_step == "set VLM_PARETO_CACHE"
    monkeypatch.setattr(doctor, "SPACE_BYTES", 1 << 62)
    assert "7B" in one(doctor.cache(tmp_path), "doubt").text
