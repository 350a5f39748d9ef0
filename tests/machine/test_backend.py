"""A device answers for itself; one file outside the package adds one, and it is listed, measured and gated."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from harness import catalogue, plugins
from harness.clock import Scripted
from harness.errors import DeviceError, UnknownName
from harness.machine import backend
from harness.machine.devices import fake
from harness.measure import cell, run
from harness.measure.asked import Asked
from harness.measure.job import prepare
from harness.runlog import log as runlog

FOREIGN = '''
"""A device of somebody else: the fake one under another name, with a probe of its own."""
from harness.machine.devices import fake

DOUBT = "a prototype"

class Warm:
    def __init__(self):
        self.count = 0
    def read(self):
        self.count += 1
        return {"count": float(self.count)}
    def judge(self, before, after, span):
        return (["throttled"] if before["count"] == 3 else []), {"warmth": after["count"]}

def open(name, clock):
    opened = fake.open("fake", clock)
    opened.name = name
    return opened

def absence(name):
    return "" if name == "tensor-unit" else "there is one only"
def dtype(name):
    return "bfloat16"
def doubts(name, dtype):
    return [DOUBT]
def probes(name):
    return [Warm()]
def lock_name(name):
    return "unit-0"
'''


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One file outside the package, and the entry point that names it."""
    (tmp_path / "their_device.py").write_text(FOREIGN)
    (tmp_path / "their_broken_device.py").write_text("import no_such_package_of_theirs")
    (tmp_path / "their_least_device.py").write_text(
        "from harness.errors import DeviceError\n"
        "def open(name, clock):\n    raise DeviceError('no unit is plugged in; next: plug it in')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [
        EntryPoint("tensor-unit", "their_device", "harness.devices"),
        EntryPoint("broken-unit", "their_broken_device", "harness.devices"),
        EntryPoint("least-unit", "their_least_device", "harness.devices"),
    ]
    monkeypatch.setattr(plugins, "foreign", lambda group: points if group == "devices" else [])
    yield
    for name in ("their_device", "their_broken_device", "their_least_device"):
        sys.modules.pop(name, None)
    fake.reset()


def test_a_foreign_device_is_listed_with_its_own_words(foreign: None) -> None:
    rows = {row["device"]: row["here"] for row in catalogue.tables(["devices"])["devices"]}
    assert rows["tensor-unit"] == "yes"
    assert rows["least-unit"] == "no: no unit is plugged in; next: plug it in"
    assert "no_such_package_of_theirs" in rows["broken-unit"]
    assert rows["cpu"] == rows["fake"] == "yes"
    assert not [here for name, here in rows.items() if name.endswith("unit") and "macOS" in here]


def test_a_foreign_device_is_measured_and_gated(foreign: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path / "cache"))
    asked = Asked(model="fake", device="tensor-unit", suite="pages", limit=3, precision=0, minimum_seconds=0)
    settled = cell.settle(asked)
    assert settled.dtype == "bfloat16"
    job = prepare(replace(asked, offline=True, out=str(tmp_path)))
    list(run.run_job(job, lambda _: None, Scripted()))
    log = runlog.read(job.path)
    assert log.finished
    assert log.header.device["name"] == "tensor-unit"
    assert log.header.effective["doubts"] == ["a prototype"]
    assert all("warmth" in sample.readings for sample in log.samples)
    assert ("throttled",) in {sample.reasons for sample in log.samples}


def test_the_check_names_a_device_that_cannot_be_loaded_or_opened(foreign: None, tmp_path: Path) -> None:
    (tmp_path / "their_least_device.py").write_text("nothing = 1")
    problems, _ = catalogue.check()
    assert any("no_such_package_of_theirs" in text for text in problems)
    assert any("their_least_device has no open(name, clock)" in text for text in problems)


def test_names() -> None:
    with pytest.raises(UnknownName, match="did you mean"):
        backend.of("cdua")
    with pytest.raises(DeviceError, match="the fake devices are fake:0, fake:1"):
        backend.of("fake:9").open(Scripted())


def test_engines_of_one_gpu_share_its_lock() -> None:
    assert {backend.of(name).lock_name() for name in ("mps", "mlx", "coreml")} == {"mps"}
    assert backend.of("mlx:cpu").lock_name() == backend.of("cpu").lock_name()


@pytest.mark.parametrize(
    ("flags", "doubtful", "advised"),
    [
        ("fpu avx2 avx512f", {"bfloat16", "float16"}, ""),
        ("fpu avx512_bf16 amx_bf16", {"float16"}, "bfloat16"),
        ("fp asimdhp", {"bfloat16"}, "float16"),
        ("fp asimdhp bf16", set(), "bfloat16"),
    ],
)
def test_emulated_precisions_are_doubted_and_not_advised(
    flags: str, doubtful: set[str], advised: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = backend.of("cpu")
    monkeypatch.setattr(cpu.module, "cpu_flags", lambda: set(flags.split()))
    said = {dtype: cpu.doubts(dtype) for dtype in ("bfloat16", "float16", "float32")}
    assert {dtype for dtype, found in said.items() if found} == doubtful
    assert all("emulated" in found[0] for found in said.values() if found)
    assert cpu.small_dtype() == advised
    assert backend.less_memory("cpu").startswith(f"--dtype {advised}, --isolate" if advised else "--isolate")


def test_advice_about_memory_needs_no_known_device() -> None:
    assert backend.less_memory("no-such-device").endswith("a lower --res or a smaller model")
