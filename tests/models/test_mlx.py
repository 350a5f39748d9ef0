"""FastVLM's language model in MLX against torch's: logits, answers, stages and logs. MLX has a CPU build for Linux."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from harness import images, plugins
from harness.clock import Monotonic
from harness.errors import DeviceError, SettingError, WeightsError
from harness.measure import cell
from harness.measure.asked import Asked
from harness.measure.passes import Bench, time_stages, time_whole
from harness.models.card import ModelCard, load_model_card
from harness.models.families import fastvlm
from harness.models.protocol import Done, Options, Request, Seen
from harness.models.weights import Source
from harness.runlog import log

HERE = all(importlib.util.find_spec(name) for name in ("mlx", "mlx_lm"))
needs_mlx = pytest.mark.skipif(not HERE, reason="mlx and mlx-lm are not installed (`nox -s apple` installs them)")
TOLERANCE = {"float32": 1e-4, "float16": 1e-2}
"""Largest difference of a logit: absolute in float32, relative to the largest logit in float16 (of 0.5B: 4.3)."""


def png(width: int = 300, height: int = 200) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return images.png(Image.fromarray(pixels))


def in_mlx(card: ModelCard, source: Source, dtype: str = "float32", side: int = 256, **settings: Any) -> Any:
    engine = cell.engine("mlx")
    return engine.load(card, source, Options(side, dtype=dtype, settings={**card.settings, **settings}))


@pytest.fixture(scope="module")
def card(tiny_fastvlm: Any) -> ModelCard:
    return load_model_card(str(tiny_fastvlm.card))


@pytest.fixture(scope="module")
def source(tiny_fastvlm: Any) -> Source:
    return Source("local", tiny_fastvlm.weights)


@torch.inference_mode()
def both_logits(card: ModelCard, source: Source, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits after the same prompt and visual embeddings, of torch and of MLX; one model at a time is in memory."""
    import mlx.core as mx

    torch_model = fastvlm.FastVlm(card, source, Options(256, dtype=dtype))
    prepared = torch_model.prepare([images.decode(png())])
    features = {"fastvithd": torch_model.encode("fastvithd", prepared)}
    visual = torch_model.project(features, prepared)
    before, after = torch_model.prompt("What is the date of the letter?")
    embeds = torch_model.embed(visual, before, after)
    theirs = torch_model.prefill(embeds, torch_model.prefill_scope(features, prepared, 0)).logits[0, -1].float().numpy()
    torch_model.close()

    model = in_mlx(card, source, dtype)
    given = mx.array(visual.float().numpy()).astype(getattr(mx, dtype))
    output = model.prefill(model.embed(given, before, after), model.prefill_scope(features, prepared, 0))
    ours = np.array(output.logits[0, -1].astype(mx.float32))
    projected = np.array(model.project(features, prepared).astype(mx.float32))
    scale = float(visual.float().abs().max())
    assert np.abs(projected - visual.float().numpy()).max() < TOLERANCE[dtype] * scale
    model.close()
    return ours, theirs


def difference(ours: np.ndarray, theirs: np.ndarray, dtype: str) -> float:
    largest = float(np.abs(theirs).max())
    assert largest > 0.5
    return float(np.abs(ours - theirs).max()) / (1.0 if dtype == "float32" else largest)


@needs_mlx
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_logits_equal_torchs(card: ModelCard, source: Source, dtype: str) -> None:
    ours, theirs = both_logits(card, source, dtype)
    assert difference(ours, theirs, dtype) < TOLERANCE[dtype]


@needs_mlx
@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_logits_of_the_whole_0_5b_equal_torchs(dtype: str) -> None:
    """Random weights of the exact architecture; about a minute each on two cores, and 5 GB."""
    ours, theirs = both_logits(load_model_card("fastvlm-0.5b"), Source("random"), dtype)
    assert difference(ours, theirs, dtype) < TOLERANCE[dtype]
    assert ours.argmax() == theirs.argmax()


@needs_mlx
def test_vicunas_kind_with_a_head_of_its_own_equals_torchs(card: ModelCard) -> None:
    assert card.llm
    llm = msgspec.structs.replace(card.llm, kind="llama", tied=False, kv_heads=card.llm.heads)
    ours, theirs = both_logits(msgspec.structs.replace(card, llm=llm), Source("random"), "float32")
    assert difference(ours, theirs, "float32") < TOLERANCE["float32"]


