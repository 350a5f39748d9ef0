"""From lessons to tensors: questions that share a picture, their answers letter by letter, and the dense targets.

To the language model each question is alone with its picture, as when it is asked: it sees the picture and itself,
never another question, and counts its positions from the end of the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from harness.models import templates
from harness.models.families.fastvlm import STRIDE
from training.lessons import Lesson, Task
from training.vocabulary import SUFFIX, spell

CELL, SLOTS = 8, 2
"""Pixels a side of a cell of the encoder's second stage, and the slots in it: 8 x 4 pixels, about one small letter."""
SPOT = (16, 8)
"""Pixels high and wide of a spot: about one letter of the smallest text that a page asks for, by its middle."""
PLACES = (STRIDE // SPOT[0], STRIDE // SPOT[1])
"""Rows and columns of spots in what one visual token stands for."""
CODES = 128
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Exercise:
    """Tensors of one batch: B pieces with M visual tokens each, N questions with T tokens in all, at most S in one."""

    pixels: Tensor
    """(B, 3, side, side) float in [0, 1]"""
    before: Tensor
    """(P,): the prompt's ids before the picture"""
    ids: Tensor
    """(T,): the prompt after the picture with the answer, question after question"""
    owners: Tensor
    """(N,): the piece that each question is about"""
    rows: Tensor
    """(N, S): which of the T tokens stands where in its question; past its end: 0"""
    shown: Tensor
    """(N, S): False past a question's end"""
    positions: Tensor
    """(T,): counted from the picture's end"""
    labels: Tensor
    """(T,): the id that follows, where it belongs to an answer, else IGNORED"""
    fields: Tensor
    """(T,): whether a label belongs to the answer of a field"""
    first: Tensor
    """(T,): whether a label is the first of an answer"""
    points: Tensor
    """(T,): the visual token in which the label's letter is printed, else IGNORED"""
    places: Tensor
    """(T, 2): row and column of the spot within that token, else IGNORED"""
    columns: Tensor
    """(T, rows): codes of the characters of that column, 0 where there is none, else IGNORED"""
    letters: Tensor
    """(B, cells, slots): codes of the characters that cover them, 0 where there is none, IGNORED where too small"""
    spots: Tensor
    """(B, side / 16, side / 8): code of the character whose middle lies there, else 0; IGNORED where too small"""
    words: Tensor
    """(B, M, vocabulary): whether a word asks for a value that lies in this token"""
    starts: Tensor
    """(B, M, spots): whether a value that may be asked for starts there"""


def exercise(lessons: Sequence[Lesson], tokenizer: Tokenizer) -> Exercise:
    """Make the tensors of a batch; all pieces have the same side."""
    side = lessons[0].pixels.shape[0]
    grid = side // STRIDE
    pixels = np.stack([lesson.pixels for lesson in lessons]).transpose(0, 3, 1, 2)
    asked = [(owner, task) for owner, lesson in enumerate(lessons) for task in lesson.tasks if task.asked]
    sequences = [_sequence(task, tokenizer, grid) for _, task in asked]
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.long)
    starts = lengths.cumsum(0) - lengths
    steps = torch.arange(int(lengths.max()) if asked else 0)
    shown = steps < lengths[:, None]
    tokens = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.long).view(-1, 7)
    ids, labels, field, first, points, row, column = tokens.unbind(1)
    owners = torch.tensor([owner for owner, _ in asked], dtype=torch.long)
    spots = torch.stack([_spots(lesson, side) for lesson in lessons])
    return Exercise(
        pixels=torch.from_numpy(np.ascontiguousarray(pixels)).float().div_(255),
        before=torch.tensor(tokenizer.encode(templates.qwen_2("")[0], add_special_tokens=False).ids),
        ids=ids,
        owners=owners,
        rows=torch.where(shown, starts[:, None] + steps, 0),
        shown=shown,
        positions=steps.expand(len(asked), -1)[shown],
        labels=labels,
        fields=field > 0,
        first=first > 0,
        points=points,
        places=torch.stack([row, column], dim=1),
        columns=_columns(in_cells(spots, STRIDE), owners.repeat_interleave(lengths), points, column),
        letters=torch.stack([_letters(lesson, side) for lesson in lessons]),
        spots=spots,
        words=torch.stack([_words(lesson, grid, tokenizer) for lesson in lessons]),
        starts=torch.stack([_starts(lesson, grid) for lesson in lessons]),
    )


def _sequence(task: Task, tokenizer: Tokenizer, grid: int) -> list[tuple[int, ...]]:
    """Return a question's tokens: id, label, is of a field, is first, visual token, row and column in it."""
    question = task.question + (SUFFIX if task.is_field else "")
    asked = tokenizer.encode(templates.qwen_2(question)[1], add_special_tokens=False).ids
    said = spell(task.answer, tokenizer)
    end = tokenizer.encode("<|im_end|>", add_special_tokens=False).ids
    nowhere = (IGNORED,) * 3
    where = [nowhere] * (len(asked) - 1) + [_where(x, y, grid) for x, y in task.centres] + [nowhere]
    labels = [IGNORED] * (len(asked) - 1) + said + end
    first = len(asked) - 1
    return [
        (token, label, int(task.is_field), int(place == first), *there)
        for place, (token, label, there) in enumerate(zip(asked + said, labels, where, strict=True))
    ]


def _where(x: float, y: float, grid: int) -> tuple[int, int, int]:
    """Return the visual token that a pixel lies in, and row and column of its spot there."""
    x, y = (min(max(edge, 0), grid * STRIDE - 1) for edge in (x, y))
    token = int(y // STRIDE) * grid + int(x // STRIDE)
    return token, int(y % STRIDE // SPOT[0]), int(x % STRIDE // SPOT[1])


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


def _spots(lesson: Lesson, side: int) -> Tensor:
    """Return (side / 16, side / 8): which character has its middle where."""
    target = np.zeros((side // SPOT[0], side // SPOT[1]), dtype=np.int64)
    for character in lesson.characters:
        x0, y0, x1, y1 = character.box
        row, column = int((y0 + y1) / 2 // SPOT[0]), int((x0 + x1) / 2 // SPOT[1])
        target[row, column] = character.code or IGNORED
    return torch.from_numpy(target)


def in_cells(spots: Tensor, stride: int) -> Tensor:
    """Return (B, cells, spots in each) of a map of spots, for cells of `stride` pixels a side, both row by row."""
    high, wide = stride // SPOT[0], stride // SPOT[1]
    cells: Tensor = spots.unflatten(2, (-1, wide)).unflatten(1, (-1, high))
    return cells.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _columns(cells: Tensor, owners: Tensor, points: Tensor, column: Tensor) -> Tensor:
    """Return (T, rows) of (B, M, spots): what is printed in each label's column of spots of its token."""
    found = cells.unflatten(2, PLACES)[owners, points.clamp(min=0), :, column.clamp(min=0)]
    return torch.where(points[:, None] == IGNORED, IGNORED, found)


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


def _starts(lesson: Lesson, grid: int) -> Tensor:
    """Return (tokens, spots): where the values of fields start."""
    target = torch.zeros(grid * grid, *PLACES)
    for task in lesson.tasks:
        if task.is_field:
            target[_where(*task.centres[0], grid)] = 1
    return target.flatten(1)
