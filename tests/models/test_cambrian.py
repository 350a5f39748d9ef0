"""Cambrian-1 against the original's outputs (fixture), its encoders against timm and transformers, and its counts."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor

from harness import images
from harness.errors import ExampleError, WeightsError
from harness.models import sharing
from harness.models.card import Encoder, Llm, load_model_card
from harness.models.families import cambrian
from harness.models.families.cambrian import Cambrian, Geometry
from harness.models.families.cambrian.aggregator import window
from harness.models.families.cambrian.encoders import TOWERS
from harness.models.families.cambrian.templates import TEMPLATES
from harness.models.pipeline import Prepared, parameter_count
from harness.models.protocol import Done, Options, Piece, Request, Seen
from harness.models.weights import Source

POSITION = 5


def encoder(name: str, architecture: str, width: int, side: int, **settings: Any) -> Encoder:
    return Encoder(
        name=name,
        library="transformers",
        architecture=architecture,
        width=width,
        side=side,
        repo=f"nobody/{name}",
        settings=settings,
    )


ENCODERS = (
    encoder("siglip", "SiglipVisionModel", 24, 42, layers=2, heads=4, ffn=40, patch=6, grid=6),
    encoder("clip", "CLIPVisionModel", 20, 36, layers=3, heads=4, ffn=40, patch=6, grid=6),
    encoder("dinov2", "Dinov2Model", 28, 42, layers=2, heads=4, patch=6, trained_side=60, grid=6),
    encoder("convnext", "ConvNextModel", 40, 96, depths=[1, 1, 2, 1], widths=[4, 6, 10, 20], grid=24),
)
TINY = msgspec.structs.replace(
    load_model_card("cambrian-1-8b"),
    encoders=ENCODERS,
    llm=Llm(
        kind="llama",
        hidden=64,
        layers=6,
        heads=4,
        kv_heads=2,
        ffn=96,
        vocab=128,
        rope_theta=5e5,
        rms_eps=1e-6,
        positions=512,
        bos=1,
        eos=(127,),
    ),
    prompt="phi3",
    settings={
        "image_position": POSITION,
        "query_side": 6,
        "aggregator_width": 32,
        "connector_depth": 3,
        "sampler_first": 0,
        "sampler_stride": 3,
        "sampler_number": 2,
    },
)


# --- encoders: published names and the library they were published for ---


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module.eval()


def published_siglip() -> tuple[torch.nn.Module, dict[str, Tensor]]:
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    trunk = randomised(
        VisionTransformer(
            img_size=42,
            patch_size=6,
            embed_dim=24,
            depth=2,
            num_heads=4,
            mlp_ratio=40 / 24,
            class_token=False,
            global_pool="map",
            num_classes=0,
        )
    )
    return trunk, open_clip_names(trunk)


def published_convnext() -> tuple[torch.nn.Module, dict[str, Tensor]]:
    from timm.models.convnext import ConvNeXt

    torch.manual_seed(0)
    trunk = randomised(ConvNeXt(depths=(1, 1, 2, 1), dims=(4, 6, 10, 20), norm_eps=1e-5, num_classes=0))
    return trunk, open_clip_names(trunk)


def open_clip_names(trunk: torch.nn.Module) -> dict[str, Tensor]:
    named = {f"visual.trunk.{name}": tensor.clone() for name, tensor in trunk.state_dict().items()}
    return {**named, "logit_scale": torch.ones(()), "text.transformer.resblocks.0.ln_1.weight": torch.ones(4)}


def published_clip() -> dict[str, Tensor]:
    width, ffn = 20, 40
    shapes = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, 3, 6, 6),
        "embeddings.position_embedding.weight": (37, width),
        **norm("pre_layrnorm", width),
        **norm("post_layernorm", width),
    }
    for layer in range(3):
        stem = f"encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{stem}.self_attn.{name}", width, width)
        shapes |= norm(f"{stem}.layer_norm1", width) | norm(f"{stem}.layer_norm2", width)
        shapes |= linear(f"{stem}.mlp.fc1", width, ffn) | linear(f"{stem}.mlp.fc2", ffn, width)
    tensors = {f"vision_model.{name}": tensor for name, tensor in drawn(shapes).items()}
    extra = {"vision_model.embeddings.position_ids": torch.arange(37)[None], "text_projection.weight": torch.ones(2, 2)}
    return {**tensors, **extra, "text_model.final_layer_norm.weight": torch.ones(4), "logit_scale": torch.ones(())}


def published_dinov2() -> dict[str, Tensor]:
    width, inner = 28, (int(28 * 4 * 2 / 3) + 7) // 8 * 8
    shapes = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, 101, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, 6, 6),
        "embeddings.patch_embeddings.projection.bias": (width,),
        **norm("layernorm", width),
    }
    for layer in range(2):
        stem = f"encoder.layer.{layer}"
        shapes |= norm(f"{stem}.norm1", width) | norm(f"{stem}.norm2", width)
        for name in ("query", "key", "value"):
            shapes |= linear(f"{stem}.attention.attention.{name}", width, width)
        shapes |= linear(f"{stem}.attention.output.dense", width, width)
        shapes |= {f"{stem}.layer_scale{number}.lambda1": (width,) for number in (1, 2)}
        shapes |= linear(f"{stem}.mlp.weights_in", width, 2 * inner) | linear(f"{stem}.mlp.weights_out", inner, width)
    return drawn(shapes)


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, width: int, out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


PUBLISHED = {
    "siglip": lambda: published_siglip()[1],
    "clip": published_clip,
    "dinov2": published_dinov2,
    "convnext": lambda: published_convnext()[1],
}


@pytest.fixture(scope="module")
def fixture(shared: Path) -> Any:
    return safe_open(shared / "fixtures" / "cambrian_tiny.safetensors", framework="pt")


@pytest.fixture(scope="module")
def folder(fixture: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as it is released: shards of the LLM and connector, and the encoders' own files beside them."""
    path = tmp_path_factory.mktemp("cambrian")
    tensors = {name.removeprefix("sd/"): fixture.get_tensor(name) for name in fixture.keys() if name.startswith("sd/")}  # noqa: SIM118
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:60], names[60:]), 1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, path / shard)
        weight_map |= dict.fromkeys(part, shard)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (path / "config.json").write_text(json.dumps({"model_type": "cambrian_llama", "image_position": POSITION}))
    write_tokenizer(path)
    for name, make in PUBLISHED.items():
        (path / name).mkdir()
        if name == "clip":  # a pickle, as OpenAI's repository has it
            torch.save(make(), path / name / "pytorch_model.bin")
        else:
            save_file(make(), path / name / "open_clip_model.safetensors")
    return path


