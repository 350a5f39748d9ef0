"""Options of deployment change how a model runs, and none of its answers."""

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import MistralConfig, Qwen2Config

from harness.errors import SettingError
from harness.images import png
from harness.models import compiling, deployment, graphs
from harness.models.card import load_model_card
from harness.models.engines import torch as engine
from harness.models.pipeline import VisionLanguageModel
from harness.models.protocol import Options, Piece, Request
from harness.models.weights import Source

PAGE = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)))
EVERY = {
    "compile": True,
    "static_cache": True,
    "decode_ahead": True,
    "sdpa": "math",
    "channels_last": True,
}


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace and guard as torch.compile does, but leave out the C++ compiler: that takes minutes."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    yield
    deployment.SWITCHES.turn({})
    torch._dynamo.reset()


def built(tiny_fastvlm: Any, device: str = "cpu", **settings: Any) -> VisionLanguageModel:
    card = load_model_card(str(tiny_fastvlm.card))
    options = Options(256, device=device, settings={**card.settings, **settings})
    model = engine.load(card, Source("local", tiny_fastvlm.weights), options)
    assert isinstance(model, VisionLanguageModel)
    return model


def said(model: VisionLanguageModel, tokens: int = 9, question: str = "What is the date?") -> list[str]:
    request = Request((PAGE,), question, tokens, ignore_eos=True)
    return [event.text for event in model.answer(request) if isinstance(event, Piece)]


@pytest.mark.parametrize("settings", [{name: value} for name, value in EVERY.items()] + [EVERY], ids=str)
def test_an_option_changes_no_answer(tiny_fastvlm: Any, settings: dict[str, Any]) -> None:
    plain, other = built(tiny_fastvlm), built(tiny_fastvlm, **settings)
    for question in ("What is the date?", "Total? " * 30):
        assert said(other, question=question) == said(plain, question=question)


@torch.inference_mode()
def test_with_every_option_on_each_stage_is_the_plain_ones(tiny_fastvlm: Any) -> None:
    from harness import images

    found: list[list[torch.Tensor]] = []
    for settings in ({}, EVERY):
        model = built(tiny_fastvlm, **settings)
        prepared = model.laid_out(model.prepare([images.decode(PAGE)]))
        features = {"fastvithd": model.encode("fastvithd", prepared)}
        visual = model.project(features, prepared)
        before, after = model.prompt("Total?")
        embeds = model.embed(visual, before, after)
        model._longest = embeds.shape[1] + 2
        output = model.prefill(embeds, model.prefill_scope(features, prepared, len(before)))
        first = output.logits[0, -1].clone()
        step = model.decode(model.greedy(output), output).logits[0, -1]
        found.append([features["fastvithd"], visual, first, step])
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(other, plain, atol=1e-4, rtol=1e-4)


def test_compiling_reaches_the_encoder_and_says_so(tiny_fastvlm: Any) -> None:
    model = built(tiny_fastvlm, compile=True)
    assert "fastvithd, projector by eager" in model.describe()["compiled"]
    counted = torch._dynamo.utils.counters["frames"]["total"]
    assert counted >= 2
    said(model)
    assert torch._dynamo.utils.counters["frames"]["total"] == counted, "the usual shape is compiled at loading"


def test_another_image_library_and_what_it_changes_are_in_the_log(tiny_fastvlm: Any) -> None:
    from harness import images

    plain, other = built(tiny_fastvlm), built(tiny_fastvlm, image_backend="torchvision")
    found = other.describe()["image_backend"]
    assert re.fullmatch(
        r"torchvision.*; \d+\.\d\d% of the values of noise differ from PIL's, by up to \d+ of 255", found
    )
    pixels = [model.look([images.decode(PAGE)]).pixels["fastvithd"] for model in (plain, other)]
    assert float((pixels[0] - pixels[1]).abs().max()) > 0
    assert float((pixels[0] - pixels[1]).abs().mean()) < 1 / 255  # how much at most is the CPU's: the log has it
    assert said(other)


