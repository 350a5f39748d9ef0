"""Decoder-only language models, built from a card with transformers' own classes (SDPA attention, KV cache on)."""

from collections.abc import Callable

from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from harness.models.card import Llm

CLASSES: dict[str, tuple[Callable[..., PreTrainedConfig], Callable[..., PreTrainedModel]]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
}


def build(card: Llm) -> PreTrainedModel:
    """Return the model with uninitialised weights; call under `loading.empty()` so that nothing is allocated twice."""
    config_class, model_class = CLASSES[card.kind]
    config = config_class(
        vocab_size=card.vocab,
        hidden_size=card.hidden,
        intermediate_size=card.ffn,
        num_hidden_layers=card.layers,
        num_attention_heads=card.heads,
        num_key_value_heads=card.kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": card.rope_theta, **card.rope_scaling},
        rms_norm_eps=card.rms_eps,
        max_position_embeddings=card.positions,
        tie_word_embeddings=card.tied,
        bos_token_id=card.bos,
        eos_token_id=list(card.eos) or None,
        pad_token_id=None,
        use_cache=True,
        attn_implementation="sdpa",
        **card.config,
    )
    model: PreTrainedModel = model_class(config)
    return model
