"""Makes tiny checkpoints in the layouts that are released: real files, real tokenizers, a few thousand numbers."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LINES = (
    "system user assistant You are a helpful assistant.",
    "What is the date of the letter? Answer the question using a single word or phrase.",
    "The total of the receipt is 12.50 EUR; it's the form's first line.",
    "What are these? A table, a form, a page. 你好 😀",
)
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

LAYERS = (1, 1, 1, 1, 1)
DIMS = (16, 16, 32, 32, 64)
HIDDEN, FFN, LLM_LAYERS, HEADS, KV_HEADS = 64, 128, 2, 4, 2

CARD = """title = "FastVLM, tiny"
adapter = "fastvlm"
license = "none: random numbers"
prompt = "qwen_2"

[resolution]
rule = "multiple"
of = 64
minimum = 64
maximum = 1024
default = 256

[settings]
tiles = 1
reparameterised = true

[[encoders]]
name = "fastvithd"
library = "timm"
architecture = "fastvit_mci3"
width = {width}

[encoders.settings]
layers = {layers}
embed_dims = {dims}

[llm]
kind = "qwen2"
hidden = {hidden}
layers = {llm_layers}
heads = {heads}
kv_heads = {kv_heads}
ffn = {ffn}
vocab = {vocab}
rope_theta = 1e6
rms_eps = 1e-6
positions = 4096
tied = true
eos = [{im_end}, {endoftext}]
"""


def qwen2_tokenizer() -> Tokenizer:
    """Return a byte-level BPE tokenizer with Qwen2's splitting and its three special tokens, trained on `LINES`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def write_qwen2_tokenizer(folder: Path, whole: bool = True) -> Tokenizer:
    """Write the tokenizer as `tokenizer.json`, or as Qwen2's older `vocab.json` and `merges.txt`."""
    tokenizer = qwen2_tokenizer()
    state = json.loads(tokenizer.to_str())
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    if whole:
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        (folder / "vocab.json").write_text(json.dumps(state["model"]["vocab"]))
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in state["model"]["merges"]]
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(i): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for token, i in ids.items()
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer


def write_config(folder: Path, **fields: object) -> None:
    """Write a `config.json` as Apple's: a model type that only remote code knows."""
    known = {
        "architectures": ["LlavaQwen2ForCausalLM"],
        "model_type": "llava_qwen2",
        "auto_map": {
            "AutoConfig": "llava_qwen.LlavaConfig",
            "AutoModelForCausalLM": "llava_qwen.LlavaQwen2ForCausalLM",
        },
        "image_aspect_ratio": "pad",
        "mm_projector_type": "mlp2x_gelu",
    }
    (folder / "config.json").write_text(json.dumps({**known, **fields}))


