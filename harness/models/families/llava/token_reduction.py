"""Fewer visual tokens for LLaVA-1.5: PruMerge, PruMerge+ and Matryoshka pooling, by the originals' released code.

Where the released code and the paper differ, the code is followed, because its answers are the published ones:
PruMerge (arXiv:2403.15388) looks at one attention over the full width (no heads) from queries and keys of CLIP's
*last* layer, does not divide a merged token by its weights, orders the kept tokens by attention, and adds one token
made of all that were pruned. Matryoshka (M3, arXiv:2405.17430) pools *after* the projector.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.errors import SettingError, guess

NEIGHBOURS = 32
"""How many of the most similar tokens are merged into each kept one."""

M3_COUNTS = (1, 9, 36, 144, 576)
"""The token counts that M3 was trained at: pooling a 24x24 grid by 24, 8, 4, 2 and 1."""

NAMES = ("none", "prumerge", "prumerge+", *(f"m3-{count}" for count in M3_COUNTS))


class Reduction(NamedTuple):
    """A way to reduce visual tokens; `tokens` is M3's number of them."""

    kind: Literal["none", "prumerge", "prumerge+", "m3"]
    tokens: int = 0

    @property
    def adaptive(self) -> bool:
        """Whether the number of tokens depends on the image."""
        return self.kind in ("prumerge", "prumerge+")


def named(name: str) -> Reduction:
    """Return the reduction that the setting `reduction` names; raises `SettingError` for an unknown one."""
    if name not in NAMES:
        raise SettingError(f"--set reduction={name}: unknown{guess(name, NAMES)}; known: {', '.join(NAMES)}")
    if name.startswith("m3-"):
        return Reduction("m3", int(name.removeprefix("m3-")))
    return Reduction("prumerge+" if name == "prumerge+" else "prumerge" if name == "prumerge" else "none")


def matryoshka(tokens: Tensor, count: int) -> Tensor:
    """Average a square grid of tokens (side * side, width), row by row, down to `count` tokens."""
    side = math.isqrt(len(tokens))
    pool = math.isqrt(len(tokens) // count)
    if pool * pool * count != len(tokens):
        raise SettingError(f"--set reduction=m3-{count}: a grid of {side}x{side} cannot be pooled to {count} tokens")
    grid = tokens.T.reshape(1, -1, side, side)
    return F.avg_pool2d(grid, pool).flatten(2)[0].T


def class_attention(queries: Tensor, keys: Tensor) -> Tensor:
    """Return the class token's attention (tokens,) on the others; queries and keys are (1 + tokens, width).

    Only the class token's row is computed; the softmax runs over all, the class token itself included.
    """
    scores = (queries[:1] @ keys.T) * keys.shape[-1] ** -0.5
    attention: Tensor = scores.softmax(-1)
    return attention[0, 1:]


def outliers(attention: Tensor) -> int:
    """Return how many tokens have an attention above the third quartile by more than 1.5 interquartile ranges."""
    values = attention.float()
    low, high = torch.quantile(values, torch.tensor([0.25, 0.75], device=values.device))
    return int((values > high + 1.5 * (high - low)).sum())


def spread(tokens: int, count: int) -> range:
    """Return PruMerge+'s evenly spaced tokens: three times as dense as `count` tokens in raster order would lie.

    The original stops before the last token, and divides by zero where there is no outlier; here that takes the first.
    """
    return range(0, tokens - 1, max(1, int(int(tokens / count) / 3))) if count else range(1)


def select(attention: Tensor, spatial: bool) -> Tensor:
    """Return the tokens to keep: by falling attention, then (PruMerge+) the evenly spaced ones not among them."""
    count = outliers(attention)
    kept = attention.topk(count).indices
    if not spatial:
        return kept
    grid = spread(len(attention), count)
    places = torch.arange(grid.start, grid.stop, grid.step, device=attention.device)
    taken = torch.zeros(len(attention), dtype=torch.bool, device=attention.device)
    taken[kept] = True
    return torch.cat([kept, places[~taken[places]]])


def merge(features: Tensor, keys: Tensor, attention: Tensor, kept: Tensor) -> Tensor:
    """Return (kept + 1, width): each kept token plus its nearest others weighted by attention, and one of all the rest.

    `features` and `keys` are (tokens, width), `attention` (tokens,). Near is by the cosine of keys; kept tokens count
    among the others.
    """
    unit = F.normalize(keys, dim=-1)
    similar = unit[kept] @ unit.T
    similar.scatter_(1, kept[:, None], -torch.inf)
    near = similar.topk(min(NEIGHBOURS, len(keys) - 1)).indices
    weights = torch.zeros_like(similar).scatter_(1, near, attention[near])
    rest = attention.index_fill(0, kept, 0.0)[None]
    return torch.cat([features[kept] + weights @ features, rest @ features])


def prumerge(features: Tensor, queries: Tensor, keys: Tensor, spatial: bool, count: int | None = None) -> Tensor:
    """Return PruMerge's tokens (n, width) of `features` (tokens, width); `spatial` makes it PruMerge+.

    `queries` and `keys` (1 + tokens, width) are of CLIP's last layer, the class token first. `count` forces the number
    of tokens returned: for counting FLOPs where there are no values to select by (meta device).
    """
    attention = class_attention(queries, keys)
    kept = select(attention, spatial) if count is None else attention.topk(count - 1).indices
    return merge(features, keys[1:], attention, kept)
