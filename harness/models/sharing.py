"""Answers for their score alone: questions about one image share what the image costs.

`features`: the image is prepared, encoded and projected once; each question then goes the usual way, so its answer is
the same to the last bit. `prefix`: the language model reads the prompt up to the question once, too. `batch`: and the
questions are answered side by side. The last two add in another order: where two tokens are nearly tied, an answer may
be another one. `alone`: nothing is shared.
"""

import copy
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness import images
from harness.errors import HarnessError, OutputError
from harness.models import tokenizers
from harness.models.foreign import Output
from harness.models.protocol import Answered, Done, Piece, Request, Seen, stage_after

if TYPE_CHECKING:
    from harness.models.pipeline import Prepared, VisionLanguageModel

SHARED = ("features", "prefix", "batch", "alone")
MOST_AT_ONCE = 16
"""Questions side by side: the cache of each is a copy of the image's."""


@dataclass(slots=True)
class _Image:
    """What one image came to, ready for any question."""

    model: "VisionLanguageModel"
    prepared: "Prepared"
    features: Mapping[str, Tensor]
    visual: Tensor
    read: Output = None
    """The language model's cache after the prompt up to the question."""
    before: tuple[int, ...] = ()

    def seen(self, text_tokens: int) -> Seen:
        return self.model.seen(self.prepared, len(self.visual), text_tokens)

    def read_up_to(self, before: list[int]) -> Output:
        """Return a copy of the cache after `before` and the visual tokens; they are read once."""
        if self.read is None or self.before != tuple(before):
            scope = self.model.prefill_scope(self.features, self.prepared, len(before))
            self.read = self.model.prefill(self.model.embed(self.visual, before, []), scope).cache
            self.before = tuple(before)
        return copy.deepcopy(self.read)


def answer_all(model: "VisionLanguageModel", requests: Sequence[Request], how: str) -> list[Answered]:
    """Answer questions about the same images; what the images themselves raise is raised."""
    with torch.inference_mode():
        if how == "alone" or model.options.only or not model.card.llm:
            return [_guarded(lambda one=request: _alone(model, one)) for request in requests]  # type: ignore[misc]
        image = _look(model, requests[0])
        if how == "batch":
            return [
                answered
                for at in range(0, len(requests), MOST_AT_ONCE)
                for answered in _side_by_side(image, requests[at : at + MOST_AT_ONCE])
            ]
        one_by_one = _from_prefix if how == "prefix" else _from_features
        return [_guarded(lambda one=request: one_by_one(image, one)) for request in requests]  # type: ignore[misc]


def _guarded(run: Callable[[], Answered]) -> Answered:
    """Return what `run` answers, or the error that is this question's own."""
    try:
        return run()
    except Exception as error:  # noqa: BLE001 - one question's trouble is its own failure record
        # After out-of-memory the failed frames hold the very tensors that the image's next question needs.
        traceback.clear_frames(error.__traceback__)
        return Answered(None, "", 0, "", error)


@contextmanager
def _stage(name: str) -> Iterator[None]:
    """Have what is raised know the stage in which it was."""
    try:
        yield
    except Exception as error:
        if not hasattr(error, "failed_in"):
            error.failed_in = name  # type: ignore[attr-defined]
        raise


def _look(model: "VisionLanguageModel", request: Request) -> _Image:
    """Prepare, encode and project the images; what is raised knows its stage."""
    with _stage("preprocess"):
        prepared = model.look([images.decode(data) for data in request.images])
    with _stage("encode"):
        features = {name: model.encode(name, prepared) for name in model.encoder_names}
    with _stage("project"):
        return _Image(model, prepared, features, model.project(features, prepared))


def _told(model: "VisionLanguageModel", events: Iterator[object], seen: Seen | None, shared: str) -> Answered:
    """Listen to the end of an answer; `seen` is what the model was shown, unless an event tells it."""
    texts: list[str] = []
    done: Done | Piece | None = Done("project") if seen else None
    try:
        for event in events:
            if isinstance(event, Seen):
                seen = event
            elif isinstance(event, Done | Piece):
                done = event
                texts += [event.text] if isinstance(event, Piece) else []
    except Exception as error:
        if not hasattr(error, "failed_in"):
            error.failed_in = stage_after(done)  # type: ignore[attr-defined]
        raise
    model.verify()
    return Answered(seen, "".join(texts), len(texts), shared)


def _alone(model: "VisionLanguageModel", request: Request) -> Answered:
    return _told(model, model.answer(request), None, "")


