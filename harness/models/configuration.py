"""A checkpoint's own configuration: its JSON files read as plain values, and compared with the card field by field.

What the checkpoint states counts: it is obeyed where the family can, and told; where it cannot, the run is refused by
field and both values. The card's value stands only where the checkpoint states none. Needs no torch.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from harness.errors import WeightsError
from harness.models.card import Llm

T = TypeVar("T")
RGB = tuple[float, float, float]
Fields = Mapping[str, object]

TEXT = ("text_config", "llm_config", "language_config")
"""Names of the language model's section in a nested configuration; a flat one has its fields at the top."""

VISION = ("vision_config", "vision_tower_config")
TIED = "tie_word_embeddings"

BICUBIC = 3
"""Pillow's number of the one way of resizing that the families know."""

POINTER = b"version https://git-lfs"
"""How a file begins that git-lfs left in place of a large one."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """The configuration files of one folder; a file that is not there is empty."""

    folder: Path
    model: Fields = field(default_factory=dict)
    """`config.json`."""
    generation: Fields = field(default_factory=dict)
    """`generation_config.json`."""
    preprocessor: Fields = field(default_factory=dict)
    """`preprocessor_config.json`, or the image processor's section of `processor_config.json`."""

    @property
    def nested(self) -> bool:
        """Whether the language model has a section of its own (transformers' layout)."""
        return any(isinstance(self.model.get(name), dict) for name in TEXT)

    @property
    def text(self) -> Fields:
        """The language model's fields."""
        return section(self.model, TEXT) if self.nested else self.model

    @property
    def vision(self) -> Fields:
        """The vision encoder's fields; empty where the configuration only names a tower."""
        return section(self.model, VISION)

    @property
    def written_by_transformers(self) -> bool:
        """Whether a field that is left out means the default of transformers' class: its files say their version."""
        return "transformers_version" in self.model or "transformers_version" in self.text


def section(fields: Fields, names: tuple[str, ...]) -> Fields:
    """Return the first of these sections that `fields` has, or nothing."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, dict):
            return value
    return {}


def read(folder: Path) -> Configuration:
    """Read the folder's configuration files; raises `WeightsError` naming one that is not JSON, or a pointer."""
    preprocessor = _json(folder / "preprocessor_config.json")
    if not preprocessor:
        preprocessor = section(_json(folder / "processor_config.json"), ("image_processor",))
    return Configuration(folder, _json(folder / "config.json"), _json(folder / "generation_config.json"), preprocessor)


def _json(path: Path) -> Fields:
    if not path.is_file():
        return {}
    data = path.read_bytes()
    if data.startswith(POINTER):
        raise WeightsError(f"{path}: a git-lfs pointer, not the file itself; next: `git lfs pull` in that folder")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not JSON: {error}; next: fetch it anew") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: a table is expected, it holds {type(value).__name__}; next: fetch it anew")
    return value


@dataclass(frozen=True, slots=True)
class Difference:
    """A field in which a checkpoint differs from its card."""

    name: str
    card: object
    checkpoint: object

    def __str__(self) -> str:
        return f"{self.name}: card {_text(self.card)}, checkpoint {_text(self.checkpoint)}"


def _text(value: object) -> str:
    text = json.dumps(value, default=str) if not isinstance(value, str) else value
    return text if len(text) <= 80 else f"{text[:77]}..."


class Comparison:
    """Collects in which fields a checkpoint differs from its card: those obeyed, and those that cannot be."""

    def __init__(self, configuration: Configuration, card: str) -> None:
        self.configuration = configuration
        self.card = card
        self.obeyed: list[Difference] = []
        self.refused: list[Difference] = []

    def obey(self, name: str, stated: object, ours: T) -> T:
        """Return the checkpoint's value where it states one, else the card's; a value of another type is refused."""
        if stated is None or same(stated, ours):
            return ours
        difference = Difference(name, ours, stated)
        if ours is not None and not _alike(stated, ours):
            self.refused.append(difference)
            return ours
        self.obeyed.append(difference)
        return _as(stated, ours)

    def demand(self, name: str, stated: object, *ours: object) -> None:
        """Refuse a stated value that is none of `ours`: the family can be no other way."""
        if stated is not None and not any(same(stated, one) for one in ours):
            self.refused.append(Difference(name, ours[0], stated))

    def close(self) -> None:
        """Raise one `WeightsError` that names every field that cannot be obeyed, with both values."""
        if self.refused:
            told = "; ".join(map(str, self.refused))
            raise WeightsError(
                f"{self.configuration.folder}: its configuration is not {self.card}'s, and cannot be obeyed: {told}; "
                "next: give the card of this checkpoint (--model), or write one"
            )


