"""A Qwen2 layer over many questions that share a picture, with the layer's own weights: what `transformers` computes.

Given one sequence and a mask, attention multiplies every token with every other and throws most of it away: each
question sees the picture and itself alone. Here the pictures' tokens and the questions' tokens lie one after another,
every matrix is applied to all of them at once, and attention goes question by question.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from training.exercises import Exercise


@dataclass(frozen=True, slots=True)
class Pack:
    """How the tokens lie: B prefixes (prompt and picture) of P tokens each, then all questions' T tokens."""

    pieces: int
    length: int
    owners: Tensor
    rows: Tensor
    shown: Tensor
    turns: tuple[Tensor, Tensor]
    """Cosines and sines of the rotary positions, (B P + T, 1, head_dim)"""
    mask: Tensor
    """(S, P + S): whether a question's token may look at one of the prefix or of its own"""

    @property
    def text(self) -> slice:
        """Where the questions' tokens lie."""
        return slice(self.pieces * self.length, None)

    def prefixes(self, tokens: Tensor) -> Tensor:
        """Return (B, heads, P, head_dim) of (B P + T, heads, head_dim)."""
        prefixes: Tensor = tokens[: self.text.start].unflatten(0, (self.pieces, self.length))
        return prefixes.transpose(1, 2)

    def questions(self, tokens: Tensor) -> Tensor:
        """Return (N, heads, S, head_dim) of (B P + T, heads, head_dim)."""
        return tokens[self.text][self.rows].transpose(1, 2)


def lay(exercise: Exercise, llm: Any, length: int) -> Pack:
    """Lay the tokens of an exercise out, `length` in each prefix."""
    pieces, size = len(exercise.pixels), exercise.rows.shape[1]
    positions = torch.cat([torch.arange(length).repeat(pieces), length + exercise.positions])
    cos, sin = llm.model.rotary_emb(llm.lm_head.weight, positions[None])
    own = torch.ones(size, size, dtype=torch.bool).tril()
    mask = torch.cat([torch.ones(size, length, dtype=torch.bool), own], dim=1)
    turns = cos[0, :, None], sin[0, :, None]
    return Pack(pieces, length, exercise.owners, exercise.rows, exercise.shown, turns, mask)


def attend(layer: Any, hidden: Tensor, pack: Pack) -> Tensor:
    """Return what the layer's attention adds to (B P + T, width)."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    q, k = (_turned(of(normed), attention.head_dim, pack) for of in (attention.q_proj, attention.k_proj))
    v = attention.v_proj(normed).unflatten(-1, (-1, attention.head_dim))
    keys, values = pack.prefixes(k), pack.prefixes(v)
    prefix = F.scaled_dot_product_attention(pack.prefixes(q), keys, values, is_causal=True, enable_gqa=True)
    question = F.scaled_dot_product_attention(
        pack.questions(q),
        torch.cat([keys[pack.owners], pack.questions(k)], dim=2),
        torch.cat([values[pack.owners], pack.questions(v)], dim=2),
        attn_mask=pack.mask,
        enable_gqa=True,
    )
    looked = torch.cat([prefix.transpose(1, 2).flatten(0, 1), question.transpose(1, 2)[pack.shown]])
    added: Tensor = attention.o_proj(looked.flatten(1))
    return added


def think(layer: Any, hidden: Tensor) -> Tensor:
    """Return what the layer's second half adds to (B P + T, width)."""
    added: Tensor = layer.mlp(layer.post_attention_layernorm(hidden))
    return added


def look(layer: Any, hidden: Tensor, pack: Pack, heads: int) -> Tensor:
    """Return the attention scores of the first heads from each question's tokens to its prefix: (T, heads, P)."""
    attention = layer.self_attn
    wide = heads * attention.head_dim
    normed = layer.input_layernorm(hidden)
    q, k = (
        _turned(F.linear(normed, of.weight[:wide], of.bias[:wide]), attention.head_dim, pack)
        for of in (attention.q_proj, attention.k_proj)
    )
    scores: Tensor = pack.questions(q) @ pack.prefixes(k)[pack.owners].transpose(2, 3) * attention.scaling
    return scores.transpose(1, 2)[pack.shown]


def _turned(tokens: Tensor, head_dim: int, pack: Pack) -> Tensor:
    """Return (B P + T, heads, head_dim), each pair of numbers turned by its position."""
    parts: Tensor = tokens.unflatten(-1, (-1, head_dim))
    cos, sin = (turn.to(parts.dtype) for turn in pack.turns)
    first, second = parts.chunk(2, dim=-1)
    return parts * cos + torch.cat([-second, first], dim=-1) * sin
