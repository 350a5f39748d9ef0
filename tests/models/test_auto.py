"""Any vision-language model of transformers: our stages, and the very logits of its own `generate`."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_vlms
import torch
from PIL import Image
from transformers import AutoModelForMultimodalLM

from harness import cards, images, plugins
from harness.clock import Monotonic
from harness.errors import ExampleError, MissingPackage, OutputError, SettingError, UnknownName, WeightsError
from harness.machine.devices import cpu, fake
from harness.measure import passes
from harness.measure.passes import Bench, failed_stage, time_stages, time_whole
from harness.models import pipeline
from harness.models.card import Encoder, Llm, ModelCard, Resolution, load_model_card
from harness.models.engines import torch as torch_engine
from harness.models.families import auto
from harness.models.families.auto import kinds, loading, parts, resolution, stand_in
from harness.models.families.auto.answering import SETTINGS, AnyModel
from harness.models.protocol import Done, Options, Piece, Request, Seen
from harness.models.weights import Source

STEPS = 8
QUESTION = "What is the total?"


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write each family's tiny checkpoint once, when it is first asked for."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            try:
                made[name] = tiny_vlms.write(tmp_path_factory.mktemp(name), name)
            except MissingPackage as error:
                pytest.skip(str(error))
        return made[name]

    return get


def card(name: str, **fields: Any) -> ModelCard:
    side = tiny_vlms.FAMILIES[name].side if name in tiny_vlms.FAMILIES else 56
    rule = Resolution(rule="any", default=side)
    known = {"title": name, "adapter": "auto", "license": "none", "resolution": rule, "settings": SETTINGS}
    return ModelCard(name=name, **{**known, **fields})


def model(folder: Path, name: str, side: int | None = None, **settings: Any) -> AnyModel:
    side = side or tiny_vlms.FAMILIES[name].side
    loaded = auto.load(card(name), Source("local", folder), Options(side, settings=settings))
    assert isinstance(loaded, AnyModel)
    return loaded


def page(seed: int, size: tuple[int, int] = (150, 190)) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    pixels = (torch.rand((size[1], size[0], 3), generator=generator) * 255).byte().numpy()
    return images.png(Image.fromarray(pixels))


def request(*pictures: bytes, tokens: int = STEPS) -> Request:
    return Request(pictures, QUESTION, tokens, ignore_eos=True)


def answered(one: AnyModel, asked: Request) -> SimpleNamespace:
    """Answer, and keep the logits of each step, what was yielded and what was told."""
    logits: list[torch.Tensor] = []
    heard: list[str] = []
    kept = one.model.register_forward_hook(lambda module, given, output: logits.append(output.logits[0, -1].float()))
    one.hear = lambda event: heard.append(f"({event.stage})")
    events = []
    try:
        for event in one.answer(asked):
            events.append(event)
            if isinstance(event, Done):
                heard.append(event.stage)
    finally:
        one.hear = None
        kept.remove()
    seen = next(event for event in events if isinstance(event, Seen))
    return SimpleNamespace(logits=torch.stack(logits), heard=heard, seen=seen, events=events)


def generated(one: AnyModel, asked: Request) -> torch.Tensor:
    """Return the logits of transformers' own `generate` for the same request."""
    inputs, _ = one.prepare(asked)
    inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    told = one.model.generate(
        **inputs,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        do_sample=False,
        num_beams=1,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.stack([step[0].float() for step in told.logits])


SPLIT = ["preprocess", "(encode)", "project", "prefill"]
TOLD = ["preprocess", "(encode)", "(project)", "prefill"]
STAGES = {
    "mllama": TOLD,
    "florence2": TOLD,
    "phi4_multimodal": ["preprocess", "(encode+project)", "prefill"],
}


@pytest.mark.parametrize("name", tiny_vlms.FAMILIES)
def test_logits_are_those_of_generate_and_the_image_moves_them(name: str, checkpoints: Any) -> None:
    one = model(checkpoints(name), name)
    first = answered(one, request(page(1)))
    other = answered(one, request(page(2)))
    again = answered(one, request(page(1)))
    theirs = generated(one, request(page(1)))
    assert first.logits.shape == theirs.shape
    assert (first.logits - theirs).abs().max().item() == 0.0
    assert torch.equal(first.logits.argmax(-1), theirs.argmax(-1))
    assert torch.equal(first.logits, again.logits), "an image in between left something behind"
    assert (first.logits[0] - other.logits[0]).abs().max() > 1e-4
    assert first.heard == STAGES.get(name, SPLIT)
    assert first.seen.visual_tokens > 0
    assert first.seen.tiles > 0
    assert first.seen.processed_px[0] * first.seen.processed_px[1] >= first.seen.content_px > 0
    work = one.work(first.seen)
    stages = [stage.strip("()") for stage in first.heard if stage != "preprocess"]
    assert list(work) == stages
    assert all(counted.flops > 0 for counted in work.values())
    assert one.describe()["route"] == "auto"


def test_the_stage_pass_hears_what_the_whole_pass_does_not(checkpoints: Any) -> None:
    one, clock = model(checkpoints("internvl"), "internvl"), Monotonic()
    bench = passes.Bench(cpu.open("cpu", clock), clock)
    stages, seen = passes.time_stages(one, request(page(1), tokens=2), bench)
    assert list(stages.stage_ns) == ["preprocess", "encode", "project", "prefill"]
    assert one.hear is None
    whole, _, _ = passes.time_whole(one, request(page(1), tokens=2), bench)
    assert whole.output_tokens == 2
    assert seen is not None


@pytest.mark.parametrize("name", ["qwen2_5_vl", "smolvlm", "llava_next", "gemma3"])
def test_several_images_are_shown_where_the_family_takes_them(name: str, checkpoints: Any) -> None:
    one = model(checkpoints(name), name)
    single = answered(one, request(page(1)))
    both = answered(one, request(page(1), page(2, (190, 90))))
    assert both.seen.tiles > single.seen.tiles
    assert both.seen.visual_tokens > single.seen.visual_tokens
    assert "2 images" in both.seen.note
    twins = answered(one, request(page(1), page(2))).seen
    assert one.work(twins)["encode"].flops == pytest.approx(2 * one.work(single.seen)["encode"].flops, rel=0.01)
    same = one.work(both.seen)["encode"].flops == one.work(twins)["encode"].flops
    assert same is (both.seen.visual_tokens == twins.visual_tokens), "each image counts at its own size"
    assert (both.logits - generated(one, request(page(1), page(2, (190, 90))))).abs().max().item() == 0.0


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "mllama", "internvl"])
@pytest.mark.parametrize("size", [(150, 190), (200, 60)])
def test_padding_is_no_content(name: str, size: tuple[int, int], checkpoints: Any) -> None:
    """Of a white image, the white pixels that the encoder gets are counted by looking at all of them."""
    one = model(checkpoints(name), name)
    inputs, seen = one.prepare(request(images.png(Image.new("RGB", size, (255, 255, 255)))))
    pixels = inputs["pixel_values"]
    first = pixels.reshape(-1, *pixels.shape[-3:])[:, 0]
    assert seen.content_px == int((first == first.max()).sum())
    assert (seen.content_px < first.numel()) == (name != "internvl")


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_the_papers_protocol_has_visual_tokens_alone_or_is_refused(name: str, checkpoints: Any) -> None:
    one = model(checkpoints(name), name)
    asked = Request((page(1),), QUESTION, 1, ignore_eos=True, visual_only=True)
    if name == "llava":
        inputs, seen = one.prepare(asked)
        assert (seen.text_tokens, set(inputs["input_ids"][0].tolist())) == (0, {500})
    else:  # its marks around the image are part of how positions are found
        with pytest.raises(SettingError, match=r"--protocol paper: qwen2_5_vl has 2 marks .*--protocol ttft"):
            one.prepare(asked)


