import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from harness import images
from harness.errors import ExampleError, SettingError, WeightsError
from harness.models import pipeline, templates, weights
from harness.models.card import ModelCard, load_model_card
from harness.models.families import convllava
from harness.models.pipeline import Prepared
from harness.models.protocol import Done, Options, Piece, Request, Seen
from harness.models.weights import Source

SIDES = (768, 1024, 1536)
QUESTION = "What is written on the page?"
LLM = {"hidden": 32, "layers": 2, "heads": 4, "kv_heads": 4, "ffn": 48, "vocab": 400, "positions": 512}
TOWER = "model.vision_tower.vision_tower."


def tiny_card(config: dict[str, list[int]]) -> ModelCard:
    """Return the shipped card at the fixture's widths and with a small Llama."""
    card = load_model_card("convllava-7b-768")
    assert card.llm
    settings = {"depths": config["depths"], "widths": config["hidden_sizes"], "patch": config["patch_size"]}
    encoder = msgspec.structs.replace(
        card.encoders[0], width=config["hidden_sizes"][-1], settings=settings, repo="nobody/no-such-tower"
    )
    return msgspec.structs.replace(card, encoders=(encoder,), llm=msgspec.structs.replace(card.llm, **LLM))


@pytest.fixture(scope="module")
def golden(shared: Path) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """The original tower's weights (in the checkpoint's names), inputs and outputs, and its configuration."""
    with safe_open(shared / "fixtures" / "convllava_tower_tiny.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118


def llama() -> LlamaForCausalLM:
    """Return a small random Llama of the card's configuration."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=LLM["vocab"],
            hidden_size=LLM["hidden"],
            intermediate_size=LLM["ffn"],
            num_hidden_layers=LLM["layers"],
            num_attention_heads=LLM["heads"],
            rms_norm_eps=1e-5,
            max_position_embeddings=LLM["positions"],
        )
    ).eval()


@pytest.fixture(scope="module")
def state(golden: tuple[dict[str, Tensor], dict[str, list[int]]]) -> dict[str, Tensor]:
    """A whole checkpoint in the released names: LLM, projector, the fixture's tower, and what is to be dropped."""
    tensors, config = golden
    generator = torch.Generator().manual_seed(1)
    width, hidden = config["hidden_sizes"][-1], LLM["hidden"]
    shapes = {"0.weight": (hidden, width), "0.bias": (hidden,), "2.weight": (hidden, hidden), "2.bias": (hidden,)}
    return {
        **{name: tensor.clone() for name, tensor in llama().state_dict().items()},
        **{f"model.mm_projector.{n}": torch.randn(s, generator=generator) * 0.1 for n, s in shapes.items()},
        **{name.removeprefix("sd/"): tensor for name, tensor in tensors.items() if name.startswith("sd/")},
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small vocabulary in the only form that the released checkpoints have: sentencepiece's `tokenizer.model`."""
    folder = tmp_path_factory.mktemp("vocabulary")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*templates.vicuna_v1(QUESTION)] * 20),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


def write(folder: Path, state: dict[str, Tensor], vocabulary: Path) -> Path:
    """Write a checkpoint as the released ones are: two pickle shards, an index, a configuration that misleads."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(vocabulary, folder)
    names = sorted(state)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        shard = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / shard)
        index |= dict.fromkeys(part, shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llava", "use_cache": False}))
    return folder


@pytest.fixture(scope="module")
def card(golden: tuple[dict[str, Tensor], dict[str, list[int]]]) -> ModelCard:
    return tiny_card(golden[1])


@pytest.fixture(scope="module")
def folder(state: dict[str, Tensor], vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("convllava"), state, vocabulary)


def picture(width: int, height: int) -> bytes:
    """Return a PNG of coloured noise."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return images.png(Image.fromarray(noise))


def load(card: ModelCard, folder: Path, **options: object) -> convllava.ConvLlava:
    model = convllava.load(card, Source("local", folder), Options(side=128, **options))  # type: ignore[arg-type]
    assert isinstance(model, convllava.ConvLlava)
    return model


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", ["256x256", "128x320"])
def test_the_tower_gives_the_originals_numbers(
    golden: tuple[dict[str, Tensor], dict[str, list[int]]],
    card: ModelCard,
    folder: Path,
    shape: str,
    channels_last: bool,
) -> None:
    model = load(card, folder)
    model.lay_out(channels_last)
    pixels, expected = golden[0][f"x_{shape}"], golden[0][f"y_{shape}"]
    with torch.inference_mode():
        given = model.laid_out(Prepared({"convnext-l-5": pixels}, (1, 1), (1, 1), 1, 1))
        features = model.encode("convnext-l-5", given)
    assert features.shape == expected.shape
    assert (features - expected).abs().max() < 1e-4
    assert expected.abs().max() > 1e-2  # the comparison says something


