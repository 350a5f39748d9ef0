"""The table of all cards: counts against figures measured independently or printed by the authors; its two forms."""

import json

import msgspec
import pytest

from harness import images
from harness.models import counts
from harness.models.card import Llm, ModelCard, Published, load_model_card
from harness.models.families import encoder
from harness.models.protocol import Options, Request, Seen
from harness.models.weights import Source

PERCENT = 0.01

ENCODERS = {
    # card: side, visual tokens, GFLOP, million parameters (independent counts of the same architectures)
    "encoder-fastvithd": (1024, 256, 486.7, 122.7),
    "encoder-clip-l-336": (336, 576, 381.9, 303.5),
    "encoder-siglip-so400m-384": (384, 729, 670.3, 413.0),
    "encoder-convnext-l": (768, 576, 808.0, 196.2),
    "encoder-convnext-xxl": (1024, 1024, 6335.0, 843.4),
}

QWEN2 = Llm(
    kind="qwen2",
    hidden=1536,
    layers=28,
    heads=12,
    kv_heads=2,
    ffn=8960,
    vocab=151936,
    rope_theta=1e6,
    rms_eps=1e-6,
    positions=32768,
    tied=True,
)
PREFILLS = {
    # GFLOP at 280 tokens (256 visual, 24 of text)
    "0.5B": (load_model_card("pair-fastvithd-qwen2-0.5b").llm, 207.0),
    "1.5B": (QWEN2, 747.0),
    "7B": (
        msgspec.structs.replace(QWEN2, hidden=3584, heads=28, kv_heads=4, ffn=18944, vocab=152064, tied=False),
        3686.0,
    ),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_count_what_others_counted(name: str) -> None:
    side, tokens, gflop, millions = ENCODERS[name]
    row = counts.row(load_model_card(name), side)
    assert row.visual_tokens == tokens
    assert row.encode_flops / 1e9 == pytest.approx(gflop, rel=PERCENT)
    assert sum(row.params.values()) / 1e6 == pytest.approx(millions, rel=0.001)
    assert row.bf16_bytes == 2 * sum(row.params.values())
    assert (row.text_tokens, row.prefill_flops, row.project_flops) == (0, 0, 0)


@pytest.mark.parametrize("size", PREFILLS)
def test_prefill_counts_what_others_counted(size: str) -> None:
    llm, gflop = PREFILLS[size]
    card = msgspec.structs.replace(load_model_card("pair-fastvithd-qwen2-0.5b"), llm=llm)
    model = encoder.load(card, Source("random"), Options(1024, device="meta", dtype="bfloat16"))
    seen = Seen((1024, 1024), (1024, 1024), 1024 * 1024, 1, visual_tokens=256, text_tokens=24)
    assert model.work(seen)["prefill"].flops / 1e9 == pytest.approx(gflop, rel=PERCENT)


@pytest.mark.parametrize(
    ("name", "side", "tokens"),
    [
        ("encoder-fastvit", 768, 576),  # arXiv:2412.13303 Table 1
        ("encoder-convnext-l", 320, 100),  # Table 4
        ("encoder-convnext-l", 512, 256),
        ("encoder-convnext-xxl", 512, 256),
        ("encoder-vitamin-l-384", 384, 576),  # Table 10
        ("encoder-eva-clip-l-336", 336, 576),  # (336 / 14)^2 and so on
        ("encoder-internvit-300m", 448, 1024),
        ("encoder-dfn-clip-h-378", 378, 729),
        ("encoder-dinov2-l-518", 518, 1369),
    ],
)
def test_visual_tokens_are_those_printed(name: str, side: int, tokens: int) -> None:
    row = counts.row(load_model_card(name), side)
    assert row.visual_tokens == tokens
    for ratio in row.ratio.values():  # what is not run (CLIP projection) and rounding: within two percent
        assert ratio == pytest.approx(1, rel=0.02)


def test_a_pair_has_a_row_for_each_side_and_a_prefill_that_grows_with_it() -> None:
    card = load_model_card("pair-fastvithd-qwen2-0.5b")
    rows = counts.rows(card)
    assert [row.side for row in rows] == [256, 512, 768, 1024] == card.resolution.supported()
    assert [row.visual_tokens for row in rows] == [16, 64, 144, 256]
    assert {row.text_tokens for row in rows} == {counts.TEXT_TOKENS}
    assert list(rows[0].params) == ["fastvithd", "projector", "llm"]
    assert rows[0].params["projector"] == 3072 * 896 + 896 + 896 * 896 + 896
    prefills = [row.prefill_flops for row in rows]
    assert prefills == sorted(prefills)
    # 0.5B: 358 million weights outside the embedding, two operations each for every token, and a little attention
    assert prefills[3] / (256 + counts.TEXT_TOKENS) == pytest.approx(2 * 358e6, rel=0.05)


def test_the_row_says_what_an_answer_says() -> None:
    card = load_model_card("pair-clip-l-336-qwen2-0.5b")
    model = encoder.load(card, Source("random"), Options(336, device="meta", dtype="bfloat16"))
    picture = images.png(images.blank((336, 336)).image)
    events = model.answer(Request((picture,), "?", max_new_tokens=1))
    seen = next(event for event in events if isinstance(event, Seen))
    row = counts.row(card, 336)
    assert (row.visual_tokens, row.tiles, row.processed_px) == (seen.visual_tokens, seen.tiles, seen.processed_px)


def test_the_fake_model_has_nothing_to_count() -> None:
    (row,) = counts.rows(load_model_card("fake"))
    assert "not built of" in row.problem


def test_published_counts_are_matched_by_part_encoder_and_total() -> None:
    card = load_model_card("pair-fastvithd-qwen2-0.5b")
    params = {"fastvithd": 100_000_000, "projector": 10_000_000, "llm": 500_000_000}
    published = {"encoder": 125.0, "llm": 500.0, "total": 1220.0, "sampler": 7.0}
    card = msgspec.structs.replace(card, published=Published(params_m=published))
    assert counts.ratios(card, params) == {"encoder": 0.8, "llm": 1.0, "total": 0.5}


def test_the_table_goes_on_after_a_card_that_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = msgspec.structs.replace(load_model_card("encoder-fastvit"), adapter="encodr", name="broken")
    known = load_model_card

    def model(name: str) -> ModelCard:
        return broken if name == "broken" else known(name)

    monkeypatch.setattr(counts, "model_card", model)
    told: list[str] = []
    table = counts.table(["broken", "encoder-vitamin-l-224"], told.append)
    assert told == ["broken", "encoder-vitamin-l-224"]
    assert "did you mean 'encoder'" in table[0]["problem"]
    assert (table[1]["problem"], table[1]["visual_tokens"]) == ("", 196)

    lines = counts.to_markdown(table).splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert "did you mean 'encoder'" in lines[2]
    assert lines[3].startswith("| encoder-vitamin-l-224 | 224 | 224 | 1 | 196 | vitamin 332.5 | encoder 0.999 of 333 |")
    assert f"{counts.TEXT_TOKENS} text tokens" in lines[-1]
    assert json.loads(counts.to_json(table)) == json.loads(json.dumps(table))
