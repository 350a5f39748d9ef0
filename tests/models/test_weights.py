"""Where weights come from, and that nothing but the model's own tensors gets into it."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from harness import cards, catalogue
from harness.errors import WeightsError
from harness.models import llms, loading, weights
from harness.models.card import Llm, load_model_card
from harness.models.checkpoints import Tensors
from harness.models.families import fastvlm
from harness.models.protocol import Options
from harness.models.weights import Source

REPO, COMMIT = "apple/FastVLM-0.5B", "5a" * 20


# --- what a checkpoint's folder may hold ---


class Net(nn.Module):
    """Two matrices, a norm with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 2, bias=False)


def numbers(seed: int = 1) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {f"net.{name}": torch.randn_like(value.float()) for name, value in Net().state_dict().items()} | {
        "net.norm.num_batches_tracked": torch.tensor(7)
    }


def parts() -> nn.ModuleDict:
    with loading.empty():
        return nn.ModuleDict({"net": Net()})


def test_what_has_no_memory_is_not_drawn_and_buffers_are_as_their_module_made_them() -> None:
    built = parts()
    assert all(parameter.is_meta for parameter in built.parameters())
    assert built["net"].norm.running_var.tolist() == [1.0] * 4  # filled with ones, in place
    with loading.empty():
        assert torch.zeros(2).fill_(3).mul_(2).tolist() == [6.0, 6.0]
        assert nn.init.constant_(torch.zeros(1), 5.0).item() == 5.0