def test_an_answer_is_the_prompt_spliced_and_decoded_greedily(card: ModelCard, folder: Path) -> None:
    model = load(card, folder)
    request = Request((picture(100, 60),), QUESTION, max_new_tokens=3, ignore_eos=True)
    events = list(model.answer(request))
    kinds = [event.stage if isinstance(event, Done) else type(event).__name__ for event in events]
    assert kinds == ["preprocess", "encode", "project", "Seen", "prefill", "Piece", "Piece", "Piece"]
    seen = events[3]
    assert isinstance(seen, Seen)
    assert (seen.original_px, seen.processed_px, seen.content_px) == ((100, 60), (128, 128), 128 * 77)
    assert (seen.visual_tokens, seen.tiles) == (4, 1)
    reference, ids = llama(), model.prompt(QUESTION)
    assert ids[0][0] == 1  # one BOS, at the start alone
    assert seen.text_tokens == len(ids[0]) + len(ids[1])
    with torch.inference_mode():
        prepared = model.prepare([images.decode(request.images[0])])
        visual = model.project({"convnext-l-5": model.encode("convnext-l-5", prepared)}, prepared)
        text = [reference.get_input_embeddings()(torch.tensor(part)) for part in ids]
        embeds = torch.cat([text[0], visual, text[1]])[None]
        said = []
        for _ in range(3):  # without a cache
            token = reference(inputs_embeds=embeds).logits[0, -1].argmax()
            said.append(int(token))
            embeds = torch.cat([embeds, reference.get_input_embeddings()(token)[None, None]], 1)
    assert "".join(event.text for event in events if isinstance(event, Piece)) == model.tokenizer.decode(said)
    assert len(set(said)) > 1


def test_the_prompt_is_vicuna_v1_tokenized_by_halves(card: ModelCard, folder: Path) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    before, after = load(card, folder, only="llm").prompt("Q?")
    text = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: "
    )
    assert before == [1, *reference.encode(text)]  # 1 is BOS
    assert after == reference.encode("\nQ? ASSISTANT:")
    assert all(
        reference.id_to_piece(i).startswith("▁") for i in (before[-1], after[0])
    )  # a space on each side, as LLaVA


