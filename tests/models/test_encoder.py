"""Encoders by card: the feature is the layer that the card says, published layouts load strictly, events are right."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from harness import cards, images
from harness.errors import CardError, ExampleError, SettingError, UnknownName, WeightsError
from harness.models import loading
from harness.models.card import Encoder, Llm, ModelCard, Resolution, load_model_card
from harness.models.families import encoder
from harness.models.protocol import Done, Options, Piece, Request, Seen
from harness.models.weights import Source

TINY_LLM = Llm(
    kind="llama",
    hidden=32,
    layers=2,
    heads=2,
    kv_heads=2,
    ffn=64,
    vocab=1000,
    rope_theta=1e4,
    rms_eps=1e-5,
    positions=512,
    bos=1,
)
TINY_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
TINY = {
    "clip": (
        Encoder(
            name="clip",
            library="transformers",
            architecture="CLIPVisionModel",
            width=32,
            side=56,
            settings={
                "feature": "penultimate_patches",
                "prefixes": ["vision_model."],
                "unused": ["text_model.", "text_projection.", "visual_projection.", "logit_scale"],
                "config": TINY_CLIP,
            },
        ),
        56,
    ),
    "vit": (
        Encoder(
            name="vit",
            library="timm",
            architecture="vit_tiny_patch16_224",
            width=192,
            side=64,
            settings={
                "feature": "penultimate_patches",
                "unused": ["head."],
                "arguments": {"img_size": 64},
            },
        ),
        64,
    ),
    "fastvit": (
        Encoder(
            name="fastvit",
            library="timm",
            architecture="fastvit_t8",
            width=768,
            settings={"feature": "map", "unused": ["head."], "arguments": {"inference_mode": True}},
        ),
        64,
    ),
}
PNG = images.png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)))


def tiny(name: str, llm: Llm | None = None, **settings: object) -> ModelCard:
    part, side = TINY[name]
    part = msgspec.structs.replace(part, settings={**part.settings, **settings})
    return ModelCard(
        title=name,
        adapter="encoder",
        license="none",
        resolution=Resolution(rule="fixed", default=side),
        encoders=(part,),
        llm=llm,
        prompt="vicuna_v1" if llm else "",
        name=f"tiny-{name}",
    )


def built(card: ModelCard, source: Source | None = None, **options: object) -> encoder.EncoderModel:
    return encoder.load(card, source or Source("random"), Options(card.resolution.default, **options))


@torch.inference_mode()
def encoded(model: encoder.EncoderModel) -> torch.Tensor:
    return model.encode(model.encoder.name, model.prepare([images.decode(PNG)]))


def tapped(model: encoder.EncoderModel, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the adapter's feature and what the named layer gave in the same run."""
    caught = []
    module = model.parts[model.encoder.name].get_submodule(layer)
    handle = module.register_forward_hook(lambda _m, _i, out: caught.append(out[0] if isinstance(out, tuple) else out))
    feature = encoded(model)
    handle.remove()
    return feature, caught[-1]


# --- which layer ---


@pytest.mark.parametrize(
    ("card", "layer"),
    [
        (tiny("clip"), "encoder.layers.2"),
        (tiny("vit"), "blocks.10"),
        (tiny("vit", feature="last_patches"), "norm"),
    ],
    ids=["clip hidden_states[-2]", "timm penultimate", "timm last"],
)
def test_feature_is_the_named_layer_without_its_class_token(card: ModelCard, layer: str) -> None:
    feature, caught = tapped(built(card), layer)
    assert feature.shape[1] == 16
    torch.testing.assert_close(feature, caught[:, 1:], rtol=0, atol=0)


def test_clip_feature_is_llavas() -> None:
    model = built(tiny("clip"))
    pixels = model.prepare([images.decode(PNG)]).pixels["clip"]
    states = model.parts["clip"](pixel_values=pixels, output_hidden_states=True).hidden_states
    assert len(states) == TINY_CLIP["num_hidden_layers"] + 1
    torch.testing.assert_close(encoded(model), states[-2][:, 1:], rtol=0, atol=0)


def test_siglip_and_dinov2_cards_lose_no_patch() -> None:
    for name, config, tokens in (
        ("encoder-siglip-so400m-384", {**TINY_CLIP, "vision_use_head": False}, 16),
        ("encoder-dinov2-l-518", {key: value for key, value in TINY_CLIP.items() if key != "intermediate_size"}, 16),
    ):
        card = load_model_card(name)
        part = card.encoders[0]
        part = msgspec.structs.replace(part, width=32, side=56, settings={**part.settings, "config": config})
        card = msgspec.structs.replace(card, encoders=(part,), resolution=Resolution(rule="fixed", default=56))
        assert encoded(built(card)).shape == (1, tokens, 32)