def filled(folder: Path, dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
    built = parts()
    loading.fill(built, Tensors(folder), lambda name: name, "cpu", dtype)
    return built


def save_shards(folder: Path, tensors: dict[str, torch.Tensor], pickled: bool = False) -> None:
    ending, first = ("bin", "pytorch_model") if pickled else ("safetensors", "model")
    where = {}
    for i, part in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        name = f"{first}-0000{i}-of-00002.{ending}"
        shard = {key: tensors[key] for key in part}
        if pickled:
            torch.save(shard, folder / name)
        else:
            save_file(shard, folder / name)
        where |= dict.fromkeys(part, name)
    (folder / f"{first}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.mark.parametrize("layout", ["one file", "shards", "one pickle", "pickled shards", "old pickle"])
def test_every_layout_gives_the_same_tensors(tmp_path: Path, layout: str) -> None:
    tensors = numbers()
    if layout == "one file":
        save_file(tensors, tmp_path / "model.safetensors")
    elif layout == "one pickle":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
    elif layout == "old pickle":
        torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        save_shards(tmp_path, tensors, pickled=layout == "pickled shards")
    state = filled(tmp_path).state_dict()
    assert set(state) == set(tensors)
    assert all(torch.equal(state[name], tensors[name]) for name in tensors)
    assert state["net.norm.num_batches_tracked"].dtype == torch.int64


def test_numbers_take_the_runs_dtype_and_counters_keep_theirs(tmp_path: Path) -> None:
    save_file(numbers(), tmp_path / "model.safetensors")
    state = filled(tmp_path, torch.bfloat16).state_dict()
    assert {value.dtype for name, value in state.items() if "num_batches" not in name} == {torch.bfloat16}
    assert state["net.norm.num_batches_tracked"].dtype == torch.int64
    assert not any(p.requires_grad for p in filled(tmp_path).parameters())


def test_the_index_decides_which_files_are_the_checkpoint(tmp_path: Path) -> None:
    save_shards(tmp_path, numbers())
    save_file(numbers(2), tmp_path / "older.safetensors")
    assert torch.equal(filled(tmp_path).state_dict()["net.first.weight"], numbers()["net.first.weight"])


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    save_file(numbers(), tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    (tmp_path / "training_args.bin").write_bytes(b"never opened")
    filled(tmp_path)


# --- what is refused, by name ---


def refused(folder: Path) -> str:
    with pytest.raises(WeightsError, match="; next: ") as caught:
        filled(folder)
    return str(caught.value)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    tensors = numbers()
    del tensors["net.first.bias"]
    tensors["net.third.weight"] = torch.ones(1)
    tensors["net.second.weight"] = torch.ones(4, 2)
    tensors["net.norm.running_mean"][2] = float("nan")
    tensors["net.norm.running_var"][0] = float("inf")
    save_file(tensors, tmp_path / "model.safetensors")
    told = refused(tmp_path)
    assert "1 missing: net.first.bias" in told
    assert "1 unexpected: net.third.weight" in told
    assert "net.second.weight: 4x2 of float32, the model has 2x4 of float32" in told
    assert "2 NaN or infinite: net.norm.running_mean, net.norm.running_var" in told


def test_a_renamed_tensor_is_missing_and_unexpected(tmp_path: Path) -> None:
    tensors = numbers()
    tensors["net.frist.weight"] = tensors.pop("net.first.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    told = refused(tmp_path)
    assert "missing: net.first.weight" in told
    assert "unexpected: net.frist.weight" in told


def test_quantized_tensors_are_not_taken_for_numbers(tmp_path: Path) -> None:
    save_file(numbers() | {"net.second.weight": torch.ones(2, 4, dtype=torch.int8)}, tmp_path / "model.safetensors")
    assert "net.second.weight: 2x4 of int8, the model has 2x4 of float32" in refused(tmp_path)


def test_a_number_too_large_for_the_runs_dtype_is_found(tmp_path: Path) -> None:
    tensors = numbers()
    tensors["net.first.weight"][0, 0] = 1e6
    save_file(tensors, tmp_path / "model.safetensors")
    filled(tmp_path)
    with pytest.raises(WeightsError, match=r"NaN or infinite: net\.first\.weight"):
        filled(tmp_path, torch.float16)


def test_two_tensors_for_one_place_are_refused(tmp_path: Path) -> None:
    save_file(numbers() | {"again.first.bias": torch.ones(4)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="given twice"):
        loading.fill(parts(), Tensors(tmp_path), lambda name: name.replace("again.", "net."), "cpu", torch.float32)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    save_file({"net.first.bias": torch.ones(4)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"net\.first\.bias is in a\.safetensors and in other\.safetensors"):
        Tensors(tmp_path)


def test_a_lost_shard_and_a_lying_index_are_named(tmp_path: Path) -> None:
    save_shards(tmp_path, numbers())
    index = tmp_path / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    lying = {**told, "weight_map": {**told["weight_map"], "net.more": "model-00001-of-00002.safetensors"}}
    index.write_text(json.dumps(lying))
    with pytest.raises(WeightsError, match=r"1 tensors are not where .* says, .* net\.more of model-00001"):
        Tensors(tmp_path)
    index.write_text(json.dumps(told))
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"1 of 2 files .* missing: model-00002-of-00002\.safetensors"):
        Tensors(tmp_path)
    index.write_text("[]")
    with pytest.raises(WeightsError, match="not an index"):
        Tensors(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 60, -10])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file(numbers(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"model\.safetensors: not a readable safetensors file"):
        Tensors(tmp_path)


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is this a checkpoint's folder"):
        Tensors(tmp_path)


class Code:
    """What a malicious pickle holds: something to call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_an_index_beside_a_whole_file_is_said_to_play_no_part(tmp_path: Path) -> None:
    card = load_model_card("fastvlm-0.5b")
    save_file(numbers(), tmp_path / "model.safetensors")
    assert weights.resolve(card, str(tmp_path)).notice == ""
    index = tmp_path / "model.safetensors.index.json"
    told = "is the checkpoint, model.safetensors.index.json beside it is not read"
    for wrong in ("{", "[1]", json.dumps({"weight_map": {"a": "model-00002.safetensors"}})):
        index.write_text(wrong)
        assert told in weights.resolve(card, str(tmp_path)).notice
    index.write_text(json.dumps({"weight_map": dict.fromkeys(numbers(), "model.safetensors")}))
    assert weights.resolve(card, str(tmp_path)).notice == ""


def test_an_index_that_reaches_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    save_file(numbers(), tmp_path / "elsewhere.safetensors")
    (tmp_path / "own").mkdir()
    index = {"weight_map": dict.fromkeys(numbers(), "../elsewhere.safetensors")}
    (tmp_path / "own" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"names \.\./elsewhere\.safetensors, which is not in the folder; next:"):
        Tensors(tmp_path / "own")


@pytest.mark.parametrize(
    "held", [[1, 2], 5, {1: torch.zeros(1)}, {"a": 5}, {"model": {"a": torch.zeros(1)}}, torch.zeros(2)]
)
def test_a_pickle_of_anything_but_tensors_by_name_is_refused(tmp_path: Path, held: object) -> None:
    torch.save(held, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin: .*; next: "):
        Tensors(tmp_path)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    path, trace = tmp_path / "pytorch_model.bin", tmp_path / "ran"
    content = {"net.first.weight": torch.ones(4, 3), "more": Code(trace)}
    if how == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"more": Code(trace)}))
    with pytest.raises(WeightsError, match="weights_only=True"):
        Tensors(tmp_path)
    assert not trace.exists()


def test_a_training_state_is_not_a_table_of_tensors(tmp_path: Path) -> None:
    torch.save({"state_dict": numbers(), "epoch": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="not a plain table of tensors"):
        Tensors(tmp_path)


# --- tied embeddings, parts ---


LLM = Llm(
    kind="qwen2", hidden=16, layers=1, heads=2, kv_heads=1, ffn=32, vocab=40, rope_theta=1e4, rms_eps=1e-6, positions=64
)


@pytest.mark.parametrize("tied", [True, False])
@torch.inference_mode()
def test_a_filled_llm_gives_the_logits_of_transformers_own_loading(tmp_path: Path, tied: bool) -> None:
    torch.manual_seed(0)
    card = Llm(**{f: getattr(LLM, f) for f in LLM.__struct_fields__} | {"tied": tied})
    reference = Qwen2ForCausalLM(llms.build(card).config).eval()
    reference.save_pretrained(tmp_path)
    assert ("lm_head.weight" in Tensors(tmp_path)) is not tied
    with loading.empty():
        built = nn.ModuleDict({"llm": llms.build(card)})
    loading.fill(built, Tensors(tmp_path), lambda name: f"llm.{name}", "cpu", torch.float32)
    model: Any = built["llm"]
    ids = torch.tensor([[1, 2, 3, 39]])
    assert torch.equal(model(ids).logits, reference(ids).logits)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied


def test_the_config_is_the_cards() -> None:
    config = llms.build(LLM).config
    assert isinstance(config, Qwen2Config)
    assert config.rope_parameters["rope_theta"] == 1e4
    assert (config.num_key_value_heads, config.rms_norm_eps, config._attn_implementation) == (1, 1e-6, "sdpa")


def test_an_untied_model_needs_its_head(tmp_path: Path) -> None:
    Qwen2ForCausalLM(llms.build(LLM).config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with loading.empty():
        built = nn.ModuleDict({"llm": llms.build(LLM)})
    with pytest.raises(WeightsError, match=r"1 missing: llm\.lm_head\.weight"):
        loading.fill(built, Tensors(tmp_path), lambda name: f"llm.{name}", "cpu", torch.float32)


def test_one_part_alone_is_filled_and_the_others_are_left_out(tmp_path: Path) -> None:
    save_file(numbers() | {"other.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    filled(tmp_path)  # "other" was not built


# --- random weights ---


@torch.inference_mode()
def test_random_weights_depend_on_the_seed_alone_and_keep_signals_alive() -> None:
    def built(seed: int, dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
        with loading.empty():
            made = nn.ModuleDict({"llm": llms.build(LLM), "net": Net()})
        loading.randomise(made, seed, "cpu", dtype)
        return made

    first, again, other = built(0).state_dict(), built(0).state_dict(), built(1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["net.first.weight"], other["net.first.weight"])
    assert not torch.equal(
        first["llm.model.layers.0.mlp.up_proj.weight"], first["llm.model.layers.0.mlp.gate_proj.weight"]
    )
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model: Any = built(0, dtype)["llm"]
        logits = model(torch.tensor([[1, 2, 3]])).logits
        assert bool(torch.isfinite(logits).all())
        assert 0.1 < float(logits.float().std()) < 10


def test_rows_of_a_random_matrix_do_not_repeat() -> None:
    """A block of 2^22 numbers, repeated, would make a 4096-wide matrix of 1,024 rows over and over."""
    wide = nn.ModuleDict({"net": nn.Linear(4096, 2048, bias=False, device="meta")})
    loading.randomise(wide, 0, "cpu", torch.float32)
    matrix = wide.get_parameter("net.weight")
    assert len(torch.unique(matrix[:, :3], dim=0)) == 2048
    assert float(matrix.std()) == pytest.approx(4096**-0.5, rel=0.01)


def test_nothing_is_allocated_on_the_meta_device() -> None:
    built = parts()
    loading.randomise(built, 0, "meta", torch.bfloat16)
    assert all(value.is_meta for value in built.state_dict().values())


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the resident set from /proc")
def test_random_weights_take_little_more_memory_than_their_own(tmp_path: Path) -> None:
    benchmark = Path(__file__).parents[2] / "benchmarks" / "random_weights.py"
    done = subprocess.run(
        [sys.executable, str(benchmark), "fastvlm-0.5b", "--json"], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    assert told["model_bytes"] == 2 * (494_032_768 + 122_714_208 + 3_557_120) + told["buffer_bytes"]
    assert told["extra_over_model_bytes"] < 0.10


# --- where weights come from ---


class Found(NamedTuple):
    source: dict[str, str]
    seconds: float
    torch_imported: bool
    stderr: str


def resolve(cache: Path, asked: str | None = None, card: str = "fastvlm-0.5b", **environment: str) -> Found:
    """Resolve in a process of its own: the Hub's library reads its settings when it is imported."""
    code = (
        "import json, sys\n"
        "from harness.models import weights\n"
        "from harness.models.card import load_model_card\n"
        f"source = weights.resolve(load_model_card({card!r}), {asked!r})\n"
        "print(json.dumps([source.as_dict(), 'torch' in sys.modules]))"
    )
    unset = ("HF_HUB_OFFLINE", "HARNESS_OFFLINE", "HF_ENDPOINT")
    kept = {name: value for name, value in os.environ.items() if name not in unset}
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    source, imported = json.loads(done.stdout)
    return Found(source, time.monotonic() - start, imported, done.stderr)


def cache_with(folder: Path, *names: str, source: Path) -> Path:
    """Lay out a Hub cache with these files of `source`; return the snapshot."""
    repo = folder / "models--apple--FastVLM-0.5B"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    for name in names:
        (snapshot / name).write_bytes((source / name).read_bytes())
    return snapshot


@pytest.fixture
def sharded(tmp_path: Path, tiny: ModuleType) -> Path:
    """A tiny checkpoint in two shards."""
    folder, _ = tiny.write_fastvlm(tmp_path)
    save_shards(folder, load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    return Path(folder)


ALL = (
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "tokenizer.json",
)


def test_a_folder_comes_before_the_cache_and_the_cache_before_the_hub(tmp_path: Path, sharded: Path) -> None:
    snapshot = cache_with(tmp_path / "cache", *ALL, source=sharded)
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    cached = resolve(tmp_path / "cache", **nowhere)
    told = {"source": "cache", "location": str(snapshot), "digest": COMMIT, "notice": ""}
    assert cached.source == {**told, "repository": f"apple/FastVLM-0.5B@{COMMIT}"}
    assert not cached.torch_imported
    local = resolve(tmp_path / "cache", asked=str(sharded), **nowhere)
    assert (local.source["source"], local.source["location"]) == ("local", str(sharded))
    assert len(local.source["digest"]) == 32
    asked = resolve(tmp_path / "cache", asked="random", **nowhere)
    assert asked.source["source"] == "random"
    assert asked.source["location"] == str(snapshot)  # lends its tokenizer
    assert "as asked" in asked.source["notice"]


def test_half_a_download_is_not_taken_for_the_weights(tmp_path: Path, sharded: Path) -> None:
    snapshot = cache_with(tmp_path / "cache", *ALL[1:], source=sharded)
    found = resolve(tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert found.source["source"] == "random"
    assert found.source["location"] == str(snapshot)
    assert "not all" in found.source["notice"]
    assert "offline" in found.source["notice"]


def test_without_a_network_random_weights_come_quickly_and_with_a_notice(tmp_path: Path) -> None:
    found = resolve(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert found.source["source"] == "random"
    assert "apple/FastVLM-0.5B" in found.source["notice"]
    assert "answers mean nothing" in found.source["notice"]
    assert found.source["location"] == ""
    assert found.seconds < 15
    assert "no Hub repository" in resolve(tmp_path, card="fastvlm-vicuna-7b").source["notice"]


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a download needs: one repository, small files."""

    files: dict[str, bytes] = {}
    weights_status = 200
    silent = False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.silent:
            time.sleep(30)
            return
        path = self.path.split("?")[0]
        if path.startswith(f"/api/models/{REPO}"):
            siblings = [{"rfilename": name} for name in self.files]
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in self.files.items()
            ]
            answer = tree if "/tree/" in path else {"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings}
            self.reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
            return
        name = path.rsplit("/", 1)[-1]
        status = self.weights_status if name.endswith(".safetensors") else 200
        self.reply(status, self.files.get(name, b""), {"ETag": f'"{abs(hash(name)):040x}"', "X-Repo-Commit": COMMIT})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Hub on this machine that has the tiny checkpoint under Apple's name."""
    monkeypatch.setattr(Hub, "files", {name: (sharded / name).read_bytes() for name in ALL})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_last_and_its_files_are_kept(tmp_path: Path, hub: str, tiny_fastvlm: Any) -> None:
    found = resolve(tmp_path / "cache", HF_ENDPOINT=hub)
    assert found.source["source"] == "hub", found
    assert found.source["digest"] == COMMIT
    folder = Path(found.source["location"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(ALL)
    fastvlm.load(load_model_card(str(tiny_fastvlm.card)), Source("hub", folder), Options(64))
    again = resolve(tmp_path / "cache", HF_ENDPOINT="http://127.0.0.1:9")
    assert again.source["source"] == "cache"


def test_a_refused_download_is_told_and_random_weights_go_on(
    tmp_path: Path, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "weights_status", 403)
    found = resolve(tmp_path / "cache", HF_ENDPOINT=hub)
    assert found.source["source"] == "random"
    assert "download failed" in found.source["notice"]


def test_a_hub_that_never_answers_costs_seconds_not_minutes(
    tmp_path: Path, hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "silent", True)
    found = resolve(tmp_path / "cache", HF_ENDPOINT=hub)
    assert found.source["source"] == "random"
    assert found.seconds < 25


@pytest.fixture
def shipping(tmp_path: Path, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose card `fastvlm-nano` ships with (tiny) weights; return their folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(cards, "ROOT", tmp_path)
    for name in ("models", "reports", "suites"):
        (tmp_path / name).mkdir()
    made, _ = tiny.write_fastvlm(tmp_path)
    folder = tmp_path / "models" / "fastvlm-nano"
    made.rename(folder)
    for name in ("fastvlm-nano", "fastvlm-0.5b"):
        card = Path(__file__).parents[2] / "models" / f"{name}.toml"
        (tmp_path / "models" / card.name).write_bytes(card.read_bytes())
    return folder


def test_weights_that_ship_are_found_beside_the_card(shipping: Path) -> None:
    card = load_model_card("fastvlm-nano")
    assert weights.present(card)
    found = weights.resolve(card, None)
    assert (found.kind, found.folder, found.trained) == ("shipped", shipping, True)
    assert found.as_dict()["location"] == "models/fastvlm-nano"  # and no path of this machine
    assert weights.resolve(card, "random").kind == "random"


def test_what_ships_is_the_default_only_where_nothing_else_can_be_had(shipping: Path, tmp_path: Path) -> None:
    name, notice = catalogue.default_model(None, offline=True)
    assert name == "fastvlm-nano"
    assert "fastvlm-0.5b cannot be had" in notice
    assert "--model fastvlm-0.5b" in notice
    assert catalogue.default_model("random", offline=True) == ("fastvlm-0.5b", "")  # weights were asked for
    offered = weights.resolve(load_model_card("fastvlm-0.5b"), None, offline=True)
    assert offered.kind == "random"
    assert "--model fastvlm-nano" in offered.notice
    (shipping / "model.safetensors").unlink()
    assert catalogue.default_model(None, offline=True) == ("fastvlm-0.5b", "")
    assert weights.resolve(load_model_card("fastvlm-nano"), None, offline=True).kind == "random"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such folder; next: give a checkpoint's folder, or `random`"):
        weights.resolve(load_model_card("fastvlm-0.5b"), str(tmp_path / "nowhere"))


def test_the_digest_is_of_every_file_that_makes_the_model(tmp_path: Path) -> None:
    save_file(numbers(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    first = weights.digest(tmp_path)
    (tmp_path / "README.md").write_text("not the model")
    assert weights.digest(tmp_path) == first
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert weights.digest(tmp_path) != first
