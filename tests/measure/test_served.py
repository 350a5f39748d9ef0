"""A real server, `transformers serve`, with tiny checkpoints: the local answers, a sweep, and kills of either side."""

import importlib.util
import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import tiny_vlms
import torch
from PIL import Image
from transformers import AutoModelForMultimodalLM, AutoProcessor

from harness import images
from harness.errors import ServerError
from harness.measure import job, run, sweep
from harness.measure.asked import Asked
from harness.measure.command import arguments, interpreter
from harness.reports import accuracy, frame
from harness.runlog.log import Log, read
from harness.runlog.records import Sample

NEEDED = ("fastapi", "uvicorn", "openai", "pydantic", "typer")
ABSENT = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(ABSENT), reason=f"transformers serve needs {', '.join(ABSENT)}: nox -s serving"),
]
FAMILIES = {"fast_vlm": (128, 128), "qwen2_5_vl": (112, 84), "smolvlm": (112, 84), "llava_onevision": (112, 84)}
"""The families whose answers are compared, with a size of picture that both routes take as it is.

FastVLM's adapter pads a page to a square, as Apple does; transformers' processor cuts a square out of it: its picture
is one.
"""
ROWS = 4
CARD = """title = "FastVLM, tiny, in transformers' layout"
adapter = "fastvlm"
license = "none: random numbers"
prompt = "qwen_2"

[resolution]
rule = "multiple"
of = 64
minimum = 64
maximum = 1024
default = 128

[settings]
tiles = 1
reparameterised = true

[[encoders]]
name = "fastvithd"
library = "timm"
architecture = "fastvit_mci3"
width = 128

[encoders.settings]
layers = [1, 1, 1, 1, 1]
embed_dims = [16, 16, 32, 32, 64]

[llm]
kind = "qwen2"
hidden = 32
layers = 2
heads = 4
kv_heads = 2
ffn = 48
vocab = 600
rope_theta = 1e4
rms_eps = 1e-6
positions = 8192
tied = false
eos = [2]
"""
SIDE = 96
STARTED_WITHIN_S = 240