def test_feature_maps_are_read_row_by_row() -> None:
    model = built(tiny("fastvit"))
    pixels = model.prepare([images.decode(PNG)]).pixels["fastvit"]
    features = model.parts["fastvit"].forward_features(pixels)[0]
    tokens = encoded(model)[0]
    assert features.shape == (768, 2, 2)
    torch.testing.assert_close(tokens[1], features[:, 0, 1], rtol=0, atol=0)
    torch.testing.assert_close(tokens[2], features[:, 1, 0], rtol=0, atol=0)


def test_preprocessing_is_llavas_pad_and_clips_processor() -> None:
    processor_class = pytest.importorskip("transformers.models.clip.image_processing_pil_clip").CLIPImageProcessorPil
    processor = processor_class(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    picture = images.decode(PNG)
    padded = images.pad_square(picture.image, tuple(int(255 * mean) for mean in processor.image_mean))
    theirs = processor(padded, return_tensors="np")["pixel_values"]
    ours = built(tiny("clip")).prepare([picture])
    np.testing.assert_allclose(ours.pixels["clip"].numpy(), theirs, atol=1e-5)
    assert (ours.processed_px, ours.content_px) == ((56, 56), 56 * 37)


# --- published layouts ---


def test_a_published_fastvit_with_training_branches_is_fused_to_the_same_function(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = timm.create_model("fastvit_t8", num_classes=10).eval()
    for name, buffer in original.named_buffers():  # fresh statistics would hide a wrong fusion
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    model = built(tiny("fastvit"), Source("local", tmp_path))
    names = [name for name, _ in model.parts.named_parameters()]
    assert any("reparam_conv" in name for name in names)
    assert not any("conv_kxk" in name for name in names)
    pixels = model.prepare([images.decode(PNG)]).pixels["fastvit"]
    with torch.inference_mode():
        theirs = original.forward_features(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoded(model), theirs, rtol=1e-4, atol=1e-4)

    fused = timm.utils.reparameterize_model(original)  # and one published in that form, as FastVLM's is
    save_file(fused.state_dict(), tmp_path / "model.safetensors")
    torch.testing.assert_close(encoded(built(tiny("fastvit"), Source("local", tmp_path))), theirs, rtol=1e-4, atol=1e-4)


def test_random_fastvit_is_built_in_the_form_that_is_timed() -> None:
    for name in ("encoder-fastvit", "encoder-fastvithd"):
        model = encoder.load(load_model_card(name), Source("random"), Options(256, device="meta"))
        assert not any("conv_kxk" in key for key, _ in model.parts.named_parameters())


def test_a_whole_clip_checkpoint_loads_and_its_text_tower_is_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=100
    )
    whole = CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=CLIPVisionConfig(**TINY_CLIP).to_dict())
    ).eval()
    whole.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("vision_model.encoder.") for name in names)  # as on the Hub
    assert any(name.startswith("text_model.") for name in names)
    model = built(tiny("clip"), Source("local", tmp_path))
    pixels = model.prepare([images.decode(PNG)]).pixels["clip"]
    with torch.inference_mode():
        states = whole.vision_model(pixel_values=pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(encoded(model), states[-2][:, 1:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (
            lambda t: t | {"blocks.3.norm1.wait": t.pop("blocks.3.norm1.weight")},
            r"1 missing: vit\.blocks\.3\.norm1\.weight",
        ),
        (lambda t: {k: v for k, v in t.items() if k != "pos_embed"}, r"missing: vit\.pos_embed"),
        (lambda t: t | {"cls_token": torch.zeros(1, 1, 3)}, r"1 wrong shape.*: cls_token: .*1x1x3"),
        (lambda t: t | {"norm.bias": torch.full((192,), torch.nan)}, r"NaN or infinite: norm\.bias"),
    ],
    ids=["renamed", "missing", "misshapen", "NaN"],
)
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, damage: object, told: str) -> None:
    tensors = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64).state_dict()
    save_file(damage(tensors), tmp_path / "model.safetensors")  # type: ignore[operator]
    with pytest.raises(WeightsError, match=told):
        built(tiny("vit"), Source("local", tmp_path))


def test_timms_own_names_are_what_the_timm_cards_read() -> None:
    """The heads that timm's published files have and these models lack are all named by the card."""
    for name in cards.names("models"):
        card = load_model_card(name)
        if card.adapter != "encoder" or card.llm or card.encoders[0].library != "timm":
            continue
        settings = encoder.read_settings(card)
        with loading.empty(), torch.device("meta"):
            arguments = {key: value for key, value in settings.arguments.items() if key != "inference_mode"}
            whole = timm.create_model(card.encoders[0].architecture, num_classes=8, **arguments)
        if settings.arguments.get("inference_mode"):
            continue  # the names of the two forms differ; see the test with fastvit_t8
        model = encoder.load(card, Source("random"), Options(card.resolution.default, device="meta"))
        ours = {f"{card.encoders[0].name}.{key}" for key in whole.state_dict() if not key.startswith(settings.unused)}
        assert ours == set(model.parts.state_dict()), name


# --- answers ---