def write_tokenizer(path: Path) -> None:
    """Four ids for the template's text before the image, so that with BOS the image stands at 5."""
    vocab = {f"t{index}": index for index in range(100)} | {"You are a helpful AI assistant.": 100, "[UNK]": 101}
    special = ["<|system|>", "<|end|>", "<|user|>"]
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.add_special_tokens(special)
    from tokenizers import pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


@pytest.fixture(scope="module")
def model(folder: Path) -> Cambrian:
    return cambrian.load(TINY, Source("local", folder), Options(1024))


@pytest.fixture(scope="module", params=[0, 1, 2], ids=["4:3", "3:7", "1:1"])
def case(request: pytest.FixtureRequest, fixture: Any) -> dict[str, Tensor]:
    prefix = f"case{request.param}/"
    return {n.removeprefix(prefix): fixture.get_tensor(n) for n in fixture.keys() if n.startswith(prefix)}  # noqa: SIM118


def example(case: dict[str, Tensor]) -> tuple[dict[str, Tensor], Prepared, list[int], list[int]]:
    width, height = case["size_wh"].tolist()
    features = {each.name: case[f"feat{index}"] for index, each in enumerate(ENCODERS)}
    prepared = Prepared({}, (width, height), (1, 1), 1, 1, geometry=Geometry((width, height)))
    ids = case["ids"][0].tolist()
    place = ids.index(-200)
    assert place == POSITION
    return features, prepared, ids[:place], ids[place + 1 :]


