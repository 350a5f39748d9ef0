"""What we know of families that transformers runs: how `--res` reaches the processor, and which marks a prompt has.

A family that is not here runs too: its processor does what its files say, and `--res` sets the longer side beforehand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.models.foreign import Config

CHAT = (
    "{{% for message in messages %}}{begin}{{% for part in message['content'] %}}"
    "{{% if part['type'] == 'image' %}}{marker}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}{end}"
    "{{% endfor %}}"
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One family, by transformers' `model_type`.

    `rule` names what `--res` does (see `resolution`). `marker` stands for one image where a checkpoint has no chat
    template; `tokens` are the special tokens of a stand-in tokenizer by the names that the processor asks for, `words`
    those it only writes; the first of `tokens` stands for one visual token. `boundary` says where encode and project
    cannot be told apart cleanly.
    """

    rule: str
    marker: str
    tokens: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    boundary: str = ""
    begin: str = ""
    end: str = "\n"
    one_image: bool = False
    """Whether the family was made for one image per question."""

    @property
    def image_token(self) -> str:
        """The special token that stands for one visual token."""
        return next(iter(self.tokens.values()), "<image>")

    @property
    def template(self) -> str:
        """A chat template for a stand-in tokenizer: marker, question, end of turn."""
        return CHAT.format(begin=self.begin, marker=self.marker, end=self.end)


QWEN = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
QWEN_MARKER = "<|vision_start|><|image_pad|><|vision_end|>"
INSIDE = "the merger is the last module of the tower: what the tower does after it counts as project"
IMAGE = {"image_token": "<image>"}
NEWLINES = "packing tiles into rows with newlines counts as project"
IDEFICS = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<video>")
ROWS = tuple(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7))
PIXTRAL = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
GEMMA = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}

KINDS: dict[str, Kind] = {
    "qwen2_vl": Kind("area", QWEN_MARKER, QWEN, boundary=INSIDE),
    "qwen2_5_vl": Kind("area", QWEN_MARKER, QWEN, boundary=f"{INSIDE} (undoing the window order)"),
    "qwen3_vl": Kind("area", QWEN_MARKER, QWEN, boundary="deepstack mergers run between the tower's blocks: encode"),
    "qwen3_5": Kind("area", QWEN_MARKER, QWEN, boundary=INSIDE),
    "internvl": Kind(
        "tiles",
        "<IMG_CONTEXT>",
        {
            "context_image_token": "<IMG_CONTEXT>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "video_token": "<video>",
        },
    ),
    "idefics3": Kind("longest_edge", "<image>", IMAGE, (*IDEFICS, *ROWS)),
    "smolvlm": Kind("longest_edge", "<image>", IMAGE, (*IDEFICS, *ROWS)),
    "gemma3": Kind("fixed", "<start_of_image>", GEMMA),
    "gemma4": Kind(
        "budget",
        "<|image|>",
        {
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
        },
        ("<|video|>",),
        boundary="the tower pools: encode",
    ),
    "paligemma": Kind("fixed", "<image>", IMAGE),
    "llava": Kind("fixed", "<image>", IMAGE),
    "llava_next": Kind("caller", "<image>", IMAGE, boundary=NEWLINES),
    "llava_onevision": Kind("caller", "<image>", {**IMAGE, "video_token": "<video>"}, boundary=NEWLINES),
    "fast_vlm": Kind("square", "<image>", IMAGE, one_image=True),
    "pixtral": Kind("longest_edge", "[IMG]", PIXTRAL),
    "mistral3": Kind("longest_edge", "[IMG]", PIXTRAL),
    "lfm2_vl": Kind(
        "budget",
        "<image>",
        {
            **IMAGE,
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
        tuple(f"<|img_row_{row}_col_{col}|>" for row in range(1, 11) for col in range(1, 11)),
    ),
    "minicpmv4_6": Kind(
        "tiles",
        "<|image_pad|>",
        {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "image_start_token": "<image>",
            "image_end_token": "</image>",
            "slice_start_token": "<slice>",
            "slice_end_token": "</slice>",
            "image_id_start_token": "<image_id>",
            "image_id_end_token": "</image_id>",
        },
        boundary="one of two mergers is inside the tower: encode",
    ),
    "molmo2": Kind(
        "tiles",
        "<|image|>",
        {"patch_token": "<im_patch>", "image_token": "<|image|>", "video_token": "<|video|>"},
        (
            "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>", "<im_low>",
        ),
    ),
    "got_ocr2": Kind(
        "fixed",
        "<img><imgpad></img>",
        {"image_token": "<imgpad>", "img_start": "<img>", "img_end": "</img>"},
        ("<|im_start|>", "<|im_end|>"),
    ),
    "mllama": Kind("tiles", "<|image|>", {"image_token": "<|image|>"}, ("<|python_tag|>",)),
    "phi4_multimodal": Kind(
        "tiles", "<|image|>", {"image_token": "<|image|>", "audio_token": "<|audio|>"}
    ),
    "florence2": Kind("fixed", "", IMAGE, one_image=True),
}  # fmt: skip

UNKNOWN = Kind("caller", "<image>", IMAGE)
"""What is assumed of any other family."""


def family(config: Config) -> str:
    """Return the family of a configuration: its `model_type`, but Pixtral's checkpoints call themselves `llava`."""
    vision = getattr(config, "vision_config", None)
    pixtral = config.model_type == "llava" and getattr(vision, "model_type", "") == "pixtral"
    return "pixtral" if pixtral else str(config.model_type)


def kind_of(name: str) -> Kind:
    """Return what is known of a family, or what is assumed of one that nobody has looked at."""
    return KINDS.get(name, UNKNOWN)
