import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from harness.errors import SettingError
from harness.models.families.llava import token_reduction

GOLDEN = Path(__file__).parents[1] / "golden" / "token_reduction.safetensors"
"""What the originals' own functions gave for seeded inputs; repositories and commits are in the file's metadata."""


def inputs(seed: int, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the hidden states, queries and keys (577, 8) that the golden numbers were made from."""
    rng = np.random.default_rng(seed)
    states, queries, keys = (rng.standard_normal((1, 577, 8)).astype(np.float32)[0] for _ in range(3))
    return torch.from_numpy(states), torch.from_numpy(queries * np.float32(scale)), torch.from_numpy(keys)


@pytest.mark.parametrize("seed", ["1", "2", "3"])
@pytest.mark.parametrize("name", ["prumerge", "prumerge+"])
def test_prumerge_gives_the_original_codes_numbers(seed: str, name: str) -> None:
    with safe_open(GOLDEN, "pt") as golden:
        expected = golden.get_tensor(f"{seed}/{name}")
        scale = json.loads(golden.metadata()["scales"])[seed]
    states, queries, keys = inputs(int(seed), scale)
    tokens = token_reduction.prumerge(states[1:], queries, keys, spatial=name == "prumerge+")
    assert tokens.shape == expected.shape
    assert (tokens - expected).abs().max() < 1e-5


@pytest.mark.parametrize("count", [1, 9, 36, 144])
def test_matryoshka_gives_the_original_codes_numbers(count: int) -> None:
    with safe_open(GOLDEN, "pt") as golden:
        expected = golden.get_tensor(f"1/m3-{count}")
    tokens = token_reduction.matryoshka(inputs(1, 1.0)[0][1:], count)
    assert tokens.shape == expected.shape == (count, 8)
    assert (tokens - expected).abs().max() < 1e-6


def test_matryoshka_at_all_tokens_changes_nothing() -> None:
    tokens = inputs(1, 1.0)[0][1:]
    assert torch.equal(token_reduction.matryoshka(tokens, 576), tokens)
    with pytest.raises(SettingError, match="24x24 cannot be pooled to 10"):
        token_reduction.matryoshka(tokens, 10)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 8), st.booleans())
def test_prumerge_keeps_outliers_and_all_attention(seed: int, scale: float, spatial: bool) -> None:
    states, queries, keys = inputs(seed, scale)
    attention = token_reduction.class_attention(queries, keys)
    full = (queries @ keys.T * 8**-0.5).softmax(-1)[0, 1:]
    assert torch.allclose(attention, full, atol=1e-6)
    kept = token_reduction.select(attention, spatial).tolist()
    count = token_reduction.outliers(attention)
    assert len(set(kept)) == len(kept)
    assert set(kept[:count]) == set(attention.topk(count).indices.tolist())
    assert count <= 576 // 4  # what lies above the third quartile
    if spatial:
        assert set(token_reduction.spread(576, count)) <= set(kept)
    tokens = token_reduction.prumerge(states[1:], queries, keys, spatial)
    assert len(tokens) == len(kept) + 1
    pruned = [i for i in range(576) if i not in set(kept)]
    assert torch.allclose(tokens[-1], (attention[pruned, None] * states[1:][pruned]).sum(0), atol=1e-4)


def test_one_kept_token_is_itself_plus_its_nearest_by_attention() -> None:
    torch.manual_seed(0)
    features, keys, attention = torch.randn(64, 8), torch.randn(64, 8), torch.rand(64)
    merged = token_reduction.merge(features, keys, attention, torch.tensor([5]))
    cosine = torch.cosine_similarity(keys[5:6], keys)
    near = [i for i in cosine.argsort(descending=True).tolist() if i != 5][:32]
    assert torch.allclose(merged[0], features[5] + sum(attention[i] * features[i] for i in near), atol=1e-5)


def test_no_outlier_leaves_the_merged_rest() -> None:
    features, even = torch.randn(16, 4), torch.zeros(17, 4)
    assert len(token_reduction.prumerge(features, even, even, spatial=False)) == 1
    assert len(token_reduction.prumerge(features, even, even, spatial=True)) == 2


def test_the_number_of_tokens_can_be_forced_where_there_are_no_values() -> None:
    states, queries, keys = (tensor.to("meta") for tensor in inputs(1, 1.0))
    assert token_reduction.prumerge(states[1:], queries, keys, spatial=True, count=40).shape == (40, 8)


def test_an_unknown_reduction_guesses_the_near_one() -> None:
    assert token_reduction.named("m3-36") == ("m3", 36)
    assert token_reduction.named("prumerge+").adaptive
    assert not token_reduction.named("none").adaptive
    with pytest.raises(SettingError, match=r"did you mean 'prumerge'.*m3-576"):
        token_reduction.named("prunemerge")