def test_an_encoder_alone_ends_after_encode() -> None:
    events = list(built(tiny("fastvit")).answer(Request((PNG,), "What is this?")))
    assert [event for event in events if isinstance(event, Done)] == [Done("preprocess"), Done("encode")]
    assert not any(isinstance(event, Piece) for event in events)
    seen = next(event for event in events if isinstance(event, Seen))
    assert (seen.visual_tokens, seen.text_tokens, seen.original_px, seen.processed_px) == (4, 0, (60, 40), (64, 64))


def test_a_pair_goes_through_all_stages() -> None:
    model = built(tiny("vit", TINY_LLM))
    request = Request((PNG,), "What is this?", max_new_tokens=3, ignore_eos=True)
    events = list(model.answer(request))
    stages = [event.stage for event in events if isinstance(event, Done)]
    assert stages == ["preprocess", "encode", "project", "prefill"]
    assert sum(isinstance(event, Piece) for event in events) == 3
    seen = next(event for event in events if isinstance(event, Seen))
    before, after = model.prompt("What is this?")
    assert (seen.visual_tokens, seen.text_tokens) == (16, len(before) + len(after))
    assert before[0] == 1
    assert list(model.answer(request)) == events


def test_the_parts_of_a_pair_alone_see_what_the_whole_sees() -> None:
    request = Request((PNG,), "What is this?", max_new_tokens=2, ignore_eos=True)
    card = tiny("vit", TINY_LLM)
    whole = next(event for event in built(card).answer(request) if isinstance(event, Seen))
    llm = built(card, only="llm")
    events = list(llm.answer(request))
    assert set(llm.parts) == {"projector", "llm"}
    assert [event.stage for event in events if isinstance(event, Done)] == ["preprocess", "project", "prefill"]
    assert whole in events
    alone = built(card, only="vit")
    assert set(alone.parts) == {"vit"}
    torch.testing.assert_close(encoded(alone), encoded(built(card, only="vit")))


def test_visual_only_prefill_has_no_text() -> None:
    request = Request((PNG,), "What is this?", max_new_tokens=1, visual_only=True)
    seen = next(event for event in built(tiny("vit", TINY_LLM)).answer(request) if isinstance(event, Seen))
    assert (seen.visual_tokens, seen.text_tokens) == (16, 0)


def test_a_fixed_encoder_says_that_it_kept_its_size() -> None:
    model = encoder.load(tiny("vit"), Source("random"), Options(1024))
    prepared = model.prepare([images.decode(PNG)])
    assert prepared.processed_px == (64, 64)
    assert prepared.note == "fixed 64 px, asked for 1024"


# --- cards ---


def test_every_pair_has_the_encoder_of_its_encoder_card_and_no_weights() -> None:
    pairs = [name for name in cards.names("models") if name.startswith("pair-")]
    assert len(pairs) >= 11
    for name in pairs:
        card = load_model_card(name)
        key = next(
            key for key in cards.names("models") if key.startswith("encoder-") and name.startswith(f"pair-{key[8:]}-")
        )
        assert card.encoders == load_model_card(key).encoders, name
        assert card.hub is None
        assert card.llm


def test_the_card_in_the_documentation_runs(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    (tmp_path / "new.toml").write_text(text.split("```toml\n")[1].split("```")[0])
    card = load_model_card(str(tmp_path / "new.toml"))
    model = encoder.load(card, Source("random"), Options(224, device="meta"))
    assert model.feature_shapes(model.prepare([images.decode(PNG)])) == {"vit": (1, 14 * 14, 768)}


def test_bad_cards_are_named() -> None:
    with pytest.raises(CardError, match=r"tiny-vit: encoder 'vit', settings: .*penultimate"):
        built(tiny("vit", feature="penultimate"))
    with pytest.raises(CardError, match="unknown field `meen`"):
        built(tiny("vit", meen=[0, 0, 0]))
    part = msgspec.structs.replace(TINY["vit"][0], architecture="vit_tiny_patch16_223")
    with pytest.raises(UnknownName, match="did you mean 'vit_tiny_patch16_224'"):
        built(msgspec.structs.replace(tiny("vit"), encoders=(part,)))
    part = msgspec.structs.replace(TINY["clip"][0], architecture="CLIPVisonModel")
    with pytest.raises(UnknownName, match="did you mean 'CLIPVisionModel'"):
        built(msgspec.structs.replace(tiny("clip"), encoders=(part,)))
    with pytest.raises(UnknownName, match="qwen_2, vicuna_v1"):
        built(msgspec.structs.replace(tiny("vit", TINY_LLM), prompt="vicuna"))
    with pytest.raises(SettingError, match="has no LLM"):
        built(tiny("vit"), only="llm")


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExampleError, match="takes one image, the example has 2"):
        next(built(tiny("vit")).answer(Request((PNG, PNG), "?")))
    with pytest.raises(WeightsError, match="no checkpoint can be its weights"):
        built(tiny("vit", TINY_LLM), Source("local", tmp_path))