@torch.inference_mode()
def test_embeddings_and_logits_are_the_originals(model: Cambrian, case: dict[str, Tensor]) -> None:
    features, prepared, before, after = example(case)
    visual = model.project(features, prepared)
    embeds = model.embed(visual, before, after)
    torch.testing.assert_close(embeds, case["embeds"], atol=1e-4, rtol=0)
    with model.prefill_scope(features, prepared, len(before)):
        logits = model.parts["llm"](inputs_embeds=embeds).logits
    assert float((logits - case["logits"]).abs().max()) < 1e-4
    last = model.prefill(embeds, model.prefill_scope(features, prepared, len(before))).logits
    torch.testing.assert_close(last[:, -1], case["logits"][:, -1], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_greedy_tokens_are_the_originals(model: Cambrian, case: dict[str, Tensor]) -> None:
    features, prepared, before, after = example(case)
    wanted = case["generated_with_leading_bos"][0, 1:].tolist()
    request = Request((), "", max_new_tokens=len(wanted), ignore_eos=True)

    class Numbers:
        name = "numbers"

        def encode(self, text: str) -> list[int]:
            raise NotImplementedError

        def decode(self, ids: list[int]) -> str:
            return "".join(f"{index} " for index in ids)

    own, model.tokenizer = model.tokenizer, Numbers()
    try:
        visual = model.project(features, prepared)
        events = list(model.generate(features, prepared, visual, before, after, request))
    finally:
        model.tokenizer = own
    assert [int(number) for e in events if isinstance(e, Piece) for number in e.text.split()] == wanted


@pytest.mark.parametrize("how", ["features", "prefix", "batch"])
def test_questions_that_share_an_image_are_answered_as_alone(model: Cambrian, how: str) -> None:
    """The samplers rewrite the image's hidden states while the prompt up to the question is read, and only then."""
    page = images.png(Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 140, 3), dtype=np.uint8)))
    requests = [Request((page,), text, 3, ignore_eos=True) for text in ("What is it?", "Total?", "Which page is this?")]
    found = sharing.answer_all(model, requests, how)
    assert [one.error for one in found] == [None] * 3
    wanted = ["".join(e.text for e in model.answer(one) if isinstance(e, Piece)) for one in requests]
    assert [one.text for one in found] == wanted


@torch.inference_mode()
def test_without_the_samplers_in_the_llm_parity_breaks(model: Cambrian, case: dict[str, Tensor]) -> None:
    features, prepared, before, after = example(case)
    embeds = model.embed(model.project(features, prepared), before, after)
    logits = model.parts["llm"](inputs_embeds=embeds).logits
    assert float((logits - case["logits"]).abs().max()) > 0.1
    with model.prefill_scope(features, prepared, len(before) + 1):  # one off, as with a second BOS
        moved = model.parts["llm"](inputs_embeds=torch.cat([embeds, embeds[:, -1:]], 1)).logits[:, :-1]
    assert float((moved - case["logits"]).abs().max()) > 0.1


@torch.inference_mode()
def test_decode_and_what_follows_runs_without_hooks(model: Cambrian, case: dict[str, Tensor]) -> None:
    features, prepared, before, after = example(case)
    embeds = model.embed(model.project(features, prepared), before, after)
    layers = model.parts["llm"].model.layers
    with model.prefill_scope(features, prepared, len(before)):
        assert [index for index, layer in enumerate(layers) if layer._forward_hooks] == [0, 3]
    model.prefill(embeds, model.prefill_scope(features, prepared, len(before)))
    assert not any(layer._forward_hooks for layer in layers)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model.prefill(None, model.prefill_scope(features, prepared, len(before)))
    assert not any(layer._forward_hooks for layer in layers)


# --- encoders ---


@torch.inference_mode()
@pytest.mark.parametrize("name", ["siglip", "convnext"])
def test_encoders_published_for_open_clip_are_timms(name: str, model: Cambrian) -> None:
    card = next(each for each in ENCODERS if each.name == name)
    pixels = torch.randn(1, 3, card.side or 0, card.side or 0, generator=torch.Generator().manual_seed(3))
    trunk: Any = published_siglip()[0] if name == "siglip" else published_convnext()[0]
    if name == "siglip":
        wanted = resampled(trunk.forward_features(pixels).transpose(1, 2).unflatten(2, (7, 7)), 6)
    else:
        stages, state = [], trunk.stem(pixels)
        for stage in trunk.stages:
            state = stage(state)
            stages.append(resampled(state, 24))
        wanted = torch.cat(stages, -1)
    got = TOWERS[card.architecture].run(model.parts[name], pixels, card.settings["grid"])
    assert float((got - wanted).abs().max()) < 1e-5  # the tanh GELU and eps 1e-6 would both show
    assert float(wanted.std()) > 0.1


def resampled(maps: Tensor, side: int) -> Tensor:
    return torch.nn.functional.interpolate(maps, size=(side, side), mode="bilinear").flatten(2).transpose(1, 2)


