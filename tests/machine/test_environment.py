"""What the log says of the machine: flat, without torch, and nothing private."""

import getpass
import json
import platform
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.machine import environment


@pytest.mark.parametrize(
    ("system", "cpu", "cores", "gpu", "name"),
    [
        ("linux", "AMD EPYC 9B45", 2, None, "linux-amd-epyc-9b45-2c"),
        ("linux", "AMD EPYC 7763 64-Core Processor", 128, None, "linux-amd-epyc-7763-128c"),
        ("linux", "Intel(R) Xeon(R) Platinum 8480C", 26, "NVIDIA H200", "linux-intel-xeon-8480c-26c-h200"),
        ("linux", "Intel(R) Xeon(R) CPU @ 2.20GHz", 4, "Tesla T4", "linux-intel-xeon-4c-t4"),
        ("linux", "Intel(R) Core(TM) i7-9700", 8, "NVIDIA GeForce RTX 4090", "linux-intel-core-i7-9700-8c-rtx-4090"),
        ("linux", "AMD Ryzen 7 7840U with Radeon 780M Graphics", 16, None, "linux-amd-ryzen-7-7840u-16c"),
        ("mac", "Apple M1 Max", 10, None, "mac-m1-max-10c"),
        ("mac", "Apple M1 Max", 10, "24-core GPU", "mac-m1-max-10c-24g"),
        ("mac", "Apple M1", 8, "7-core GPU", "mac-m1-8c-7g"),
    ],
)  # fmt: skip
def test_machines_have_short_names(system: str, cpu: str, cores: int, gpu: str | None, name: str) -> None:
    assert environment.slug(system, cpu, cores, gpu) == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("AMD EPYC", " family 25 model 17"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", " family 25 model 17"),
        ("AMD EPYC 9B45", ""),
    ],
)
def test_a_cpu_whose_name_is_hidden_is_told_by_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    """Two generations of EPYC had one name, and their times one folder."""
    (tmp_path / "cpuinfo").write_text(f"cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: {name}\nflags\t\t: a b\n")
    monkeypatch.setattr(environment, "PROC", tmp_path)
    assert environment.generation() == said


def test_it_is_flat_text_and_fits_into_the_log() -> None:
    told = environment.describe("cpu")
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in told.items())
    assert told["machine"] == environment.machine_name("cpu")
    assert told["python"].endswith(platform.python_version())
    assert int(told["memory_bytes"]) > 2**28
    assert told["package_numpy"] == __import__("numpy").__version__


def test_nothing_private_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("LD_PRELOAD", "/home/somebody/libjemalloc.so.2:/usr/lib/libother.so")
    told = environment.describe("cpu")
    text = json.dumps(told)
    assert told["env_OMP_NUM_THREADS"] == "3"
    assert told["preloaded"] == "libjemalloc.so.2+libother.so"
    for private in ("hf_secret", "somebody", str(Path.home()) + "/", socket.gethostname()):
        assert private not in text
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in text


@pytest.mark.parametrize("name", ["MLX_ENABLE_TF32", "MLX_MAX_OPS_PER_BUFFER", "PYTORCH_MPS_PREFER_METAL"])
def test_variables_that_change_a_macs_times_are_logged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    assert environment.describe("cpu")[f"env_{name}"] == "1"


def test_it_needs_no_torch() -> None:
    code = "import sys; from harness.machine import environment as e; e.describe('cpu'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_package_versions_come_from_metadata() -> None:
    assert environment.installed("numpy")
    assert environment.installed("no-such-package-at-all") is None


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/pod/box\n", {"pod/box/cpu.max": "max 100000", "pod/cpu.max": "150000 100000"}, 1.5),
        ("0::/pod/box\n", {"pod/box/cpu.max": "50000 100000", "pod/cpu.max": "150000 100000"}, 0.5),
        ("0::/\n", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/../out\n", {"cpu.max": "200000 100000"}, 2.0),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"}, 0.5),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
    ],
)
def test_the_least_quota_of_nested_groups_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str], cores: float | None
) -> None:
    for name, text in {"proc/self/cgroup": own, **{f"cgroup/{name}": text for name, text in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(environment, "PROC", tmp_path / "proc")
    monkeypatch.setattr(environment, "CGROUP", tmp_path / "cgroup")
    assert environment.cpu_quota_cores() == cores
