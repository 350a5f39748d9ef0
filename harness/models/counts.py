"""What every card amounts to, counted without memory: parameters by part, visual tokens, FLOPs, bytes.

Each card's own adapter builds its model on torch's meta device, so what is counted is what is timed. FLOPs are two per
multiply-add, batch 1, attention as the full square (`torch.utils.flop_counter`).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias

import torch

from harness import cards, images, plugins
from harness.errors import HarnessError
from harness.models import counts_cache, pipeline
from harness.models.card import ModelCard
from harness.models.protocol import Options, Seen
from harness.models.synthesis import model_card
from harness.models.weights import Source

TEXT_TOKENS = 32
"""Text tokens beside the visual ones in every prefill count: LLaVA's templates with a short question make 24 to 40."""

BYTES_PER_BF16 = 2

ENCODERS = ("encoder", "encoders")
"""Names under which a card publishes one count for all of its encoders."""


@dataclass(frozen=True, slots=True)
class Row:
    """One card at one input side.

    `params` counts by part (an encoder's name, "projector", "llm"), `published_m` and `ratio` (ours / published) by the
    published name: a part, "encoder", or "total". `side` is what was asked (pixels of a square image of that size),
    `processed_px` what the encoder gets. FLOPs are for one image; `prefill_flops` for visual and text tokens.
    """

    model: str
    title: str
    adapter: str
    side: int
    processed_px: tuple[int, int] = (0, 0)
    tiles: int = 0
    visual_tokens: int = 0
    text_tokens: int = 0
    params: dict[str, int] = field(default_factory=dict)
    published_m: dict[str, float] = field(default_factory=dict)
    ratio: dict[str, float] = field(default_factory=dict)
    encode_flops: int = 0
    project_flops: int = 0
    prefill_flops: int = 0
    bf16_bytes: int = 0
    note: str = ""
    problem: str = ""
    """Why nothing is counted; empty where all is well."""


def rows(card: ModelCard) -> list[Row]:
    """Return one row for each side that the card supports; a single one for what cannot be counted."""
    result: list[Row] = []
    for side in card.resolution.supported():
        result.append(row(card, side))
        if result[-1].problem:
            break
    return result


def row(card: ModelCard, side: int) -> Row:
    """Return what `card` amounts to at `side` with a square image of that size, counted now or earlier.

    Raises `HarnessError` if it cannot be built.
    """
    return counts_cache.remembered(card, side, Row, lambda: _count(card, side))


def _count(card: ModelCard, side: int) -> Row:
    adapter = plugins.load("adapters", card.adapter)
    settings = card.settings
    model = adapter.load(card, Source("random"), Options(side, device="meta", dtype="bfloat16", settings=settings))
    if hasattr(model, "counted"):  # family auto: its FLOPs are counted in a real answer only
        seen, params = model.counted()
        parts = seen.processed_px, seen.tiles, seen.visual_tokens, seen.text_tokens
        published, size = card.published.params_m, BYTES_PER_BF16 * sum(params.values())
        counted = Row(card.name, card.title, card.adapter, side, *parts, params, published, ratios(card, params))
        return replace(counted, bf16_bytes=size, note=f"{seen.note}; FLOPs: in a run's log".strip("; "))
    if not isinstance(model, pipeline.VisionLanguageModel):
        return Row(card.name, card.title, card.adapter, side, problem="not built of encoder, projector and LLM")
    seen = _seen(model, side)
    work = model.work(seen)
    params = {name: pipeline.parameter_count(part) for name, part in model.parts.items()}
    flops = {stage: work[stage].flops if stage in work else 0 for stage in ("encode", "project", "prefill")}
    return Row(
        card.name,
        card.title,
        card.adapter,
        side,
        seen.processed_px,
        seen.tiles,
        seen.visual_tokens,
        seen.text_tokens,
        params,
        card.published.params_m,
        ratios(card, params),
        flops["encode"],
        flops["project"],
        flops["prefill"],
        BYTES_PER_BF16 * sum(params.values()),
        seen.note,
    )


