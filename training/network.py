"""The network in training: FastVLM's own parts, built from the card, with heads that only training uses."""

import copy
import math
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from safetensors.torch import save_file
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from harness.models import weights
from harness.models.card import ModelCard
from harness.models.families import fastvlm
from harness.models.protocol import Options
from training import reading
from training.exercises import CODES, IGNORED, PLACES, SLOTS, SPOT, Exercise

STRAIGHT = 1.0
"""Around this, a GELU is nearly a straight line and loses little of what is packed."""

STRIDES = (8, 16, 32, 64)
"""Pixels a side of the cells of the second to the last stage."""
CODE = 24
"""Numbers that a linear map finds for each spot of a cell, from which one head, the same for all, names the letter."""
LOOKING = {1: 2, 2: PLACES[1], 3: PLACES[1]}
"""Heads of the language model's layers that are told where to look; in the last two, one for each column of spots."""
SPELLING = 3
"""The layer before which the place within that token must be known."""

Form = Literal["letters", "stages", "answers"]
"""What is being taught, and with it what of the encoder has settled."""


class Network(nn.Module):
    """The parts of FastVLM under the names that the adapter gives them, and the heads of the dense losses."""

    def __init__(self, card: ModelCard, seed: int) -> None:
        super().__init__()
        self.form: Form = "letters"
        torch.manual_seed(seed)
        options = Options(card.resolution.default, device="meta", settings={"reparameterised": False})
        meta = fastvlm.FastVlm(card, weights.Source("random"), options)
        with torch.device("cpu"):
            self.parts = nn.ModuleDict(meta.build())
        self.encoder_name = meta.encoder_name
        self.encoder = cast("Any", self.parts[self.encoder_name])
        self.projector = cast("Any", self.parts["projector"])
        self.before_llm = tuple(f"parts.{part}." for part in (self.encoder_name, "projector"))
        self.llm = cast("Any", self.parts["llm"])
        assert card.llm
        torch.manual_seed(seed)  # again: what letters are learned with does not depend on the language model's size
        encoder = card.encoders[0]
        widths = [*encoder.settings["embed_dims"][1:4], card.llm.hidden]
        self.letters = nn.Linear(widths[0], SLOTS * CODES)
        self.words = nn.Linear(card.llm.hidden, card.llm.vocab)
        self.spots = nn.ModuleList(
            nn.Linear(width, math.prod(stride // spot for spot in SPOT) * CODE)
            for stride, width in zip(STRIDES[1:], widths[1:], strict=True)
        )
        self.codes = nn.Linear(CODE, CODES)
        self.place = nn.Linear(card.llm.hidden, sum(PLACES))
        self.column = nn.Linear(card.llm.hidden, PLACES[0] * CODE)
        self.starts = nn.Linear(card.llm.hidden, math.prod(PLACES))
        for rare in (self.words, self.starts):  # a word asks for what lies in one token of many
            nn.init.constant_(rare.bias, -5.0)
        for name, parameter in self.encoder.named_parameters():
            if name.endswith("gamma"):  # made for deep networks trained for weeks, it starts at 0.00001
                nn.init.constant_(parameter, 0.3)
        for stage in self.encoder.stages[2:]:
            _pass_places_on(stage.downsample)
        _pass_on(self.encoder.final_conv)
        for layer in (self.projector[0], self.projector[2]):
            nn.init.orthogonal_(layer.weight)
        nn.init.constant_(self.projector[0].bias, STRAIGHT)
        self.to(memory_format=torch.channels_last)

    def settle(self, form: Form) -> None:
        """Leave what earlier phases taught as it is.

        From "stages" on that is all up to the second stage, folded as at inference; from "answers" on also the batch
        statistics of the others: whole pages, with their black borders, have other ones each.
        """
        if self.form == "letters" != form:
            _fold(self.encoder, "stem", (0, 1))
            for part in self._first:
                part.requires_grad_(False)
        self.form = form
        self.to(memory_format=torch.channels_last)

    @property
    def _first(self) -> tuple[nn.Module, ...]:
        """What letters are read with."""
        return self.encoder.stem, *self.encoder.stages[:2]

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what has settled keeps its batch statistics."""
        super().train(mode)
        settled: dict[Form, tuple[nn.Module, ...]]
        settled = {"letters": (), "stages": self._first, "answers": (self.encoder,)}
        for part in settled[self.form]:
            part.eval()
        return self

    def forward(self, exercise: Exercise, wanted: Collection[str]) -> dict[str, Tensor]:
        """Return logits by name; only what is `wanted` is computed, and no more of the encoder than that takes.

        "stage2" (B, cells, slots, codes) names the letters in the second stage's cells; "stage3" to "stage5" (the
        visual tokens), (B, cells, spots, codes), those in theirs. "words": (B, M, ids); "starts": (B, M, spots).
        Of the L labels, "answer": (L, ids); "point": (L, heads, 1 + M), where heads look: at the prompt before the
        picture or a token of it; "place": (L, rows + columns), where in its token the next letter is; "column":
        (L, rows, codes), the letters of that column.
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
        if "stage2" in wanted:
            given["stage2"] = self.letters(cells[0]).unflatten(-1, (SLOTS, CODES))
        for number, (head, features) in enumerate(zip(self.spots, cells[1:], strict=False), 3):
            if f"stage{number}" in wanted:
                given[f"stage{number}"] = self.codes(head(features).unflatten(-1, (-1, CODE)))
        for name in ("words", "starts"):
            if name in wanted:
                given[name] = self.get_submodule(name)(cells[-1])
        if "answer" in wanted:
            given |= self._answer(exercise, cells[-1])
        return given

    def _answer(self, exercise: Exercise, visual: Tensor) -> dict[str, Tensor]:
        """Return what the language model says; see `reading.py` for why its layers are not simply called."""
        embed = self.llm.get_input_embeddings()
        before = embed(exercise.before).expand(len(visual), -1, -1)
        pack = reading.lay(exercise, self.llm, before.shape[1] + visual.shape[1])
        hidden = torch.cat([torch.cat([before, visual], dim=1).flatten(0, 1), embed(exercise.ids)])
        asked = exercise.labels != IGNORED
        given, looks = {}, []
        for number, layer in enumerate(self.llm.model.layers):
            if number in LOOKING:
                scores = reading.look(layer, hidden, pack, LOOKING[number])
                prompt, picture = scores[asked].float().split([before.shape[1], visual.shape[1]], dim=-1)
                looks.append(torch.cat([prompt.logsumexp(-1, keepdim=True), picture], dim=-1))
            seen = reading.attend(layer, hidden, pack)
            if number == SPELLING:
                given["place"] = self.place(hidden[pack.text][asked])
                given["column"] = self.codes(self.column(seen[pack.text][asked]).unflatten(-1, (-1, CODE)))
            hidden = hidden + seen
            hidden = hidden + reading.think(layer, hidden)
        given["point"] = torch.cat(looks, dim=1)
        given["answer"] = self.llm.lm_head(self.llm.model.norm(hidden[pack.text][asked]))
        return given


def _fold(encoder: Any, end: str, stages: Iterable[int]) -> None:
    """Make every branched convolution of some stages and of one end a single one, as at inference."""
    setattr(encoder, end, _folded(getattr(encoder, end)))
    for number in stages:
        encoder.stages[number] = _folded(encoder.stages[number])


def _folded(part: nn.Module) -> nn.Module:
    """Return a copy in its inference form."""
    owner: Any = reparameterize_model(nn.ModuleList([part.eval()]))  # it folds what a module has, not itself
    folded: nn.Module = owner[0]
    return folded


def _pass_places_on(downsample: Any) -> None:
    """Let a halving begin as what it is to become: each of its channels passes one of the four places on.

    As timm initialises it, each gives a random sum of 49 places, and what was told apart before must be found again.
    """
    halving, mixing = downsample.proj
    copies = halving.out_chs // halving.in_chs
    with torch.no_grad():
        for branch in (halving.large_conv, halving.small_conv):
            weight = branch.conv.weight  # (out, 1, k, k), the copies of a channel one after another
            centre = weight.shape[-1] // 2
            for i in range(halving.out_chs):
                place = (i % copies + i // copies) % 4 if copies < 4 else i % 4
                weight[i, 0, centre + place // 2, centre + place % 2] += 1
    _pass_on(mixing)


def _pass_on(block: Any) -> None:
    """Let a block begin with more of what it is given than of a random mixture of it."""
    nn.init.constant_(block.identity.bias, STRAIGHT)
    for branch in block.conv_kxk:
        nn.init.constant_(branch.bn.weight, 0.3)
    if block.conv_scale is not None:  # with a random sign, it would undo the identity in every other channel
        nn.init.ones_(block.conv_scale.conv.weight)


def export(network: Network, folder: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write the model in the layout of FastVLM's released checkpoints: re-parameterised, in half precision."""
    network = copy.deepcopy(network)
    network.settle("answers")
    _fold(network.encoder, "final_conv", range(2, len(network.encoder.stages)))
    parts = network.parts
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