@torch.inference_mode()
def test_clip_is_what_transformers_reads_from_the_published_names(model: Cambrian, tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=20, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40, patch_size=6, image_size=36
    )
    config.save_pretrained(tmp_path)
    save_file(published_clip(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    stock = CLIPVisionModel.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 36, 36)
    wanted = stock(pixels, output_hidden_states=True).hidden_states
    assert len(wanted) == 4
    got = model.encode("clip", prepared_with("clip", pixels))
    torch.testing.assert_close(got, wanted[2][:, 1:], atol=1e-6, rtol=0)
    assert not torch.allclose(got, wanted[3][:, 1:], atol=1e-2)


@torch.inference_mode()
def test_dinov2_is_what_transformers_reads_but_for_the_older_positions(model: Cambrian, tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=28,
        num_hidden_layers=2,
        num_attention_heads=4,
        mlp_ratio=4,
        patch_size=6,
        image_size=60,
        use_swiglu_ffn=True,
    )
    config.save_pretrained(tmp_path)
    published = published_dinov2()
    save_file(published, tmp_path / "model.safetensors", metadata={"format": "pt"})
    stock = Dinov2Model.from_pretrained(tmp_path).eval()
    whole = torch.randn(1, 3, 60, 60)  # as trained: no interpolation in either
    tower = model.parts["dinov2"]
    torch.testing.assert_close(tower(whole)[0], stock(whole)[0], atol=1e-5, rtol=0)

    pixels = torch.randn(1, 3, 42, 42)
    ours, newer = tower(pixels)[0], stock(pixels)[0]
    assert float((ours - newer).abs().max()) > 1e-3
    positions = published["embeddings.position_embeddings"]
    maps = positions[0, 1:].T.reshape(1, 28, 10, 10)
    older = torch.nn.functional.interpolate(maps, scale_factor=(7.1 / 10, 7.1 / 10), mode="bicubic")
    assert older.shape[-2:] == (7, 7)
    patched = torch.cat([positions[:, :1], older.flatten(2).transpose(1, 2)], 1)
    stock.embeddings.interpolate_pos_encoding = lambda *_: patched
    torch.testing.assert_close(ours, stock(pixels)[0], atol=1e-5, rtol=0)
    assert model.encode("dinov2", prepared_with("dinov2", pixels)).shape == (1, 36, 28)


def prepared_with(name: str, pixels: Tensor) -> Prepared:
    return Prepared({name: pixels}, (1, 1), (1, 1), 1, 1)


# --- preprocessing, prompts, one whole answer ---


def test_pixels_are_padded_resized_and_normalised_per_encoder() -> None:
    few = tuple(
        msgspec.structs.replace(full, settings=tiny.settings, width=tiny.width)
        for full, tiny in zip(load_model_card("cambrian-1-8b").encoders, ENCODERS, strict=True)
    )
    full_sides = cambrian.load(msgspec.structs.replace(TINY, encoders=few), Source("random"), Options(1024, "meta"))
    full_sides.device = "cpu"  # its pixels alone are looked at
    values = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    prepared = full_sides.prepare([images.Picture(image, ())])
    imagenet = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    clip = (list(images.OPENAI_CLIP_MEAN), list(images.OPENAI_CLIP_STD))
    for name, side, colour, (mean, std) in (
        ("siglip", 384, (122, 116, 104), ([0.5] * 3, [0.5] * 3)),
        ("clip", 336, (122, 116, 104), clip),
        ("dinov2", 378, (123, 116, 103), imagenet),
        ("convnext", 1024, (122, 116, 104), clip),
    ):
        square = Image.new("RGB", (64, 64), colour)
        square.paste(image, (0, 8))
        wanted = (np.asarray(square.resize((side, side))) / 255 - mean) / std
        np.testing.assert_allclose(prepared.pixels[name][0].permute(1, 2, 0).numpy(), wanted, atol=1e-5)
    assert prepared.processed_px == (1024, 1024)
    assert prepared.content_px == 1024 * 768
    assert "siglip 384, clip 336, dinov2 378, convnext 1024" in prepared.note


@pytest.mark.parametrize(
    ("size", "tokens"), [((640, 640), 600), ((640, 480), 450), ((1920, 1080), 350), ((1080, 1920), 360)]
)
def test_visual_tokens_depend_on_the_aspect_ratio(size: tuple[int, int], tokens: int) -> None:
    shown = window(size, 24)
    assert shown.rows * (shown.cols + 1) == tokens


def test_too_thin_an_image_is_refused(model: Cambrian) -> None:
    for size in ((700, 100), (100, 700)):
        with pytest.raises(ExampleError, match=r"too thin for cambrian-1-8b: no cell of its 6x6 grid"):
            model.prepare([images.blank(size)])
    assert model.prepare([images.blank((600, 100))]).geometry.size == (600, 100)
    assert window((2500, 100), 24).rows == 0
    with pytest.raises(ExampleError, match="one image, the example has 2"):
        model.prepare([images.blank((50, 50))] * 2)


def test_a_whole_answer_times_the_encoders_one_by_one(model: Cambrian) -> None:
    picture = images.png(Image.effect_noise((80, 60), 90).convert("RGB"))
    events = list(model.answer(Request((picture,), "t1", 3, ignore_eos=True)))
    stages = [(event.stage, event.part) for event in events if isinstance(event, Done)]
    names = ["siglip", "clip", "dinov2", "convnext"]
    encodes = [("encode", name) for name in names] + [("encode", "")]
    assert stages == [("preprocess", ""), *encodes, ("project", ""), ("prefill", "")]
    seen = next(event for event in events if isinstance(event, Seen))
    assert (seen.visual_tokens, seen.text_tokens) == (4 * 7, POSITION + len(model.prompt("t1")[1]))
    assert sum(isinstance(event, Piece) for event in events) == 3
    described = model.describe()
    assert described["samplers_after_layers"] == "0, 3"
    assert described["weights_clip"] == "nobody/clip at clip"


@pytest.mark.parametrize("only", ["siglip", "clip", "dinov2", "convnext", "llm"])
def test_stages_alone(only: str, folder: Path) -> None:
    model = cambrian.load(TINY, Source("local", folder), Options(1024, only=only))
    picture = images.png(Image.effect_noise((80, 60), 90).convert("RGB"))
    events = list(model.answer(Request((picture,), "t1", 2, ignore_eos=True)))
    stages = [event.stage for event in events if isinstance(event, Done)]
    assert stages == (["preprocess", "project", "prefill"] if only == "llm" else ["preprocess", *["encode"] * 2])
    assert list(model.parts) == (["projector", "samplers", "llm"] if only == "llm" else [only])


def test_templates_are_as_published() -> None:
    whole = {name: "<image>".join(template("Q?")) for name, template in TEMPLATES.items()}
    assert whole["llama_3"] == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>You are Cambrian, a highly intelligent multimodal "
        "AI trained by NYU Vision X. \n    As a multimodal AI, you have the ability to process and analyze images. "
        "Whenever an image is present in the conversation, very carefully examine it and consider its content when "
        "formulating your response.\n    You should give concise responses to very simple questions, but provide "
        "thorough responses to more complex and open-ended questions. <|eot_id|><|start_header_id|>user"
        "<|end_header_id|><image>\nQ?<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
    )
    assert whole["chatml_direct"].startswith("<|im_start|>system\nYou are Cambrian, ")
    assert whole["chatml_direct"].endswith(
        "open-ended questions.<|im_end|><|im_start|>user\n<image>\nQ?<|im_end|><|im_start|>assistant\n"
    )
    assert whole["phi3"] == (
        "<|system|>\nYou are a helpful AI assistant.<|end|>\n<|user|>\n<image>\nQ?<|end|>\n<|assistant|>\n"
    )


