"""Tiny checkpoints of transformers' vision-language families, in the layout in which they are released."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForMultimodalLM, PreTrainedTokenizerFast

from harness.models.families.auto import stand_in

VOCAB = 600


class Tiny(NamedTuple):
    """One family: its configuration, the settings of its image processor, and of its processor."""

    config: dict[str, Any]
    images: dict[str, Any] = {}
    processor: dict[str, Any] = {}
    side: int = 56


TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 8192,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 14,
    "image_size": 56,
}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}


def text(model_type: str, **fields: Any) -> dict[str, Any]:
    return {"model_type": model_type, **TEXT, **fields}


def tower(model_type: str, **fields: Any) -> dict[str, Any]:
    return {"model_type": model_type, **TOWER, **fields}


QWEN_IDS = {"image_token_id": 500, "video_token_id": 501, "vision_start_token_id": 502, "vision_end_token_id": 503}
QWEN_IMAGES = {"size": {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}}
QWEN3_IMAGES = {"patch_size": 16, "size": {"shortest_edge": 32 * 32, "longest_edge": 128 * 128}}
SQUARE = {"size": {"height": 56, "width": 56}}
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
QWEN3_TOWER = {
    "hidden_size": 32, "intermediate_size": 48, "depth": 3, "num_heads": 4, "patch_size": 16, "out_hidden_size": 32,
    "num_position_embeddings": 16,
}  # fmt: skip

FAMILIES: dict[str, Tiny] = {
    "qwen2_vl": Tiny(
        {
            "text_config": text("qwen2_vl_text", rope_parameters=MROPE),
            "vision_config": {"embed_dim": 32, "hidden_size": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2},
            **QWEN_IDS,
        },
        QWEN_IMAGES,
    ),
    "qwen2_5_vl": Tiny(
        {
            "text_config": text("qwen2_5_vl_text", rope_parameters=MROPE),
            "vision_config": {
                "hidden_size": 32, "out_hidden_size": 32, "depth": 2, "num_heads": 4, "intermediate_size": 48,
                "fullatt_block_indexes": [1],
            },
            **QWEN_IDS,
        },
        QWEN_IMAGES,
    ),
    "qwen3_vl": Tiny(
        {
            "text_config": text(
                "qwen3_vl_text", head_dim=8, rope_parameters={**MROPE, "mrope_interleaved": True}
            ),
            "vision_config": {**QWEN3_TOWER, "deepstack_visual_indexes": [0, 1]},
            **QWEN_IDS,
        },
        QWEN3_IMAGES,
        side=64,
    ),
    "qwen3_5": Tiny(
        {
            "text_config": text(
                "qwen3_5_text", head_dim=8, num_hidden_layers=4, linear_num_key_heads=2, linear_num_value_heads=4,
                linear_key_head_dim=8, linear_value_head_dim=8,
                rope_parameters={**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
            ),
            "vision_config": QWEN3_TOWER,
            **QWEN_IDS,
        },
        QWEN3_IMAGES,
        side=64,
    ),
    "internvl": Tiny(
        {
            "text_config": text("qwen2"),
            "vision_config": {**TOWER, "image_size": [56, 56], "patch_size": [14, 14]},
            "image_token_id": 500,
            "downsample_ratio": 0.5,
        },
        SQUARE,
        {"image_seq_length": 4},
        112,
    ),
    "idefics3": Tiny(
        {
            "text_config": text("llama"),
            "vision_config": tower("idefics3_vision"),
            "image_token_id": 500,
            "scale_factor": 2,
        },
        {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}},
        {"image_seq_len": 4},
        112,
    ),
    "smolvlm": Tiny(
        {
            "text_config": text("llama"),
            "vision_config": tower("smolvlm_vision"),
            "image_token_id": 500,
            "scale_factor": 2,
        },
        {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}},
        {"image_seq_len": 4},
        112,
    ),
    "gemma3": Tiny(
        {
            "text_config": text("gemma3_text", head_dim=8, sliding_window=64),
            "vision_config": tower("siglip_vision_model", vision_use_head=False),
            "image_token_index": 500,
            "image_token_id": 500,
            "boi_token_index": 501,
            "eoi_token_index": 502,
            "mm_tokens_per_image": 4,
        },
        SQUARE,
        {"image_seq_length": 4},
    ),
    "gemma4": Tiny(
        {
            "text_config": text(
                "gemma4_text", head_dim=8, sliding_window=64, vocab_size_per_layer_input=VOCAB,
                hidden_size_per_layer_input=8, global_head_dim=8,
            ),
            "vision_config": {
                "model_type": "gemma4_vision", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "patch_size": 16,
                "position_embedding_size": 64,
            },
            "image_token_id": 500, "boi_token_id": 501, "eoi_token_id": 502, "video_token_id": 503,
            "audio_token_id": 504, "boa_token_id": 505, "eoa_token_index": 506,
        },
        side=256,
    ),
    "paligemma": Tiny(
        {
            "text_config": text("gemma2", head_dim=8),
            "vision_config": tower("siglip_vision_model", vision_use_head=False),
            "image_token_id": 500, "image_token_index": 500, "projection_dim": 32, "hidden_size": 32,
        },
        {**SQUARE, "image_seq_length": 16},
    ),
    "llava": Tiny(
        {
            "text_config": text("llama"),
            "vision_config": tower("clip_vision_model"),
            "image_token_index": 500, "image_token_id": 500,
        },
        {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}},
        {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "llava_next": Tiny(
        {
            "text_config": text("llama"),
            "vision_config": tower("clip_vision_model"),
            "image_token_index": 500, "image_token_id": 500, "image_grid_pinpoints": PINPOINTS,
        },
        {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}, "image_grid_pinpoints": PINPOINTS},
        {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        112,
    ),
    "llava_onevision": Tiny(
        {
            "text_config": text("qwen2"),
            "vision_config": tower("siglip_vision_model", vision_use_head=False),
            "image_token_index": 500, "image_token_id": 500, "video_token_index": 501, "video_token_id": 501,
            "image_grid_pinpoints": PINPOINTS, "vision_feature_layer": -1,
        },
        {
            **SQUARE, "image_grid_pinpoints": PINPOINTS, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        },
        {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        112,
    ),
    "fast_vlm": Tiny(
        {
            "text_config": text("qwen2"),
            "vision_config": {
                "model_type": "timm_wrapper", "architecture": "fastvit_mci3", "do_pooling": True, "global_pool": "avg",
                "hidden_size": 128,
                "model_args": {
                    "inference_mode": True, "layers": [1, 1, 1, 1, 1], "embed_dims": [16, 16, 32, 32, 64],
                },
            },
            "image_token_id": 500, "image_token_index": 500,
        },
        {
            "size": {"shortest_edge": 128}, "crop_size": {"height": 128, "width": 128},
            "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0],
        },
        {"patch_size": 64, "vision_feature_select_strategy": "full"},
        128,
    ),
    "pixtral": Tiny(
        {
            "model_type": "llava",
            "text_config": text("mistral", head_dim=8),
            "vision_config": {
                "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                "num_attention_heads": 4, "patch_size": 16, "image_size": 128, "head_dim": 8,
            },
            "image_token_index": 500, "image_token_id": 500, "vision_feature_select_strategy": "full",
            "vision_feature_layer": -1,
        },
        {"patch_size": {"height": 16, "width": 16}, "size": {"longest_edge": 128}},
        {"patch_size": 16},
        96,
    ),
    "mistral3": Tiny(
        {
            "text_config": text("mistral", head_dim=8),
            "vision_config": {
                "model_type": "pixtral", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                "num_attention_heads": 4, "patch_size": 14, "image_size": 112, "head_dim": 8,
            },
            "image_token_index": 500, "image_token_id": 500, "spatial_merge_size": 2,
        },
        {"patch_size": {"height": 28, "width": 28}, "size": {"longest_edge": 112}},
        {"patch_size": 14, "spatial_merge_size": 2},
        112,
    ),
    "lfm2_vl": Tiny(
        {
            "text_config": text(
                "lfm2", layer_types=["conv", "full_attention"], block_ff_dim=48, block_multiple_of=8,
                conv_L_cache=3, block_auto_adjust_ff_dim=False,
            ),
            "vision_config": {
                "model_type": "siglip2_vision_model", "hidden_size": 32, "intermediate_size": 48,
                "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 16, "num_patches": 16,
                "vision_use_head": False,
            },
            "image_token_id": 500, "projector_hidden_size": 32,
        },
        {"tile_size": 64, "min_image_tokens": 1, "max_image_tokens": 4, "max_tiles": 4},
        side=128,
    ),
    "minicpmv4_6": Tiny(
        {
            "text_config": text(
                "qwen3_5_text", head_dim=8, num_hidden_layers=4, linear_num_key_heads=2, linear_num_value_heads=4,
                linear_key_head_dim=8, linear_value_head_dim=8,
                rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
            ),
            "vision_config": {**TOWER, "image_size": 112, "insert_layer_id": 0},
            "image_token_id": 500, "video_token_id": 501, "image_size": 112, "insert_layer_id": 0,
        },
        {"scale_resolution": 112, "max_slice_nums": 4},
        side=224,
    ),
    "molmo2": Tiny(
        {
            "text_config": {
                "model_type": "molmo2_text", **TEXT, "head_dim": 8, "additional_vocab_size": 16,
            },
            "vision_config": {
                "model_type": "molmo2_vision", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
                "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "image_size": [56, 56],
                "num_position_embeddings": 16,
            },
            "adapter_config": {
                "model_type": "molmo2_adapter", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4,
                "head_dim": 8, "intermediate_size": 48, "text_hidden_size": 32, "vision_feature_layer": [-1, -2],
            },
            "image_patch_id": 500,
        },
        {**SQUARE, "max_crops": 4, "overlap_margins": [1, 1]},
        side=112,
    ),
    "got_ocr2": Tiny(
        {
            "text_config": text("qwen2"),
            "vision_config": {
                "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
                "image_size": 128, "patch_size": 2, "window_size": 8, "global_attn_indexes": [], "mlp_dim": 48,
            },
            "image_token_index": 500, "image_token_id": 500, "image_seq_length": 256,
        },
        {"size": {"height": 128, "width": 128}},
        side=128,
    ),
    "mllama": Tiny(
        {
            "text_config": text(
                "mllama_text_model", num_hidden_layers=3, cross_attention_layers=[1],
                rope_parameters={"rope_type": "default", "rope_theta": 1e4},
            ),
            "vision_config": {
                "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_global_layers": 1,
                "attention_heads": 4, "image_size": 56, "patch_size": 14, "vision_output_dim": 64,
                "intermediate_layers_indices": [1], "max_num_tiles": 4,
                "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
            },
            "image_token_index": 500,
        },
        {**SQUARE, "max_image_tiles": 4},
        side=112,
    ),
    "phi4_multimodal": Tiny(
        {
            **TEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
            "vision_config": {**TOWER, "image_size": 448, "crop_size": 448, "image_token_id": 500},
            "audio_config": {
                "hidden_size": 32, "intermediate_size": 48, "num_blocks": 1, "num_attention_heads": 4,
                "ext_pw_out_channel": 32, "depthwise_separable_out_channel": 32, "nemo_conv_channels": 32,
                "audio_token_id": 501,
            },
        },
        {"dynamic_hd": 4},  # its processor counts tokens for 448 px only
        side=448,
    ),
    "florence2": Tiny(
        {
            "text_config": {
                "model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
                "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
                "decoder_ffn_dim": 48, "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
                "max_position_embeddings": 512, "decoder_start_token_id": 2,
            },
            "vision_config": {
                "depths": [1, 1, 1, 1], "embed_dim": [8, 8, 16, 16], "num_heads": [2, 2, 2, 2],
                "num_groups": [2, 2, 2, 2], "window_size": 4, "projection_dim": 32, "drop_path_rate": 0.0,
            },
            "image_token_id": 500,
        },
        {"size": {"height": 64, "width": 64}, "crop_size": {"height": 64, "width": 64}, "do_center_crop": False,
         "image_seq_length": 5},
        side=64,
    ),
}  # fmt: skip


CHATML = (
    "{{% for message in messages %}}"
    "{{% if loop.first and message['role'] != 'system' %}}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{{% endif %}}<|im_start|>{{{{ message['role'] }}}}\n"
    "{{% if message['content'] is string %}}{{{{ message['content'] }}}}{{% else %}}"
    "{{% for part in message['content'] %}}{{% if part['type'] == 'image' %}}{marker}{{% else %}}{{{{ part['text'] }}}}"
    "{{% endif %}}{{% endfor %}}{{% endif %}}<|im_end|>\n{{% endfor %}}"
    "{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)
CHATS = {
    "fast_vlm": ("<image>\n", {"image_token": "<image>"}),
    "llava_onevision": ("<image>\n", {"image_token": "<image>"}),
    "qwen2_5_vl": (
        "<|vision_start|><|image_pad|><|vision_end|>",
        {
            "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
            "vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>",
        },
    ),
}  # fmt: skip
"""Families with Qwen 2's tokenizer and template, as they are released: the image's text, and its tokens from 500 on.