@pytest.mark.parametrize("size", [(640, 480), (300, 777), (50, 50), (128, 128)])
def test_preprocessing_is_the_slow_clip_processors(card: ModelCard, folder: Path, size: tuple[int, int]) -> None:
    model = load(card, folder, only="convnext-l-5")
    image = images.decode(picture(*size))
    square = Image.new("RGB", (max(size),) * 2, (122, 116, 104))
    square.paste(image.image, ((max(size) - size[0]) // 2, (max(size) - size[1]) // 2))
    processor = CLIPImageProcessorPil(size={"shortest_edge": 128}, crop_size={"height": 128, "width": 128})
    expected = torch.tensor(np.asarray(processor(square)["pixel_values"]))
    pixels = model.prepare([image]).pixels["convnext-l-5"]
    assert pixels.shape == expected.shape == (1, 3, 128, 128)
    assert (pixels - expected).abs().max() < 1e-6


def drop(state: dict[str, Tensor]) -> str:
    del state[f"{TOWER}encoder.stages.4.layers.1.pwconv2.weight"]
    return r"missing: convnext-l-5\.encoder\.stages\.4\.layers\.1\.pwconv2\.weight"


def rename(state: dict[str, Tensor]) -> str:
    state["model.mm_projector.1.weight"] = state.pop("model.mm_projector.2.weight")
    return r"1 missing: projector\.2\.weight; 1 unexpected: model\.mm_projector\.1\.weight"


def misshape(state: dict[str, Tensor]) -> str:
    state["model.layers.1.mlp.up_proj.weight"] = state["model.layers.1.mlp.up_proj.weight"][:-1].clone()
    return r"wrong shape.*: model\.layers\.1\.mlp\.up_proj\.weight: .*47.* the model has .*48"


def spoil(state: dict[str, Tensor]) -> str:
    state["lm_head.weight"] = torch.full_like(state["lm_head.weight"], float("nan"))
    return r"NaN or infinite: lm_head\.weight"


def add(state: dict[str, Tensor]) -> str:
    state["something.else"] = torch.ones(1)
    return r"1 unexpected: something\.else"


@pytest.mark.parametrize("damage", [drop, rename, misshape, spoil, add])
def test_a_checkpoint_that_is_not_the_model_is_refused_by_name(
    card: ModelCard,
    state: dict[str, Tensor],
    vocabulary: Path,
    tmp_path: Path,
    damage: Callable[[dict[str, Tensor]], str],
) -> None:
    state = dict(state)
    told = damage(state)
    with pytest.raises(WeightsError, match=told):
        load(card, write(tmp_path, state, vocabulary))


def test_the_tower_can_come_from_its_own_repository(
    card: ModelCard, state: dict[str, Tensor], vocabulary: Path, tmp_path: Path
) -> None:
    write(tmp_path, state, vocabulary)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(WeightsError, match=r"repository nobody/no-such-tower .*next: put .*vision_tower"):
            load(card, tmp_path, settings={"tower": "repository"})
    own = {name.removeprefix(TOWER): tensor for name, tensor in state.items() if name.startswith(TOWER)}
    (tmp_path / "vision_tower").mkdir()
    torch.save({name: tensor * 2 for name, tensor in own.items()}, tmp_path / "vision_tower" / "pytorch_model.bin")
    model = load(card, tmp_path, settings={"tower": "repository"})
    name = "embeddings.patch_embeddings.weight"
    assert torch.equal(model.parts["convnext-l-5"].get_parameter(name), own[name] * 2)
    assert model.describe()["tower"].startswith(str(tmp_path / "vision_tower"))


def test_parts_alone(card: ModelCard, folder: Path) -> None:
    request = Request((picture(40, 60),), "Q?", max_new_tokens=1, ignore_eos=True)
    encoder = load(card, folder, only="convnext-l-5")
    assert list(encoder.parts) == ["convnext-l-5"]
    assert [type(event).__name__ for event in encoder.answer(request)] == ["Done", "Done", "Seen"]
    llm = load(card, folder, only="llm")
    assert sorted(llm.parts) == ["llm", "projector"]
    events = list(llm.answer(request))
    assert [event.stage for event in events if isinstance(event, Done)] == ["preprocess", "project", "prefill"]
    assert next(event.visual_tokens for event in events if isinstance(event, Seen)) == 4


def test_what_the_family_cannot_take(card: ModelCard, folder: Path) -> None:
    with pytest.raises(ExampleError, match="2 images"):
        next(load(card, folder).answer(Request((picture(8, 8),) * 2, "Q?")))
    with pytest.raises(SettingError, match="nearest: 960 or 1024"):
        convllava.load(card, Source("random"), Options(side=1000))


@pytest.mark.parametrize(
    ("side", "tokens", "encode_gflops", "prefill_gflops"),
    [(768, 144, 944, 2664), (1024, 256, 1678, 4145), (1536, 576, 3776, 8450)],
)
def test_every_card_is_the_released_architecture(
    side: int, tokens: int, encode_gflops: int, prefill_gflops: int
) -> None:
    card = load_model_card(f"convllava-7b-{side}")
    assert card.resolution.supported() == list(SIDES)
    assert card.resolution.default == side
    model = convllava.load(card, Source("random"), Options(side=side, device="meta", dtype="bfloat16"))
    assert isinstance(model, convllava.ConvLlava)
    counts = {name: pipeline.parameter_count(part) / 1e6 for name, part in model.parts.items()}
    assert counts == pytest.approx({"convnext-l-5": 669.16, "projector": 29.37, "llm": 6738.4}, abs=0.05)
    assert sum(pipeline.parameter_bytes(part) for part in model.parts.values()) / 1e9 == pytest.approx(14.87, abs=0.01)
    assert model.feature_shapes(model.prepare([images.blank((640, 480))]))["convnext-l-5"] == (1, tokens, 3072)
    work = model.work(Seen((640, 480), (side, side), 0, 1, tokens, 60))
    assert work["encode"].flops / 1e9 == pytest.approx(encode_gflops, abs=0.6)
    assert work["prefill"].flops / 1e9 == pytest.approx(prefill_gflops, abs=0.6)


def test_random_weights_need_no_checkpoint(card: ModelCard) -> None:
    model = convllava.load(card, weights.resolve(card, "random"), Options(side=128, seed=3))
    pieces = [e for e in model.answer(Request((picture(9, 9),), "Q?", 2, ignore_eos=True)) if isinstance(e, Piece)]
    assert len(pieces) == 2
    assert model.describe()["template"] == "vicuna_v1"
