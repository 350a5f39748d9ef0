"""The order of events that all families share: how many steps an answer takes."""

from typing import Any

import pytest

from harness import plugins
from harness.errors import SettingError
from harness.images import blank, png
from harness.models.card import load_model_card
from harness.models.families import fastvlm
from harness.models.protocol import Options, Piece, Request, Seen
from harness.models.weights import Source


@pytest.mark.parametrize("length", [1, 2, 5])
def test_an_answer_of_n_tokens_takes_one_prefill_and_n_minus_one_steps(tiny_fastvlm: Any, length: int) -> None:
    """A step whose token nobody wants would be paid for in every answer, and in the decode rate."""
    card = load_model_card(str(tiny_fastvlm.card))
    model = fastvlm.load(card, Source("local", tiny_fastvlm.weights), Options(256))
    calls: list[int] = []
    model.parts["llm"].register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs.get("inputs_embeds", kwargs.get("input_ids")).shape[1]),
        with_kwargs=True,
    )
    request = Request((png(blank((64, 48)).image),), "What is the date?", length, ignore_eos=True)
    pieces = [event for event in model.answer(request) if isinstance(event, Piece)]
    assert len(pieces) == length
    assert len(calls) == length
    assert calls[0] > 1
    assert calls[1:] == [1] * (length - 1)


def test_padded_text_has_few_lengths_and_the_same_answers(tiny_fastvlm: Any) -> None:
    """Questions of three lengths are one shape to the device; logits and answers are those without padding."""
    card, source = load_model_card(str(tiny_fastvlm.card)), Source("local", tiny_fastvlm.weights)
    engine = plugins.load("engines", "torch")
    plain, padded = (
        engine.load(card, source, Options(256, settings={**card.settings, **more}))
        for more in ({}, {"text_bucket": 64})
    )
    assert "text_bucket" not in plain.describe()
    assert "64" in padded.describe()["text_bucket"]
    lengths, shapes = set(), set()
    for question in ("When?", "What is the date?", "What is the total of all?"):
        request = Request((png(blank((64, 48)).image),), question, 6, ignore_eos=True)
        own_events, own_logits = heard(plain, request)
        events, logits = heard(padded, request)
        assert [e for e in own_events if isinstance(e, Piece)] == [e for e in events if isinstance(e, Piece)]
        assert len(logits) == 6
        assert all((a - b).abs().max() < 1e-5 for a, b in zip(own_logits, logits, strict=True))
        lengths.add(next(e.text_tokens for e in own_events if isinstance(e, Seen)))
        shapes.add(next(e.text_tokens for e in events if isinstance(e, Seen)))
        assert padded.foresee(((64, 48),), question).text_tokens in shapes
    assert len(lengths) == 3
    assert len(shapes) == 1
    assert shapes.pop() % 64 == 0


def heard(model: Any, request: Request) -> tuple[list[Any], list[Any]]:
    """Answer, and keep the last logits of each step."""
    logits: list[Any] = []
    kept = model.parts["llm"].register_forward_hook(lambda module, given, output: logits.append(output.logits[0, -1]))
    events = list(model.answer(request))
    kept.remove()
    return events, logits


def test_text_cannot_be_padded_by_a_size_that_is_none_or_where_there_is_no_text() -> None:
    engine, source = plugins.load("engines", "torch"), Source("random")
    for name, size, said in (
        ("fastvlm-nano", -3, "a whole number"),
        ("fastvlm-nano", True, "a whole number"),
        ("encoder-fastvit", 8, "reads no text"),
        ("internvl3-1b", 8, "runs by other code"),
    ):
        card = load_model_card(name)
        options = Options(card.resolution.default, device="meta", settings={**card.settings, "text_bucket": size})
        with pytest.raises(SettingError, match=said):
            engine.load(card, source, options)