A server looks for the template's `<|im_start|>assistant` to tell the answer from the prompt."""
FIRST_WORD = 3 + 256
"""Three marks and the bytes come first; the other ids are words that only an answer has."""


def chat_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer in Qwen 2's form without merges; it has a token for each id."""
    tokens = CHATS[name][1]
    marks = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    marks |= {token: 500 + number for number, token in enumerate(tokens.values())}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {**marks, **{letter: 3 + number for number, letter in enumerate(letters)}}
    taken = set(vocab.values())
    vocab |= {f"Ġw{number}": number for number in range(VOCAB) if number not in taken}
    made = Tokenizer(models.BPE(vocab, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, extra_special_tokens=tokens, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def configuration(name: str) -> Any:
    """Return the tiny configuration of a family."""
    fields = {**FAMILIES[name].config}
    return AutoConfig.for_model(fields.pop("model_type", name), **fields)


def write(folder: Path, name: str, seed: int = 0) -> Path:
    """Write a tiny checkpoint of the family as `save_pretrained` does: weights, configuration, processor, tokenizer."""
    config, tiny = configuration(name), FAMILIES[name]
    model = AutoModelForMultimodalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, value in model.named_parameters():  # transformers' own start leaves the image without a say
            scale = 0.1 if value.dim() < 2 else value[0].numel() ** -0.5
            value.copy_(torch.randn(value.shape, generator=generator) * scale)
            if value.dim() < 2 and "norm" in path and path.endswith("weight"):
                value.add_(1)
            if name == "fast_vlm" and value.dim() == 4 and value.shape[1] == 1:  # mostly the pixel itself, or the
                value.mul_(0.3)[:, :, value.shape[2] // 2, value.shape[3] // 2] += 2  # image would be forgotten
            if "layer_scale" in path or path.endswith("gate"):
                value.copy_(torch.full_like(value, 0.5))
        if name in CHATS:  # answers of words, not of stray bytes
            head = model.get_output_embeddings().weight
            head[:FIRST_WORD] *= 0.1
            head[500 : 500 + len(CHATS[name][1])] *= 0.1
    model.save_pretrained(folder)
    processor = stand_in.processor(name, config, tiny.images, tiny.processor)
    if name in CHATS:
        processor.tokenizer, processor.chat_template = chat_tokenizer(name), CHATML.format(marker=CHATS[name][0])
    processor.save_pretrained(folder)
    return folder
