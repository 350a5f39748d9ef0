"""Cards of our own families as transformers' configurations: what `--route auto` builds where there are no weights.

The language model, tower and projector are the card's; transformers' layout has a few more rows of vocabulary, one of
which stands for the image. Sources: the configurations of llava-hf/llava-1.5-7b-hf, llava-hf/llava-onevision-*-hf, and
transformers' own FastVlmConfig.
"""

from collections.abc import Callable
from typing import NamedTuple

from harness.errors import SettingError
from harness.models.card import Llm, ModelCard, Table

IMAGE_ID = 151646
"""The id of `<image>` in the checkpoints on Qwen2."""


class Known(NamedTuple):
    """A transformers configuration with its `model_type`, and the settings of the processor (see `ModelCard`)."""

    config: Table
    processor: Table


def known(card: ModelCard) -> Known:
    """Return what a card means to transformers; raises `SettingError` for a family that it has no class for."""
    if card.config:
        return Known(card.config, card.processor)
    if card.adapter not in TRANSLATIONS or card.llm is None or len(card.encoders) != 1:
        raise SettingError(
            f"{card.name} (family {card.adapter}) is not one of transformers' own architectures; next: without "
            f"--route auto (it runs {', '.join(TRANSLATIONS)} and cards with a [config])"
        )
    return TRANSLATIONS[card.adapter](card, card.llm)


def _text(llm: Llm, vocab: int) -> Table:
    return {
        "model_type": llm.kind,
        "vocab_size": vocab,
        "hidden_size": llm.hidden,
        "intermediate_size": llm.ffn,
        "num_hidden_layers": llm.layers,
        "num_attention_heads": llm.heads,
        "num_key_value_heads": llm.kv_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": llm.rope_theta},
        "rms_norm_eps": llm.rms_eps,
        "max_position_embeddings": llm.positions,
        "tie_word_embeddings": llm.tied,
        "bos_token_id": llm.bos,
        "eos_token_id": list(llm.eos) or None,
        "pad_token_id": None,
    }


def _fastvlm(card: ModelCard, llm: Llm) -> Known:
    encoder, side = card.encoders[0], card.resolution.default
    vocab = llm.vocab if llm.vocab > IMAGE_ID else llm.vocab + 64
    vision = {
        "model_type": "timm_wrapper",
        "architecture": encoder.architecture,
        "do_pooling": True,
        "global_pool": "avg",
        "hidden_size": encoder.width,
        "model_args": {"inference_mode": True, **encoder.settings},
    }
    config = {
        "model_type": "fast_vlm",
        "text_config": _text(llm, vocab),
        "vision_config": vision,
        "image_token_index": IMAGE_ID if vocab > IMAGE_ID else llm.vocab,
        "tie_word_embeddings": llm.tied,
    }
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    images = {**size, "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0]}
    return Known(config, {"patch_size": 64, "vision_feature_select_strategy": "full", "images": images})


def _tower(card: ModelCard, kind: str) -> Table:
    encoder = card.encoders[0]
    return {
        "model_type": kind,
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.settings["layers"],
        "num_attention_heads": encoder.settings["heads"],
        "intermediate_size": encoder.settings["ffn"],
        "patch_size": encoder.settings["patch"],
        "image_size": encoder.side,
    }


def _llava(card: ModelCard, llm: Llm) -> Known:
    side = card.encoders[0].side
    config = {
        "model_type": "llava",
        "text_config": _text(llm, llm.vocab + 64),
        "vision_config": _tower(card, "clip_vision_model"),
        "image_token_index": llm.vocab,
    }
    images = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    own = {"patch_size": card.encoders[0].settings["patch"], "vision_feature_select_strategy": "default"}
    return Known(config, {**own, "num_additional_image_tokens": 1, "images": images})


def _onevision(card: ModelCard, llm: Llm) -> Known:
    side = card.encoders[0].side or 0
    steps = range(1, int(card.settings["largest_grid"]) + 1)
    pinpoints: list[list[int]] = [[rows * side, cols * side] for rows in steps for cols in steps]
    per_tile = (side // int(card.encoders[0].settings["patch"])) ** 2
    config = {
        "model_type": "llava_onevision",
        "text_config": _text(llm, llm.vocab),
        "vision_config": {**_tower(card, "siglip_vision_model"), "vision_use_head": False},
        "image_token_index": IMAGE_ID if llm.vocab > IMAGE_ID else llm.vocab - 1,
        "image_grid_pinpoints": pinpoints,
        "vision_aspect_ratio": f"anyres_max_{card.settings['largest_tiles']}",
        "vision_feature_layer": -1,
        "tie_word_embeddings": llm.tied,
    }
    half = [0.5, 0.5, 0.5]
    images: Table = {"size": {"height": side, "width": side}, "image_grid_pinpoints": pinpoints}
    images |= {"image_mean": half, "image_std": half}
    own = {"num_image_tokens": per_tile, "vision_feature_select_strategy": "full"}
    return Known(config, {**own, "vision_aspect_ratio": config["vision_aspect_ratio"], "images": images})


TRANSLATIONS: dict[str, Callable[[ModelCard, Llm], Known]] = {
    "fastvlm": _fastvlm,
    "llava": _llava,
    "llava_onevision": _onevision,
}
