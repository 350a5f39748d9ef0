"""LLaVA-OneVision against transformers' own class and processor, and the step table measured with them."""

import json
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from harness import images
from harness.errors import ExampleError, WeightsError
from harness.models.card import Encoder, Llm, load_model_card
from harness.models.checkpoints import Tensors
from harness.models.families import llava_onevision
from harness.models.families.llava_onevision import LlavaOnevision, layout, pinpoint
from harness.models.pipeline import parameter_count
from harness.models.protocol import Done, Options, Piece, Request, Seen
from harness.models.weights import Source

IMAGE_ID = 300
SIDE = 56
TINY = msgspec.structs.replace(
    load_model_card("llava-onevision-0.5b"),
    encoders=(
        Encoder(
            name="siglip",
            library="transformers",
            architecture="SiglipVisionModel",
            width=32,
            side=SIDE,
            settings={"layers": 2, "heads": 4, "ffn": 48, "patch": 14},
        ),
    ),
    llm=Llm(
        kind="qwen2",
        hidden=32,
        layers=2,
        heads=4,
        kv_heads=2,
        ffn=48,
        vocab=320,
        rope_theta=1e6,
        rms_eps=1e-6,
        positions=4096,
        tied=True,
        eos=(319,),
    ),
)
PINPOINTS = [[rows * SIDE, cols * SIDE] for rows in range(1, 7) for cols in range(1, 7)]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def original() -> LlavaOnevisionForConditionalGeneration:
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            patch_size=14,
            image_size=SIDE,
            vision_use_head=False,
        ),
        text_config=Qwen2Config(  # type: ignore[call-arg]
            vocab_size=320,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            rope_theta=1e6,
            tie_word_embeddings=True,
            max_position_embeddings=4096,
        ),
        image_token_index=IMAGE_ID,
        video_token_index=IMAGE_ID + 1,
        image_grid_pinpoints=PINPOINTS,
        tie_word_embeddings=True,
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    with torch.no_grad():  # the classes start with zero biases and unit norms, which would hide a swapped one
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def folder(original: LlavaOnevisionForConditionalGeneration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onevision")
    original.save_pretrained(path)
    write_tokenizer(path)
    return path


def write_tokenizer(path: Path) -> None:
    vocab = {f"t{index}": index for index in range(319)} | {"[UNK]": 319}
    Tokenizer(models.WordLevel(vocab, unk_token="[UNK]")).save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


@pytest.fixture(scope="module")
def ours(folder: Path) -> LlavaOnevision:
    options = Options(side=336, settings={**TINY.settings, "native_size": True})
    return llava_onevision.load(TINY, Source("local", folder), options)


SHAPES = {
    "small square": (40, 40),
    "landscape": (150, 100),
    "portrait": (90, 260),
    "large, shrunk to nine tiles": (330, 300),
    "very wide": (320, 30),
}


def processed(image: Image.Image) -> SimpleNamespace:
    processor = LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        image_grid_pinpoints=PINPOINTS,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    batch = processor(images=image, return_tensors="pt")
    return SimpleNamespace(pixels=batch["pixel_values"], sizes=batch["image_sizes"])


@pytest.mark.parametrize("size", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_pixels_tokens_and_logits_are_those_of_transformers(
    size: tuple[int, int], original: LlavaOnevisionForConditionalGeneration, ours: LlavaOnevision
) -> None:
    image = picture(*size)
    batch = processed(image)
    prepared = ours.prepare([images.Picture(image, ())])
    assert prepared.pixels["siglip"].shape == batch.pixels[0].shape
    torch.testing.assert_close(prepared.pixels["siglip"], batch.pixels[0].float(), atol=1e-6, rtol=0)

    before, after = [5, 6, 7], [8, 9]
    visual = ours.project({"siglip": ours.encode("siglip", prepared)}, prepared)
    embeds = ours.embed(visual, before, after)
    got = ours.parts["llm"](inputs_embeds=embeds).logits

    ids = torch.tensor([before + [IMAGE_ID] * len(visual) + after])
    # transformers raises where the number of placeholders is not that of its visual tokens
    wanted = original(input_ids=ids, pixel_values=batch.pixels, image_sizes=batch.sizes).logits
    assert got.shape == wanted.shape
    assert prepared.geometry.visual_tokens == len(visual)
    assert float((got - wanted).abs().max()) < 1e-4
    assert float(wanted.std()) > 0.1  # logits that say something


@torch.inference_mode()
def test_greedy_answer_is_that_of_transformers(
    original: LlavaOnevisionForConditionalGeneration, ours: LlavaOnevision
) -> None:
    image = picture(150, 100)
    request = Request((images.png(image),), "t1", max_new_tokens=6, ignore_eos=True)
    events = list(ours.answer(request))
    seen = next(event for event in events if isinstance(event, Seen))
    before, after = ours.prompt("t1")
    ids = torch.tensor([before + [IMAGE_ID] * seen.visual_tokens + after])
    batch = processed(image)
    wanted = original.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=batch.pixels,
        image_sizes=batch.sizes,
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
    )[0, ids.shape[1] :]
    assert "".join(e.text for e in events if isinstance(e, Piece)) == ours.tokenizer.decode(wanted.tolist())
    assert [e.stage for e in events if isinstance(e, Done)] == ["preprocess", "encode", "project", "prefill"]
    assert seen.text_tokens == len(before) + len(after)


STEPS = [  # side asked of a square image: tiles with the base tile, visual tokens
    *((side, 2, 1485) for side in (224, 384)),
    *((side, 5, 3699) for side in (385, 512, 640, 672, 768)),
    *((side, 10, 7371) for side in (769, 1024, 1152)),
    *((side, 17, 7371) for side in (1280, 1344, 1536)),
    *((side, 37, 7371) for side in (2048, 2304)),
]


@pytest.mark.parametrize(("side", "tiles", "tokens"), STEPS)
def test_resolution_is_a_step_function(side: int, tiles: int, tokens: int) -> None:
    prepared = counting(side).prepare([images.blank((640, 640))])
    assert (prepared.tiles, prepared.geometry.visual_tokens) == (tiles, tokens)
    assert f"asked {side}, pinpoint " in prepared.note
    assert f"{tiles} tiles, {tokens} tokens" in prepared.note


@pytest.mark.parametrize(
    ("size", "tiles", "tokens"), [((768, 1024), 7, 4744), ((1700, 2200), 31, 7353), ((384, 384), 2, 1485)]
)
def test_pages_at_their_own_size(size: tuple[int, int], tiles: int, tokens: int) -> None:
    model = counting(max(size))
    own = counting(384, native_size=True)
    for each in (model, own):
        prepared = each.prepare([images.blank(size)])
        assert (prepared.tiles, prepared.geometry.visual_tokens) == (tiles, tokens)


def counting(side: int, **changed: bool) -> LlavaOnevision:
    """A full-size card's geometry without its modules: `prepare` needs none."""
    card = load_model_card("llava-onevision-0.5b")
    few = msgspec.structs.replace(
        card,
        llm=TINY.llm,
        encoders=(msgspec.structs.replace(card.encoders[0], settings={**card.encoders[0].settings, "layers": 1}),),
    )
    return llava_onevision.load(few, Source("random"), Options(side, "meta", settings={**card.settings, **changed}))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000))
