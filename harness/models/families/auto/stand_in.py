"""A stand-in processor for random weights: the family's own image processor and a tokenizer that knows its marks.

Text becomes as many tokens as a byte-pair vocabulary makes of it, about; all of them are the same id. Only for timing.
"""

from collections.abc import Mapping
from inspect import signature
from typing import TYPE_CHECKING

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.auto import (
    feature_extraction_auto,
    image_processing_auto,
    processing_auto,
    video_processing_auto,
)

from harness.errors import MissingPackage, SettingError
from harness.models.families.auto import parts
from harness.models.families.auto.kinds import Kind, kind_of
from harness.models.foreign import Processor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PIECES = r"\s?\p{L}{1,10}|\p{N}|\s|[^\s\p{L}\p{N}]"
"""What becomes one token: up to ten letters with the space before them, one digit, one sign."""

ENDS = {"pad_token": "<|stand-in pad|>", "bos_token": "<|stand-in bos|>", "eos_token": "<|stand-in eos|>"}


PROCESSORS: dict[str, str] = processing_auto.PROCESSOR_MAPPING_NAMES  # type: ignore[attr-defined]
IMAGE_PROCESSORS: Mapping[str, object] = image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES  # type: ignore[attr-defined]
VIDEO_PROCESSORS: Mapping[str, object] = video_processing_auto.VIDEO_PROCESSOR_MAPPING_NAMES  # type: ignore[attr-defined]
AUDIO_PROCESSORS: Mapping[str, object] = feature_extraction_auto.FEATURE_EXTRACTOR_MAPPING_NAMES  # type: ignore[attr-defined]
"""transformers' tables of processors by `model_type`: a name, or names by backend."""

BY_PIL: list[str] = image_processing_auto.DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS
"""Those that transformers runs by PIL unless asked otherwise: this torchvision lacks their filter."""

LIKE_LLAVA = {"fast_vlm": "LlavaProcessor"}
"""Families that transformers' tables of processors leave out: they are released with LLaVA's and CLIP's."""
CLIP = {"torchvision": "CLIPImageProcessor", "pil": "CLIPImageProcessorPil"}


def tokenizer(kind: Kind, config: "PreTrainedConfig") -> PreTrainedTokenizerFast:
    """Return a tokenizer with the special tokens of `kind`; the image's has the id that `config` says."""
    text = config.get_text_config()
    image_id = parts.image_token_id(config)
    vocab = {"<|stand-in text|>": 3}
    for number, (name, token) in enumerate(ENDS.items()):
        own = getattr(text, f"{name}_id", None)
        vocab[token] = own if isinstance(own, int) and own not in (image_id, *vocab.values()) else number
    free = iter(number for number in range(4, text.vocab_size) if number not in (image_id, *vocab.values()))
    named = {**kind.tokens}
    special = [*named.values(), *kind.words]
    for token in special:
        if token in vocab:
            continue
        is_image = token == kind.image_token and image_id is not None
        vocab[token] = image_id if is_image and image_id is not None else next(free)
    taken = set(vocab.values())  # every id has a token: those that a processor adds must not get ids that are in use
    vocab |= {f"<|stand-in {number}|>": number for number in range(text.vocab_size) if number not in taken}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<|stand-in text|>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in [*ENDS.values(), *special]])
    return PreTrainedTokenizerFast(tokenizer_object=made, extra_special_tokens=named, **ENDS)


def processor(
    name: str,
    config: "PreTrainedConfig",
    images: Mapping[str, object],
    own: Mapping[str, object],
    resizer: str = "default",
) -> Processor:
    """Return the family's processor with image settings `images`, its own settings `own`, and the stand-in tokenizer.

    Images are resized by `resizer`, or where that is "default" by the library that transformers takes.
    Raises `SettingError` for a family that has none, and `MissingPackage` for one that needs another package.
    """
    found = PROCESSORS.get(name) or LIKE_LLAVA.get(name)
    if not found:
        raise SettingError(f"{name}: transformers has no processor for it; next: --weights FOLDER")
    maker = getattr(transformers, str(found))
    wanted = signature(maker.__init__).parameters
    given: dict[str, object] = {"tokenizer": tokenizer(kind_of(name), config), **own}
    given["image_processor"] = image_processor(name, images, resizer)
    if "video_processor" in wanted:
        video = VIDEO_PROCESSORS.get(name)
        given["video_processor"] = _named(video)() if video else None
    for one in ("audio_processor", "feature_extractor"):
        if one in wanted and name in AUDIO_PROCESSORS:
            given[one] = _named(AUDIO_PROCESSORS[name])()
    try:
        return maker(**given, chat_template=kind_of(name).template)
    except ImportError as error:
        raise missing(error, name) from error


def missing(error: ImportError, model_type: str) -> MissingPackage:
    """Return which package a family's processor lacks, and how to install it."""
    package = error.name or ("num2words" if "num2words" in str(error) else str(error).splitlines()[0])
    return MissingPackage(package, f"the processor of {model_type}")


def image_processor(model_type: str, settings: Mapping[str, object], resizer: str = "default") -> Processor:
    """Return the family's own image processor with these settings, by `resizer` where the family has it."""
    names = IMAGE_PROCESSORS.get(model_type) or (CLIP if model_type in LIKE_LLAVA else None)
    if not names:
        raise SettingError(f"{model_type}: transformers has no image processor for it; next: --weights FOLDER")
    first = resizer
    if resizer == "default":
        by_torchvision = names.get("torchvision") if isinstance(names, dict) else names
        first = "pil" if by_torchvision in BY_PIL else "torchvision"
    return _named(names, first)(**settings)


def _named(names: object, first: str = "torchvision") -> Processor:
    """Return the class of a mapping's entry: its name, or of names by backend the first one's, else any."""
    if isinstance(names, dict):
        names = names.get(first) or names.get("torchvision") or names.get("pil")
    return getattr(transformers, str(names))
