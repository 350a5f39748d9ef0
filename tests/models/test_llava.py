from pathlib import Path

import msgspec
import numpy as np
import pytest
import tokenizers as hf_tokenizers
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from harness import images
from harness.errors import ExampleError, SettingError, UnknownName, WeightsError
from harness.models import pipeline, templates
from harness.models.card import ModelCard, load_model_card
from harness.models.checkpoints import Tensors
from harness.models.families import llava
from harness.models.families.llava import token_reduction
from harness.models.protocol import Done, Options, Piece, Request, Seen
from harness.models.weights import Source

CLIP = "clip-vit-l-336"
QUESTION = "What is written on the page?"
VOCAB, ADDED, IMAGE = 300, 20, 301
"""Rows of the vocabulary, those that transformers' layout adds to it, and the id of `<image>`, which is one of them."""


@pytest.fixture(scope="module")
def card() -> ModelCard:
    """The shipped card at small widths; the grid is the real one, 24x24."""
    card = load_model_card("llava-1.5-7b")
    assert card.llm
    encoder = msgspec.structs.replace(
        card.encoders[0],
        width=16,
        settings={"layers": 3, "heads": 2, "ffn": 24, "patch": 14},
        repo="nobody/no-such-clip",
    )
    llm = msgspec.structs.replace(
        card.llm, hidden=32, layers=2, heads=4, kv_heads=4, ffn=48, vocab=VOCAB, positions=1024
    )
    return msgspec.structs.replace(card, encoders=(encoder,), llm=llm)