def _from_features(image: _Image, request: Request) -> Answered:
    model = image.model
    model.forget()
    before, after = model.prompt(request.question)
    events = model.generate(image.features, image.prepared, image.visual, before, after, request)
    text = len(before) + len(after)
    return _told(model, events, image.seen(text + model.text_padding(text)), "features")


def _from_prefix(image: _Image, request: Request) -> Answered:
    model = image.model
    model.forget()
    before, after = model.prompt(request.question)
    if not after:
        return _from_features(image, request)
    model.check_length(len(image.visual) + len(before) + len(after), request)
    with _stage("prefill"):
        embeds, cache = model.embed(image.visual[:0], [], after), image.read_up_to(before)
        output = model.parts["llm"](inputs_embeds=embeds, cache=cache, use_cache=True, logits_to_keep=1)
        token = model.greedy(output)
    with _stage("decode"):
        events = model.pieces(token, output, request)
        return _told(model, events, image.seen(len(before) + len(after)), "prefix")


@dataclass(slots=True)
class _Row:
    """One question of a batch: its ids after the image, what it has said so far, and whether it has ended."""

    at: int
    request: Request
    before: list[int]
    after: list[int]
    stream: tokenizers.Stream
    texts: list[str]
    ended: bool = False
    finite: bool = True


def _side_by_side(image: _Image, requests: Sequence[Request]) -> list[Answered]:
    """Answer questions in one batch; those whose prompt begins otherwise, or that alone fail, by themselves."""
    model = image.model
    answers: list[Answered | None] = [None] * len(requests)
    rows: list[_Row] = []
    for at, request in enumerate(requests):
        before, after = model.prompt(request.question)
        try:
            model.check_length(len(image.visual) + len(before) + len(after), request)
            model.embed(image.visual[:0], [], after)
        except HarnessError as error:
            answers[at] = Answered(None, "", 0, "", error)
            continue
        if not after or (rows and before != rows[0].before):
            answers[at] = _guarded(lambda one=request: _from_features(image, one))  # type: ignore[misc]
            continue
        rows.append(_Row(at, request, before, after, tokenizers.Stream(model.tokenizer), []))
    if rows:
        _decode_together(image, rows)
    for row in rows:
        seen = image.seen(len(row.before) + len(row.after))
        answers[row.at] = Answered(seen, "".join(row.texts), len(row.texts), f"batch of {len(rows)}")
        if not row.finite:
            broken = OutputError(f"{model.card.name} computed logits that are not finite (NaN or infinite)", "decode")
            answers[row.at] = Answered(seen, "", 0, "", broken)
    return [one for one in answers if one is not None]


def _decode_together(image: _Image, rows: Sequence[_Row]) -> None:
    """Let all rows speak to their ends: prompts are padded on the left, and what is padding is masked."""
    model, device = image.model, image.model.device
    read = len(rows[0].before) + len(image.visual)
    longest = max(len(row.after) for row in rows)
    pads = torch.tensor([longest - len(row.after) for row in rows], device=device)[:, None]
    columns = torch.arange(longest, device=device)[None]
    mask = torch.cat([torch.ones(len(rows), read, dtype=torch.long, device=device), (columns >= pads).long()], 1)
    positions = (read + columns - pads).clamp_min(read)
    ids = [[row.after[0]] * (longest - len(row.after)) + row.after for row in rows]
    given: dict[str, Any] = {"inputs_embeds": torch.cat([model.embed(image.visual[:0], [], row) for row in ids])}
    cache = image.read_up_to(rows[0].before)
    cache.batch_repeat_interleave(len(rows))
    for count in range(max(row.request.max_new_tokens for row in rows)):
        output = model.parts["llm"](
            **given, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True, logits_to_keep=1
        )
        largest, tokens = output.logits[:, -1].max(dim=-1)
        sound, values = torch.isfinite(largest).tolist(), tokens.tolist()
        for row, finite, value in zip(rows, sound, values, strict=True):
            _take(row, model.stops(row.request), count, value, finite)
        if all(row.ended for row in rows):
            return
        cache, given = output.cache, {"input_ids": tokens[:, None]}
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        positions = positions[:, -1:] + 1


def _take(row: _Row, stops: set[int], count: int, value: int, finite: bool) -> None:
    """Let one row have its next token, as `pieces` does for one alone."""
    if row.ended:
        return
    row.finite = row.finite and finite
    if value in stops:
        row.texts += [""] if not count else []
        row.ended = True
        return
    row.texts.append(row.stream.add(value))
    row.ended = count + 1 >= row.request.max_new_tokens
