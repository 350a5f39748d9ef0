"""A checkpoint's own configuration against the card: obeyed and told, or refused by field and both values."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from transformers import LlamaConfig, Phi3Config, Qwen2Config, Qwen2ForCausalLM

from harness.errors import WeightsError
from harness.models import configuration, llms
from harness.models.card import Llm
from harness.models.configuration import Comparison

LLM = Llm(
    kind="qwen2", hidden=32, layers=1, heads=4, kv_heads=2, ffn=48, vocab=40, rope_theta=1e6, rms_eps=1e-6, positions=64
)
SIZES = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 40}


def compared(folder: Path, card: Llm = LLM, **fields: object) -> tuple[Llm, list[str]]:
    (folder / "config.json").write_text(json.dumps(fields))
    comparison = Comparison(configuration.read(folder), "tiny")
    result = configuration.language_model(card, comparison)
    comparison.close()
    return result, [str(one) for one in comparison.obeyed]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rope_theta": 1e4}, "rope_theta: card 1000000.0, checkpoint 10000.0"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling (beside rope_theta): card none, checkpoint",
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "rope_theta: card 1000000.0, checkpoint 5"),
        ({"num_attention_heads": 8, "num_key_value_heads": 4}, "num_attention_heads: card 4, checkpoint 8"),
        ({"hidden_act": "gelu"}, "hidden_act: card silu, checkpoint gelu"),
        ({"rms_norm_eps": 1e-2}, "rms_norm_eps: card 1e-06, checkpoint 0.01"),
        ({"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}, "sliding_window: card none"),
    ],
)
@torch.inference_mode()
def test_what_the_checkpoint_states_is_obeyed_as_transformers_obeys_it_and_told(
    tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    card, obeyed = compared(tmp_path, **{"rope_theta": 1e6, **SIZES, **fields})
    assert any(line.startswith(told) for line in obeyed), obeyed
    usual = {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 1e6, "max_position_embeddings": 64}
    torch.manual_seed(0)
    reference = Qwen2ForCausalLM(Qwen2Config(**{**SIZES, **usual, **fields}, attn_implementation="sdpa")).eval()  # type: ignore[call-arg]
    ours, as_the_card = llms.build(card).eval(), llms.build(LLM).eval()
    ours.load_state_dict(reference.state_dict())
    ids = torch.tensor([[1, 2, 3, 39, 5, 6, 7, 8]])
    assert torch.equal(ours(ids).logits, reference(ids).logits)
    if "num_attention_heads" not in fields:
        as_the_card.load_state_dict(reference.state_dict())
        assert not torch.allclose(
            as_the_card(ids).logits, reference(ids).logits, atol=1e-6
        )  # it does make a difference


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"hidden_size": 64}, "hidden_size: card 32, checkpoint 64"),
        ({"num_hidden_layers": 2}, "num_hidden_layers: card 1, checkpoint 2"),
        ({"model_type": "qwen3"}, "model_type: card qwen2, checkpoint qwen3"),
        (
            {"architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava"},
            "model_type: card qwen2, checkpoint llama",
        ),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, "rope_scaling: card default, checkpoint mrope"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping: card null, checkpoint 30.0"),
        ({"rope_theta": "large"}, "rope_theta: card 1000000.0, checkpoint large"),
        ({"rms_norm_eps": True}, "rms_norm_eps: card 1e-06, checkpoint true"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_field_and_both_values(
    tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(WeightsError, match="cannot be obeyed") as caught:
        compared(tmp_path, **{**SIZES, "rope_theta": 1e6, **fields})
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_says_what_the_card_says_changes_nothing(tmp_path: Path) -> None:
    full = Qwen2Config(  # type: ignore[call-arg]
        **SIZES, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, rope_theta=1e6
    ).to_dict()
    assert compared(tmp_path, **full) == (LLM, [])
    assert compared(tmp_path, text_config=full, model_type="llava_onevision") == (LLM, [])
    assert compared(tmp_path) == (LLM, [])


def test_a_field_left_out_means_transformers_default_where_transformers_wrote_the_file(tmp_path: Path) -> None:
    """Its nested sections list only what differs from the class: no rope_theta is a rope_theta of 10,000."""
    section = {"model_type": "qwen2", "hidden_size": 32}
    card, obeyed = compared(tmp_path, text_config=section, transformers_version="4.45.0")
    assert (card.rope_theta, obeyed) == (1e4, ["rope_theta: card 1000000.0, checkpoint 10000.0"])
    assert compared(tmp_path, text_config=section)[0] == LLM  # of someone else's hand: nothing stated, nothing changed


@pytest.mark.parametrize(
    ("kind", "config_class"), [("qwen2", Qwen2Config), ("llama", LlamaConfig), ("phi3", Phi3Config)]
)
def test_our_table_of_defaults_is_transformers_own(kind: str, config_class: Any) -> None:
    config = config_class()
    stated = {**config.to_dict(), "rope_theta": config.rope_parameters["rope_theta"]}
    assert {name: stated[name] for name in configuration.DEFAULTS[kind]} == configuration.DEFAULTS[kind]
    for name, value in configuration.EXTRAS[kind].items():
        if name not in ("head_dim", "partial_rotary_factor"):
            assert stated[name] == value, name


def test_what_ends_an_answer_is_the_checkpoints_own(tmp_path: Path) -> None:
    card = msgspec.structs.replace(LLM, eos=(7, 5))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    assert compared(tmp_path, card, eos_token_id=9, **SIZES) == (card, [])  # the generation's file comes first
    (tmp_path / "generation_config.json").unlink()
    assert compared(tmp_path, card, eos_token_id=9, **SIZES)[0].eos == (9,)


def test_bos_is_the_templates_where_the_card_has_none(tmp_path: Path) -> None:
    assert compared(tmp_path, bos_token_id=3, **SIZES)[0].bos is None
    assert compared(tmp_path, msgspec.structs.replace(LLM, bos=1), bos_token_id=3, **SIZES)[0].bos == 3


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs pointer"),
        (b"{", "not JSON"),
        (b"[1]", "a table is expected"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(WeightsError, match=told) as caught:
        configuration.read(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")


def test_the_image_processors_values_are_found_in_either_file(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"image_mean": [0, 0, 0]}}))
    assert configuration.read(tmp_path).preprocessor["image_mean"] == [0, 0, 0]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [1, 1, 1]}))
    assert configuration.read(tmp_path).preprocessor["image_mean"] == [1, 1, 1]