def test_a_family_made_for_one_image_refuses_two(checkpoints: Any) -> None:
    one = model(checkpoints("florence2"), "florence2")
    with pytest.raises(ExampleError, match="2 images"):
        list(one.answer(request(page(1), page(2))))


def test_a_projector_can_be_named_and_a_wrong_name_is_guessed(checkpoints: Any) -> None:
    one = model(checkpoints("phi4_multimodal"), "phi4_multimodal", projector="model.embed_tokens_extend.image_embed")
    assert one.describe()["projector"] == "model.embed_tokens_extend.image_embed"
    with pytest.raises(UnknownName, match="multi_modal_projector"):
        model(checkpoints("llava"), "llava", projector="model.multi_modal_projektor")


def test_a_prompt_longer_than_the_positions_is_refused(checkpoints: Any) -> None:
    one = model(checkpoints("llava"), "llava")
    one.positions = 10
    with pytest.raises(ExampleError, match="exceed the 10 positions"):
        list(one.answer(request(page(1))))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("at", "stage"), [(0, "prefill"), (2, "decode")])
def test_logits_that_are_not_finite_are_no_answer(bad: float, at: int, stage: str, checkpoints: Any) -> None:
    """One such number in the vocabulary, at the first token or a later one: the pass is refused, and told where."""
    one, calls = model(checkpoints("llava"), "llava"), 0
    bench = Bench(fake.open("fake", Monotonic()), Monotonic())

    def poison(module: Any, given: Any, output: Any) -> None:
        nonlocal calls
        if calls % STEPS == at:
            output.logits[0, -1, 7] = bad
        calls += 1

    hook = one.model.register_forward_hook(poison)
    for run in (time_whole, time_stages):
        with pytest.raises(OutputError, match=rf"logits of token {at + 1} that are not finite.*next:") as raised:
            run(one, request(page(1)), bench)
        assert failed_stage(raised.value) == stage
    hook.remove()
    time_whole(one, request(page(1)), bench)


