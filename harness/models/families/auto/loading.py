"""How a checkpoint of transformers, or its bare configuration, becomes a model and a processor. Never remote code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForMultimodalLM, AutoProcessor

from harness.errors import HarnessError, SettingError, WeightsError, out_of_memory
from harness.models import loading
from harness.models.card import ModelCard
from harness.models.families.auto import stand_in
from harness.models.families.auto.kinds import family
from harness.models.families.auto.known import known
from harness.models.foreign import Processor
from harness.models.protocol import Options
from harness.models.weights import Source

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


class Loaded(NamedTuple):
    """A model ready to run; `stands_in` where its processor is the stand-in; `notes` go to the log."""

    model: "PreTrainedModel"
    processor: Processor
    config: "PreTrainedConfig"
    stands_in: bool
    notes: dict[str, str]


def load(card: ModelCard, source: Source, options: Options) -> Loaded:
    """Build the model of `card`, fill it and find its processor; raises `WeightsError` for a folder that is not it."""
    config = configuration(card, source)
    quantised = getattr(config, "quantization_config", None)
    if quantised and source.trained:
        method = quantised.get("quant_method", "an unnamed method") if isinstance(quantised, dict) else quantised
        raise WeightsError(
            f"{source.folder}: quantised by {method}: only unquantised weights are timed; next: the checkpoint it was "
            "made from, or --weights random"
        )
    with _quietly():
        processor, stands_in = _processor(card, source, config, str(options.settings.get("image_backend", "default")))
        if source.trained and options.device != "meta":
            model, notes = _trained(source, config, options)
        else:
            model, notes = _random(config, options), {}
    return Loaded(model.eval().requires_grad_(False), processor, config, stands_in, notes)


def configuration(card: ModelCard, source: Source) -> "PreTrainedConfig":
    """Return the configuration: the checkpoint's own where there is a folder, else the card's `[config]`."""
    if source.folder and (source.folder / "config.json").is_file():
        try:
            found: PreTrainedConfig = AutoConfig.from_pretrained(
                source.folder, local_files_only=True, trust_remote_code=False
            )
            return found
        except (ValueError, KeyError, OSError, TypeError) as error:
            raise WeightsError(f"{source.folder}/config.json: {_first(error)}; next: fetch it anew") from error
    fields = {**known(card).config}
    model_type = str(fields.pop("model_type"))
    try:
        return AutoConfig.for_model(model_type, **fields)
    except (ValueError, TypeError, KeyError) as error:
        raise SettingError(f"{card.name}: [config]: {_first(error)}; next: mend the card") from error


def library(image_processor: Processor) -> str:
    """Return by which library an image processor resizes: `pil`, `torchvision`, or nothing where it does not say."""
    return str(getattr(image_processor, "backend", "") or "")


def _processor(card: ModelCard, source: Source, config: "PreTrainedConfig", resizer: str) -> tuple[Processor, bool]:
    """Return the processor, whose images are resized by `resizer` unless that is "default"; and if it stands in."""
    found, stands_in = _found_processor(card, source, config, resizer)
    given = library(found.image_processor)
    if resizer not in ("default", given):
        raise SettingError(
            f"image_backend={resizer}: transformers has no such image processor for {family(config)}: it gives "
            f"{type(found.image_processor).__name__} ({given or 'which names no library'}); next: leave it out"
        )
    return found, stands_in


def _found_processor(
    card: ModelCard, source: Source, config: "PreTrainedConfig", resizer: str
) -> tuple[Processor, bool]:
    folder = source.folder
    if folder and any((folder / name).is_file() for name in PROCESSOR_FILES):
        try:
            found = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            if resizer not in ("default", library(found.image_processor)):  # the tokenizer has a `backend` of its own
                found.image_processor = AutoImageProcessor.from_pretrained(
                    folder, backend=resizer, local_files_only=True, trust_remote_code=False
                )
            return found, False
        except ImportError as error:
            raise stand_in.missing(error, config.model_type) from error
        except Exception as error:
            raise WeightsError(
                f"{folder}: its processor cannot be read: {_first(error)}; next: fetch it anew"
            ) from error
    if source.trained:
        raise WeightsError(
            f"{folder}: the checkpoint has no processor (none of {', '.join(PROCESSOR_FILES)}); next: copy these files "
            "of the model it was made from into that folder"
        )
    settings = known(card).processor
    own = {name: value for name, value in settings.items() if name != "images"}
    return stand_in.processor(family(config), config, settings.get("images", {}), own, resizer), True


def _trained(source: Source, config: "PreTrainedConfig", options: Options) -> "tuple[PreTrainedModel, dict[str, str]]":
    assert source.folder
    try:
        model, told = AutoModelForMultimodalLM.from_pretrained(
            source.folder,
            config=config,
            dtype=getattr(torch, options.dtype),
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except HarnessError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise WeightsError(f"{source.folder}: {_first(error)}; next: check --model and --weights") from error
    problems = {"missing": sorted(told["missing_keys"]), "of another shape": sorted(map(str, told["mismatched_keys"]))}
    problems["NaN or infinite"] = [name for name, value in model.named_parameters() if not _is_finite(value)]
    text = "; ".join(
        f"{len(names)} {what}: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
        for what, names in problems.items()
        if names
    )
    if text:
        raise WeightsError(f"{source.folder}: not the weights of this model: {text}; next: fetch the folder anew")
    unused = sorted(told["unexpected_keys"])
    notes = {"unused_tensors": f"{len(unused)}: {', '.join(unused[:5])}"} if unused else {}
    return model.to(options.device), notes


def _random(config: "PreTrainedConfig", options: Options) -> "PreTrainedModel":
    """Build the exact architecture without memory, then fill it with random weights of sensible scale."""
    dtype = getattr(torch, options.dtype)
    with loading.empty():
        model: PreTrainedModel = AutoModelForMultimodalLM.from_config(config, dtype=dtype)
    holder = nn.Module()
    holder.add_module("model", model)  # one level down: ties are the model's own affair, see below
    loading.randomise(nn.ModuleDict({"holder": holder}), options.seed, options.device, dtype)
    model.tie_weights()
    return model


def _is_finite(value: torch.Tensor) -> bool:
    flat = value.detach().reshape(-1)
    return not value.is_floating_point() or all(bool(torch.isfinite(piece).all()) for piece in flat.split(1 << 22))


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers' bars and advice off the terminal while a model is loaded."""
    before, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        if bars:
            transformers.logging.enable_progress_bar()
