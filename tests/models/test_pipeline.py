"""The order of events that all families share: how many steps an answer takes."""

from typing import Any

import pytest

from harness.images import blank, png
from harness.models.card import load_model_card
from harness.models.families import fastvlm
from harness.models.protocol import Options, Piece, Request
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
