"""What a checkpoint's folder is, which of its files count, and what its tokenizer must be; tiny ones made here."""

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import hub
from harness.errors import WeightsError
from harness.models import checkpoints, tokenizers, weights
from harness.models.card import ModelCard, load_model_card
from harness.models.checkpoints import Tensors
from harness.models.families import fastvlm
from harness.models.protocol import Options
from harness.models.weights import Source

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + b"\xb0" * 400
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def made(tiny: ModuleType, tmp_path: Path) -> tuple[Path, ModelCard]:
    """A tiny FastVLM of one's own, to be changed."""
    folder, card = tiny.write_fastvlm(tmp_path)
    return folder, load_model_card(str(card))


def load(card: ModelCard, folder: Path) -> fastvlm.FastVlm:
    model = fastvlm.load(card, Source("local", folder), Options(64, settings=dict(card.settings)))
    assert isinstance(model, fastvlm.FastVlm)
    return model


def rewrite(folder: Path, **changed: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor for name, tensor in {**tensors, **changed}.items() if tensor is not None}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def state(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# --- which files ---


def test_what_a_mac_leaves_beside_every_file_is_no_part_of_the_checkpoint(made: tuple[Path, ModelCard]) -> None:
    folder, card = made
    before = weights.digest(folder)
    for path in list(folder.iterdir()):
        (folder / f"._{path.name}").write_bytes(APPLE_DOUBLE)
    assert weights.digest(folder) == before
    load(card, folder)


def test_a_whole_file_comes_before_the_index_and_shards_of_an_earlier_save(tmp_path: Path) -> None:
    where = {"a": "model-00001-of-00001.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    save_file({"a": torch.zeros(1)}, tmp_path / where["a"])
    assert float(Tensors(tmp_path)["a"]()) == 0
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert float(Tensors(tmp_path)["a"]()) == 1
    (tmp_path / where["a"]).unlink()
    assert checkpoints.is_complete(tmp_path)


def test_a_tensor_in_another_shard_than_the_index_says_is_taken_from_there(tmp_path: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    save_file({"a": torch.zeros(1), "b": torch.ones(1)}, tmp_path / names[0])
    save_file({"c": torch.ones(1)}, tmp_path / names[1])
    where = {"a": names[0], "b": names[1], "c": names[1]}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert float(Tensors(tmp_path)["b"]()) == 1


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"adapter_config.json": {"base_model_name_or_path": "apple/F"}}, "a LoRA adapter (of apple/F)"),
        ({"config.json": {"quantization_config": {"quant_method": "gptq", "bits": 4}}}, "quantised (gptq, 4 bits)"),
        ({"config.json": {"quantization_config": {"quant_method": "awq", "w_bit": 4}}}, "quantised (awq, 4 bits)"),
        ({"config.json": {"quantization_config": {"load_in_4bit": True}}}, "quantised (bitsandbytes, 4 bits)"),
        ({"config.json": {"quantization": {"group_size": 64, "bits": 8}}}, "an MLX conversion, quantised to 8 bits"),
        ({"model-q4.gguf": {}}, "GGUF"),
        ({"model.onnx": {}}, "ONNX"),
        ({"onnx/decoder.onnx": {}}, "ONNX"),
        ({"mm_projector.bin": {}}, "a projector alone"),
        ({"global_step100/x.pt": {}}, "a DeepSpeed state"),
    ],
)  # fmt: skip
def test_what_a_folder_is_gets_named(tmp_path: Path, files: dict[str, Any], told: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    if "adapter_config.json" in files:
        save_file({"lora_A": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(WeightsError) as caught:
        weights.resolve(load_model_card("fastvlm-0.5b"), str(tmp_path), offline=True)
    assert str(caught.value).startswith(f"{tmp_path}: {told}")
    assert "; next: " in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(WeightsError, match="git-lfs pointer, not the file itself; next: `git lfs pull`"):
        Tensors(tmp_path)


# --- what is forgiven ---


@pytest.mark.parametrize("how", ["absent", "float"])
@torch.inference_mode()
def test_a_batch_norms_counter_may_be_absent_or_a_float(made: tuple[Path, ModelCard], how: str) -> None:
    folder, card = made
    counters = [name for name in Tensors(folder) if name.endswith("num_batches_tracked")]
    assert counters
    rewrite(folder, **{name: None if how == "absent" else torch.tensor(3.0) for name in counters})
    load(card, folder)


@pytest.mark.parametrize("rows", [-8, 24])
def test_a_vocabulary_may_be_padded_or_shortened_and_is_told(made: tuple[Path, ModelCard], rows: int) -> None:
    folder, card = made
    assert card.llm
    longer = card.llm.vocab - rows  # a card that says more, or less, than the checkpoint has
    other = msgspec.structs.replace(card, llm=msgspec.structs.replace(card.llm, vocab=longer))
    model = load(other, folder)
    assert model.parts["llm"].get_input_embeddings().num_embeddings == card.llm.vocab  # type: ignore[operator]
    assert f"card {longer}, checkpoint {card.llm.vocab}" in model.describe()["configuration"]


# --- the tokenizer ---


def test_another_models_tokenizer_is_refused(made: tuple[Path, ModelCard], tmp_path: Path) -> None:
    folder, card = made
    assert card.llm
    own = tokenizers.find(folder, card.llm.vocab, trained=True)
    turn = "<|im_start|>user"
    tokenizers.check(own, folder, card.llm.vocab, turn, [card.llm.vocab - 1])
    for vocab, template, eos, told in (
        (300, turn, [], "words, the embedding has 300 rows"),
        (100_000, turn, [], "words, the embedding has 100000 rows"),
        (card.llm.vocab - 3, turn, [], "gives <|im_start|> the id"),
        (card.llm.vocab, "<|start_header_id|>user", [], "tokens of the template's <|start_header_id|>"),
        (card.llm.vocab, turn, [151645], "none at the ids that end an answer (151645)"),
    ):
        with pytest.raises(WeightsError) as caught:
            tokenizers.check(own, folder, vocab, template, eos)
        assert told in str(caught.value)


def test_a_checkpoint_without_its_own_tokenizers_special_tokens_is_not_loaded(made: tuple[Path, ModelCard]) -> None:
    folder, card = made
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text())
    told["added_tokens"] = []
    path.write_text(json.dumps(told))
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(
        WeightsError, match=r"its tokenizer is not this model's: it makes \d+ tokens of .*<\|im_start\|>"
    ):
        load(card, folder)


# --- configuration, by way of a family ---


@torch.inference_mode()
def test_the_checkpoints_own_configuration_is_obeyed_told_and_counted(made: tuple[Path, ModelCard]) -> None:
    folder, card = made
    usual = load(card, folder)
    state(folder, rope_theta=1e4, num_attention_heads=8, num_key_value_heads=4)
    model = load(card, folder)
    config: Any = model.parts["llm"].config
    assert (config.rope_parameters["rope_theta"], config.num_attention_heads) == (1e4, 8)
    assert "rope_theta: card 1000000.0, checkpoint 10000.0" in model.describe()["configuration"]
    assert usual.describe()["configuration"] == "as the card's"
    assert (config.num_attention_heads, usual.parts["llm"].config.num_attention_heads) == (8, 4)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hidden_size": 128}, "hidden_size: card 64, checkpoint 128"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio: card pad, checkpoint anyres"),
        ({"mm_projector_type": "linear"}, "mm_projector_type: card mlp2x_gelu, checkpoint linear"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end: card false, checkpoint true"),
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "mm_vision_tower: card mobileclip_l_1024"),
    ],
)
def test_a_family_refuses_what_it_cannot_be(made: tuple[Path, ModelCard], fields: dict[str, Any], told: str) -> None:
    folder, card = made
    state(folder, **fields)
    with pytest.raises(WeightsError, match="cannot be obeyed") as caught:
        load(card, folder)
    assert told in str(caught.value)


