"""What there is, and which of it can run here."""

from harness import catalogue


def test_the_list_names_the_rule_by_which_a_side_is_taken() -> None:
    sides = {row["model"]: row["sides"] for row in catalogue.tables(["models"])["models"]}
    assert sides["fastvlm-0.5b"] == "multiples of 64"
    assert sides["cambrian-1-8b"] == "its own, fixed"
    assert sides["llava-onevision-0.5b"] == "any, in steps"
    assert sides["internvl3-1b"] == "any, steps (tiles)"
    assert sides["qwen2.5-vl-3b"] == "any (area)"
