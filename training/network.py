"""The network in training: FastVLM's own parts, built from the card, with two heads that only training uses."""

import itertools
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from harness import cards, weights
from harness.adapters import fastvlm
from harness.model import Options
from training.exercises import CODES, IGNORED, SLOTS, Exercise


class Unpack(nn.Module):
    """Undoes one halving of the encoder: (B, cells, width) to (B, 4 cells, narrower), in the finer grid's order."""

    def __init__(self, width: int, narrower: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, 4 * narrower))

    def forward(self, cells: Tensor) -> Tensor:
        grid = math.isqrt(cells.shape[1])
        four: Tensor = self.layers(cells)
        finer: Tensor = four.unflatten(1, (grid, grid)).unflatten(-1, (2, 2, -1)).transpose(2, 3).flatten(1, 4)
        return finer


class Network(nn.Module):
    """The parts of FastVLM under the names that the adapter gives them, and the heads of the dense losses."""

    def __init__(self, card: cards.ModelCard, seed: int) -> None:
        super().__init__()
        self.fused = False
        torch.manual_seed(seed)
        options = Options(card.resolution.default, device="meta", settings={"reparameterised": False})
        meta = fastvlm.FastVlm(card, weights.Source("random"), options)
        with torch.device("cpu"):
            self.parts = nn.ModuleDict(meta.build())
        self.encoder_name = meta.encoder_name
        self.encoder: Any = self.parts[self.encoder_name]
        self.projector: Any = self.parts["projector"]
        self.llm: Any = self.parts["llm"]
        assert card.llm
        encoder = card.encoders[0]
        widths = [*encoder.settings["embed_dims"][1:4], card.llm.hidden]
        self.letters = nn.Linear(widths[0], SLOTS * CODES)
        self.words = nn.Linear(card.llm.hidden, card.llm.vocab)
        self.unpack = nn.ModuleList(Unpack(width, narrower) for narrower, width in itertools.pairwise(widths))
        nn.init.constant_(self.words.bias, -5.0)  # a word asks for what lies in one token of many
        for name, parameter in self.encoder.named_parameters():
            if name.endswith("gamma"):  # made for deep networks trained for weeks, it starts at 0.00001
                nn.init.constant_(parameter, 0.3)
        self.to(memory_format=torch.channels_last)

    def fuse(self) -> None:
        """Fold each branched convolution into one, as at inference, and leave norms and the first two stages alone."""
        self.encoder = self.parts[self.encoder_name] = reparameterize_model(self.encoder.eval())  # of a copy
        self.encoder.requires_grad_(True)
        for part in (self.encoder.stem, *self.encoder.stages[:2]):
            part.requires_grad_(False)
        self.fused = True
        self.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; once fused, batch statistics stay as they are."""
        super().train(mode)
        if self.fused:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, exercise: Exercise, wanted: Collection[str]) -> dict[str, Tensor]:
        """Return logits: "answer" (labels, ids), "words" (B, M, ids), "stage2" ... (B, cells, slots, codes).

        Only what is `wanted` is computed, and no more of the encoder than that takes. "stage2" names the letters in
        what the second stage gives; later ones, and as "stage5" the visual tokens, are unpacked to its grid first.
        """
        pixels = exercise.pixels.contiguous(memory_format=torch.channels_last)
        alone = set(wanted) == {"stage2"}
        with torch.autocast("cpu", enabled=False):  # convolutions are quicker in single precision, matrices in half
            if alone:
                stages = self.encoder.forward_intermediates(
                    pixels, indices=[1], stop_early=True, intermediates_only=True
                )
            else:
                last, stages = self.encoder.forward_intermediates(pixels, indices=[1, 2, 3])
        cells = [stage.flatten(2).transpose(1, 2) for stage in stages]
        if not alone:
            cells.append(self.projector(last.flatten(2).transpose(1, 2)))
        given = {}
        for level, features in enumerate(cells):
            if f"stage{level + 2}" in wanted:
                for unpack in reversed(self.unpack[:level]):
                    features = unpack(features)
                given[f"stage{level + 2}"] = self.letters(features).unflatten(-1, (SLOTS, CODES))
        if "words" in wanted:
            given["words"] = self.words(cells[-1])
        if "answer" in wanted:
            given["answer"] = self._answer(exercise, cells[-1])
        return given

    def _answer(self, exercise: Exercise, visual: Tensor) -> Tensor:
        text = self.llm.get_input_embeddings()(exercise.ids)
        place = exercise.visual
        hidden = self.llm.model(
            inputs_embeds=torch.cat([text[:, : place.start], visual, text[:, place.stop :]], dim=1),
            attention_mask=exercise.mask,
            position_ids=exercise.positions,
            use_cache=False,
        ).last_hidden_state
        logits: Tensor = self.llm.lm_head(hidden[exercise.labels != IGNORED])
        return logits


def export(network: Network, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the model in the layout of FastVLM's released checkpoints: re-parameterised, in half precision."""
    encoder = network.encoder if network.fused else reparameterize_model(network.encoder.eval())  # of a copy
    parts = nn.ModuleDict({**network.parts, network.encoder_name: encoder})
    back = {ours: apple for apple, ours in fastvlm.NETWORK.items()}
    tensors = {}
    for name, tensor in parts.state_dict().items():
        part, rest = name.split(".", 1)
        if part == network.encoder_name:
            name = fastvlm.TOWER + _to_apple(rest, back)
        elif part == "projector":
            name = f"model.mm_projector.{rest}"
        elif rest == "lm_head.weight":
            continue  # tied to the embeddings
        else:
            name = rest
        tensors[name] = tensor.to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _to_apple(name: str, back: dict[str, str]) -> str:
    """Return Apple's name of a tensor of the encoder, the inverse of what the adapter reads."""
    name = name.replace("stem.", "patch_embed.").replace("final_conv.", "conv_exp.")
    for ours, apple in back.items():
        if name.startswith(f"{ours}."):
            name = f"network.{apple}{name.removeprefix(ours)}"
            break
    name = re.sub(r"\.gamma$", "", name)
    name = re.sub(r"(network\.\d+\.proj\.0)\.reparam_conv", r"\1.lkb_reparam", name)
    if ".se." in name:
        return name.replace("fc1", "reduce").replace("fc2", "expand")
    return name.replace(".mlp.", ".convffn.")