def same(stated: object, ours: object) -> bool:
    """Return whether two values mean the same: 1 and 1.0, a list and a tuple."""
    if isinstance(stated, (list, tuple)) and isinstance(ours, (list, tuple)):
        return len(stated) == len(ours) and all(same(a, b) for a, b in zip(stated, ours, strict=True))
    return stated == ours and isinstance(stated, bool) == isinstance(ours, bool)


def _alike(stated: object, ours: object) -> bool:
    number = (int, float)
    if isinstance(ours, bool) or isinstance(stated, bool):
        return isinstance(ours, bool) and isinstance(stated, bool)
    if isinstance(ours, float):
        return isinstance(stated, number) and abs(stated) < float("inf")
    if isinstance(ours, (list, tuple)):
        return isinstance(stated, (list, tuple))
    return isinstance(stated, type(ours))


def _as(stated: object, ours: T) -> T:
    value = stated
    if isinstance(ours, float) and isinstance(stated, int):
        value = float(stated)
    elif isinstance(ours, tuple) and isinstance(stated, list):
        value = tuple(stated)
    return value  # type: ignore[return-value]  # `_alike` has looked


# --- the language model ---

KINDS = ("qwen2_moe", "qwen3_moe", "qwen3", "qwen2", "mixtral", "mistral", "llama", "phi3", "gemma3", "gemma2", "gemma")
"""Language models by the word in `model_type` or in the class's name, longer ones first."""

DEFAULTS: dict[str, Fields] = {
    "qwen2": {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "hidden_act": "silu"},
    "llama": {"rope_theta": 1e4, "rms_norm_eps": 1e-6, "hidden_act": "silu"},
    "phi3": {"rope_theta": 1e4, "rms_norm_eps": 1e-5, "hidden_act": "silu"},
}
"""What transformers' classes take where a file that transformers wrote leaves the field out."""

EXTRAS: dict[str, Fields] = {
    "qwen2": {"hidden_act": "silu", "head_dim": None, "use_sliding_window": False},
    "llama": {"hidden_act": "silu", "head_dim": None, "attention_bias": False, "mlp_bias": False},
    "phi3": {
        "hidden_act": "silu",
        "head_dim": None,
        "sliding_window": None,
        "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": 4096,
    },
}
"""Fields that transformers' class of each kind obeys and a card seldom states, with what the class takes without."""

ALWAYS: dict[str, Fields] = {"qwen2": {"mlp_bias": False}, "llama": {}, "phi3": {"attention_bias": False}}
"""Fields that a kind's class has one way only."""

ROPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
ROPES_RENAMED = {"su": "longrope"}

FOREIGN = (
    "attn_logit_softcapping",
    "attention_multiplier",
    "clip_qkv",
    "embedding_multiplier",
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "num_experts",
    "num_local_experts",
    "qk_layernorm",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "use_qk_norm",
)
"""Fields of other language models that would change every logit, and that none of our kinds obeys."""


def kind(fields: Fields) -> str | None:
    """Return which language model a configuration names, or None where it names none that we know the word of."""
    named = fields.get("architectures")
    classes = named if isinstance(named, list) else []
    for text in (str(fields.get("model_type", "")), *map(str, classes)):
        for word in KINDS:
            if word in text.lower().replace("qwen2moe", "qwen2_moe").replace("qwen3moe", "qwen3_moe"):
                return word
    return None


def language_model(card: Llm, comparison: Comparison) -> Llm:
    """Return the card's language model as the checkpoint's configuration has it."""
    configuration = comparison.configuration
    text = configuration.text
    if not text:
        return card
    comparison.demand("model_type", kind(text), card.kind)
    for name, ours in (
        ("hidden_size", card.hidden),
        ("intermediate_size", card.ffn),
        ("num_hidden_layers", card.layers),
    ):
        comparison.demand(name, text.get(name), ours)
    for name in FOREIGN:
        comparison.demand(name, text.get(name) or None, None)
    for name, value in ALWAYS[card.kind].items():
        comparison.demand(name, text.get(name), value)
    stated = {**(DEFAULTS[card.kind] if configuration.written_by_transformers else {}), **_stated(text)}
    theta, scaling = _rope(text, card, comparison, stated.get("rope_theta"))
    heads = comparison.obey("num_attention_heads", text.get("num_attention_heads"), card.heads)
    return msgspec.structs.replace(
        card,
        heads=heads,
        kv_heads=comparison.obey("num_key_value_heads", text.get("num_key_value_heads"), card.kv_heads),
        rms_eps=comparison.obey("rms_norm_eps", stated.get("rms_norm_eps"), card.rms_eps),
        positions=comparison.obey("max_position_embeddings", text.get("max_position_embeddings"), card.positions),
        rope_theta=theta,
        rope_scaling=scaling,
        bos=None if card.bos is None else comparison.obey("bos_token_id", _token(configuration, "bos"), card.bos),
        eos=_eos(configuration, card, comparison),
        config=_extras(stated, card, comparison),
    )