@needs_mlx
def test_events_and_answer_are_torchs(card: ModelCard, source: Source) -> None:
    request = Request((png(),), "What is the date?", max_new_tokens=12, ignore_eos=True)
    theirs = list(fastvlm.load(card, source, Options(256)).answer(request))
    model = in_mlx(card, source)
    ours = list(model.answer(request))
    assert ours == theirs  # each token after the first comes from the cache
    assert ours == list(model.answer(request))  # and the cache is made anew
    assert [e.stage for e in ours if isinstance(e, Done)] == ["preprocess", "encode", "project", "prefill"]
    bare = list(model.answer(Request((png(),), "?", 1, visual_only=True)))
    seen = next(e for e in bare if isinstance(e, Seen))
    assert (seen.visual_tokens, seen.text_tokens) == (16, 0)
    assert list(model.parts) == ["fastvithd"]  # torch keeps no second copy of the language model


@needs_mlx
def test_parts_alone(card: ModelCard, source: Source) -> None:
    engine = cell.engine("mlx")
    llm = engine.load(card, source, Options(256, only="llm", settings=card.settings))
    assert list(llm.parts) == []
    assert [e.stage for e in llm.answer(Request((png(),), "?", 1)) if isinstance(e, Done)][-1] == "prefill"
    encoder = engine.load(card, source, Options(256, only="fastvithd", settings=card.settings))
    assert encoder.mlx == {}
    assert [e.stage for e in encoder.answer(Request((png(),), "?", 1)) if isinstance(e, Done)][-1] == "encode"


@needs_mlx
def test_quantised_weights_are_fewer_bytes_and_nearly_the_same_answers(card: ModelCard, source: Source) -> None:
    import mlx.core as mx

    seen = Seen((300, 200), (256, 256), 1, 1, 16, 30)
    logits, bytes_read = {}, {}
    for bits in (16, 8, 4):
        model = in_mlx(card, source, "float16", llm_bits=bits)
        output = model.prefill(
            model.embed(mx.zeros((16, 64), mx.float16), [1, 2], [3]), model.prefill_scope({}, None, 0)
        )
        logits[bits] = np.array(output.logits[0, -1].astype(mx.float32))
        bytes_read[bits] = model.work(seen)["prefill"].weight_bytes
        assert model.describe()["llm_weights"].startswith("float16" if bits == 16 else f"{bits} bits")
    error = {bits: np.abs(logits[bits] - logits[16]).max() / np.abs(logits[16]).max() for bits in (8, 4)}
    assert 0 < error[8] < 0.05 < error[4] < 0.6
    assert bytes_read[4] < 0.6 * bytes_read[8] < 0.36 * bytes_read[16]


@needs_mlx
def test_a_sync_waits_for_each_stage(card: ModelCard) -> None:
    """MLX is lazy: without a forced evaluation the prefill would be paid by the first token, or by nobody."""
    assert card.llm
    llm = msgspec.structs.replace(card.llm, hidden=256, ffn=1024, layers=4)
    model = in_mlx(msgspec.structs.replace(card, llm=llm), Source("random"), side=512)
    device = plugins.load("devices", "mlx").open("mlx:cpu", Monotonic())
    request = Request((png(),), "What is the date of the letter?", 1, ignore_eos=True)
    shares = []
    for _ in range(3):
        stages, _ = time_stages(model, request, Bench(device, Monotonic()))
        first_ns = stages.piece_ns[0] - sum(stages.stage_ns.values())
        shares.append(first_ns / stages.stage_ns["prefill"])
    assert min(shares) < 0.2
    whole, _, _ = time_whole(model, request, Bench(device, Monotonic()))
    assert whole.ttft_ns is not None
    assert whole.ttft_ns > 0.5 * min(stages.stage_ns["prefill"], whole.total_ns)
    assert stages.stage_peak_bytes["prefill"] > 0
    assert {"allocated_bytes", "reserved_bytes", "rss_bytes"} == set(device.memory())
    assert device.describe()["mlx_device"] == "Device(cpu, 0)"


@needs_mlx
def test_what_it_cannot_run_is_refused(card: ModelCard, source: Source) -> None:
    with pytest.raises(SettingError, match="llm_bits=3: known: 16, 8, 4"):
        in_mlx(card, source, llm_bits=3)
    with pytest.raises(SettingError, match="mlx runs FastVLM"):
        in_mlx(load_model_card("llava-1.5-7b"), Source("random"))
    assert card.llm
    wrong = msgspec.structs.replace(card, llm=msgspec.structs.replace(card.llm, layers=3))
    with pytest.raises(WeightsError, match="missing"):
        in_mlx(wrong, source)