def test_the_image_processors_mean_is_obeyed(made: tuple[Path, ModelCard]) -> None:
    folder, card = made
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    model = load(card, folder)
    assert (model.mean, model.std, model.padding) == ((0.5,) * 3, (0.5,) * 3, (127, 127, 127))
    assert "image_mean: card [0.0, 0.0, 0.0], checkpoint [0.5, 0.5, 0.5]" in model.describe()["configuration"]


# --- identity ---


def test_the_digest_is_of_towers_too(made: tuple[Path, ModelCard], tmp_path: Path) -> None:
    folder, card = made
    plain = weights.resolve(card, str(folder), offline=True)
    tower = folder / "vision_tower"
    tower.mkdir()
    save_file({"a": torch.zeros(1)}, tower / "model.safetensors")
    one = weights.resolve(card, str(folder), offline=True)
    save_file({"a": torch.ones(1)}, tower / "model.safetensors")
    two = weights.resolve(card, str(folder), offline=True)
    assert len({plain.digest, one.digest, two.digest}) == 3
    assert "tower_fastvithd" in two.as_dict()
    shutil.rmtree(tower)
    assert weights.resolve(card, str(folder), offline=True).digest == plain.digest


def test_a_towers_repository_is_not_asked_for_offline(
    made: tuple[Path, ModelCard], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, card = made
    rewrite(folder, **{name: None for name in Tensors(folder) if "vision_tower" in name})
    encoder = msgspec.structs.replace(card.encoders[0], repo="nobody/no-such-tower")
    asked: list[bool] = []

    def fetch(repo: str, revision: str | None, files: object, offline: bool = False) -> tuple[None, str]:
        asked.append(offline)
        return None, ""

    monkeypatch.setattr(hub, "fetch_model", fetch)
    weights.resolve(msgspec.structs.replace(card, encoders=(encoder,)), str(folder), offline=True)
    assert asked
    assert all(asked)


@torch.inference_mode()
def test_fastvlm_in_transformers_layout_gives_apples_logits(made: tuple[Path, ModelCard], tmp_path: Path) -> None:
    folder, card = made
    other = tmp_path / "hf"
    other.mkdir()
    tower, renamed = fastvlm.TOWER, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.startswith(tower):
            if not name.endswith("head.proj"):
                inner = fastvlm._to_timm(name.removeprefix(tower))
                renamed[f"model.vision_tower.timm_model.{inner}"] = tensor
        elif "mm_projector." in name:
            number, kind = name.partition("mm_projector.")[2].split(".")
            renamed[f"model.multi_modal_projector.linear_{int(number) // 2 + 1}.{kind}"] = tensor
        else:
            renamed[name.replace("model.", "model.language_model.", 1)] = tensor
    save_file(renamed, other / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, other)
    fields = {"hidden_size": 64, "model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    (other / "config.json").write_text(json.dumps({"model_type": "fast_vlm", "text_config": fields}))
    ours, theirs = load(card, folder).parts.state_dict(), load(card, other).parts.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
