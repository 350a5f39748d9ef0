"""FastViTHD as a Core ML package: converted on Linux, equal to the adapter's encoder; predicted on a Mac only."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from PIL import Image

from harness import images
from harness.errors import DeviceError, SettingError
from harness.measure import cell
from harness.models.card import ModelCard, load_model_card
from harness.models.families import fastvlm
from harness.models.families.fastvlm import coreml
from harness.models.protocol import Options, Request
from harness.models.weights import Source

HERE = importlib.util.find_spec("coremltools") is not None
needs_coremltools = pytest.mark.skipif(not HERE, reason="coremltools is not installed (`nox -s apple` installs it)")
elsewhere = pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")

OPERATIONS = {
    "add", "cast", "const", "conv", "gelu", "layer_norm", "linear", "matmul", "mul", "reduce_mean", "relu", "reshape",
    "sigmoid", "softmax", "split", "squeeze", "transpose",
}  # fmt: skip
"""All of FastViTHD: convolutions, two attention stages and a squeeze-and-excite block; no loop, nothing unknown."""


@pytest.fixture(scope="module")
def card(tiny_fastvlm: Any) -> ModelCard:
    return load_model_card(str(tiny_fastvlm.card))


@pytest.fixture(scope="module")
def source(tiny_fastvlm: Any) -> Source:
    return Source("local", tiny_fastvlm.weights, digest="d" * 8)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path))
    return tmp_path


@torch.inference_mode()
def largest_difference(card: ModelCard, source: Source, side: int) -> float:
    """Between the graph that is converted and the adapter's encoder, on a noisy picture that was not traced."""
    pixels = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    model = fastvlm.FastVlm(card, source, Options(side, only="fastvithd"))
    prepared = model.prepare([images.decode(images.png(Image.fromarray(pixels)))])
    theirs = model.encode("fastvithd", prepared)
    ours = coreml.trace(coreml.tower(card, source, side), side)(prepared.pixels["fastvithd"])
    assert ours.shape == theirs.shape == (1, (side // 64) ** 2, card.encoders[0].width)
    assert float(theirs.abs().max()) > 0.1
    return float((ours - theirs).abs().max())


@pytest.mark.parametrize("side", [256, 512])
def test_the_graph_that_is_converted_is_the_adapters_encoder(card: ModelCard, source: Source, side: int) -> None:
    assert largest_difference(card, source, side) < 1e-4


def test_the_whole_encoders_graph_is_the_adapters() -> None:
    assert largest_difference(load_model_card("fastvlm-0.5b"), Source("random"), 256) < 1e-4


def check_package(path: Path, side: int, width: int) -> dict[str, int]:
    told = coreml.interface(path)
    assert told["inputs"] == {"images": ((1, 3, side, side), "float32")}
    assert told["outputs"] == {"image_features": ((1, (side // 64) ** 2, width), "float32")}
    assert set(told["operations"]) <= OPERATIONS  # type: ignore[call-overload]
    operations: dict[str, int] = told["operations"]
    return operations


@needs_coremltools
@pytest.mark.parametrize("side", [256, 512])
def test_a_package_has_apples_interface(card: ModelCard, source: Source, side: int, cache: Path) -> None:
    path = coreml.package(card, source, side)
    operations = check_package(path, side, 128)
    assert operations["softmax"] == 2  # two blocks of attention in the tiny card
    assert operations["cast"] == 2  # float16 inside, float32 at both ends
    assert coreml.interface(path)["metadata"]["weights"] == source.digest


@needs_coremltools
@pytest.mark.slow
@pytest.mark.parametrize("side", [256, 512])
def test_the_whole_encoder_converts(side: int, cache: Path) -> None:
    """FastViTHD of 125 M parameters with random weights: about 40 seconds and 245 MB."""
    path = coreml.package(load_model_card("fastvlm-0.5b"), Source("random"), side)
    operations = check_package(path, side, 3072)
    assert (operations["conv"], operations["gelu"], operations["softmax"]) == (186, 56, 6)
    weights = sum(file.stat().st_size for file in path.rglob("weight.bin"))
    assert weights == pytest.approx(2 * 122_714_208, rel=0.01)


@needs_coremltools
def test_a_package_is_made_once_for_what_it_holds(card: ModelCard, source: Source, cache: Path) -> None:
    first = coreml.package(card, source, 64)
    made = first.stat().st_mtime_ns
    assert coreml.package(card, source, 64) == first
    assert first.stat().st_mtime_ns == made
    others = {
        coreml.package(card, source, 128),
        coreml.package(card, source, 64, "float32"),
        coreml.package(card, Source("local", source.folder, digest="other"), 64),
    }
    assert len({first, *others}) == 4
    assert len(list((cache / "coreml").iterdir())) == 4  # nothing half-made is left


@needs_coremltools
def test_precisions_that_core_ml_lacks_are_refused(card: ModelCard, source: Source, cache: Path) -> None:
    with pytest.raises(SettingError, match="float16 and float32"):
        coreml.package(card, source, 64, "bfloat16")
    with pytest.raises(SettingError, match="only FastVLM"):
        coreml.package(load_model_card("llava-1.5-7b"), Source("random"), 336)


class TorchInCoreMlsPlace:
    """Predicts with the graph that is converted, as `Predictor` does with the package: all of the engine but macOS."""

    def __init__(self, card: ModelCard, source: Source, side: int) -> None:
        self.graph = coreml.trace(coreml.tower(card, source, side), side)
        self.shapes: list[tuple[int, ...]] = []

    def predict(self, given: np.ndarray) -> np.ndarray:
        assert given.dtype == np.float32
        self.shapes.append(given.shape)
        features: np.ndarray = self.graph(torch.from_numpy(given)).numpy()
        return features

    def describe(self) -> dict[str, str]:
        return {"encoder_engine": "stand-in"}

    def doubts(self, dtype: str) -> tuple[str, ...]:
        return (f"placed in {dtype}",)


@needs_coremltools
@pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed")
@pytest.mark.parametrize("tiles", [1, 2])
def test_the_engine_around_the_package_answers_as_torch_does(
    card: ModelCard, source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch, tiles: int
) -> None:
    loaded = []

    def load(path: Path, units: str) -> TorchInCoreMlsPlace:
        loaded.append((path.name, units))
        return TorchInCoreMlsPlace(card, source, 128)

    monkeypatch.setattr(coreml, "Predictor", load)
    settings = {**card.settings, "tiles": tiles}
    options = Options(128 * tiles, settings={**settings, "compute_units": "CPU_AND_NE", "llm_bits": 16})
    model = cell.engine("coreml+mlx").load(card, source, options)
    request = Request((images.png(images.blank((300, 200)).image),), "What is the date?", 8, ignore_eos=True)
    theirs = fastvlm.load(card, source, Options(128 * tiles, settings=settings))
    assert list(model.answer(request)) == list(theirs.answer(request))
    assert list(model.parts) == []  # torch has no encoder of its own
    ((name, units),) = loaded
    assert units == "CPU_AND_NE"
    assert "-128px-float32-" in name
    assert model.package.shapes == [(1, 3, 128, 128)] * (1 if tiles == 1 else 5)
    assert model.describe()["encoder_engine"] == "stand-in"
    assert model.doubts[-1] == "placed in float32"


# --- the plan, by objects shaped as coremltools documents them (no Mac was at hand) ---


class MLNeuralEngineComputeDevice: ...


class MLCPUComputeDevice: ...


class Plan:
    """As `MLComputePlan`: constants have no usage."""

    devices = (None, MLNeuralEngineComputeDevice(), MLNeuralEngineComputeDevice(), MLCPUComputeDevice())
    weights = (None, 0.5, 0.3, 0.2)

    def __init__(self) -> None:
        block = SimpleNamespace(operations=list(range(4)))
        program = SimpleNamespace(functions={"main": SimpleNamespace(block=block)})
        self.model_structure = SimpleNamespace(program=program)

    def get_compute_device_usage_for_mlprogram_operation(self, operation: int) -> Any:
        device = self.devices[operation]
        return device and SimpleNamespace(preferred_compute_device=device)

    def get_estimated_cost_for_mlprogram_operation(self, operation: int) -> Any:
        return SimpleNamespace(weight=self.weights[operation])


def test_a_plan_is_told_by_unit() -> None:
    assert str(coreml.summarise(Plan())) == "neural engine 80.0 % (2 operations), cpu 20.0 % (1 operations)"
    assert str(coreml.placement(None, "CPU_AND_NE")).startswith("not told")


ON_IT = coreml.Placement({"neural engine": 0.95, "cpu": 0.05}, {"neural engine": 250, "cpu": 4})
OFF_IT = coreml.Placement({"cpu": 1.0}, {"cpu": 254})
UNTOLD = coreml.Placement(untold="ValueError")
UNPRICED = coreml.Placement({"neural engine": 0.0}, {"neural engine": 254})


@pytest.mark.parametrize(
    ("planned", "units", "dtype", "failed", "doubt"),
    [
        (ON_IT, "CPU_AND_NE", "float16", False, ""),
        (coreml.summarise(Plan()), "CPU_AND_NE", "float16", False, "not all on the Neural Engine: Core ML planned"),
        (OFF_IT, "CPU_AND_NE", "float16", False, "planned cpu 100.0 % (254 operations)"),
        (UNTOLD, "CPU_AND_NE", "float16", False, "is not known: Core ML tells no plan (ValueError)"),
        (UNPRICED, "CPU_AND_NE", "float16", False, "is not known"),
        (ON_IT, "CPU_AND_NE", "float32", False, "the Neural Engine has no float32; next: --dtype float16"),
        (ON_IT, "CPU_AND_NE", "float16", True, "ANECCompile"),
        (OFF_IT, "CPU_ONLY", "float32", False, ""),
        (UNTOLD, "ALL", "float16", False, ""),
    ],
)
def test_an_encoder_that_is_not_where_it_is_said_to_be_is_a_doubt(
    planned: coreml.Placement, units: str, dtype: str, failed: bool, doubt: str
) -> None:
    """Core ML falls back to the CPU without a word; a time under the Neural Engine's name must not."""
    found = coreml.placement_doubts(planned, units, dtype, failed)
    assert len(found) == bool(doubt)
    assert doubt in "".join(found)
    assert all("next: " in text for text in found)


def test_what_native_code_says_at_loading_is_heard_and_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    """As Core ML does where the Neural Engine's compiler fails and loading succeeds (apple/coremltools, issue 2758)."""
    with coreml.overheard() as said:
        os.write(2, b"E5RT: ... Error=_ANECompiler : ANECCompile() FAILED.\n")
    assert coreml.COMPILER_FAILED in said()
    assert coreml.COMPILER_FAILED in capfd.readouterr().err
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_a_predictor_that_loads_past_a_failed_compilation_doubts_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: str, compute_units: str) -> SimpleNamespace:
        os.write(2, b"ANECCompile() FAILED (11)\n")
        return SimpleNamespace(get_compiled_model_path=lambda: path)

    plans = SimpleNamespace(MLComputePlan=SimpleNamespace(load_from_path=lambda path, compute_units: Plan()))
    models = SimpleNamespace(MLModel=load, compute_plan=plans)
    units = {"CPU_AND_NE": "CPU_AND_NE"}
    monkeypatch.setattr(coreml, "_coremltools", lambda: SimpleNamespace(models=models, ComputeUnit=units))
    monkeypatch.setattr(coreml.sys, "platform", "darwin")
    predictor = coreml.Predictor(tmp_path / "x.mlpackage", "CPU_AND_NE")
    (doubt,) = predictor.doubts("float16")
    assert "it ran elsewhere" in doubt


MLX_PARTS = ("mlx", "mlx.core", "mlx.nn", "mlx_lm", "mlx_lm.models", "mlx_lm.models.cache")
MLX_PARTS += ("mlx_lm.models.llama", "mlx_lm.models.qwen2")
OF_MLX = ("harness.models.mlx_llms", "harness.models.families.fastvlm.mlx")


@pytest.fixture
def with_mlx(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The engine's module, with empty modules in MLX's place; nothing of it is left for other tests."""
    for name in MLX_PARTS:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for name in MLX_PARTS:
        parent, _, child = name.rpartition(".")
        if parent:
            monkeypatch.setattr(sys.modules[parent], child, sys.modules[name], raising=False)
    monkeypatch.setattr(sys.modules["mlx.core"], "array", type("array", (), {}), raising=False)
    monkeypatch.setattr(sys.modules["mlx.nn"], "Module", object, raising=False)
    for name in OF_MLX:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(OF_MLX[-1])
    for name in OF_MLX:
        parent, _, child = name.rpartition(".")
        del sys.modules[name]
        delattr(sys.modules[parent], child)


def test_the_engine_says_what_its_package_doubts(with_mlx: ModuleType, card: ModelCard, source: Source) -> None:
    model = object.__new__(with_mlx.FastVlmCoreMl)
    model.card, model.source, model.options = card, source, Options(256, dtype="float32")
    model.package = None  # the language model alone
    assert model.doubts == ()
    model.package = SimpleNamespace(doubts=lambda dtype: (f"{dtype} is not its own",))
    assert model.doubts == ("float32 is not its own",)


def test_a_coremltools_without_its_native_part_is_said_in_one_line(
    card: ModelCard, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(*_: object, **__: object) -> None:
        raise RuntimeError("BlobWriter not loaded")

    def tensor(**_: object) -> None: ...

    made_up = SimpleNamespace(
        convert=convert,
        TensorType=tensor,
        target=SimpleNamespace(iOS16=16),
        precision={"FLOAT16": 16},
        __version__="9.0",
    )
    monkeypatch.setattr(coreml, "_coremltools", lambda: made_up)
    monkeypatch.setattr(coreml, "trace", lambda *_: None)
    monkeypatch.setattr(coreml, "tower", lambda *_: None)
    with pytest.raises(DeviceError, match=r"without its native part.*next: the same in Python 3.11 to 3.13"):
        coreml.convert(card, source, 64, "float16", 0, tmp_path / "x.mlpackage")


# --- what is said elsewhere than on a Mac ---


def harness(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "VLM_PARETO_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@elsewhere
def test_the_papers_command_needs_a_mac_and_says_so_in_one_line(tmp_path: Path) -> None:
    paper = [
        "run",
        "--model",
        "fastvlm-0.5b",
        "--suite",
        "docvqa",
        "--res",
        "1024",
        "--protocol",
        "paper",
        "--engine",
        "coreml+mlx",
    ]
    done = harness(tmp_path, *paper)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "needs macOS" in line
    assert "can be converted here (`harness export coreml`), but prediction runs on a Mac only" in line


@elsewhere
def test_a_package_is_not_loaded_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="on macOS only"):
        coreml.Predictor(tmp_path / "x.mlpackage", "CPU_AND_NE")


@elsewhere
@pytest.mark.skipif(HERE, reason="coremltools is installed")
def test_without_coremltools_one_line_says_what_to_install(tmp_path: Path) -> None:
    done = harness(tmp_path, "export", "coreml", "--model", "fastvlm-0.5b", "--res", "1024", "--weights", "random")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith("next: pip install coremltools")


@needs_coremltools
def test_export_prints_where_the_package_is(tmp_path: Path, tiny_fastvlm: Any) -> None:
    command = ["export", "coreml", "--model", str(tiny_fastvlm.card), "--res", "128"]
    done = harness(tmp_path, *command, "--weights", str(tiny_fastvlm.weights))
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert check_package(path, 128, 128)
    if sys.platform != "darwin":
        assert done.stderr.splitlines()[-1] == (
            "note: Core ML conversion works here, prediction does not: the package runs on a Mac"
        )


def test_units_and_devices_are_from_a_closed_list(card: ModelCard) -> None:
    engine = cell.engine("coreml+mlx")
    assert engine.SETTINGS["compute_units"] == "CPU_AND_NE"
    with pytest.raises(SettingError, match="compute_units=ANE: known: ALL, CPU_AND_NE"):
        engine.load(card, Source("random"), Options(64, settings={"compute_units": "ANE"}))
    with pytest.raises(SettingError, match="not on fake"):
        engine.place("fake")


def test_the_apple_extra_asks_for_nothing_that_a_python_has_no_wheel_of() -> None:
    extra = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    mac = {"sys_platform": "darwin"}
    asked = {
        python: {
            one.name
            for one in map(Requirement, extra["optional-dependencies"]["apple"])
            if one.marker and one.marker.evaluate({**mac, "python_version": python})
        }
        for python in ("3.13", "3.14")
    }
    assert asked["3.13"] - asked["3.14"] == {"coremltools", "zeus-apple-silicon"}
    assert "mlx-lm" in asked["3.14"]


def test_the_base_package_never_pulls_the_apple_extra() -> None:
    linux = {"sys_platform": "linux", "platform_system": "Linux"}
    apple = []
    for text in requires("vlm-pareto") or []:
        requirement = Requirement(text)
        if requirement.name in ("mlx", "mlx-lm", "coremltools", "zeus-apple-silicon"):
            apple.append(requirement.name)
            assert requirement.marker
            for platform in (linux, {"sys_platform": "darwin"}):
                assert not requirement.marker.evaluate({**platform, "extra": ""})
            assert not requirement.marker.evaluate({**linux, "extra": "apple"})
            assert requirement.marker.evaluate({"sys_platform": "darwin", "extra": "apple"})
    assert sorted(apple) == ["coremltools", "mlx-lm", "zeus-apple-silicon"]