def fastvlm_shapes(vocab: int) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a tiny FastVLM by Apple's names, spelled out (not by way of what reads them)."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LLM_LAYERS):
        layer = f"model.layers.{i}"
        for name, size in (("q", HIDDEN), ("k", HIDDEN * KV_HEADS // HEADS), ("v", HIDDEN * KV_HEADS // HEADS)):
            shapes |= {
                f"{layer}.self_attn.{name}_proj.weight": (size, HIDDEN),
                f"{layer}.self_attn.{name}_proj.bias": (size,),
            }
        shapes |= {
            f"{layer}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"{layer}.mlp.gate_proj.weight": (FFN, HIDDEN),
            f"{layer}.mlp.up_proj.weight": (FFN, HIDDEN),
            f"{layer}.mlp.down_proj.weight": (HIDDEN, FFN),
            f"{layer}.input_layernorm.weight": (HIDDEN,),
            f"{layer}.post_attention_layernorm.weight": (HIDDEN,),
        }
    width = 2 * DIMS[-1]
    shapes |= {"model.mm_projector.0.weight": (HIDDEN, width), "model.mm_projector.0.bias": (HIDDEN,)}
    shapes |= {"model.mm_projector.2.weight": (HIDDEN, HIDDEN), "model.mm_projector.2.bias": (HIDDEN,)}

    def convolution(name: str, *shape: int) -> None:
        shapes[f"{tower}.{name}.weight"], shapes[f"{tower}.{name}.bias"] = shape, (shape[0],)

    def block(name: str, dim: int, attention: bool) -> None:
        if attention:
            shapes[f"{tower}.{name}.norm.weight"] = shapes[f"{tower}.{name}.norm.bias"] = (dim,)
            shapes[f"{tower}.{name}.token_mixer.qkv.weight"] = (3 * dim, dim)
            shapes[f"{tower}.{name}.token_mixer.proj.weight"] = (dim, dim)
            shapes[f"{tower}.{name}.token_mixer.proj.bias"] = (dim,)
            shapes[f"{tower}.{name}.layer_scale_1"] = shapes[f"{tower}.{name}.layer_scale_2"] = (dim, 1, 1)
        else:
            convolution(f"{name}.token_mixer.reparam_conv", dim, 1, 3, 3)
            shapes[f"{tower}.{name}.layer_scale"] = (dim, 1, 1)
        shapes[f"{tower}.{name}.convffn.conv.conv.weight"] = (dim, 1, 7, 7)
        for last in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{tower}.{name}.convffn.conv.bn.{last}"] = (dim,)
        shapes[f"{tower}.{name}.convffn.conv.bn.num_batches_tracked"] = ()
        convolution(f"{name}.convffn.fc1", 4 * dim, dim, 1, 1)
        convolution(f"{name}.convffn.fc2", dim, 4 * dim, 1, 1)

    tower = "model.vision_tower.vision_tower.model"
    convolution("patch_embed.0.reparam_conv", DIMS[0], 3, 3, 3)
    convolution("patch_embed.1.reparam_conv", DIMS[0], 1, 3, 3)
    convolution("patch_embed.2.reparam_conv", DIMS[0], DIMS[0], 1, 1)
    at = 0
    for stage, (count, dim) in enumerate(zip(LAYERS, DIMS, strict=True)):
        if stage:
            convolution(f"network.{at}.proj.0.lkb_reparam", dim, 1, 7, 7)
            convolution(f"network.{at}.proj.1.reparam_conv", dim, dim, 1, 1)
            at += 1
        if stage >= 3:
            convolution(f"network.{at}.reparam_conv", dim, 1, 7, 7)
            at += 1
        for i in range(count):
            block(f"network.{at}.{i}", dim, attention=stage >= 3)
        at += 1
    convolution("conv_exp.se.reduce", width // 16, width, 1, 1)
    convolution("conv_exp.se.expand", width, width // 16, 1, 1)
    convolution("conv_exp.reparam_conv", width, 1, 3, 3)
    shapes[f"{tower}.head.proj"] = (width, 8)
    return shapes


def numbers(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random tensors of sensible scale for these names."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            value = torch.ones((), dtype=torch.int64)
        elif name.endswith("running_var"):
            value = 1 + 0.1 * value.abs()
        elif len(shape) == 1 and name.endswith("weight"):
            value = 1 + 0.1 * value
        elif len(shape) < 2:
            value = 0.01 * value
        elif "layer_scale" in name:
            value = 0.1 * value
        elif len(shape) == 4 and shape[1] == 1:  # depthwise: mostly the pixel itself, or the image would be forgotten
            value = 0.3 * value / shape[-1]
            value[:, :, shape[2] // 2, shape[3] // 2] += 2
        else:
            value = value * (0.05 if "embed_tokens" in name else value[0].numel() ** -0.5)
        made[name] = value
    return made


def write_fastvlm(folder: Path) -> tuple[Path, Path]:
    """Write a tiny FastVLM in Apple's layout with a tokenizer of its own; return (checkpoint's folder, card)."""
    weights = folder / "tiny-fastvlm"
    weights.mkdir()
    tokenizer = write_qwen2_tokenizer(weights)
    vocab = tokenizer.get_vocab_size()
    tensors = numbers(fastvlm_shapes(vocab))
    words = [(tokenizer.id_to_token(i) or "").strip("Ġ").isalpha() for i in range(vocab)]
    for i, word in enumerate(words):  # answers of words, not of stray bytes
        tensors["model.embed_tokens.weight"][i] *= 1 if word and i >= 256 else 0.1
    save_file(tensors, weights / "model.safetensors", metadata={"format": "pt"})
    write_config(weights, vocab_size=vocab, tie_word_embeddings=True)
    card = folder / "fastvlm-tiny.toml"
    card.write_text(
        CARD.format(
            width=2 * DIMS[-1],
            layers=list(LAYERS),
            dims=list(DIMS),
            hidden=HIDDEN,
            llm_layers=LLM_LAYERS,
            heads=HEADS,
            kv_heads=KV_HEADS,
            ffn=FFN,
            vocab=vocab,
            im_end=tokenizer.token_to_id("<|im_end|>"),
            endoftext=tokenizer.token_to_id("<|endoftext|>"),
        )
    )
    return weights, card
