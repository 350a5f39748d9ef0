"""Language models in MLX: mlx-lm's classes, built from a card and filled with the very tensors of the torch model."""

from importlib.metadata import version
from types import ModuleType

import mlx.core as mx
import mlx.nn as mnn
import torch
from mlx_lm.models import cache, llama, qwen2
from torch import nn

from harness.errors import SettingError
from harness.models.card import Llm
from harness.models.foreign import Network

CLASSES: dict[str, ModuleType] = {"qwen2": qwen2, "llama": llama}
GROUP = 64
"""Numbers that share a scale when quantised: MLX's default, and that of `mlx_lm.convert`."""


class Projector(mnn.Module):  # type: ignore[misc]
    """LLaVA's `mlp2x_gelu`: Linear, GELU (exact), Linear; parameters named by `composition.mlp`'s indices."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = mnn.Linear(width, hidden), mnn.Linear(hidden, hidden)

    def __call__(self, features: mx.array) -> mx.array:
        return self.second(mnn.gelu(self.first(features)))


def build(card: Llm) -> Network:
    """Return mlx-lm's model of this shape; its weights are lazy and take no memory until they are replaced."""
    if card.kind not in CLASSES:
        raise SettingError(f"--engine mlx knows language models of kind {', '.join(CLASSES)}, not {card.kind!r}")
    beyond = [*(["rope_scaling"] if card.rope_scaling else []), *card.config]
    if beyond:
        raise SettingError(f"--engine mlx cannot obey the checkpoint's {', '.join(beyond)}; next: --engine torch")
    module = CLASSES[card.kind]
    return module.Model(
        module.ModelArgs(
            model_type=card.kind,
            hidden_size=card.hidden,
            num_hidden_layers=card.layers,
            intermediate_size=card.ffn,
            num_attention_heads=card.heads,
            num_key_value_heads=card.kv_heads,
            rms_norm_eps=card.rms_eps,
            vocab_size=card.vocab,
            max_position_embeddings=card.positions,
            rope_theta=card.rope_theta,
            tie_word_embeddings=card.tied,
        )
    )


def take(source: nn.Module, target: Network, rename: dict[str, str] | None = None) -> None:
    """Move all parameters of a torch module (on the CPU) into an MLX one, tensor by tensor, emptying the torch module.

    Names must be equal, or be mapped by `rename` (by first component); MLX refuses what is missing or misshapen.
    """
    taken = []
    for name, parameter in list(source.named_parameters()):
        first, dot, rest = name.partition(".")
        taken.append(((rename or {}).get(first, first) + dot + rest, array(parameter.detach())))
        mx.eval(taken[-1][1])
        path, _, last = name.rpartition(".")
        source.get_submodule(path)._parameters[last] = None
    target.load_weights(taken, strict=True)
    target.eval()


def quantise(model: Network, bits: int) -> None:
    """Quantise all matrices, the embeddings too, as `mlx_lm.convert -q` does; rows must divide into groups."""
    mnn.quantize(
        model,
        group_size=GROUP,
        bits=bits,
        class_predicate=lambda _, module: hasattr(module, "to_quantized") and module.weight.shape[-1] % GROUP == 0,
    )
    mx.eval(model.parameters())


def prefill(model: Network, embeds: mx.array) -> tuple[mx.array, list[object]]:
    """Start the whole prompt's forward pass: logits of the last position (1, 1, vocabulary), and the filled cache."""
    filled = cache.make_prompt_cache(model)
    return _logits(model, model.model(None, filled, embeds)), filled


def step(model: Network, token: mx.array, filled: list[object]) -> mx.array:
    """Start the forward pass of one more token."""
    return _logits(model, model.model(token.reshape(1, 1), filled))


def _logits(model: Network, hidden: mx.array) -> mx.array:
    last = hidden[:, -1:]  # before the head: over all positions it would cost as much as half the prefill
    tied = model.args.tie_word_embeddings
    logits = model.model.embed_tokens.as_linear(last) if tied else model.lm_head(last)
    mx.async_eval(logits)
    return logits


def array(tensor: torch.Tensor) -> mx.array:
    """Return a torch tensor as an MLX array of the same type; waits for the tensor's device."""
    host = tensor.cpu().contiguous()
    if host.dtype == torch.bfloat16:  # numpy has none
        return mx.array(host.view(torch.int16).numpy()).view(mx.bfloat16)
    return mx.array(host.numpy())


def weight_bytes(model: Network) -> int:
    """Return the bytes that a pass over the model reads: all parameters, but an untied embedding table."""
    from mlx.utils import tree_flatten

    tied = model.args.tie_word_embeddings
    return sum(
        int(value.nbytes) for name, value in tree_flatten(model.parameters()) if tied or "embed_tokens" not in name
    )


def name() -> str:
    """Return the engine with its versions, for the log."""
    return f"mlx-lm {version('mlx-lm')} on mlx {version('mlx')}"