def _stated(fields: Fields) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _rope(text: Fields, card: Llm, comparison: Comparison, theta: object) -> tuple[float, dict[str, object]]:
    """Return the rotary base and what else changes the rotary frequencies, as transformers 5 names it."""
    given = section(text, ("rope_parameters", "rope_scaling"))
    scaling = {name: value for name, value in given.items() if name not in ("type", "rope_theta")}
    theta = given.get("rope_theta") or theta
    form = str(given.get("rope_type") or given.get("type") or "default")
    form = ROPES_RENAMED.get(form, form)
    if form not in ROPES:
        comparison.demand("rope_scaling", form, "default")
        return card.rope_theta, dict(card.rope_scaling)
    scaling["rope_type"] = form
    if form == "default":  # what else stands there has no effect, but for the share of the head that is turned
        scaling = {name: scaling[name] for name in ("partial_rotary_factor",) if scaling.get(name) not in (None, 1.0)}
    ours = dict(card.rope_scaling)
    stated = bool(given) or "rope_theta" in text or comparison.configuration.written_by_transformers
    base = comparison.obey("rope_theta", theta, card.rope_theta)
    if stated and scaling != ours:
        comparison.obeyed.append(Difference("rope_scaling (beside rope_theta)", ours or "none", scaling or "none"))
        ours = scaling
    return base, ours


def _token(configuration: Configuration, name: str) -> object:
    for fields in (configuration.generation, configuration.text, configuration.model):
        if fields.get(f"{name}_token_id") is not None:
            return fields[f"{name}_token_id"]
    return None


def ends(configuration: Configuration) -> list[int]:
    """Return the ids that the checkpoint says end an answer: generation_config.json's, else config.json's."""
    stated = _token(configuration, "eos")
    return [one for one in (stated if isinstance(stated, list) else [stated]) if isinstance(one, int)]


NEUTRAL: Fields = {
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0, "num_beams": 1, "bad_words_ids": None,
    "suppress_tokens": None, "begin_suppress_tokens": None, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "sequence_bias": None, "exponential_decay_length_penalty": None,
}  # fmt: skip
"""What of generation_config.json changes the tokens that transformers' `generate` takes without sampling, and how it
stands where it changes nothing."""


def not_applied(generation: Fields) -> str:
    """Return what of a generation_config.json `generate` would apply and we do not: `repetition_penalty 1.05`."""
    stated = {name: generation.get(name) for name in NEUTRAL}
    return ", ".join(f"{name} {value}" for name, value in stated.items() if value not in (None, NEUTRAL[name], []))


def decoding(generation: Fields) -> str:
    """Say for the log how tokens are taken, and what the checkpoint says beyond that."""
    left_out = not_applied(generation)
    return "greedy" + (f"; not applied: {left_out}" if left_out else "")


def decoding_doubts(generation: Fields) -> tuple[str, ...]:
    """Return the doubt about answers that a checkpoint's own `generate` might give otherwise."""
    left_out = not_applied(generation)
    what = f"answers are greedy: {left_out} of the checkpoint's generation_config.json is not applied"
    return (f"{what}; its own `generate`, and so lmms-eval, would apply it",) if left_out else ()


def _eos(configuration: Configuration, card: Llm, comparison: Comparison) -> tuple[int, ...]:
    ids = ends(configuration)
    return card.eos if sorted(ids) == sorted(card.eos) else comparison.obey("eos_token_id", ids or None, card.eos)


def _extras(stated: Fields, card: Llm, comparison: Comparison) -> dict[str, object]:
    result = dict(card.config)
    for name, default in EXTRAS[card.kind].items():
        ours = card.config.get(name, default)
        if name == "head_dim":
            ours = ours or card.hidden // card.heads
            heads = stated.get("num_attention_heads")
            if isinstance(heads, int) and heads and "head_dim" not in stated:
                continue  # the class divides the width by the heads
        value = comparison.obey(name, stated.get(name), ours)
        if value != ours:
            result[name] = value
    if result.get("use_sliding_window"):
        for name in ("sliding_window", "max_window_layers", "layer_types"):
            if name in stated:
                result[name] = stated[name]
                comparison.obeyed.append(Difference(name, "none", stated[name]))
    return result