@pytest.mark.parametrize("ahead", [False, True])
def test_reading_ahead_takes_no_step_before_the_first_token_and_none_too_many(tiny_fastvlm: Any, ahead: bool) -> None:
    model = built(tiny_fastvlm, decode_ahead=ahead)
    steps: list[int] = []
    decode = model.decode
    model.decode = lambda token, output: steps.append(1) or decode(token, output)  # type: ignore[method-assign, func-returns-value]
    taken = []
    for event in model.answer(Request((PAGE,), "Total?", 5, ignore_eos=True)):
        if isinstance(event, Piece):
            taken.append(len(steps))
    assert taken == ([0, 2, 3, 4, 4] if ahead else [0, 1, 2, 3, 4])


def test_a_static_cache_is_of_fixed_length_and_made_anew(tiny_fastvlm: Any) -> None:
    model = built(tiny_fastvlm, static_cache=True)
    caches: list[Any] = []
    new = model.new_cache
    model.new_cache = lambda: caches.append(new()) or caches[-1]  # type: ignore[method-assign, func-returns-value]
    assert said(model) == said(model)
    assert caches[0] is not caches[1]
    assert caches[0].get_max_length() % deployment.BLOCK == 0


def test_all_passes_over_an_example_have_caches_of_one_length(tiny_fastvlm: Any) -> None:
    """Else a length is met first, and its graph captured, in a pass that counts."""
    model = built(tiny_fastvlm, static_cache=True)
    lengths: list[int] = []
    new = model.new_cache
    model.new_cache = lambda: (cache := new(), lengths.append(cache.get_max_length()))[0]  # type: ignore[method-assign, func-returns-value]
    for tokens in (1, 2, 16, 100):
        list(model.answer(Request((PAGE,), "Total?", tokens, True, room=100)))
    assert len(lengths) == 4
    assert len(set(lengths)) == 1
    assert lengths[0] >= 100


def test_an_encoder_has_no_options_of_a_language_model(tiny_fastvlm: Any) -> None:
    card = load_model_card("encoder-fastvithd")
    options = Options(256, device="meta", settings={**card.settings, "decode_ahead": True})
    with pytest.raises(SettingError, match="decode_ahead=true: encoder-fastvithd has no language model"):
        engine.load(card, Source("random"), options)


def test_switches_are_as_asked_then_as_torch_had_them(tiny_fastvlm: Any) -> None:
    usual = deployment.told()
    assert built(tiny_fastvlm, sdpa="math").describe()["sdpa_kernels_allowed"] == "math"
    built(tiny_fastvlm)
    assert deployment.told() == usual


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"graphs": True}, "CUDA graphs are for CUDA, not for cpu"),
        ({"compile": "fast"}, "known: true, false"),
        ({"sdpa": "cutlass"}, "known: flash, mem_efficient, math, cudnn"),
        ({"tf32": "maybe"}, "known: true, false"),
        ({"tf32": True}, "TF32 is CUDA's, cpu has none"),
        ({"static_cache": True, "scoring": "batch"}, "without static_cache"),
        ({"image_backend": "opencv"}, "known: pil, torchvision"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_one_line(tiny_fastvlm: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words) as raised:
        built(tiny_fastvlm, **settings)
    assert "\n" not in str(raised.value)


def test_a_model_of_other_code_is_refused() -> None:
    card = load_model_card("fake")
    with pytest.raises(SettingError, match="runs by other code than ours"):
        engine.load(card, Source("random"), Options(256, settings={**card.settings, "compile": True}))


def test_steps_that_slide_are_no_graph() -> None:
    """What the host counts from step to step, a replay does not."""
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    for config, sliding in ((Qwen2Config(**sizes), False), (MistralConfig(**sizes, sliding_window=8), True)):
        assert graphs.slides(SimpleNamespace(config=config, device="cpu")) == sliding


@pytest.mark.gpu
def test_graphs_change_no_answer(tiny_fastvlm: Any) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    plain, graphed = built(tiny_fastvlm, "cuda:0"), built(tiny_fastvlm, "cuda:0", graphs=True)
    for question in ("What is the date?", "Total? " * 30, "What is the date?"):
        assert said(graphed, question=question) == said(plain, question=question)