def test_pinpoint_and_layout_are_transformers_own(width: int, height: int) -> None:
    from transformers.image_processing_utils import select_best_resolution

    released = [[rows * 384, cols * 384] for rows in range(1, 7) for cols in range(1, 7)]
    ours = pinpoint((width, height), [(cols, rows) for rows, cols in released])
    assert ours == tuple(reversed(select_best_resolution((height, width), released)))
    plan = layout((width, height), ours, 384, 27, 9)
    assert plan.visual_tokens == counted_by_transformers(height, width, released)


def counted_by_transformers(height: int, width: int, released: list[list[int]]) -> int:
    from transformers import LlavaOnevisionProcessor

    shell = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=released),
        num_image_tokens=729,
        vision_aspect_ratio="anyres_max_9",
        vision_feature_select_strategy="full",
    )
    shell._get_unpadded_features = LlavaOnevisionProcessor._get_unpadded_features.__get__(shell)
    return int(LlavaOnevisionProcessor._get_number_of_features(shell, height, width, 384, 384))


def test_tiles_one_by_one_give_the_same_features(folder: Path) -> None:
    models = [
        llava_onevision.load(
            TINY, Source("local", folder), Options(168, settings={**TINY.settings, "tiles_one_by_one": value})
        )
        for value in (False, True)
    ]
    with torch.inference_mode():
        prepared = models[0].prepare([images.blank((200, 100))])
        prepared.pixels["siglip"].copy_(torch.randn_like(prepared.pixels["siglip"]))
        batch, single = (model.encode("siglip", prepared) for model in models)
    torch.testing.assert_close(batch, single, atol=1e-5, rtol=0)
    seen = Seen((200, 100), (1, 1), 1, prepared.tiles, prepared.geometry.visual_tokens, 9)
    bytes_read = [model.work(seen)["encode"].weight_bytes for model in models]
    assert bytes_read[1] == prepared.tiles * bytes_read[0]