def test_what_generate_would_do_to_logits_and_we_do_not_is_a_doubt(checkpoints: Any, tmp_path: Path) -> None:
    """Qwen2.5-VL's own generation_config.json has a repetition penalty; lmms-eval scores with it."""
    for path in checkpoints("qwen2_5_vl").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    plain = model(tmp_path, "qwen2_5_vl")
    assert plain.describe()["decoding"] == "greedy"
    assert plain.doubts == ()
    file = tmp_path / "generation_config.json"
    stated = json.loads(file.read_text()) if file.is_file() else {}
    penalty = {"repetition_penalty": 1.05, "do_sample": True, "temperature": 0.1, "no_repeat_ngram_size": 0}
    file.write_text(json.dumps(stated | penalty))
    penalised = model(tmp_path, "qwen2_5_vl")
    assert penalised.describe()["decoding"] == "greedy; not applied: repetition_penalty 1.05"
    assert len(penalised.doubts) == 1
    assert "repetition_penalty 1.05 of the checkpoint's generation_config.json is not applied" in penalised.doubts[0]


def test_a_missing_tensor_is_named(checkpoints: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in checkpoints("llava").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in tensors if "projector" in name)
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"1 missing: .*projector"):
        model(tmp_path, "llava")


def test_random_weights_of_a_card_need_no_folder() -> None:
    tiny = tiny_vlms.FAMILIES["qwen2_5_vl"]
    fields = {"config": {"model_type": "qwen2_5_vl", **tiny.config}, "processor": {"images": tiny.images}}
    for dtype in ("float32", "bfloat16"):
        one = auto.load(card("qwen2_5_vl", **fields), Source("random"), Options(56, dtype=dtype))
        events = list(one.answer(request(page(1), tokens=3)))
        assert len([event for event in events if isinstance(event, Piece)]) == 3
        assert one.describe()["template"] == "stand-in"
    with pytest.raises(SettingError, match=r"cards with a \[config\]"):
        auto.load(card("bare"), Source("random"), Options(56))


RELEASED = {
    "qwen2_5_vl": ({}, {}, (80, 320, 744, 1312, 2976)),
    "qwen3_vl": (
        {"patch_size": 16, "size": {"shortest_edge": 65536, "longest_edge": 16777216}},
        {},
        (63, 252, 567, 1008, 2268),
    ),
    "pixtral": ({"patch_size": {"height": 16, "width": 16}}, {"patch_size": 16}, (208, 800, 1824, 3200, 7200)),
    "smolvlm": (
        {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
        {"image_seq_len": 64},
        (64, 64, 320, 320, 640),
    ),
    "idefics3": ({"size": {"longest_edge": 1456}}, {"image_seq_len": 169}, (169, 845, 1690, 1690, 3549)),
    "internvl": ({"size": {"height": 448, "width": 448}}, {}, (256, 256, 256, 1280, 1792)),
    "gemma4": ({}, {}, (63, 130, 266, 520, 1102)),
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_a_side_means_the_same_in_every_family(name: str) -> None:
    """Visual tokens of a page of 1700x2200 at five sides, with the released processors' settings."""
    settings, own, expected = RELEASED[name]
    config = tiny_vlms.configuration(name)
    try:
        processor = stand_in.processor(name, config, settings, own)
    except MissingPackage as error:
        pytest.skip(str(error))
    sheet = images.blank((1700, 2200)).image
    counts = []
    for side in (256, 512, 768, 1024, 1536):
        asked = resolution.asked(side, name, config, processor.image_processor)
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}]}], add_generation_prompt=True, tokenize=False
        )
        batch = processor(
            images=[asked.prepared(sheet)], text=[text], return_tensors="pt", images_kwargs=dict(asked.arguments)
        )
        counts.append(int((batch["input_ids"] == 500).sum()))
    assert tuple(counts) == expected


