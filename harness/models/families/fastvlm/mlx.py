"""FastVLM with its projector and language model in MLX; the encoder in torch, or as a Core ML package.

Pixels, prompt, tokenizer and stages are the torch adapter's own. MLX is lazy, so each stage starts the evaluation of
what it made (`async_eval`) before it says that it is done; the device's sync then waits for it.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
import torch
from torch import Tensor, nn

from harness.errors import SettingError
from harness.models import mlx_llms
from harness.models.card import ModelCard
from harness.models.families.fastvlm import FastVlm
from harness.models.foreign import Array, Network
from harness.models.pipeline import Prepared
from harness.models.protocol import Options, Seen, Work
from harness.models.weights import Source

BITS = (16, 8, 4)
OWN = ("llm_bits", "compute_units")
"""Settings of the engines, which the adapter does not know."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a forward pass gives: logits (1, 1, vocabulary), and the cache to go on with."""

    logits: mx.array
    cache: list[object]


class FastVlmMlx(FastVlm):
    """The encoder runs in torch (Apple's GPU or the CPU); its features cross to MLX through host memory."""

    def __init__(self, card: ModelCard, source: Source, options: Options) -> None:
        """Build and fill on the CPU, as torch would; then move projector and language model into MLX."""
        self.bits = int(options.settings.get("llm_bits", 16))
        if self.bits not in BITS:
            raise SettingError(f"llm_bits={self.bits}: known: {', '.join(map(str, BITS))}")
        plain = {name: value for name, value in options.settings.items() if name not in OWN}
        super().__init__(card, source, replace(options, device="cpu", settings=plain))
        self.mlx: dict[str, Network] = {}
        if "llm" in self.parts:
            assert self.card.llm
            self.mlx["projector"] = mlx_llms.Projector(card.encoders[0].width, self.card.llm.hidden)
            mlx_llms.take(self.parts["projector"], self.mlx["projector"], {"0": "first", "2": "second"})
            self.mlx["llm"] = mlx_llms.build(self.card.llm)
            mlx_llms.take(self.parts["llm"], self.mlx["llm"])
            if self.bits < 16:
                mlx_llms.quantise(self.mlx["llm"], self.bits)
            del self.parts["projector"], self.parts["llm"]
        self.device = options.device
        self.parts.to(self.device)

    def encode(self, name: str, prepared: Prepared) -> Tensor:
        """Return the features in host memory: the crossing to MLX is counted with the encoder."""
        return super().encode(name, prepared).cpu()

    def project(self, features: Mapping[str, Tensor], prepared: Prepared) -> Array:
        """Return the visual tokens as an MLX array (visual tokens, hidden)."""
        given = mlx_llms.array(features[self.encoder_name].to(getattr(torch, self.options.dtype)))
        tokens = self.mlx["projector"](given).flatten(0, 1)
        mx.async_eval(tokens)
        return tokens

    def embed(self, visual: Array, before: list[int], after: list[int]) -> Array:
        """Return the input embeddings (1, sequence, hidden): text before, visual tokens, text after."""
        if not before and not after:
            return visual[None]
        text = self.mlx["llm"].model.embed_tokens(mx.array(before + after))
        return mx.concatenate([text[: len(before)], visual.astype(text.dtype), text[len(before) :]])[None]

    def prefill(self, embeds: Array, scope: AbstractContextManager[object]) -> Output:
        """Start the prefill of the whole prompt's embeddings, in one piece; logits of the last position only."""
        with scope:
            return Output(*mlx_llms.prefill(self.mlx["llm"], embeds))

    def greedy(self, output: Output) -> mx.array:
        """Start choosing the likeliest token, so that a sync after the prefill waits for it too."""
        token, largest = mx.argmax(output.logits[0, -1]), mx.max(output.logits[0, -1])
        self._largest.append(largest)
        mx.async_eval(token, largest)
        return token

    def finite(self, value: Array) -> bool:
        """Return whether a kept logit (or an encoder's features, in torch) is finite."""
        return bool(mx.isfinite(value).all()) if isinstance(value, mx.array) else super().finite(value)

    def decode(self, token: Array, output: Output) -> Output:
        return Output(mlx_llms.step(self.mlx["llm"], token, output.cache), output.cache)

    def describe(self) -> dict[str, str]:
        """Return the effective settings for the log."""
        bits = f"{self.bits} bits in groups of {mlx_llms.GROUP}" if self.bits < 16 else self.options.dtype
        return {
            **super().describe(),
            "attention": "mlx.fast.scaled_dot_product_attention",
            "llm_engine": mlx_llms.name(),
            "llm_weights": bits,
            "encoder_engine": f"torch {torch.__version__} on {self.device}",
        }

    def work(self, seen: Seen, /) -> dict[str, Work]:
        """Count as the torch adapter does, and the bytes of quantised weights as they are."""
        twin = FastVlm(self.card, Source("random"), replace(self.options, device="meta", only=None))
        result = dict(twin.work(seen))
        if self.bits < 16 and "llm" in self.mlx and "prefill" in result:
            result["prefill"] = result["prefill"]._replace(weight_bytes=mlx_llms.weight_bytes(self.mlx["llm"]))
        return result

    def close(self) -> None:
        """Free the weights."""
        super().close()
        self.mlx.clear()
        mx.clear_cache()


class FastVlmCoreMl(FastVlmMlx):
    """The encoder is a Core ML package, made from the same tensors (see `coreml_export`) and cached."""

    def __init__(self, card: ModelCard, source: Source, options: Options) -> None:
        """Convert the encoder unless that was done before, load it, and put the rest into MLX. macOS only."""
        from harness.models.families.fastvlm import coreml

        super().__init__(card, source, options)
        self.dtype = torch.float32  # of the pixels: the package's input
        self.package: coreml.Predictor | None = None
        if options.only != "llm":
            units = str(options.settings.get("compute_units", "CPU_AND_NE"))
            path = coreml.package(card, source, self.encoder_side, options.dtype, options.seed)
            self.package = coreml.Predictor(path, units)

    def build(self) -> dict[str, nn.Module]:
        """Leave the encoder out: torch has no part in it."""
        return {name: module for name, module in super().build().items() if name != self.encoder_name}

    def encode(self, name: str, prepared: Prepared) -> Tensor:
        """Predict tile by tile, each synchronously: (tiles, tokens, width), float32, in host memory."""
        assert self.package
        tiles = [self.package.predict(tile.numpy()) for tile in prepared.pixels[name].split(1)]
        return torch.from_numpy(np.concatenate(tiles) if len(tiles) > 1 else tiles[0])

    def describe(self) -> dict[str, str]:
        """Return the effective settings for the log, with where Core ML plans to run the encoder."""
        return {**super().describe(), **(self.package.describe() if self.package else {"encoder_engine": "none"})}

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the log must doubt: of the answers, and of the encoder's place."""
        return (*super().doubts, *(self.package.doubts(self.options.dtype) if self.package else ()))

    def close(self) -> None:
        """Free the weights and the package."""
        super().close()
        self.package = None