@pytest.fixture(scope="module")
def reference() -> LlavaForConditionalGeneration:
    """Return transformers' own LLaVA, small, with random weights."""
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=3,
                num_attention_heads=2,
                patch_size=14,
                image_size=336,
            ),
            text_config=LlamaConfig(
                vocab_size=VOCAB + ADDED,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                rms_norm_eps=1e-5,
                max_position_embeddings=1024,
                bos_token_id=1,
                eos_token_id=2,
            ),
            image_token_index=IMAGE,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
        )
    ).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:  # livelier than the initial 0.02, so that attention differs between tokens
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif "proj" in name or "bias" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def vocabulary(folder: Path) -> None:
    """Write a small `tokenizer.json` with the leading space of a Llama vocabulary."""
    model = hf_tokenizers.Tokenizer(hf_tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
    model.normalizer = hf_tokenizers.normalizers.Sequence(
        [hf_tokenizers.normalizers.Prepend("▁"), hf_tokenizers.normalizers.Replace(" ", "▁")]
    )
    model.decoder = hf_tokenizers.decoders.Sequence(
        [hf_tokenizers.decoders.Replace("▁", " "), hf_tokenizers.decoders.ByteFallback(), hf_tokenizers.decoders.Fuse()]
    )
    trainer = hf_tokenizers.trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<unk>", "<s>", "</s>"])
    model.train_from_iterator([*templates.vicuna_v1(QUESTION)] * 4, trainer)
    model.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def folder(reference: LlavaForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in transformers' layout, as its own class writes it."""
    folder = tmp_path_factory.mktemp("llava-hf")
    reference.save_pretrained(folder)
    vocabulary(folder)
    return folder


@pytest.fixture(scope="module")
def original(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The same weights in the original's names: the checkpoint of LLM and projector, and CLIP's own repository."""
    tensors = {name: tensor() for name, tensor in Tensors(folder).items()}
    checkpoint, tower = {}, {}
    for name, tensor in tensors.items():
        if name.startswith("vision_tower."):
            tower["vision_model." + name.removeprefix("vision_tower.").removeprefix("vision_model.")] = tensor
        elif name.startswith("multi_modal_projector."):
            number = "0" if "linear_1" in name else "2"
            checkpoint[f"model.mm_projector.{number}.{name.rsplit('.', 1)[1]}"] = tensor
        else:
            words = "embed_tokens" in name or "lm_head" in name
            checkpoint[name.removeprefix("language_model.")] = tensor[:VOCAB].clone() if words else tensor
    checkpoint["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tower |= {"text_model.final_layer_norm.weight": torch.ones(3), "logit_scale": torch.ones(())}
    tower |= {"visual_projection.weight": torch.ones(2, 2), "vision_model.embeddings.position_ids": torch.arange(577)}
    return {"checkpoint": checkpoint, "tower": tower}


def picture(width: int = 90, height: int = 60) -> bytes:
    """Return a PNG of blurred coloured noise."""
    noise = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return images.png(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def load(card: ModelCard, folder: Path, settings: dict[str, str | int] | None = None, **more: str) -> llava.Llava:
    model = llava.load(card, Source("local", folder), Options(side=336, settings=settings or {}, **more))  # type: ignore[arg-type]
    assert isinstance(model, llava.Llava)
    return model


def logits(model: llava.Llava) -> Tensor:
    """Return the last position's logits of the picture and question."""
    with torch.inference_mode():
        prepared = model.prepare([images.decode(picture())])
        visual = model.project({CLIP: model.encode(CLIP, prepared)}, prepared)
        output = model.prefill(model.embed(visual, *model.prompt(QUESTION)), model.prefill_scope({}, prepared, 0))
    last: Tensor = output.logits[0, -1]
    return last


def test_logits_and_answer_are_those_of_transformers_own_class(
    card: ModelCard, folder: Path, reference: LlavaForConditionalGeneration
) -> None:
    model = load(card, folder)
    before, after = model.prompt(QUESTION)
    ids = torch.tensor([before + [IMAGE] * 576 + after])
    pixels = model.prepare([images.decode(picture())]).pixels[CLIP]
    with torch.inference_mode():
        expected = reference(input_ids=ids, pixel_values=pixels).logits[0, -1]
        said = []
        for _ in range(4):
            token = reference(input_ids=ids, pixel_values=pixels).logits[0, -1].argmax()
            said.append(int(token))
            ids = torch.cat([ids, token[None, None]], 1)
    assert (logits(model) - expected).abs().max() < 1e-4
    assert expected.abs().max() > 0.1
    events = list(model.answer(Request((picture(),), QUESTION, max_new_tokens=4, ignore_eos=True)))
    kinds = [event.stage if isinstance(event, Done) else type(event).__name__ for event in events]
    assert kinds == ["preprocess", "encode", "project", "Seen", "prefill", *["Piece"] * 4]
    seen = events[3]
    assert isinstance(seen, Seen)
    assert (seen.visual_tokens, seen.text_tokens, seen.processed_px) == (576, len(before) + len(after), (336, 336))
    assert "".join(event.text for event in events if isinstance(event, Piece)) == model.tokenizer.decode(said)
    assert model.parts[CLIP].config._attn_implementation == "sdpa"


def test_the_original_layout_gives_the_same_logits(
    card: ModelCard, folder: Path, original: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    vocabulary(tmp_path)
    torch.save(original["checkpoint"], tmp_path / "pytorch_model-00001-of-00001.bin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(WeightsError, match=r"repository nobody/no-such-clip .*next: put .*vision_tower"):
            load(card, tmp_path)
    assert sorted(load(card, tmp_path, only="llm").parts) == ["llm", "projector"]  # which needs no tower
    (tmp_path / "vision_tower").mkdir()
    torch.save(original["tower"], tmp_path / "vision_tower" / "pytorch_model.bin")
    model = load(card, tmp_path)
    assert torch.equal(logits(model), logits(load(card, folder))[:VOCAB])  # which has rows for added words
    assert str(tmp_path / "vision_tower") in model.describe()["tower"]


def test_the_layout_with_a_trained_tower_gives_the_same_logits(
    card: ModelCard, folder: Path, original: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    tower = {f"model.vision_tower.vision_tower.{n}": t for n, t in original["tower"].items() if n.startswith("vision")}
    vocabulary(tmp_path)
    torch.save({**original["checkpoint"], **tower}, tmp_path / "pytorch_model.bin")
    model = load(card, tmp_path)
    assert torch.equal(logits(model), logits(load(card, folder))[:VOCAB])  # which has rows for added words
    assert model.describe()["tower"] == "the checkpoint"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "vision_tower.encoder.layers.1.mlp.fc2.bias",
            r"1 missing: clip-vit-l-336\.encoder\.layers\.1\.mlp\.fc2\.bias",
        ),
        ("multi_modal_projector.linear_2.weight", r"1 missing: projector\.2\.weight"),
        ("language_model.model.norm.weight", r"1 missing: llm\.model\.norm\.weight"),
    ],
)
@pytest.mark.parametrize("how", ["missing", "renamed", "misshapen"])
def test_a_checkpoint_that_is_not_the_model_is_refused_by_name(
    card: ModelCard, folder: Path, tmp_path: Path, name: str, told: str, how: str
) -> None:
    tensors = {key: tensor() for key, tensor in Tensors(folder).items()}
    assert name in tensors
    tensor = tensors.pop(name)
    if how == "renamed":
        tensors[name + "x"] = tensor
        told += rf"; 1 unexpected: {name}x"
    if how == "misshapen":
        tensors[name] = tensor[:-1]
        told = rf"1 wrong shape.*: {name}: "
    vocabulary(tmp_path)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=told):
        load(card, tmp_path)


@pytest.mark.parametrize("name", ["prumerge", "prumerge+"])
def test_prumerge_in_the_tower(card: ModelCard, folder: Path, name: str) -> None:
    model = load(card, folder, {"reduction": name})
    request = Request((picture(),), QUESTION, max_new_tokens=1, ignore_eos=True)
    events = list(model.answer(request))
    assert [e.stage for e in events if isinstance(e, Done)] == ["preprocess", "encode", "project", "prefill"]
    seen = next(event for event in events if isinstance(event, Seen))
    with torch.inference_mode():
        prepared = model.prepare([images.decode(request.images[0])])
        features = model.encode(CLIP, prepared)
        tower = model.parts[CLIP]
        hidden = tower(prepared.pixels[CLIP], output_hidden_states=True).hidden_states[-2]
        last = tower.encoder.layers[-1]
        normed = last.layer_norm1(hidden)
        queries, keys = last.self_attn.q_proj(normed), last.self_attn.k_proj(normed)
        attention = token_reduction.class_attention(queries[0], keys[0])
        kept = token_reduction.select(attention, name == "prumerge+")
        expected = token_reduction.merge(hidden[0, 1:], keys[0, 1:], attention, kept)
    assert torch.allclose(features[0], expected, atol=1e-5)
    assert 1 < len(kept) + 1 == seen.visual_tokens < 576
    assert not last.self_attn.q_proj._forward_hooks
    assert model.describe()["reduction_stage"].startswith("encode")
    work = model.work(seen)
    plain = load(card, folder).work(seen._replace(visual_tokens=576))
    assert work["project"].flops * 576 == plain["project"].flops * seen.visual_tokens
    assert work["prefill"].flops < plain["prefill"].flops
    assert work["encode"].flops > plain["encode"].flops


@pytest.mark.parametrize("count", token_reduction.M3_COUNTS)
def test_matryoshka_after_the_projector(card: ModelCard, folder: Path, count: int) -> None:
    model = load(card, folder, {"reduction": f"m3-{count}"})
    request = Request((picture(),), QUESTION, max_new_tokens=1, ignore_eos=True)
    seen = next(event for event in model.answer(request) if isinstance(event, Seen))
    assert seen.visual_tokens == count
    assert model.describe()["reduction_stage"].startswith("project")
    with torch.inference_mode():
        prepared = model.prepare([images.decode(request.images[0])])
        features = {CLIP: model.encode(CLIP, prepared)}
        pooled, whole = model.project(features, prepared), load(card, folder).project(features, prepared)
    if count == 1:
        assert torch.allclose(pooled[0], whole.mean(0), atol=1e-5)
    if count == 576:
        assert torch.equal(pooled, whole)
    assert model.work(seen)["encode"] == load(card, folder).work(seen)["encode"]


def test_parts_alone(card: ModelCard, folder: Path) -> None:
    request = Request((picture(),), QUESTION, max_new_tokens=1, ignore_eos=True)
    encoder = load(card, folder, {"reduction": "prumerge"}, only=CLIP)
    assert [type(event).__name__ for event in encoder.answer(request)] == ["Done", "Done", "Seen"]
    for name, tokens in (("none", 576), ("prumerge", 40), ("m3-36", 36)):
        llm = load(card, folder, {"reduction": name}, only="llm")
        events = list(llm.answer(request))
        assert [event.stage for event in events if isinstance(event, Done)] == ["preprocess", "project", "prefill"]
        assert next(event.visual_tokens for event in events if isinstance(event, Seen)) == tokens
    given = load(card, folder, {"reduction": "prumerge+", "stand_in_tokens": 144}, only="llm")
    assert next(event.visual_tokens for event in given.answer(request) if isinstance(event, Seen)) == 144
    assert given.describe()["stand_in_tokens"] == "144"


def test_what_the_family_cannot_take(card: ModelCard, folder: Path) -> None:
    with pytest.raises(ExampleError, match="2 images"):
        next(load(card, folder).answer(Request((picture(),) * 2, QUESTION)))
    with pytest.raises(SettingError, match="reduction=prunemerge"):
        load(card, folder, {"reduction": "prunemerge"})
    with pytest.raises(UnknownName, match=r"'reductoin'.*did you mean 'reduction'"):
        load(card, folder, {"reductoin": "none"})


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-1.5-7b-m3"])
def test_the_cards_are_the_released_architecture(name: str) -> None:
    card = load_model_card(name)
    model = llava.load(card, Source("random"), Options(side=336, device="meta", dtype="bfloat16"))
    assert isinstance(model, llava.Llava)
    counts = {part: pipeline.parameter_count(module) / 1e6 for part, module in model.parts.items()}
    assert counts == pytest.approx({CLIP: 303.5, "projector": 20.98, "llm": 6738.4}, abs=0.05)
    work = model.work(Seen((640, 480), (336, 336), 0, 1, 576, 60))
    assert work["encode"].flops / 1e9 == pytest.approx(382, abs=0.6)
    assert work["prefill"].flops / 1e9 == pytest.approx(8450, abs=0.6)
