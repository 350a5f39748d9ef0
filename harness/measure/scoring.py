"""The answers that nobody times any more: image by image, so that questions about one image can share what it costs."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from harness.errors import ExampleError
from harness.measure.sampling import glance
from harness.models.protocol import Answered, Request
from harness.suites.examples import Example

MOST_TOGETHER = 32
"""Questions about one image that are read at once: each brings the image's bytes with it."""


@runtime_checkable
class AnswersAll(Protocol):
    """A model that can answer several questions about the same images at once (see `protocol.Model`)."""

    def answer_all(self, requests: Sequence[Request], /) -> list[Answered]: ...


def by_image(examples: Sequence[Example], order: Iterable[int], done: Collection[str]) -> Iterator[list[int]]:
    """Yield the positions of the examples that are left, those of one image together, in the order of the first."""
    found: dict[tuple[str, ...], list[int]] = {}
    for at in order:
        seen = glance(examples, at)
        if seen.id not in done:
            found.setdefault(seen.image_ids or (f"\0{at}",), []).append(at)
    for positions in found.values():
        for start in range(0, len(positions), MOST_TOGETHER):
            yield positions[start : start + MOST_TOGETHER]


def answer(model: AnswersAll, examples: Sequence[Example]) -> list[tuple[Example, Answered | Exception]]:
    """Return each example of one image with its answer, or with what was raised instead."""
    sound = [one for one in examples if not one.problem]
    found: list[tuple[Example, Answered | Exception]] = [
        (one, ExampleError(one.problem)) for one in examples if one.problem
    ]
    if not sound:
        return found
    try:
        answers = model.answer_all([Request(one.images, one.question, one.max_new_tokens) for one in sound])
    except Exception as error:  # noqa: BLE001 - what the image raises is every question's failure
        return [*found, *((one, error) for one in sound)]
    return [*found, *((one, came.error or came) for one, came in zip(sound, answers, strict=True))]
