"""FastVLM's encoder as a Core ML package: one per weights, input side and precision, kept in the cache folder.

Converting works on Linux too; predicting needs macOS. The interface is that of Apple's own export (input `images`
(1, 3, side, side) in [0, 1], output `image_features` (1, tokens, width), both float32), but the precision is float16,
which the Neural Engine needs: Apple's script asks for float32. API: coremltools.readme.io, coremltools 9.
"""

import hashlib
import json
import logging
import os
import platform
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from harness.errors import DeviceError, MissingPackage, SettingError
from harness.files import cache_folder
from harness.models import weights
from harness.models.card import ModelCard, check_side, load_model_card
from harness.models.families import fastvlm
from harness.models.foreign import Array, Network, Output
from harness.models.pipeline import Prepared
from harness.models.protocol import Options
from harness.models.weights import Source

INPUT, OUTPUT = "images", "image_features"
PRECISIONS = {"float16": "FLOAT16", "float32": "FLOAT32"}
NEURAL_ENGINE = "neural engine"
ITS_LEAST_SHARE = 0.90
"""Of the planned cost: where less of it is the Neural Engine's, times under its name are of something else too."""
COMPILER_FAILED = "ANECCompile() FAILED"
"""What Core ML writes to stderr where the Neural Engine's compiler gives up; loading then succeeds all the same."""


class Tower(nn.Module):
    """The encoder as the adapter runs it, as one module: pixels (1, 3, side, side) to tokens (1, tokens, width)."""

    def __init__(self, model: fastvlm.FastVlm) -> None:
        super().__init__()
        self.network = model.parts[model.encoder_name]
        self._model = [model]  # in a list: its other parts are none of ours

    def forward(self, images: Tensor) -> Tensor:
        """Call the adapter's own `encode`, so that there is one encoder and not two."""
        model = self._model[0]
        return model.encode(model.encoder_name, Prepared({model.encoder_name: images}, (1, 1), (1, 1), 1, 1))


def tower(card: ModelCard, source: Source, side: int, seed: int = 0) -> Tower:
    """Build the encoder alone, in float32 on the CPU; `side` is that of one tile."""
    settings = {name: value for name, value in card.settings.items() if name != "tiles"}
    name = card.encoders[0].name
    model = fastvlm.FastVlm(card, source, Options(side, only=name, seed=seed, settings={**settings, "tiles": 1}))
    return Tower(model).eval()