@pytest.mark.parametrize("only", ["siglip", "llm"])
def test_stages_alone(only: str, folder: Path) -> None:
    model = llava_onevision.load(TINY, Source("local", folder), Options(168, only=only, settings=TINY.settings))
    events = list(model.answer(Request((images.png(picture(100, 60)),), "t1", 2, ignore_eos=True)))
    stages = [event.stage for event in events if isinstance(event, Done)]
    assert stages == (["preprocess", "encode"] if only == "siglip" else ["preprocess", "project", "prefill"])
    assert list(model.parts) == (["siglip"] if only == "siglip" else ["projector", "llm"])


def test_both_layouts_of_names_are_read(folder: Path, tmp_path: Path, ours: LlavaOnevision) -> None:
    from safetensors.torch import load_file

    saved = load_file(folder / "model.safetensors")
    stem = {"language_model": "language_model", "lm_head": "language_model.lm_head"}
    old, new = {}, {}
    for name, tensor in saved.items():
        part, _, rest = name.removeprefix("model.").partition(".")
        inner = rest.removeprefix("model.").removeprefix("vision_model.")
        if part == "vision_tower":
            old[f"vision_tower.vision_model.{inner}"] = new[f"model.vision_tower.{inner}"] = tensor
        elif part == "language_model":
            old[f"{stem[part]}.model.{inner}"] = new[f"model.language_model.{inner}"] = tensor
        else:
            old[name.removeprefix("model.")] = new[f"model.{name.removeprefix('model.')}"] = tensor
    for kind, tensors in (("old", old), ("new", new)):
        path = tmp_path / kind
        path.mkdir()
        save_file(tensors, path / "model.safetensors")
        write_tokenizer(path)
        model = llava_onevision.load(TINY, Source("local", path), Options(336, settings=TINY.settings))
        for name, parameter in ours.parts.named_parameters():
            assert torch.equal(parameter, model.parts.get_parameter(name)), name

    old["vision_tower.vision_model.encoder.layers.0.mlp.fc9.bias"] = torch.zeros(3)
    del old["image_newline"]
    save_file(old, tmp_path / "old" / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing: projector.image_newline; 1 unexpected: .*fc9.bias"):
        llava_onevision.load(TINY, Source("local", tmp_path / "old"), Options(336, settings=TINY.settings))


@pytest.mark.parametrize(
    ("name", "total_m", "parts_m"),
    [("llava-onevision-0.5b", 893.7, {"siglip": 397.8, "llm": 494.1}), ("llava-onevision-7b", 8030.8, {})],
)
def test_parameters_and_work_of_the_full_models(name: str, total_m: float, parts_m: dict[str, float]) -> None:
    card = load_model_card(name)
    model = llava_onevision.load(card, Source("random"), Options(1152, "meta", "bfloat16", settings=card.settings))
    assert sum(parameter_count(part) for part in model.parts.values()) / 1e6 == pytest.approx(total_m, abs=0.06)
    for part, millions in parts_m.items():
        assert parameter_count(model.parts[part]) / 1e6 == pytest.approx(millions, abs=0.06)
    work = model.work(Seen((1152, 1152), (384, 3840), 1, 10, 7371, 40))
    llm = card.llm
    assert llm
    # the measured figures take half of attention's square, which is what a causal kernel does; our counter takes all
    causal = work["prefill"].flops - llm.layers * 2 * 7411**2 * llm.hidden
    assert (work["encode"].flops + work["project"].flops) / 1e12 == pytest.approx(
        {"llava-onevision-0.5b": 6.44, "llava-onevision-7b": 6.66}[name], abs=0.01
    )
    assert causal / 1e12 == pytest.approx({"llava-onevision-0.5b": 7.67, "llava-onevision-7b": 108}[name], rel=0.005)


def test_what_it_cannot_take() -> None:
    model = counting(384)
    with pytest.raises(ExampleError, match="one image, the example has 2"):
        model.prepare([images.blank((10, 10))] * 2)
    options = Options(336, "meta", settings={**TINY.settings, "native_size": True})
    thin = llava_onevision.load(TINY, Source("random"), options)  # an even grid; of 27 rows one is always left
    with pytest.raises(ExampleError, match="too thin"):
        thin.prepare([images.blank((4000, 1))])


def test_templates_are_as_published() -> None:
    from harness.models.families.llava_onevision import TEMPLATES

    whole = {name: "<image>".join(template("Q?")) for name, template in TEMPLATES.items()}
    assert whole == {
        "qwen_1_5": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image>\nQ?<|im_end|>\n<|im_start|>assistant\n",
        "chatml": "<|im_start|>user\n<image>\nQ?<|im_end|>\n<|im_start|>assistant\n",
        "llava_hf": "<|im_start|>user <image>\nQ?<|im_end|><|im_start|>assistant\n",
    }


@pytest.mark.parametrize("size", [(188, 423), (376, 846), (423, 188), (846, 752)])
def test_rows_of_padding_are_counted_in_exact_numbers(size: tuple[int, int]) -> None:
    """`27 * (188 / 423)` is 12, but comes out a hair below it: unrounded, one row of padding too few is taken off."""
    width, height = size
    plan = layout(size, (384, 384), 384, 27, 9)
    longer, shorter = max(size), min(size)
    assert 27 * shorter % longer == 0
    assert max(plan.top, plan.left) == (27 - 27 * shorter // longer) // 2
    assert (plan.top > 0) == (width > height)


def lmms_lab(name: str) -> str:
    """Return the name that LLaVA-NeXT's own checkpoints give a tensor of transformers' layout."""
    name = name.removeprefix("model.") if "language_model" not in name else name
    if "language_model." in name:
        inner = name.partition("language_model.")[2]
        return inner if inner.startswith(("model.", "lm_head")) else f"model.{inner}"
    if name.startswith("vision_tower."):
        inner = name.removeprefix("vision_tower.").removeprefix("vision_model.")
        return f"model.vision_tower.vision_tower.vision_model.{inner}"
    if "multi_modal_projector.linear_" in name:
        number, kind = name.partition("linear_")[2].split(".")
        return f"model.mm_projector.{2 * int(number) - 2}.{kind}"
    return f"model.{name}" if name == "image_newline" else name


def test_lmms_labs_own_layout_gives_the_same_tensors_and_its_configuration_counts(
    folder: Path, ours: LlavaOnevision, tmp_path: Path
) -> None:
    tensors = {lmms_lab(name): tensor() for name, tensor in Tensors(folder).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    write_tokenizer(tmp_path)
    said = {"model_type": "llava_qwen", "image_aspect_ratio": "anyres_max_4", "image_grid_pinpoints": "(1x1),...,(2x3)"}
    (tmp_path / "config.json").write_text(json.dumps(said))
    options = Options(side=336, settings={**TINY.settings, "native_size": True})
    model = llava_onevision.load(TINY, Source("local", tmp_path), options)
    assert isinstance(model, LlavaOnevision)
    theirs = model.parts.state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.parts.state_dict().items())
    side = model.tile_side
    assert model.largest_tiles == 4
    assert model.pinpoints == [(a * side, b * side) for a in (1, 2) for b in (1, 2, 3)]
    assert "anyres_max (tiles): card 9, checkpoint 4" in model.describe()["configuration"]
