"""MLX's devices on a Mac, with a made-up MLX and torch in their places: none was at hand."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from harness.clock import Scripted
from harness.machine import backend
from harness.machine.devices import coreml, cpu, mlx, mps

GB = 10**9


class Allocator(ModuleType):
    """Counts as MLX's allocator does: the peak begins at 0 when it is reset, and only an allocation raises it."""

    __version__ = "0.31"
    gpu, cpu = "gpu", "cpu"

    def __init__(self) -> None:
        super().__init__("mlx.core")
        self.active = self.peak = 0

    def allocate(self, count: int) -> None:
        self.active += count
        self.peak = max(self.peak, self.active)

    def get_active_memory(self) -> int:
        return self.active

    def get_peak_memory(self) -> int:
        return self.peak

    def reset_peak_memory(self) -> None:
        self.peak = 0

    def device_info(self) -> dict[str, int]:
        return {"max_recommended_working_set_size": 11 * GB}

    def default_device(self) -> str:
        return "gpu"

    def set_default_device(self, _: str) -> None: ...


def torch_of(held_bytes: int, mps_here: bool = True) -> SimpleNamespace:
    told = SimpleNamespace(
        driver_allocated_memory=lambda: held_bytes,
        recommended_max_memory=lambda: 11 * GB,
        current_allocated_memory=lambda: held_bytes,
    )
    return SimpleNamespace(mps=told, backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps_here)))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    allocator, package = Allocator(), ModuleType("mlx")
    package.core = allocator  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlx", package)
    monkeypatch.setitem(sys.modules, "mlx.core", allocator)
    monkeypatch.setitem(sys.modules, "torch", torch_of(GB))
    return allocator


def test_a_peak_holds_what_was_held_when_it_began(memory: Allocator) -> None:
    device = mlx.Mlx("mlx", Scripted())
    memory.allocate(3 * GB)  # the weights
    device.reset_peak()
    assert device.peak_bytes() == 4 * GB  # a stage that allocates nothing; 1 GB is torch's encoder
    memory.allocate(2 * GB)
    memory.allocate(-2 * GB)
    assert device.peak_bytes() == 6 * GB
    device.reset_peak()
    memory.allocate(-3 * GB)
    assert device.peak_bytes() == 4 * GB
    assert device.describe()["peak_memory"].endswith("with what the driver holds for torch, a high mark of the run")


def test_core_ml_alone_has_no_peak_and_never_a_whole_one(memory: Allocator) -> None:
    device = coreml.CoreMl("coreml", Scripted())
    device.reset_peak()
    assert device.peak_bytes() is None
    memory.allocate(GB)
    assert device.peak_bytes() == GB
    assert device.describe()["memory_not_told"] == "Core ML's"


@pytest.mark.parametrize(("name", "said"), [("mlx", True), ("mlx:cpu", False)])
def test_more_than_metal_recommends_is_doubted(memory: Allocator, name: str, said: bool) -> None:
    device = mlx.Mlx(name, Scripted())
    memory.allocate(9 * GB)
    assert device.doubts == []
    memory.allocate(5 * GB)
    assert bool(device.doubts) is said
    if said:
        assert "takes 15.0 GB where Metal recommends 11.0 GB at most" in device.doubts[0]


def test_torchs_too() -> None:
    assert mps.Mps("mps", torch_of(10 * GB), Scripted()).doubts == []  # type: ignore[arg-type]
    (doubt,) = mps.Mps("mps", torch_of(15 * GB), Scripted()).doubts  # type: ignore[arg-type]
    assert "takes 15.0 GB" in doubt
    assert "next: a smaller model" in doubt


@pytest.mark.parametrize(
    ("device", "chip", "doubted"),
    [
        ("mps", "Apple M1 Max", True),
        ("mlx", "Apple M1", True),
        ("coreml", "Apple M1", True),
        ("mlx:cpu", "Apple M1", False),
        ("mlx", "Apple M3", False),
    ],
)
def test_bfloat16_is_doubted_on_an_m1_by_whatever_engine(
    device: str, chip: str, doubted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "model_name", lambda: chip)
    assert bool(backend.of(device).doubts("bfloat16")) is doubted
    assert not backend.of(device).doubts("float16")


def test_every_engine_of_the_gpu_names_its_cores_and_watches_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mps, "gpu_cores", lambda: 7)
    assert mps.gpu() == {"gpu_cores": "7"}
    assert {backend.of(name).card() for name in ("mps", "mlx", "coreml")} == {"7-core GPU"}
    assert backend.of("mlx:cpu").card() is None
    kinds: Callable[[str], list[str]] = lambda name: [type(one).__name__ for one in backend.of(name).probes()]  # noqa: E731
    assert kinds("coreml") == kinds("mlx") == kinds("mps")


def test_coremltools_without_its_native_part_is_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip builds it of the source where there is no wheel: it imports, and predicts nothing."""
    (tmp_path / "coremltools").mkdir()
    (tmp_path / "coremltools" / "__init__.py").write_text("raise AssertionError('looking imports nothing')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "coremltools", raising=False)
    assert "Python 3.11 to 3.13" in coreml.without_native_part()
    (tmp_path / "coremltools" / "libcoremlpython.so").write_text("")
    assert coreml.without_native_part() == ""
