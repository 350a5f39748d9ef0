"""What questions about one image share when nobody times them: the same answers, with less work."""

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.errors import ExampleError, OutputError, SettingError
from harness.images import png
from harness.models import sharing
from harness.models.card import load_model_card
from harness.models.engines import torch as engine
from harness.models.pipeline import VisionLanguageModel
from harness.models.protocol import Options, Piece, Request, Seen
from harness.models.weights import Source

QUESTIONS = ("What is the date of the letter?", "Total?", "What are these? A table, a form, a page.", "What is it")
PAGE = png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)))


@pytest.fixture(scope="module")
def model(tiny_fastvlm: Any) -> Iterator[VisionLanguageModel]:
    card = load_model_card(str(tiny_fastvlm.card))
    built = engine.load(card, Source("local", tiny_fastvlm.weights), Options(256, settings=dict(card.settings)))
    assert isinstance(built, VisionLanguageModel)
    yield built
    built.close()


def asked(*questions: str, **options: Any) -> list[Request]:
    return [
        Request((PAGE,), question, options.get("tokens", 6), options.get("ignore_eos", False)) for question in questions
    ]


def alone(model: VisionLanguageModel, requests: Sequence[Request]) -> list[str]:
    return ["".join(e.text for e in model.answer(one) if isinstance(e, Piece)) for one in requests]


@pytest.mark.parametrize("how", sharing.SHARED)
@pytest.mark.parametrize("ignore_eos", [True, False])
def test_answers_are_those_of_one_at_a_time(model: VisionLanguageModel, how: str, ignore_eos: bool) -> None:
    requests = asked(*QUESTIONS, ignore_eos=ignore_eos)
    found = sharing.answer_all(model, requests, how)
    assert [one.text for one in found] == alone(model, requests)
    assert not any(one.error for one in found)
    told = {"features": "features", "prefix": "prefix", "batch": "batch of 4", "alone": ""}[how]
    assert {one.shared for one in found} == {told}
    if ignore_eos:
        assert {one.tokens for one in found} == {6}


@torch.inference_mode()
def test_sharing_features_changes_no_bit_of_the_logits(model: VisionLanguageModel) -> None:
    def largest(run: Any) -> list[float]:
        kept: list[float] = []
        greedy = model.greedy

        def noted(output: Any) -> Any:
            kept.append(float(output.logits.abs().sum()))
            return greedy(output)

        model.greedy = noted  # type: ignore[method-assign]
        try:
            run()
        finally:
            del model.greedy  # type: ignore[method-assign]
        return kept

    requests = asked(*QUESTIONS)
    assert largest(lambda: sharing.answer_all(model, requests, "features")) == largest(lambda: alone(model, requests))


@pytest.mark.parametrize(
    ("how", "looks", "reads"), [("features", 1, 0), ("prefix", 1, 1), ("batch", 1, 1), ("alone", 4, 0)]
)
def test_the_image_is_looked_at_and_read_once(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, how: str, looks: int, reads: int
) -> None:
    encoded: list[str] = []
    lengths: list[int] = []
    encode, prefill = model.encode, model.prefill
    monkeypatch.setattr(model, "encode", lambda name, prepared: encoded.append(name) or encode(name, prepared))
    monkeypatch.setattr(
        model, "prefill", lambda embeds, scope: lengths.append(embeds.shape[1]) or prefill(embeds, scope)
    )
    sharing.answer_all(model, asked(*QUESTIONS), how)
    assert len(encoded) == looks
    assert len(lengths) == (reads or len(QUESTIONS))


@pytest.mark.parametrize("how", ["features", "prefix", "batch"])
def test_a_question_that_is_too_long_fails_alone(model: VisionLanguageModel, how: str) -> None:
    requests = asked("Total?", "page " * 5000, "What is it")
    first, second, third = sharing.answer_all(model, requests, how)
    assert isinstance(second.error, ExampleError)
    assert [first.text, third.text] == alone(model, [requests[0], requests[2]])


def test_an_image_that_cannot_be_read_is_raised_with_its_stage(model: VisionLanguageModel) -> None:
    with pytest.raises(ExampleError) as raised:
        model.answer_all([Request((b"no image",), "Total?", 2)])
    assert raised.value.failed_in == "preprocess"  # type: ignore[attr-defined]


@pytest.mark.parametrize("how", sharing.SHARED)
def test_an_answer_that_is_not_finite_is_none(tiny_fastvlm: Any, how: str) -> None:
    card = load_model_card(str(tiny_fastvlm.card))
    broken: Any = engine.load(card, Source("local", tiny_fastvlm.weights), Options(256, settings=dict(card.settings)))
    with torch.inference_mode():
        next(iter(broken.parts["llm"].parameters())).fill_(float("nan"))
    assert all(isinstance(one.error, OutputError) for one in sharing.answer_all(broken, asked("Total?", "What"), how))


@pytest.mark.parametrize(("broken", "stage"), [("prefill", "prefill"), ("decode", "decode")])
@pytest.mark.parametrize("how", ["features", "alone"])
def test_a_question_that_fails_names_its_stage_and_holds_no_tensors(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, how: str, broken: str, stage: str
) -> None:
    """Out of memory: the failed frames must not keep what the next question needs."""
    kept: list[weakref.ref[torch.Tensor]] = []

    def fail(*given: object) -> None:
        held = torch.zeros(10)
        kept.append(weakref.ref(held))
        raise MemoryError("no room")

    monkeypatch.setattr(model, broken, fail)
    (answered,) = sharing.answer_all(model, asked("Total?", ignore_eos=True), how)
    assert answered.error.failed_in == stage  # type: ignore[union-attr]
    assert kept[0]() is None


def test_padding_is_counted_as_in_a_timed_answer(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "text_bucket", 64)
    (request,) = asked("Total?")
    told = next(event.text_tokens for event in model.answer(request) if isinstance(event, Seen))
    assert told % 64 == 0
    (answered,) = sharing.answer_all(model, [request], "features")
    assert answered.seen
    assert answered.seen.text_tokens == told


def test_a_way_of_sharing_that_is_none_or_cannot_be_is_refused(tiny_fastvlm: Any) -> None:
    card = load_model_card(str(tiny_fastvlm.card))
    with pytest.raises(SettingError, match="known: features, prefix, batch, alone"):
        engine.load(
            card, Source("local", tiny_fastvlm.weights), Options(256, settings={**card.settings, "scoring": "all"})
        )
