"""From lessons to tensors: token sequences in which many questions share one picture, and the dense targets.

Every question of a piece sees the picture and itself, never another question, and counts its positions from the end of
the picture: to the language model each is alone with the picture, as when it is asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from harness import prompts
from harness.adapters.fastvlm import STRIDE
from training.lessons import Lesson
from training.vocabulary import SUFFIX

CELL, SLOTS = 8, 2
"""Pixels a side of a cell of the encoder's second stage, and the slots in it: 8 x 4 pixels, about one small letter."""
CODES = 128
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Exercise:
    """Tensors of one batch of B pieces with M visual tokens each, the longest sequence having L positions."""

    pixels: Tensor
    """(B, 3, side, side) float in [0, 1]"""
    ids: Tensor
    """(B, L); at the visual tokens: 0"""
    visual: slice
    """Where the visual tokens lie, the same in every sequence"""
    positions: Tensor
    """(B, L)"""
    mask: Tensor
    """(B, 1, L, L), True where a position may look"""
    labels: Tensor
    """(B, L): the id that follows, where it belongs to an answer, else IGNORED"""
    letters: Tensor
    """(B, cells, slots): codes of the characters that cover them, 0 where there is none, IGNORED where too small"""
    words: Tensor
    """(B, M, vocabulary): whether a word asks for a value that lies in this token"""
    fields: Tensor
    """(B, L): whether a label belongs to the answer of a field"""


def exercise(lessons: Sequence[Lesson], tokenizer: Tokenizer) -> Exercise:
    """Make the tensors of a batch; all pieces have the same side."""
    side = lessons[0].pixels.shape[0]
    grid = side // STRIDE
    pixels = np.stack([lesson.pixels for lesson in lessons]).transpose(0, 3, 1, 2)
    before = tokenizer.encode(prompts.qwen_2("")[0], add_special_tokens=False).ids
    start = len(before) + grid * grid
    rows = [_sequence(lesson, tokenizer, before, start) for lesson in lessons]
    length = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    segments = torch.full((len(rows), length), -1)
    fields = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n], labels[i, :n] = torch.tensor(row.ids), torch.tensor(row.labels)
        positions[i, :n], segments[i, :n] = torch.tensor(row.positions), torch.tensor(row.segments)
        fields[i, :n] = torch.tensor(row.fields)
    same = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    mask = same & torch.ones(length, length, dtype=torch.bool).tril()
    return Exercise(
        torch.from_numpy(np.ascontiguousarray(pixels)).float().div_(255),
        ids,
        slice(len(before), start),
        positions,
        mask[:, None],
        labels,
        torch.stack([_letters(lesson, side) for lesson in lessons]),
        torch.stack([_words(lesson, grid, tokenizer) for lesson in lessons]),
        fields,
    )


@dataclass(slots=True)
class _Row:
    ids: list[int]
    labels: list[int]
    positions: list[int]
    segments: list[int]
    fields: list[bool]


def _sequence(lesson: Lesson, tokenizer: Tokenizer, before: list[int], start: int) -> _Row:
    row = _Row(
        before + [0] * (start - len(before)), [IGNORED] * start, list(range(start)), [0] * start, [False] * start
    )
    end = tokenizer.encode("<|im_end|>", add_special_tokens=False).ids
    for number, task in enumerate((task for task in lesson.tasks if task.asked), 1):
        asked = tokenizer.encode(
            prompts.qwen_2(task.question + (SUFFIX if task.is_field else ""))[1], add_special_tokens=False
        ).ids
        said = tokenizer.encode(task.answer, add_special_tokens=False).ids + end
        row.ids += asked + said[:-1]
        row.labels += [IGNORED] * (len(asked) - 1) + said
        size = len(asked) + len(said) - 1
        row.positions += range(start, start + size)
        row.segments += [number] * size
        row.fields += [task.is_field] * size
    return row


def _letters(lesson: Lesson, side: int) -> Tensor:
    """Return (cells, slots): which character covers what, at least one slot each."""
    cells, wide = side // CELL, CELL // SLOTS
    target = np.zeros((cells, cells * SLOTS), dtype=np.int64)
    for character in lesson.characters:
        x0, y0, x1, y1 = character.box
        x, y = int((x0 + x1) / 2 / wide), int((y0 + y1) / 2 / CELL)
        left, right = min(max(round(x0 / wide), 0), x), max(round(x1 / wide), x + 1)
        top, bottom = min(max(round(y0 / CELL), 0), y), max(round(y1 / CELL), y + 1)
        target[top:bottom, left:right] = character.code or IGNORED
    return torch.from_numpy(target.reshape(cells * cells, SLOTS))


def _words(lesson: Lesson, grid: int, tokenizer: Tokenizer) -> Tensor:
    """Return (tokens, vocabulary): the words of the questions whose answers lie in each token."""
    target = torch.zeros(grid, grid, tokenizer.get_vocab_size())
    for task in lesson.tasks:
        if task.is_field:
            x0, y0, x1, y1 = (min(max(int(edge // STRIDE), 0), grid - 1) for edge in task.box)
            ids = [i for i in tokenizer.encode(task.question, add_special_tokens=False).ids if i >= 256]
            for i in ids:
                target[y0 : y1 + 1, x0 : x1 + 1, i] = 1
    return target.flatten(0, 1)