def test_a_processor_that_lacks_a_package_names_it() -> None:
    told = loading.stand_in.missing(ImportError("... requires num2words ..."), "smolvlm")
    assert "pip install num2words" in str(told)


def pixels(one: AnyModel) -> torch.Tensor:
    inputs, _ = one.prepare(request(page(1)))
    return torch.as_tensor(inputs["pixel_values"])


def test_images_are_resized_by_the_library_that_is_asked_for_and_the_log_names_it(checkpoints: Any) -> None:
    """Our families take PIL, transformers takes torchvision: whoever compares the two must be able to ask for one."""
    folder = checkpoints("qwen2_5_vl")
    usual, pil, other = (model(folder, "qwen2_5_vl", **more) for more in ({}, PIL, TORCHVISION))
    assert usual.describe()["image_backend"] == "torchvision, by Qwen2VLImageProcessor"
    assert other.describe()["image_backend"] == "torchvision, by Qwen2VLImageProcessor"
    assert pil.describe()["image_backend"] == "PIL, by Qwen2VLImageProcessorPil"
    assert type(pil.processor.tokenizer) is type(usual.processor.tokenizer)
    assert torch.equal(pixels(usual), pixels(other))
    apart = (pixels(usual) - pixels(pil)).abs()
    assert 0 < float(apart.mean()) < 0.05, "the same image, not to the bit"


PIL, TORCHVISION = {"image_backend": "pil"}, {"image_backend": "torchvision"}


def test_a_stand_in_is_resized_by_the_library_that_is_asked_for() -> None:
    tiny = tiny_vlms.FAMILIES["qwen2_5_vl"]
    fields = {"config": {"model_type": "qwen2_5_vl", **tiny.config}, "processor": {"images": tiny.images}}
    one = auto.load(card("qwen2_5_vl", **fields), Source("random"), Options(56, settings=PIL))
    assert one.describe()["image_backend"] == "PIL, by Qwen2VLImageProcessorPil"


def test_what_we_resize_before_the_processor_is_by_the_same_library(checkpoints: Any) -> None:
    """Families of rule `caller` get their longer side from us: by default that is PIL, before their torchvision."""
    folder = checkpoints("llava_next")
    told = {
        name: model(folder, "llava_next", 64, **more).describe()["image_backend"]
        for name, more in (("usual", {}), ("pil", PIL), ("torchvision", TORCHVISION))
    }
    assert told == {
        "usual": "PIL, then torchvision, by LlavaNextImageProcessor",
        "pil": "PIL, by LlavaNextImageProcessorPil",
        "torchvision": "torchvision, by LlavaNextImageProcessor",
    }
    one = model(folder, "llava_next", 64, **TORCHVISION)
    before = one.asked.prepared(images.decode(page(1)).image)
    with images.scaled_by(one.scaler):
        assert one.asked.prepared(images.decode(page(1)).image).tobytes() != before.tobytes()


def test_a_library_that_the_family_has_not_is_refused(checkpoints: Any) -> None:
    """Never torchvision's times under the name of PIL."""
    said = r"image_backend=pil: transformers has no such image processor for lfm2_vl: it gives Lfm2VlImageProcessor"
    with pytest.raises(SettingError, match=said):
        model(checkpoints("lfm2_vl"), "lfm2_vl", **PIL)
    tiny = tiny_vlms.FAMILIES["lfm2_vl"]
    fields = {"config": {"model_type": "lfm2_vl", **tiny.config}, "processor": {"images": tiny.images}}
    with pytest.raises(SettingError, match=said):
        auto.load(card("lfm2_vl", **fields), Source("random"), Options(tiny.side, settings=PIL))