def export(
    model: str, res: int | None, asked_weights: str | None, dtype: str, seed: int, offline: bool
) -> tuple[Path, list[str]]:
    """Return the package of the encoder of the card `model` at `res`, and what the user must be told about it."""
    card = load_model_card(model)
    side = card.resolution.default if res is None else res
    check_side(card, side)
    _coremltools()
    source = weights.resolve(card, asked_weights, offline)
    path = package(card, source, side // int(card.settings.get("tiles", 1)), dtype, seed)
    notices = [source.notice] if source.notice else []
    if sys.platform != "darwin":
        notices.append("Core ML conversion works here, prediction does not: the package runs on a Mac")
    return path, notices


def trace(encoder: Tower, side: int) -> Network:
    """Return the graph of `encoder` at this side: what is converted."""
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # coremltools' way in is the tracer that torch calls deprecated
        return torch.jit.trace(encoder, torch.rand(1, 3, side, side), check_trace=False)


def package(card: ModelCard, source: Source, side: int, dtype: str = "float16", seed: int = 0) -> Path:
    """Return the package of this encoder from the cache, converting it first if it is not there (about a minute)."""
    name = f"{card.name}-{side}px-{dtype}-{digest(card, source, side, dtype, seed)}.mlpackage"
    path = cache_folder() / "coreml" / name
    return path if path.is_dir() else convert(card, source, side, dtype, seed, path)


def digest(card: ModelCard, source: Source, side: int, dtype: str, seed: int = 0) -> str:
    """Return the digest of all that decides what is in a package."""
    _coremltools()
    tensors = source.digest if source.trained else f"random {seed}"
    packages = {name: version(name) for name in ("coremltools", "torch", "timm")}
    text = json.dumps([card.digest, tensors, side, dtype, packages], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def convert(card: ModelCard, source: Source, side: int, dtype: str, seed: int, path: Path) -> Path:
    """Trace, convert and write the package to `path`, whole or not at all."""
    if card.adapter != "fastvlm":
        raise SettingError(f"{card.name}: only FastVLM's encoder is converted; next: --model fastvlm-0.5b")
    if dtype not in PRECISIONS:
        raise SettingError(f"--dtype {dtype}: Core ML has float16 and float32; next: --dtype float16")
    ct = _coremltools()
    try:
        made = ct.convert(
            trace(tower(card, source, side, seed), side),
            inputs=[ct.TensorType(name=INPUT, shape=(1, 3, side, side), dtype=np.float32)],
            outputs=[ct.TensorType(name=OUTPUT, dtype=np.float32)],
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.precision[PRECISIONS[dtype]],
            skip_model_load=True,
        )
    except (TypeError, RuntimeError) as error:
        if "0-dimensional" in str(error):
            raise DeviceError(
                f"coremltools {ct.__version__} cannot convert with numpy {np.__version__}; "
                "next: pip install 'numpy<2.4'"
            ) from error
        if "BlobWriter" in str(error):
            raise DeviceError(
                f"coremltools {ct.__version__} is here without its native part, as where there is no wheel for this "
                f"Python ({platform.python_version()}); next: the same in Python 3.11 to 3.13"
            ) from error
        raise
    made.short_description = f"{card.title}: encoder at {side} x {side}. License: {card.license}"
    made.user_defined_metadata.update(
        {"model": card.name, "weights": source.digest if source.trained else f"random {seed}", "side": str(side)}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.mlpackage")
    made.save(str(part))
    part.replace(path)
    return path


def interface(path: Path) -> dict[str, object]:
    """Return what a package says of itself: inputs and outputs (shape, type), and its operations, counted."""
    ct = _coremltools()
    spec = ct.models.MLModel(str(path), skip_model_load=True).get_spec()
    described = spec.description
    main = spec.mlProgram.functions["main"]
    block = main.block_specializations[main.opset]

    def told(features: Output) -> dict[str, tuple[tuple[int, ...], str]]:
        kinds = ct.proto.FeatureTypes_pb2.ArrayFeatureType.ArrayDataType
        return {
            feature.name: (
                tuple(feature.type.multiArrayType.shape),
                kinds.Name(feature.type.multiArrayType.dataType).lower(),
            )
            for feature in features
        }

    return {
        "inputs": told(described.input),
        "outputs": told(described.output),
        "operations": dict(Counter(operation.type for operation in block.operations)),
        "metadata": dict(described.metadata.userDefined),
    }


@dataclass(frozen=True, slots=True)
class Placement:
    """Where Core ML plans to run a package: cost and number of operations by unit; or why it does not tell."""

    costs: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    untold: str = ""

    def share(self, unit: str) -> float | None:
        """Return the unit's share of the planned cost; None where no cost is told."""
        whole = sum(self.costs.values())
        return self.costs.get(unit, 0.0) / whole if whole > 0 else None

    def __str__(self) -> str:
        """Say it: "neural engine 99.1 % (253 operations), cpu 0.9 % (4 operations)"."""
        if self.untold:
            return f"not told ({self.untold})"
        units = sorted(self.costs, key=lambda unit: -self.costs[unit])
        return ", ".join(
            f"{unit} {100 * (self.share(unit) or 0):.1f} % ({self.counts[unit]} operations)" for unit in units
        )


class Predictor:
    """A loaded package. macOS only; the first loading compiles it for the chosen units and can take a minute."""

    _path: Path
    _units: str
    _model: Network
    _placement: Placement
    _failed_to_compile: bool

    def __init__(self, path: Path, compute_units: str) -> None:
        """Load `path` for `compute_units` (a name of coremltools' ComputeUnit)."""
        if sys.platform != "darwin":
            raise DeviceError(
                f"{path.name}: Core ML predicts on macOS only, here it is converted; next: run it on a Mac"
            )
        ct = _coremltools()
        self._path, self._units = path, compute_units
        with overheard() as said:
            self._model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit[compute_units])
            self._placement = placement(self._model, self._units)
        self._failed_to_compile = COMPILER_FAILED in said()

    def predict(self, images: Array) -> Output:
        """Return the features of one image (1, 3, side, side) as a float32 array (1, tokens, width); synchronous."""
        return self._model.predict({INPUT: images})[OUTPUT]

    def describe(self) -> dict[str, str]:
        """Return the engine, the units asked for, and where Core ML plans to run how much of it."""
        return {
            "encoder_engine": f"Core ML by coremltools {version('coremltools')}",
            "compute_units": self._units,
            "coreml_package": self._path.name,
            "planned_placement": str(self._placement),
        }

    def doubts(self, dtype: str) -> tuple[str, ...]:
        """Return why the encoder's times may not be the Neural Engine's although `compute_units` names it."""
        return placement_doubts(self._placement, self._units, dtype, self._failed_to_compile)


def placement_doubts(planned: Placement, compute_units: str, dtype: str, failed_to_compile: bool) -> tuple[str, ...]:
    """Return what makes "on the Neural Engine" doubtful; nothing where the units asked for claim no such thing."""
    if compute_units != "CPU_AND_NE":
        return ()
    advice = "next: compare with --set compute_units=CPU_ONLY"
    if dtype != "float16":
        return (f"the encoder's times are the CPU's: the Neural Engine has no {dtype}; next: --dtype float16",)
    if failed_to_compile:
        return (f"the Neural Engine's compiler gave the encoder up (ANECCompile): it ran elsewhere; {advice}",)
    share = planned.share(NEURAL_ENGINE)
    if share is None:
        why = f" ({planned.untold})" if planned.untold else ""
        return (f"whether the encoder ran on the Neural Engine is not known: Core ML tells no plan{why}; {advice}",)
    if share < ITS_LEAST_SHARE:
        return (f"the encoder was not all on the Neural Engine: Core ML planned {planned}; {advice}",)
    return ()


@contextmanager
def overheard() -> Iterator[Callable[[], str]]:
    """Listen to what native code writes to stderr meanwhile; it is passed on at the end, and returned by the call."""
    told: list[bytes] = []
    with tempfile.TemporaryFile() as heard:
        stderr = os.dup(2)
        try:
            os.dup2(heard.fileno(), 2)
            yield lambda: b"".join(told).decode(errors="replace")
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            heard.seek(0)
            told.append(heard.read())
            os.write(2, told[0])


def placement(model: Network, compute_units: str) -> Placement:
    """Return Core ML's plan; macOS before 14.4 tells none.

    A plan, not a measurement: Core ML may do otherwise. After the documentation of MLComputePlan; never run by us.
    """
    try:
        ct = _coremltools()
        plan = ct.models.compute_plan.MLComputePlan.load_from_path(
            path=model.get_compiled_model_path(), compute_units=ct.ComputeUnit[compute_units]
        )
        return summarise(plan)
    except Exception as error:  # noqa: BLE001 - a plan is good to have; its lack must not stop a measurement
        return Placement(untold=type(error).__name__)


def summarise(plan: Network) -> Placement:
    """Add up a compute plan by unit."""
    costs: dict[str, float] = {}
    counts: dict[str, int] = {}
    for operation in plan.model_structure.program.functions["main"].block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        if usage is None:  # constants run nowhere
            continue
        unit = UNITS.get(type(usage.preferred_compute_device).__name__, "unknown")
        estimate = plan.get_estimated_cost_for_mlprogram_operation(operation)
        costs[unit] = costs.get(unit, 0.0) + (float(estimate.weight) if estimate else 0.0)
        counts[unit] = counts.get(unit, 0) + 1
    return Placement(costs, counts)


UNITS = {
    "MLNeuralEngineComputeDevice": NEURAL_ENGINE,
    "MLGPUComputeDevice": "gpu",
    "MLCPUComputeDevice": "cpu",
}


def _coremltools() -> Network:
    """Import coremltools without its remarks on untested versions and, on Linux, missing libraries."""
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    try:
        import coremltools
        import coremltools.models.compute_plan
    except ModuleNotFoundError as error:
        if error.name != "coremltools":
            raise
        if sys.platform == "darwin":
            raise MissingPackage("coremltools", "Core ML conversion", extra="apple") from error
        raise MissingPackage("coremltools", "Core ML conversion (it works here, prediction needs a Mac)") from error
    return coremltools
