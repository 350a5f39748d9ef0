"""Model cards: what no model can be is refused where the card is read, by its field."""

from pathlib import Path

import pytest

from harness import cards
from harness.errors import CardError, UnknownName
from harness.models.card import load_model_card
from harness.models.synthesis import model_card


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("layers = 4\n", "layers = -1\n", "llm.layers"),
        ("hidden = 320", "hidden = 0", "llm.hidden"),
        ("vocab = 825", "vocab = 0", "llm.vocab"),
        ("kv_heads = 10", "kv_heads = 20", "kv_heads 20"),
        ("\nheads = 10", "\nheads = 7", "hidden 320"),
        ("of = 64", "of = -64", "resolution.of"),
        ("width = 768", "width = 0", "width"),
    ],
)
def test_a_size_that_no_model_has_is_refused_by_its_field(tmp_path: Path, old: str, new: str, field: str) -> None:
    text = (cards.ROOT / "models" / "fastvlm-nano.toml").read_text()
    assert old in text
    (tmp_path / "card.toml").write_text(text.replace(old, new))
    with pytest.raises(CardError, match=rf"card\.toml: .*{field}.*next: mend the card"):
        load_model_card(str(tmp_path / "card.toml"))


@pytest.mark.parametrize("name", ["m" * 10_000, "m" * 300, "~nobody-of-that-name"])
def test_a_name_that_no_file_can_have_is_an_unknown_model(name: str) -> None:
    with pytest.raises(UnknownName, match="unknown model") as raised:
        model_card(name)
    assert len(str(raised.value)) < 2000


def test_a_card_file_whose_name_no_file_can_have_is_not_there() -> None:
    with pytest.raises(CardError, match="no such card"):
        model_card("m" * 300 + ".toml")
