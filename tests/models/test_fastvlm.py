"""FastVLM against the original implementation's outputs, and what its adapter promises."""

import hashlib
import importlib.util
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import msgspec
import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from harness import images
from harness.clock import Monotonic
from harness.errors import ExampleError, OutputError, SettingError, UnknownName, WeightsError
from harness.machine.devices import fake
from harness.measure.passes import Bench, failed_stage, time_stages, time_whole
from harness.models.card import Llm, ModelCard, load_model_card
from harness.models.families import fastvlm
from harness.models.protocol import Done, Options, Piece, Request, Seen
from harness.models.weights import Source

NAMES = ("0.5b", "1.5b", "7b", "vicuna-7b", "0.5b-dynamic", "1.5b-dynamic", "7b-dynamic")


def png(width: int, height: int, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return images.png(Image.fromarray(pixels))


def events_of(model: Any, request: Request) -> list[Any]:
    return list(model.answer(request))


# --- parity with apple/ml-fastvlm ---


class Original(NamedTuple):
    """The full-size encoder and a small Qwen2, loaded from files in Apple's layout, and the original's outputs."""

    model: fastvlm.FastVlm
    outputs: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def original(shared: Path, tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Iterator[Original]:
    path = shared / "fixtures" / "fastvlm_recipe.safetensors"
    with safe_open(path, "pt") as file:
        told = file.metadata()
    recipe = load_module(shared / "fixtures" / "recipe.py")
    shapes = {name: tuple(shape) for name, shape in json.loads(told["shapes"]).items()}
    arrays = recipe.weights(shapes, int(told["seed"]))
    folder = tmp_path_factory.mktemp("llava-fastvithd")
    names = sorted(arrays)
    index = {}
    for shard, part in enumerate((names[::2], names[1::2])):  # two shards, as the larger models have
        file_name = f"model-{shard + 1:05}-of-00002.safetensors"
        save_file({name: torch.from_numpy(arrays[name]) for name in part}, folder / file_name)
        index |= dict.fromkeys(part, file_name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = json.loads(told["config"])
    (folder / "config.json").write_text(json.dumps(config))
    tiny.write_qwen2_tokenizer(folder)
    small = Llm(
        kind="qwen2",
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        ffn=config["intermediate_size"],
        vocab=config["vocab_size"],
        rope_theta=config["rope_theta"],
        rms_eps=config["rms_norm_eps"],
        positions=config["max_position_embeddings"],
    )
    card = msgspec.structs.replace(load_model_card("fastvlm-0.5b"), llm=small)
    model = fastvlm.load(card, Source("local", folder), Options(256))
    assert isinstance(model, fastvlm.FastVlm)
    yield Original(model, load_file(path))
    model.close()


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepared(pixels: torch.Tensor) -> fastvlm.Prepared:
    return fastvlm.Prepared({"fastvithd": pixels}, (1, 1), (1, 1), 1, len(pixels))


@pytest.fixture(params=[False, True], ids=["contiguous", "channels_last"])
def laid_out(original: Original, request: pytest.FixtureRequest) -> Iterator[Original]:
    """The same model with its encoder in either memory format."""
    original.model.lay_out(request.param)
    yield original
    original.model.lay_out(False)


@pytest.mark.parametrize("case", ["case0", "case1"])
@torch.inference_mode()
def test_every_step_equals_the_original(laid_out: Original, case: str) -> None:
    model, outputs = laid_out
    of = {name.removeprefix(f"{case}/"): value for name, value in outputs.items() if name.startswith(case)}
    ids = of["input_ids"][0].tolist()
    cut = ids.index(-200)

    given = model.laid_out(prepared(of["pixels"]))
    features = model.encode("fastvithd", given)
    visual = model.project({"fastvithd": features}, given)
    embeds = model.embed(visual, ids[:cut], ids[cut + 1 :])
    close(features, of["features"])
    close(visual, of["projected"][0])
    close(embeds, of["inputs_embeds"])

    close(model.parts["llm"](inputs_embeds=embeds).logits, of["logits"])
    output = model.prefill(embeds, model.prefill_scope({}, given, cut))
    close(output.logits[0, -1], of["logits"][0, -1])
    made = [int(output.logits[0, -1].argmax())]
    while len(made) < of["generated"].shape[1]:
        output = model.parts["llm"](input_ids=torch.tensor([[made[-1]]]), cache=output.cache)
        made.append(int(output.logits[0, -1].argmax()))
    assert made == of["generated"][0].tolist()


@torch.inference_mode()
def test_the_encoder_equals_the_original_on_an_oblong(laid_out: Original) -> None:
    model, outputs = laid_out
    close(model.encode("fastvithd", model.laid_out(prepared(outputs["encoder0/pixels"]))), outputs["encoder0/features"])


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) < 1e-4


def test_the_projection_of_clip_is_known_and_everything_else_is_used(original: Original) -> None:
    tower = original.model.parts["fastvithd"]
    assert sum(p.numel() for p in tower.parameters()) == 122_714_208
    assert original.model.rename(fastvlm.TOWER + "head.proj") is None


@pytest.mark.parametrize("size", ["640x480", "301x533"])
def test_pixels_equal_the_original_processor(original: Original, shared: Path, size: str) -> None:
    made = load_file(shared / "fixtures" / "fastvlm_preprocess.safetensors")
    with safe_open(shared / "fixtures" / "fastvlm_preprocess.safetensors", "pt") as file:
        digests = json.loads(file.metadata()["sha256_of_levels"])
    picture = images.decode(images.png(Image.fromarray(made[f"{size}/image"].numpy())))
    pixels = original.model.prepare([picture]).pixels["fastvithd"]
    assert torch.equal(pixels, made[f"{size}/pixels_256"])
    levels = images.pad_and_resize(picture.image, fastvlm.BLACK, 1024)
    channels_first = np.ascontiguousarray(np.asarray(levels).transpose(2, 0, 1))
    assert hashlib.sha256(channels_first.tobytes()).hexdigest() == digests[f"{size}/1024"]
    pixels_1024 = torch.from_numpy(images.normalise(levels))
    corners, crops = made[f"{size}/crop_top_left_1024"].tolist(), made[f"{size}/crops_1024"]
    assert all(
        torch.equal(pixels_1024[:, y : y + 64, x : x + 64], crop) for (y, x), crop in zip(corners, crops, strict=True)
    )


# --- dynamic 2x2 ---

ANYRES = {  # SHA-256 of the five uint8 images of 256 x 256 that ml-fastvlm's `process_anyres_image` makes of these
    "640x480": "51ffb7a01476b9c63dd7f1e9cf153bdb8b2e82d524cb9393039974f7fcb8fcaa",
    "301x533": "1c27e152470146813aecbaf12ab17b516fe6c80fc9166742ae22f994e4c46b27",
}
ANYRES_BEFORE_PILLOW_13 = {
    **ANYRES,
    # Pillow 13 makes the overview (301 x 533 to 256 x 256) with up to 8 levels of difference in a fifth of the values;
    # the tiles are the same. What the released code makes with an older Pillow is another image.
    "301x533": "72a490513c8668780813d33fc2b80e8bbbf7524592f8371620399ff8f00c1f57",
}


@pytest.fixture(scope="module")
def tiny_card(tiny_fastvlm: Any) -> ModelCard:
    return load_model_card(str(tiny_fastvlm.card))


def tiled(card: ModelCard, source: Source, **settings: str | int | float | bool) -> fastvlm.FastVlm:
    model = fastvlm.load(card, source, Options(512, settings={"tiles": 2, **settings}))
    assert isinstance(model, fastvlm.FastVlm)
    return model


@pytest.mark.parametrize("size", list(ANYRES))
def test_tiles_are_those_of_the_released_codes_anyres(
    tiny_card: ModelCard, tiny_fastvlm: Any, shared: Path, size: str
) -> None:
    made = load_file(shared / "fixtures" / "fastvlm_preprocess.safetensors")
    picture = images.decode(images.png(Image.fromarray(made[f"{size}/image"].numpy())))
    model = tiled(tiny_card, Source("local", tiny_fastvlm.weights))
    shown = model.prepare([picture])
    wanted = ANYRES if int(PIL.__version__.partition(".")[0]) >= 13 else ANYRES_BEFORE_PILLOW_13
    levels = (shown.pixels["fastvithd"].permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    assert hashlib.sha256(np.ascontiguousarray(levels).tobytes()).hexdigest() == wanted[size]


def test_dynamic_runs_the_encoder_five_times_and_keeps_the_tiles_order(tiny_card: ModelCard, tiny_fastvlm: Any) -> None:
    model = tiled(tiny_card, Source("local", tiny_fastvlm.weights))
    passes = []
    tower = model.parts["fastvithd"]
    tower.stem.register_forward_hook(lambda module, given, output: passes.append(tuple(given[0].shape)))
    with torch.inference_mode():
        shown = model.prepare([images.decode(png(640, 480))])
        features = model.encode("fastvithd", shown)
        visual = model.project({"fastvithd": features}, shown)
    assert passes == [(1, 3, 256, 256)] * 5
    assert model.feature_shapes(shown) == {"fastvithd": tuple(features.shape)} == {"fastvithd": (5, 16, 128)}
    assert visual.shape == (80, 64)
    alone = model.parts["projector"](features[3])
    assert torch.allclose(visual[48:64], alone, atol=1e-6)
    seen = next(e for e in events_of(model, Request((png(640, 480),), "What?", 1)) if isinstance(e, Seen))
    assert (seen.tiles, seen.visual_tokens, seen.processed_px) == (5, 80, (256, 1280))
    assert seen.content_px == 256 * 256 + 512 * 384


def test_the_dynamic_card_has_the_papers_counts() -> None:
    card = load_model_card("fastvlm-0.5b-dynamic")
    model = fastvlm.load(card, Source("random"), Options(2048, device="meta", dtype="bfloat16"))
    one = fastvlm.load(
        load_model_card("fastvlm-0.5b"), Source("random"), Options(1024, device="meta", dtype="bfloat16")
    )
    seen = Seen((2000, 1500), (1024, 5120), 1, 5, 1280, 24)
    work, work_of_one = model.work(seen), one.work(replace_tokens(seen, 256))
    assert isinstance(model, fastvlm.FastVlm)
    assert model.feature_shapes(prepared(torch.empty(5, 3, 1024, 1024, device="meta"))) == {"fastvithd": (5, 256, 3072)}
    assert work["encode"].flops == 5 * work_of_one["encode"].flops
    assert work["encode"].weight_bytes == 5 * 2 * 122_714_208  # the weights are read for each tile
    assert work_of_one["encode"].flops == pytest.approx(486.7e9, rel=1e-3)  # as counted from the original
    assert work_of_one["prefill"].flops == pytest.approx(207e9, rel=2e-3)


def replace_tokens(seen: Seen, tokens: int) -> Seen:
    return seen._replace(visual_tokens=tokens, tiles=1)


# --- prompt, ids, answers ---


def test_the_prompt_is_qwen_2_around_the_image(tiny_card: ModelCard, tiny_fastvlm: Any, tiny: ModuleType) -> None:
    model = fastvlm.load(tiny_card, Source("local", tiny_fastvlm.weights), Options(64))
    assert isinstance(model, fastvlm.FastVlm)
    before, after = model.prompt("What are these?")
    tokenizer = tiny.qwen2_tokenizer()
    text = tokenizer.decode(before, skip_special_tokens=False), tokenizer.decode(after, skip_special_tokens=False)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "\nWhat are these?<|im_end|>\n<|im_start|>assistant\n",
    )
    start, end = tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")
    assert [i for i in before + after if i >= start] == [start, end, start, end, start]  # special, and nothing added


def test_vicuna_has_a_bos_and_its_own_template(tiny_card: ModelCard, tiny_fastvlm: Any) -> None:
    assert tiny_card.llm
    llm = msgspec.structs.replace(tiny_card.llm, bos=1)
    card = msgspec.structs.replace(tiny_card, prompt="vicuna_v1", llm=llm)
    model = fastvlm.load(card, Source("random", tiny_fastvlm.weights), Options(64))
    assert isinstance(model, fastvlm.FastVlm)
    before, after = model.prompt("Who?")
    assert before[0] == 1
    assert model.tokenizer.decode(before[1:]).endswith("polite answers to the user's questions. USER: ")
    assert model.tokenizer.decode(after) == "\nWho? ASSISTANT:"


def test_an_answer_is_a_stream_of_text_and_the_same_each_time(tiny_card: ModelCard, tiny_fastvlm: Any) -> None:
    model = fastvlm.load(tiny_card, Source("local", tiny_fastvlm.weights), Options(256))
    request = Request((png(300, 200),), "What is the date?", max_new_tokens=8, ignore_eos=True)
    first, second = events_of(model, request), events_of(model, request)
    assert first == second
    assert [e.stage for e in first if isinstance(e, Done)] == ["preprocess", "encode", "project", "prefill"]
    assert len([e for e in first if isinstance(e, Piece)]) == 8
    other = events_of(model, replace(request, images=(images.png(Image.linear_gradient("L").convert("RGB")),)))
    assert [e for e in other if isinstance(e, Piece)] != [e for e in first if isinstance(e, Piece)]  # it looks


def test_bare_visual_tokens_for_the_papers_prefill(tiny_card: ModelCard, tiny_fastvlm: Any) -> None:
    model = fastvlm.load(tiny_card, Source("local", tiny_fastvlm.weights), Options(256))
    request = Request((png(64, 64),), "?", max_new_tokens=1, visual_only=True)
    seen = next(e for e in events_of(model, request) if isinstance(e, Seen))
    assert (seen.visual_tokens, seen.text_tokens) == (16, 0)


def test_the_llm_alone_takes_stand_in_features(tiny_card: ModelCard, tiny_fastvlm: Any) -> None:
    model = fastvlm.load(tiny_card, Source("local", tiny_fastvlm.weights), Options(256, only="llm"))
    assert isinstance(model, fastvlm.FastVlm)
    assert sorted(model.parts) == ["llm", "projector"]
    seen = next(e for e in events_of(model, Request((png(64, 64),), "?", 1)) if isinstance(e, Seen))
    assert seen.visual_tokens == 16


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("at", "stage"), [(0, "prefill"), (2, "decode")])
def test_logits_that_are_not_finite_are_no_answer(
    bad: float, at: int, stage: str, tiny_card: ModelCard, tiny_fastvlm: Any
) -> None:
    """One such number in the vocabulary, at the first token or a later one: the pass is refused, and told where."""
    model = fastvlm.load(tiny_card, Source("local", tiny_fastvlm.weights), Options(256))
    bench = Bench(fake.open("fake", Monotonic()), Monotonic())
    request = Request((png(64, 64),), "What is the date?", max_new_tokens=4, ignore_eos=True)
    llm, calls = model.parts["llm"], 0

    def poison(module: Any, given: Any, output: Any) -> None:
        nonlocal calls
        if calls % 4 == at:
            output.logits[0, -1, 7] = bad
        calls += 1

    hook = llm.register_forward_hook(poison)
    for run in (time_whole, time_stages):
        with pytest.raises(OutputError, match=rf"logits of token {at + 1} that are not finite.*next:") as raised:
            run(model, request, bench)
        assert failed_stage(raised.value) == stage
    hook.remove()
    time_whole(model, request, bench)


def test_features_of_an_encoder_alone_that_are_not_finite_are_refused(tiny_card: ModelCard, tiny_fastvlm: Any) -> None:
    model = fastvlm.load(tiny_card, Source("local", tiny_fastvlm.weights), Options(256, only="fastvithd"))
    model.encode = lambda name, prepared: torch.full((1, 16, 8), float("nan"))
    bench = Bench(fake.open("fake", Monotonic()), Monotonic())
    with pytest.raises(OutputError, match="features that are not finite"):
        time_stages(model, Request((png(64, 64),), "?", 1), bench)


def test_two_images_are_a_failed_example(tiny_card: ModelCard, tiny_fastvlm: Any) -> None:
    model = fastvlm.load(tiny_card, Source("local", tiny_fastvlm.weights), Options(64))
    for given in ((), (png(8, 8), png(8, 8))):
        with pytest.raises(ExampleError, match="made for one"):
            events_of(model, Request(given, "?"))


# --- what it refuses ---


def test_sides_and_settings_that_do_not_fit_are_named() -> None:
    card, dynamic = load_model_card("fastvlm-0.5b"), load_model_card("fastvlm-0.5b-dynamic")
    with pytest.raises(SettingError, match="nearest: 960 or 1024"):
        fastvlm.load(card, Source("random"), Options(1000, device="meta"))
    with pytest.raises(SettingError, match=r"multiples of 128.*nearest: 1024 or 1152"):
        fastvlm.load(dynamic, Source("random"), Options(1088, device="meta"))
    with pytest.raises(SettingError, match="multiple of 192"):
        fastvlm.load(dynamic, Source("random"), Options(1024, device="meta", settings={"tiles": 3}))
    with pytest.raises(UnknownName, match="did you mean 'tiles'"):
        fastvlm.load(card, Source("random"), Options(1024, device="meta", settings={"tile": 2}))
    with pytest.raises(SettingError, match="no part 'siglip'; parts: fastvithd, llm"):
        fastvlm.load(card, Source("random"), Options(1024, device="meta", only="siglip"))


def test_a_checkpoint_without_a_tokenizer_says_so(tiny_card: ModelCard, tiny: ModuleType, tmp_path: Path) -> None:
    weights, _ = tiny.write_fastvlm(tmp_path)
    (weights / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match="has no tokenizer"):
        fastvlm.load(tiny_card, Source("local", weights), Options(64))
    model = fastvlm.load(tiny_card, Source("random", weights), Options(64))
    assert "stand-in" in model.describe()["tokenizer"]


@pytest.mark.parametrize("head", ["equal", "different"])
def test_a_tied_model_may_repeat_its_embeddings_but_not_contradict_them(
    tiny_card: ModelCard, tiny: ModuleType, tmp_path: Path, head: str
) -> None:
    weights, _ = tiny.write_fastvlm(tmp_path)
    tensors = load_file(weights / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + (head == "different")
    save_file(tensors, weights / "model.safetensors")
    if head == "different":
        with pytest.raises(WeightsError, match=r"lm_head\.weight"):
            fastvlm.load(tiny_card, Source("local", weights), Options(64))
    else:
        fastvlm.load(tiny_card, Source("local", weights), Options(64))


def test_the_training_form_is_another_network_of_the_same_outputs_shape(tiny_card: ModelCard) -> None:
    released = fastvlm.load(tiny_card, Source("random"), Options(128))
    training = fastvlm.load(tiny_card, Source("random"), Options(128, settings={"reparameterised": False}))
    assert isinstance(released, fastvlm.FastVlm)
    assert isinstance(training, fastvlm.FastVlm)
    norms = [
        sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.parts["fastvithd"].modules())
        for model in (released, training)
    ]
    assert norms[0] == 5  # one in each block's feed-forward part, even re-parameterised
    assert norms[1] > 3 * norms[0]
    with torch.inference_mode():
        shown = released.prepare([images.decode(png(64, 64))])
        assert released.encode("fastvithd", shown).shape == training.encode("fastvithd", shown).shape
    with pytest.raises(SettingError, match="re-parameterised"):
        fastvlm.load(tiny_card, Source("local", Path()), Options(128, settings={"reparameterised": False}))


# --- the cards ---


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_the_model_it_names(name: str) -> None:
    card = load_model_card(f"fastvlm-{name}")
    model = fastvlm.load(card, Source("random"), Options(card.resolution.default, device="meta", dtype="bfloat16"))
    assert isinstance(model, fastvlm.FastVlm)
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in model.parts.items()}
    published = {  # Qwen2's and Vicuna's own model cards; FastViTHD is 125.1 M with the projection that is not run
        "0.5b": 494_032_768,
        "1.5b": 1_543_714_304,
        "7b": 7_615_616_512,
        "vicuna-7b": 6_738_415_616,
    }
    assert counts["llm"] == published[name.removesuffix("-dynamic")]
    assert counts["fastvithd"] + 3072 * 768 == pytest.approx(card.published.params_m["encoder"] * 1e6, rel=1e-3)
    assert card.resolution.default == (2048 if "dynamic" in name else 1024)
    picture = images.blank((1000, 800))
    shape = model.feature_shapes(model.prepare([picture]))["fastvithd"]
    assert shape[0] * shape[1] == (1280 if "dynamic" in name else 256)


def test_the_stand_in_makes_as_long_a_prompt_as_qwen2s_own_tokenizer() -> None:
    model = fastvlm.load(load_model_card("fastvlm-0.5b"), Source("random"), Options(64, device="meta"))
    assert isinstance(model, fastvlm.FastVlm)
    before, after = model.prompt("What are these?")
    assert len(before) + len(after) == 24  # counted with Apple's tokenizer


def test_a_file_is_decoded_before_it_is_shown(tiny_card: ModelCard, tiny_fastvlm: Any) -> None:
    model = fastvlm.load(tiny_card, Source("local", tiny_fastvlm.weights), Options(64))
    file = io.BytesIO()
    Image.new("CMYK", (40, 20), (0, 255, 255, 0)).save(file, "JPEG", quality=100)
    seen = next(e for e in events_of(model, Request((file.getvalue(),), "?", 1)) if isinstance(e, Seen))
    assert seen.conversions == ("CMYK to RGB",)
    assert (seen.original_px, seen.content_px) == ((40, 20), 64 * 32)
