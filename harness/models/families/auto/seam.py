"""One question through transformers' own seam: encode by `get_image_features`, then `forward` with what it gave.

Three ways, by what a family offers. `direct`: `get_image_features`, then `forward(mm_encoder_outputs=...)`, as
`generate` itself does. `whole`: the pixels go into `forward` (Mllama, Phi-4). `encoder-decoder`: `generate` runs the
encoder and hands over before its first decoder step (Florence-2). Stage ends inside a library's call are told by hooks
on the projector.
"""

from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.errors import UnknownName
from harness.models.families.auto import parts
from harness.models.foreign import Network, Output
from harness.models.protocol import Done

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PIXELS = ("pixel_values", "image_pixel_values", "pixel_values_images", "image_patches", "pixel_attention_mask")
"""What `forward` must not get besides the features; all else (`image_grid_thw` ...) decides positions and stays."""

BLOCKS = ("image_embed",)
"""Modules that encode and project in one, where a family has no projector."""

Inputs = dict[str, Any]
"""Arguments of a model's forward pass, by name: mostly tensors."""


class Seam:
    """A model's way of answering, and the marks on it.

    `tell` is called with each stage that ends inside a call. `told` are the stages that ended so in this answer;
    `clean` is False once a family was seen to encode again after it had projected.
    """

    def __init__(self, model: "PreTrainedModel", tell: Callable[[Done], None], projector: str = "") -> None:
        """Choose the way and set the hooks; raises `UnknownName` where the model has no module `projector`."""
        self.model: Network = model
        self._tell = tell
        self.told: list[str] = []
        self.clean = True
        self._answering = False
        self.features: Network = getattr(model.base_model, "get_image_features", None)
        takes = signature(model.forward).parameters
        self.keeps = "logits_to_keep" in takes
        if model.config.is_encoder_decoder:
            self.way = "encoder-decoder"
        else:
            self.way = "direct" if self.features and "mm_encoder_outputs" in takes else "whole"
        try:
            found = parts.projector(model, projector)
        except AttributeError as error:
            raise UnknownName("module (setting projector)", projector, [n for n, _ in model.named_modules()]) from error
        self.projector_path = found[0] if found else ""
        self.projector: nn.Module | None = found[1] if found else None
        block = None if found else parts.named(model, BLOCKS)
        if self.projector is not None:
            self.projector.register_forward_pre_hook(self._entered)
            if self.way != "direct":
                self.projector.register_forward_hook(self._left)
        elif block:
            block[1].register_forward_hook(self._left)

    def begin(self) -> None:
        """Begin an answer: from here to its first logits the hooks speak."""
        self.told.clear()
        self._answering = True

    def _entered(self, module: nn.Module, given: object) -> None:
        if not self._answering:
            return
        if "encode" in self.told:
            self.clean = False  # several times in one answer: what the encoder does in between cannot be told apart
        elif self.clean:
            self._say("encode")

    def _left(self, module: nn.Module, given: object, output: object) -> None:
        if self._answering:
            self._say(self.projected)

    def _say(self, stage: str) -> None:
        if stage not in self.told:
            self.told.append(stage)
            self._tell(Done(stage))

    @property
    def projected(self) -> str:
        """The name of the stage that ends with the visual tokens: `project`, or both where no mark lies between."""
        return "project" if "encode" in self.told else "encode+project"

    def end(self) -> str:
        """The name of the stage that ends with the first logits, with what no mark divides from it; ends the marks."""
        self._answering = False
        return "prefill" if "project" in self.told or "encode+project" in self.told else "encode+project+prefill"

    def encode(self, inputs: Inputs) -> Output:
        """Return the image's features: encoder and projector; notes that the visual tokens are there."""
        accepted = signature(self.features).parameters
        given = {name: inputs[name] for name in accepted if name in inputs and name != "kwargs"}
        features = self.features(**given, return_dict=True)
        self.told.append(self.projected)
        return features

    @property
    def visual(self) -> str:
        """The stage that ended last."""
        return self.told[-1]

    def prefill(self, inputs: Inputs, features: Output) -> "Step":
        """Run the whole prompt; return the step that holds the first logits and the cache."""
        rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        if features is not None:
            rest = {name: value for name, value in rest.items() if name not in PIXELS}
            rest["mm_encoder_outputs"] = {"image": features}
        rest["attention_mask"] = inputs.get("attention_mask")
        rest |= {"use_cache": True, **({"logits_to_keep": 1} if self.keeps else {})}
        step = Step(self.model, rest)
        step.run(inputs["input_ids"], first=True)
        return step

    def prefill_decoder(self, inputs: Inputs) -> "Step":
        """Run the encoder of an encoder-decoder over image and question, and the decoder's first step."""
        caught: list[tuple[Tensor, Inputs]] = []

        def catch(model: object, input_ids: Tensor, *given: object, **rest: object) -> Tensor:
            caught.append((input_ids, rest))
            return input_ids

        self.model.generate(**inputs, custom_generate=catch, do_sample=False, num_beams=1, use_cache=True)
        ids, rest = caught[0]
        known = ("generation_config", "logits_processor", "stopping_criteria", "synced_gpus", "streamer")
        step = Step(self.model, {name: value for name, value in rest.items() if name not in known})
        step.run(ids, first=True)
        return step


class Step:
    """Where an answer stands: the last logits, and what the next token needs."""

    def __init__(self, model: Network, rest: Inputs) -> None:
        self._model, self._rest = model, rest
        self.output: Output = None

    def run(self, ids: Tensor, first: bool = False) -> None:
        """Run `ids`: the prompt, or the one token after what is in the cache."""
        length = None if first else 1
        inputs = self._model.prepare_inputs_for_generation(
            ids, next_sequence_length=length, is_first_iteration=first, **self._rest
        )
        self.output = self._model(**inputs, return_dict=True)
        self._rest = self._model._update_model_kwargs_for_generation(
            self.output, self._rest, is_encoder_decoder=self._model.config.is_encoder_decoder
        )

    @property
    def logits(self) -> Tensor:
        """The logits of the last position, on the device."""
        last: Tensor = self.output.logits[0, -1]
        return last


def on_device(batch: Inputs, device: str, dtype: torch.dtype) -> Inputs:
    """Return a processor's tensors on the device, floats in the model's precision; a mask of ones is left out."""
    inputs: Inputs = {}
    for name, value in batch.items():
        if not isinstance(value, Tensor):
            inputs[name] = value
        elif name == "attention_mask" and bool(value.all()):
            continue
        else:
            inputs[name] = value.to(device, dtype if value.is_floating_point() else None)
    return inputs
