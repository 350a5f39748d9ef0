"""Cambrian-1's spatial vision aggregator (SVA): each cell of a query grid looks at its own cell of every encoder's map.

Module and parameter names are those of the released checkpoints. Source: arXiv:2406.16860, section 3.3, and
`cambrian/model/vision_sampler.py`; behaviour as at inference (padding masked and cut off).
"""

from collections.abc import Sequence
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from harness.models.pipeline import mlp

HEADS = 16


class Window(NamedTuple):
    """The part of a square grid that shows the image; the rest is the padding that made the image square."""

    top: int
    left: int
    rows: int
    cols: int

    def cut(self, grid: Tensor) -> Tensor:
        """Return rows and columns of the window of `grid` (side, side, ...)."""
        return grid[self.top : self.top + self.rows, self.left : self.left + self.cols]


def window(size: tuple[int, int], side: int) -> Window:
    """Return where an image of `size` (width, height), padded to a square, lies on a grid of `side` cells.

    `rows` or `cols` is 0 where the image is so thin (beyond about side:1) that no cell is left.
    """
    width, height = size
    if width > height:
        padding = (side - int(height * (side / width))) // 2
        return Window(padding, 0, side - 2 * padding, side)
    padding = (side - int(width * (side / height))) // 2
    return Window(0, padding, side, side - 2 * padding)


class Views(NamedTuple):
    """What the cells of a query grid look at, a cell being a batch entry.

    `keys` has for each encoder (cells, keys per cell, width); `mask` is (cells, 1, 1, keys of all encoders), True where
    attended; `context` (1, 1, width) is the same for all cells.
    """

    keys: tuple[Tensor, ...]
    mask: Tensor
    context: Tensor


def views(maps: Sequence[Tensor], size: tuple[int, int], side: int, crop: bool) -> Views:
    """Sort the encoders' `maps`, each (tokens of a square grid, width), into cells of a grid of `side`.

    Keys in the padding are masked, unless a cell has no other of that encoder. With `crop` the cells in the padding are
    left out, as for the samplers inside the LLM. The context is the mean of the first map.
    """
    keep = window(size, side) if crop else Window(0, 0, side, side)
    keys, masks = [], []
    for features in maps:
        grid = isqrt(len(features))
        per = grid // side
        cells = features.view(side, per, side, per, -1).transpose(1, 2)
        keys.append(keep.cut(cells).reshape(keep.rows * keep.cols, per * per, -1))
        shown = torch.zeros(grid, grid, dtype=torch.bool, device=features.device)
        window(size, grid).cut(shown).fill_(True)
        shown = keep.cut(shown.view(side, per, side, per).transpose(1, 2)).reshape(-1, per * per)
        masks.append(shown | ~shown.any(-1, keepdim=True))
    return Views(tuple(keys), torch.cat(masks, -1)[:, None, None], maps[0].mean(0)[None, None])


def _normed(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))


class CrossAttention(nn.Module):
    """Attention of one query per cell to that cell's keys; every encoder has its own key and value projection."""

    def __init__(self, width: int, encoders: int) -> None:
        super().__init__()
        self.encoders = encoders
        self.q_proj = _normed(width)
        for index in range(encoders):
            setattr(self, f"k_proj_{index}", _normed(width))
            setattr(self, f"v_proj_{index}", _normed(width))
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, queries: Tensor, keys: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Return (cells, 1, width)."""
        query = _split(self.q_proj(queries))
        key = _split(torch.cat([getattr(self, f"k_proj_{i}")(keys[i]) for i in range(self.encoders)], 1))
        value = _split(torch.cat([getattr(self, f"v_proj_{i}")(keys[i]) for i in range(self.encoders)], 1))
        seen = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        output: Tensor = self.o_proj(seen.transpose(1, 2).flatten(2))
        return output


def _split(tokens: Tensor) -> Tensor:
    heads: Tensor = tokens.unflatten(-1, (HEADS, -1))
    return heads.transpose(1, 2)


class OutputProjection(nn.Module):
    """Linear, GELU, Linear without biases."""

    def __init__(self, width: int, query_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, width, bias=False)
        self.linear_2 = nn.Linear(width, query_width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (..., query width)."""
        output: Tensor = self.linear_2(nn.functional.gelu(self.linear_1(tokens)))
        return output