class Server:
    """`transformers serve` on a free port of 127.0.0.1; it can be killed and started again on the same one."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.start()

    def start(self) -> None:
        code = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", "--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu",
             "--dtype", "float32"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        until_s = time.monotonic() + STARTED_WITHIN_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None, "transformers serve did not start"
                assert time.monotonic() < until_s, "transformers serve did not answer"
                time.sleep(0.2)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = Server()
    try:
        yield one
    finally:
        one.kill()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


def checkpoint(folder: Path, family: str) -> Path:
    if family == "smolvlm":
        pytest.importorskip("num2words", reason="SmolVLM's processor needs num2words: nox -s serving")
    if not (folder / family).is_dir():
        tiny_vlms.write(folder / family, family)
    return folder / family


def asked(server: Server, folder: Path, out: Path, limit: int, res: int | None = SIDE) -> Asked:
    return Asked(
        model=str(folder), suite="pages", limit=limit, res=res, endpoint=server.url, out=str(out), offline=True,
        minimum_samples=1, minimum_seconds=0.0, maximum_samples=3, maximum_seconds=2.0, precision=0.0, wait=True,
    )  # fmt: skip


def measured(wish: Asked) -> Log:
    one = job.prepare(wish)
    for _ in run.run_job(one, lambda text: None):
        pass
    return read(one.path)


def answers(log: Log) -> dict[str, str | None]:
    return {one.example: one.answer for one in log.samples if one.phase == "timed"}


def stripped(log: Log) -> dict[str, str]:
    return {name: (text or "").strip() for name, text in answers(log).items()}


def scored(generated: dict[str, str], references: list[str]) -> float:
    """Return the share of answers that are their reference: ANLS gives 0 to those that are far from it."""
    return sum(text == one for text, one in zip(generated.values(), references, strict=True)) / ROWS


def local_answer(model: Any, processor: Any, data: bytes, question: str, tokens: int) -> str:
    content = [{"type": "image", "image": Image.open(io.BytesIO(data))}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    with torch.inference_mode():
        made = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
    return str(processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


def write_pages(path: Path, size: tuple[int, int], references: list[str]) -> Path:
    """Write noise in DocVQA's columns: each picture another one, so that each has an answer of its own."""
    generator = np.random.default_rng(7)
    rows = []
    for number, reference in enumerate(references):
        pixels = generator.integers(0, 256, (size[1], size[0], 3)) // (1 + number) + 30 * number
        data = images.png(Image.fromarray(pixels.astype(np.uint8)))
        rows.append(
            {
                "questionId": str(number), "question": f"What is in line {number}?", "answers": [reference],
                "image": {"bytes": data, "path": None}, "docId": number, "question_types": ["form"],
                "ucsf_document_id": str(number), "ucsf_document_page_no": "1", "data_split": "val",
            }
        )  # fmt: skip
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def ours(wish: Asked, family: str, folder: Path, card: Path, side: int) -> Asked:
    """Return the wish for our own route: FastVLM's adapter, or the family `auto`."""
    mine = replace(wish, endpoint=None, res=side, device="cpu", dtype="float32")
    if family != "fast_vlm":
        return mine
    card.write_text(CARD)
    return replace(mine, model=str(card), weights=str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_score_are_the_local_ones(family: str, server: Server, checkpoints: Path, tmp_path: Path) -> None:
    """The server, our own route and transformers' `generate` give the same texts; both run logs have one score."""
    folder, size = checkpoint(checkpoints, family), FAMILIES[family]
    wish = replace(asked(server, folder, tmp_path / "out", ROWS, res=None), suite="docvqa")
    model, processor = AutoModelForMultimodalLM.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    references = ["something else"] * ROWS
    for _ in range(2):  # the second time, half the references are what the model says: a score that is not 0
        data = write_pages(tmp_path / f"{references.count('something else')}.parquet", size, references)
        wish = replace(wish, data=str(data))
        examples = job.prepare(wish).suite.examples
        generated = {
            one.id: local_answer(model, processor, one.images[0], one.question, one.max_new_tokens).strip()
            for one in examples
        }
        references = [text if number % 2 else "something else" for number, text in enumerate(generated.values())]
    log = measured(wish)
    own = measured(ours(wish, family, folder, tmp_path / "fastvlm-served.toml", max(size)))
    assert own.header.effective.get("route", "own") == ("own" if family == "fast_vlm" else "auto")
    assert stripped(log) == stripped(own) == generated
    assert len(generated) == ROWS
    assert "" not in generated.values()
    scores = accuracy.of(frame.load(log.path, own.path), remember=False)
    assert [(one.value, one.n) for one in scores.values()] == [(scored(generated, references), ROWS)] * 2
    sample = next(one for one in log.samples if one.phase == "timed")
    assert sample.whole
    assert sample.whole.ttft_ns
    assert sample.stages is None
    assert sample.whole.output_tokens == sample.whole.server["output_tokens"] > 1
    effective = log.header.effective
    assert effective["server_shrinks"] == "no: as the checkpoint's own processor counts"
    assert effective["server_field_top_k"] == effective["server_field_ignore_eos"] == "rejected (HTTP 422)"
    assert (log.header.weights["source"], log.header.cell["engine"]) == ("served", "openai")
    assert "127.0.0.1" not in log.path.name


def test_a_sweep_over_two_sides(server: Server, checkpoints: Path, tmp_path: Path) -> None:
    folder = checkpoint(checkpoints, "qwen2_vl")  # its stand-in template lacks what the server looks for
    wanted, refused = sweep.grid({"res": [56, 112]}, replace(asked(server, folder, tmp_path, 1), wait=True))
    assert refused == []
    ended = list(sweep.run_all(wanted))
    assert [one.code for one in ended] == [0, 0]
    logs = [read(one.path) for one in ended if one.path]
    timed = [next(one for one in log.samples if one.phase == "timed") for log in logs]
    assert [max(one.processed_px or ()) for one in timed] == [56, 112]
    assert any("what the model has not made" in text for text in logs[0].header.effective["doubts"])  # type: ignore[attr-defined]
    prompts = [one.whole.server["prompt_tokens"] for one in timed if one.whole]
    assert prompts[0] < prompts[1]  # type: ignore[operator]


def test_a_killed_server_and_a_killed_client(server: Server, checkpoints: Path, tmp_path: Path) -> None:
    """Neither kill loses or repeats an answer, and neither makes a failure of an example."""
    folder = checkpoint(checkpoints, "qwen2_5_vl")
    wish = asked(server, folder, tmp_path, 10)
    one = job.prepare(wish)
    records = run.run_job(one, lambda text: None)
    while not (isinstance(record := next(records), Sample) and record.phase == "timed"):
        pass
    server.kill()
    with pytest.raises(ServerError, match="next: start the server"):
        list(records)
    server.start()
    part = one.path.with_name(one.path.name + ".part")
    before = len(read(part).samples)
    client = subprocess.Popen([*interpreter(), *arguments(one.asked), "--bare"], stderr=subprocess.DEVNULL)
    try:
        while client.poll() is None and part.is_file() and len(read(part).samples) < before + 3:
            time.sleep(0.05)
        client.send_signal(signal.SIGKILL)
    finally:
        client.kill()
        client.wait()
    log = measured(wish)
    assert log.finished
    assert len(log.resumed) == 2
    assert log.failures == ()
    assert sorted(answers(log)) == sorted(each.id for each in one.suite.examples)
    valid = [each.example for each in log.samples if each.phase == "timed" and each.valid]
    assert len(valid) == len(set(valid))