# --- through the command line ---


def harness(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "VLM_PARETO_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "harness", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def log_of(folder: Path, tiny_fastvlm: Any, out: str, *arguments: str) -> log.Log:
    common = ["run", "--model", str(tiny_fastvlm.card), "--weights", str(tiny_fastvlm.weights), "--suite", "pages"]
    common += ["--res", "256", "--limit", "2", "--device", "cpu", "--dtype", "float32", "--decode-tokens", "2"]
    done = harness(folder, *common, "--out", out, "--min-seconds", "0", *arguments)
    assert done.returncode == 0, done.stderr
    return log.read(next(iter(log.find(folder / out))))


@needs_mlx
def test_the_same_loop_and_the_same_log(tmp_path: Path, tiny_fastvlm: Any) -> None:
    ours = log_of(tmp_path, tiny_fastvlm, "mlx", "--engine", "mlx")
    theirs = log_of(tmp_path, tiny_fastvlm, "torch")
    assert ours.header.cell["device"] == ours.header.device["name"] == "mlx:cpu"
    assert (ours.header.cell["engine"], theirs.header.cell["engine"]) == ("mlx", "torch")
    assert ours.header.effective["llm_engine"].startswith("mlx-lm")
    assert ours.header.key != theirs.header.key
    assert [s.answer for s in ours.samples] == [s.answer for s in theirs.samples]
    assert set(ours.samples[-1].stages.stage_ns) == set(theirs.samples[-1].stages.stage_ns)
    assert ours.samples[-1].whole.ttft_ns > 0

    paper = log_of(tmp_path, tiny_fastvlm, "paper", "--engine", "mlx", "--protocol", "paper", "--set", "llm_bits=8")
    assert paper.header.cell["settings"] == {"llm_bits": 8}
    assert paper.samples[-1].text_tokens == 0
    assert paper.samples[-1].whole is None
    assert {"encode", "prefill"} <= set(paper.samples[-1].stages.stage_ns)


@pytest.mark.skipif(HERE, reason="mlx is installed")
def test_without_mlx_one_line_says_what_to_install(tmp_path: Path) -> None:
    done = harness(tmp_path, "run", "--model", "fastvlm-0.5b", "--suite", "pages", "--engine", "mlx", "--device", "cpu")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "pip install 'vlm-pareto[apple]'" in line
    assert "pip install 'mlx[cpu]' mlx-lm" in line or sys.platform == "darwin"


@pytest.mark.parametrize(
    ("engine", "device", "placed"),
    [
        ("mlx", "mps", "mlx"),
        ("mlx", "mlx", "mlx"),
        ("mlx", "cpu", "mlx:cpu"),
        ("mlx", "mlx:cpu", "mlx:cpu"),
        ("coreml+mlx", "mps", "coreml"),
        ("coreml+mlx", "coreml", "coreml"),
        ("torch", "mps", "mps"),
    ],
)
def test_engines_place_a_run(engine: str, device: str, placed: str) -> None:
    """A child process is given the placed name, so that placing it again must change nothing."""
    assert cell.engine(engine).place(device) == placed == cell.engine(engine).place(placed)


def test_engines_refuse_what_is_not_theirs() -> None:
    with pytest.raises(SettingError, match=r"known: coreml\+mlx, mlx, openai, torch"):
        cell.engine("onnx")
    with pytest.raises(SettingError, match="next: --engine mlx"):
        cell.engine("torch").place("mlx")
    with pytest.raises(SettingError, match="no --device cuda"):
        cell.engine("mlx").place("cuda:0")
    with pytest.raises(DeviceError, match="next: one of these"):
        plugins.load("devices", "mlx").open("mlx:7", Monotonic())


def test_the_settings_of_an_engine_are_part_of_the_cell() -> None:
    asked = Asked(engine="mlx", device="cpu", settings={"llm_bits": 4, "tiles": 1})
    settled = cell.settle(asked)
    assert dict(settled.settings) == {"llm_bits": 4}
    assert settled.dtype == "float16"
    with pytest.raises(cell.UnknownName):
        cell.settle(Asked(settings={"llm_bits": 4}))