def test_the_engine_hands_the_library_to_family_auto_alone(checkpoints: Any) -> None:
    source, settings = Source("local", checkpoints("qwen2_5_vl")), {**SETTINGS, **torch_engine.SETTINGS}
    one = torch_engine.load(card("qwen2_5_vl"), source, Options(56, settings={**settings, **PIL}))
    assert one.describe()["image_backend"] == "PIL, by Qwen2VLImageProcessorPil"
    one = torch_engine.load(card("qwen2_5_vl"), source, Options(56, settings=settings))
    assert one.describe()["image_backend"] == "torchvision, by Qwen2VLImageProcessor"


def test_both_routes_give_the_same_logits_of_onevision(checkpoints: Any) -> None:
    """The own adapter and transformers' code: one checkpoint, one prompt, pixels that need no resizing."""
    folder = checkpoints("llava_onevision")
    config = tiny_vlms.configuration("llava_onevision")
    llm = Llm(
        kind="qwen2", hidden=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=tiny_vlms.VOCAB, positions=8192,
        rope_theta=config.text_config.rope_parameters["rope_theta"], rms_eps=config.text_config.rms_norm_eps, eos=(2,),
    )  # fmt: skip
    tower = {"layers": 2, "heads": 4, "ffn": 48, "patch": 14}
    encoder = Encoder(
        name="siglip", library="transformers", architecture="SiglipVisionModel", width=32, side=56, settings=tower
    )
    settings = {"tiles_one_by_one": False, "native_size": False, "largest_grid": 2, "largest_tiles": 9}
    own_card = card(
        "llava_onevision", adapter="llava_onevision", encoders=(encoder,), llm=llm, prompt="chatml", settings=settings
    )
    own, theirs = both_routes(own_card, folder, 112, settings)
    own_logits, seen, told = answers_of(own, theirs, images.png(Image.new("RGB", (112, 112), (90, 140, 20))))
    assert told.seen.visual_tokens == seen.visual_tokens
    assert (told.seen.tiles, told.seen.processed_px) == (seen.tiles, seen.processed_px)
    assert (own_logits - told.logits).abs().max() < 1e-5


def test_both_routes_give_the_same_logits_of_llava(checkpoints: Any) -> None:
    """As for OneVision: a square image of the tower's own side, ids that no template has touched."""
    folder = checkpoints("llava")
    config = tiny_vlms.configuration("llava")
    llm = Llm(
        kind="llama", hidden=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=tiny_vlms.VOCAB, positions=8192,
        rope_theta=config.text_config.rope_parameters["rope_theta"], rms_eps=config.text_config.rms_norm_eps,
        bos=1, eos=(2,),
    )  # fmt: skip
    tower = {"layers": 2, "heads": 4, "ffn": 48, "patch": 14}
    encoder = Encoder(
        name="clip", library="transformers", architecture="CLIPVisionModel", width=32, side=56, settings=tower
    )
    settings = {"reduction": "none", "stand_in_tokens": 16}
    rule = Resolution(rule="fixed", default=56)
    own_card = card(
        "llava", adapter="llava", encoders=(encoder,), llm=llm, prompt="vicuna_v1", settings=settings, resolution=rule
    )
    own, theirs = both_routes(own_card, folder, 56, settings)
    own_logits, seen, told = answers_of(own, theirs, images.png(Image.new("RGB", (56, 56), (90, 140, 20))))
    assert told.seen.visual_tokens == seen.visual_tokens == 16
    assert (own_logits - told.logits).abs().max() < 1e-5


def test_both_routes_give_the_same_logits_of_fastvlm(checkpoints: Any) -> None:
    """As for LLaVA: a square image of the encoder's own side; timm's encoder under transformers, timm's under ours."""
    folder = checkpoints("fast_vlm")
    config = tiny_vlms.configuration("fast_vlm")
    llm = Llm(
        kind="qwen2", hidden=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab=tiny_vlms.VOCAB, positions=8192,
        rope_theta=config.text_config.rope_parameters["rope_theta"], rms_eps=config.text_config.rms_norm_eps, eos=(2,),
    )  # fmt: skip
    tower = {"layers": [1, 1, 1, 1, 1], "embed_dims": [16, 16, 32, 32, 64]}
    encoder = Encoder(name="fastvithd", library="timm", architecture="fastvit_mci3", width=128, settings=tower)
    settings = {"tiles": 1, "reparameterised": True}
    rule = Resolution(rule="multiple", of=64, minimum=64, maximum=1024, default=128)
    own_card = card(
        "fast_vlm", adapter="fastvlm", encoders=(encoder,), llm=llm, prompt="qwen_2", settings=settings, resolution=rule
    )
    own, theirs = both_routes(own_card, folder, 128, settings)
    logits = []
    for seed in (1, 2):
        own_logits, seen, told = answers_of(own, theirs, page(seed, (128, 128)))
        assert told.seen.visual_tokens == seen.visual_tokens == 4
        assert (own_logits - told.logits).abs().max() < 1e-5
        logits.append(own_logits)
    assert (logits[0] - logits[1]).abs().max() > 1e-3  # the picture has a say