def vocabulary(card: Llm, names: Iterable[str], shape: Callable[[str], tuple[int, ...]], comparison: Comparison) -> Llm:
    """Return the card's language model with as many words as the checkpoint's embedding has rows, tied as it is tied.

    Checkpoints pad the vocabulary to a multiple, add `<image>`, or cut it to the tokenizer's size. A head that is not
    there is the embedding, if the configuration says so; one that is there is its own where the configuration says so.
    """
    names = list(names)
    table = next((name for name in names if name.endswith("embed_tokens.weight")), None)
    if table is None:
        return card
    rows = shape(table)[0]
    vocab = comparison.obey("vocab_size (rows of the embedding)", rows, card.vocab)
    model, text = comparison.configuration.model, comparison.configuration.text
    said = {value for value in (model.get(TIED), text.get(TIED)) if isinstance(value, bool)}
    head = any(name.endswith("lm_head.weight") for name in names)
    stated = next(iter(said)) if len(said) == 1 else None
    if not head and True in said:  # two sections that disagree: without a head there is one way
        stated = True
    tied = comparison.obey(TIED, stated, card.tied)
    return msgspec.structs.replace(card, vocab=vocab, tied=tied)


# --- the image's way ---


def llava_projector(comparison: Comparison, width: int, aspect: str, merge: str) -> None:
    """Refuse what LLaVA's configurations say of projector and image where it is not what the families run.

    `aspect` is how an image becomes a square or tiles, `merge` how tiles' tokens are put together.
    """
    model = comparison.configuration.model
    comparison.demand("mm_projector_type", model.get("mm_projector_type"), "mlp2x_gelu")
    comparison.demand("mm_hidden_size", model.get("mm_hidden_size"), width)
    comparison.demand("mm_use_im_start_end", model.get("mm_use_im_start_end"), False)
    comparison.demand("mm_patch_merge_type", model.get("mm_patch_merge_type"), merge)
    comparison.demand("projector_hidden_act", model.get("projector_hidden_act"), "gelu")
    comparison.demand("multimodal_projector_bias", model.get("multimodal_projector_bias"), True)
    if aspect:
        comparison.demand("image_aspect_ratio", model.get("image_aspect_ratio"), aspect)


def pixels(comparison: Comparison, mean: RGB, std: RGB) -> tuple[RGB, RGB]:
    """Return mean and standard deviation of the pixels as the image processor's file has them."""
    given = comparison.configuration.preprocessor
    if given.get("do_normalize") is False:
        given = {**given, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    factor = given.get("rescale_factor")
    if given.get("do_rescale") is False or (isinstance(factor, (int, float)) and abs(factor * 255 - 1) > 1e-6):
        comparison.demand("rescale_factor", factor if given.get("do_rescale") is not False else "none", 1 / 255)
    comparison.demand("resample", given.get("resample"), BICUBIC)
    return (
        comparison.obey("image_mean", _rounded(given.get("image_mean"), mean), mean),
        comparison.obey("image_std", _rounded(given.get("image_std"), std), std),
    )


def _rounded(stated: object, ours: RGB) -> object:
    """Return `ours` where a file writes the same numbers with other digits."""
    if isinstance(stated, list) and len(stated) == len(ours):
        if all(isinstance(a, (int, float)) and abs(a - b) < 1e-6 for a, b in zip(stated, ours, strict=True)):
            return ours
        return stated
    return None if stated is None else stated


def transformer(fields: Fields, comparison: Comparison, settings: Fields, sizes: Fields) -> dict[str, object]:
    """Return an encoder's settings as its own configuration has them: heads, activation and eps are obeyed.

    `sizes` are the fields, by the configuration's names, whose values the checkpoint must share with the card.
    """
    for name, value in sizes.items():
        comparison.demand(f"vision {name}", fields.get(name), value)
    heads = comparison.obey("vision num_attention_heads", fields.get("num_attention_heads"), settings["heads"])
    changed = {**settings, "heads": heads}
    for name in ("hidden_act", "layer_norm_eps"):
        if name in settings:
            changed[name] = comparison.obey(f"vision {name}", fields.get(name), settings[name])
    return changed