class SamplerLayer(nn.Module):
    """One layer of the aggregator; `spans` are the keys per cell side of each encoder (1, 1, 1, 4)."""

    def __init__(self, query_width: int, width: int, spans: Sequence[int]) -> None:
        super().__init__()
        self.spans = tuple(spans)
        self.proj_context = nn.Linear(width, width, bias=False)
        self.proj_in = nn.Linear(query_width + width, width, bias=False)
        self.proj_out = OutputProjection(width, query_width)
        self.norm = nn.LayerNorm(width)
        self.cross_attn = CrossAttention(width, len(self.spans))
        for index, span in enumerate(self.spans):
            if span > 1:
                setattr(self, f"pos_embed_{index}", nn.Parameter(torch.empty(span * span, width)))

    def forward(self, queries: Tensor, seen: Views) -> Tensor:
        """Return the queries (cells, 1, query width) with what they saw added."""
        context = self.proj_context(seen.context.expand(len(queries), -1, -1))
        state = self.proj_in(torch.cat([queries, context], -1))
        keys = [
            key + getattr(self, f"pos_embed_{index}") if span > 1 else key
            for index, (key, span) in enumerate(zip(seen.keys, self.spans, strict=True))
        ]
        state = self.norm(state + self.cross_attn(state, keys, seen.mask))
        output: Tensor = queries + self.proj_out(state)
        return output


class Sampler(nn.Module):
    """`depth` layers: three in the connector, one at each place inside the LLM."""

    def __init__(self, query_width: int, width: int, spans: Sequence[int], depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(SamplerLayer(query_width, width, spans) for _ in range(depth))

    def forward(self, queries: Tensor, seen: Views) -> Tensor:
        """Return the queries (cells, 1, query width)."""
        for layer in self.layers:
            queries = layer(queries, seen)
        return queries


class Connector(nn.Module):
    """From the encoders' features to visual tokens in the LLM's space.

    `widths` and `grids` are the feature width and grid side of each encoder, `side` that of the query grid, `width` the
    aggregator's own, `hidden` the LLM's.
    """

    def __init__(
        self, widths: Sequence[int], grids: Sequence[int], side: int, width: int, hidden: int, depth: int
    ) -> None:
        super().__init__()
        self.side = side
        self.encoders = len(widths)
        for index, encoder_width in enumerate(widths):
            setattr(self, f"mm_projector_aux_{index}", nn.Sequential(*mlp(encoder_width, width), nn.LayerNorm(width)))
        self.vision_query = nn.Parameter(torch.empty(1, width))
        self.vision_sampler_0 = Sampler(width, width, [grid // side for grid in grids], depth)
        self.mm_projector = mlp(width, hidden)
        self.image_newline = nn.Parameter(torch.empty(hidden))

    def maps(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return each encoder's features (tokens, its width) in the aggregator's width."""
        return [getattr(self, f"mm_projector_aux_{index}")(feature) for index, feature in enumerate(features)]

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return visual tokens (rows x (cols + 1), hidden): the image's rows without padding, a newline after each."""
        queries = self.vision_query[None].expand(self.side * self.side, -1, -1)
        cells = self.vision_sampler_0(queries, views(maps, size, self.side, crop=False))
        grid = window(size, self.side).cut(self.mm_projector(cells[:, 0]).unflatten(0, (self.side, self.side)))
        newline = self.image_newline.expand(len(grid), 1, -1)
        return torch.cat([grid, newline], 1).flatten(0, 1)