@torch.inference_mode()
def _seen(model: pipeline.VisionLanguageModel, side: int) -> Seen:
    """Return what the model is shown of a square image; the encoders need not run, their features' shapes are known."""
    prepared = model.prepare([images.blank((side, side))])
    shapes = model.feature_shapes(prepared)
    if model.card.llm:
        features = {name: torch.empty(shape, dtype=model.dtype, device="meta") for name, shape in shapes.items()}
        tokens, text_tokens = len(model.project(features, prepared)), TEXT_TOKENS
    else:
        tokens, text_tokens = sum(shape[0] * shape[1] for shape in shapes.values()), 0
    pixels = prepared.processed_px
    return Seen((side, side), pixels, prepared.content_px, prepared.tiles, tokens, text_tokens, note=prepared.note)


def ratios(card: ModelCard, params: dict[str, int]) -> dict[str, float]:
    """Return our count over the published one, by the published name; one that is no part of the card is left out."""
    encoders = sum(params[encoder.name] for encoder in card.encoders if encoder.name in params)
    counted = {"total": sum(params.values()), **dict.fromkeys(ENCODERS, encoders), **params}
    published = card.published.params_m
    return {name: counted[name] / 1e6 / millions for name, millions in published.items() if counted.get(name)}


Counted: TypeAlias = dict[str, Any]
"""A row as plain values."""


def table(names: Sequence[str] | None = None, progress: Callable[[str], None] | None = None) -> list[Counted]:
    """Return the rows of all shipped cards (or `names`) as plain values; one that cannot be built has a `problem`."""
    result = []
    for name in names if names is not None else cards.names("models"):
        if progress:
            progress(name)
        card = model_card(name)
        try:
            counted = rows(card)
        except HarnessError as error:
            side = card.resolution.default
            counted = [Row(card.name, card.title, card.adapter, side, problem=f"{type(error).__name__}: {error}")]
        result += [asdict(one) for one in counted]
    return result


def to_json(table: Iterable[Counted]) -> str:
    """Return the table as JSON, all counts exact."""
    return json.dumps(list(table), indent=2) + "\n"


COLUMNS = (
    "model",
    "side px",
    "encoder px (all tiles)",
    "tiles",
    "visual tokens",
    "parameters M",
    "ours / published",
    "encode GFLOP",
    "project GFLOP",
    "prefill GFLOP",
    "bf16 GB",
)


def to_markdown(table: Iterable[Counted]) -> str:
    """Return the table as Markdown, with what it counts said below."""
    lines = [_line(COLUMNS), _line("---" if index in (0, 5, 6) else "---:" for index in range(len(COLUMNS)))]
    for one in table:
        if one["problem"]:
            lines.append(_line([one["model"], one["side"], *["–"] * (len(COLUMNS) - 3), one["problem"]]))
            continue
        width, height = one["processed_px"]
        lines.append(
            _line(
                [
                    one["model"],
                    one["side"],
                    width if width == height else f"{width}x{height}",
                    one["tiles"],
                    one["visual_tokens"],
                    " + ".join(f"{name} {count / 1e6:,.1f}" for name, count in one["params"].items()),
                    ", ".join(
                        f"{name} {ratio:.3f} of {one['published_m'][name]:,g}" for name, ratio in one["ratio"].items()
                    ),
                    *[_gflop(one[f"{stage}_flops"]) for stage in ("encode", "project", "prefill")],
                    f"{one['bf16_bytes'] / 1e9:.2f}",
                ]
            )
        )
    return "\n".join(lines) + (
        "\n\nA square image of the stated side. GFLOP: 10^9 operations, two per multiply-add, batch 1; prefill: the "
        f"visual tokens and {TEXT_TOKENS} text tokens, attention as the full square, logits of the last position. "
        "Parameters in millions by part, tied ones once; GB: 10^9 bytes of parameters.\n"
    )


def _gflop(flops: int) -> str:
    return f"{flops / 1e9:,.1f}" if flops else "–"


def _line(values: Iterable[object]) -> str:
    return "| " + " | ".join(str(value).replace("|", "\\|") for value in values) + " |"