def test_the_line_break_after_the_image_is_lost_with_llama_3_only() -> None:
    texts = {}
    for prompt in ("llama_3", "chatml_direct", "vicuna_v1", "phi3"):
        card = msgspec.structs.replace(TINY, prompt=prompt)
        model = cambrian.load(card, Source("random"), Options(1024, "meta"))
        before, after = model.prompt("Q")
        assert len(before) == POSITION  # the stand-in tokenizer is made as long as the real one
        texts[prompt] = after[0] == model.tokenizer.encode("\n")[0]
    assert texts == {"llama_3": False, "chatml_direct": True, "vicuna_v1": True, "phi3": True}


def test_an_image_where_the_samplers_do_not_look_is_refused(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"image_position 5, cambrian-1-8b has 6; next: --set image_position=5"):
        cambrian.load(
            TINY, Source("local", folder), Options(1024, settings={**TINY.settings, "image_position": POSITION + 1})
        )
    two_bos = msgspec.structs.replace(TINY, prompt="chatml_direct")
    with pytest.raises(WeightsError, match=r"puts the image at position \d+, the samplers .* for 5"):
        cambrian.load(two_bos, Source("local", folder), Options(1024))


# --- checkpoints that are not ---


def test_a_missing_encoder_names_its_repository(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_OFFLINE", "1")
    for path in folder.iterdir():
        if path.name != "dinov2":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(WeightsError, match=r"'dinov2' has no .*/dinov2.* next: `hf download nobody/dinov2`"):
        cambrian.load(TINY, Source("local", tmp_path), Options(1024))
    assert cambrian.load(TINY, Source("local", tmp_path), Options(1024, only="clip")).parts


def test_wrong_tensors_are_named(folder: Path, tmp_path: Path) -> None:
    def broken(name: str, file: str, change: dict[str, Tensor | None]) -> str:
        target = tmp_path / name
        target.mkdir()
        for path in folder.iterdir():
            if path.name != file.split("/")[0]:
                (target / path.name).symlink_to(path)
        with safe_open(folder / file, framework="pt") as old:
            tensors = {key: old.get_tensor(key) for key in old.keys()}  # noqa: SIM118
        for key, value in change.items():
            if value is None:
                del tensors[key]
            else:
                tensors[key] = value
        (target / file).parent.mkdir(exist_ok=True)
        save_file(tensors, target / file)
        with pytest.raises(WeightsError) as error:
            cambrian.load(TINY, Source("local", target), Options(1024))
        return str(error.value)

    siglip = "siglip/open_clip_model.safetensors"
    qkv = "visual.trunk.blocks.0.attn.qkv"
    told = broken("mis-shaped", siglip, {f"{qkv}.weight": torch.ones(72, 23)})
    assert re.search(rf"3 wrong .*{re.escape(qkv)}.weight: 24x23 .* the model has 24x24", told)
    told = broken("renamed", siglip, {f"{qkv}.bias": None, "visual.trunk.blocks.0.attn.qvk.bias": torch.ones(72)})
    assert re.search(r"3 missing: .*siglip.encoder.layers.0.self_attn.q_proj.bias", told)
    assert "1 unexpected: visual.trunk.blocks.0.attn.qvk.bias" in told
    convnext = "convnext/open_clip_model.safetensors"
    assert "1 missing: convnext.embeddings.layernorm.bias" in broken(
        "missing", convnext, {"visual.trunk.stem.1.bias": None}
    )


# --- counts of the full models ---


def test_parameters_and_work_of_cambrian_8b() -> None:
    card = load_model_card("cambrian-1-8b")
    model = cambrian.load(card, Source("random"), Options(1024, "meta", "bfloat16"))
    counts = {name: parameter_count(part) / 1e6 for name, part in model.parts.items()}
    for name, millions in {"siglip": 413.0, "clip": 303.5, "dinov2": 1136.5, "convnext": 843.4, "llm": 8030.3}.items():
        assert counts[name] == pytest.approx(millions, abs=0.06)
    assert counts["projector"] + counts["samplers"] == pytest.approx(302.76, abs=0.006)
    assert counts["samplers"] == pytest.approx(220.57, abs=0.006)
    assert counts["projector"] + counts["samplers"] + counts["llm"] == pytest.approx(8333.0, abs=0.1)
    assert sum(counts.values()) == pytest.approx(11029, abs=0.6)

    seen = Seen((800, 800), (1024, 1024), 1, 1, 600, 121)
    work = model.work(seen)
    gflops = {name: each.flops / 1e9 for name, each in work.items()}
    for name, wanted in {"siglip": 666, "clip": 382, "dinov2": 1786, "convnext": 6335}.items():
        assert gflops[f"encode.{name}"] == pytest.approx(wanted, abs=0.6)
    assert gflops["encode"] == pytest.approx(9169, abs=1)
    assert gflops["prefill"] == pytest.approx(10338 + 617, abs=2)  # the LLM, and the samplers in it
    # the aggregator's input projections, its three layers, and two linears over 576 cells
    assert gflops["project"] == pytest.approx(136 + 163 + 2 * 576 * 4096 * (1024 + 4096) / 1e9, abs=1)
    embeddings = 128256 * 4096
    read = parameter_count(model.parts["llm"]) - embeddings + parameter_count(model.parts["samplers"])
    assert work["prefill"].weight_bytes == 2 * read


@pytest.mark.parametrize(
    ("name", "llm_m", "after"), [("13b", 13015.9, 36), ("34b", 34388.9, 56), ("phi3-3b", 3821.1, 27)]
)
def test_the_other_sizes_build(name: str, llm_m: float, after: int) -> None:
    card = load_model_card(f"cambrian-1-{name}")
    model = cambrian.load(card, Source("random"), Options(1024, "meta", only="llm"))
    assert parameter_count(model.parts["llm"]) / 1e6 == pytest.approx(llm_m, abs=0.1)
    assert model.sampler_layers[-1] == after
    assert len(model.prompt("What?")[0]) == model.image_position