def both_routes(own_card: ModelCard, folder: Path, side: int, settings: Any) -> list[Any]:
    engine, source = plugins.load("engines", "torch"), Source("local", folder)
    routes = [
        engine.load(own_card, source, Options(side, settings={**settings, "route": route})) for route in ("own", "auto")
    ]
    assert [one.describe()["route"] for one in routes] == ["own", "auto"]
    return routes


def answers_of(own: Any, theirs: AnyModel, image: bytes) -> tuple[torch.Tensor, Seen, SimpleNamespace]:
    """Answer one request by both routes with the same ids around the image: logits, what was seen, and theirs."""
    before, after = [5, 6, 7], [8, 9, 10, 11]
    own.prompt = lambda question: (before, after)
    logits: list[torch.Tensor] = []
    kept = own.parts["llm"].register_forward_hook(lambda module, given, output: logits.append(output.logits[0, -1]))
    seen = next(event for event in list(own.answer(request(image))) if isinstance(event, Seen))
    kept.remove()
    theirs.prepare = with_ids(theirs, before, after, seen.visual_tokens)
    return torch.stack(logits), seen, answered(theirs, request(image))


def with_ids(one: AnyModel, before: list[int], after: list[int], visual: int) -> Any:
    """Return a `prepare` that puts these ids around the image: the two routes' templates are none of this test's."""
    prepare = one.prepare

    def changed(asked: Request) -> Any:
        inputs, seen = prepare(asked)
        return {**inputs, "input_ids": torch.tensor([before + [500] * visual + after])}, seen

    return changed


@pytest.mark.parametrize("name", ["fastvlm-0.5b", "llava-1.5-7b", "llava-onevision-0.5b"])
def test_our_cards_are_the_same_architectures_to_transformers(name: str) -> None:
    """Parameters by part of both routes, counted without memory."""
    ours = load_model_card(name)
    routes = []
    for adapter in (ours.adapter, "auto"):
        options = Options(ours.resolution.default, device="meta", dtype="bfloat16", settings=ours.settings)
        routes.append(plugins.load("adapters", adapter).load(ours, Source("random"), options))
    own, theirs = routes
    tower, projector = parts.tower(theirs.model), theirs.seam.projector
    counts = {"projector": pipeline.parameter_count(projector), "encoder": pipeline.parameter_count(tower[1])}
    whole = pipeline.parameter_count(theirs.model)
    assert counts["projector"] == pipeline.parameter_count(own.parts["projector"]) - own.card.llm.hidden * (
        name == "llava-onevision-0.5b"
    )
    llm = whole - sum(counts.values())
    added = 2 * 64 * own.card.llm.hidden if name == "llava-1.5-7b" else 0
    assert llm - added - own.card.llm.hidden * (name == "llava-onevision-0.5b") == pipeline.parameter_count(
        own.parts["llm"]
    )
    mine = pipeline.parameter_count(own.parts[own.encoder_names[0]])
    assert 0 <= counts["encoder"] - mine < 0.02 * mine  # transformers keeps what is not run: a last norm, a head


UNPUBLISHED = ("smolvlm2-500m", "internvl3-2b", "internvl3-8b", "paligemma-2-3b", "pixtral-12b")
"""Cards whose exact number of parameters we have not found published: docs/models.md says so."""


@pytest.mark.parametrize("name", [name for name in cards.names("models") if load_model_card(name).adapter == "auto"])
def test_a_card_has_as_many_parameters_as_were_published(name: str) -> None:
    own = load_model_card(name)
    config = loading.configuration(own, Source("random"))
    with torch.device("meta"):
        built = AutoModelForMultimodalLM.from_config(config, dtype=torch.bfloat16)
    published = own.published.params_m.get("total")
    assert (published is None) == (name in UNPUBLISHED)
    if published is not None:
        assert pipeline.parameter_count(built) / 1e6 == pytest.approx(published, rel=1e-4)
    assert own.resolution.rule == resolution.rule_of(kinds.family(config))
