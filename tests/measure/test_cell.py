"""Cells: what is asked is settled once, and everything that could change a number is in the key."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from harness.errors import SettingError, UnknownName
from harness.measure import cell
from harness.measure.asked import Asked
from harness.measure.cell import Cell
from harness.models.card import Resolution

CELL = Cell(
    model="m",
    model_digest="1",
    weights="random",
    weights_digest="",
    suite="pages",
    asked_suite="docvqa",
    suite_digest="2",
    data="embedded",
    data_digest="3",
    resolution=1024,
    device="cpu",
    engine="torch",
    dtype="float32",
    protocol="ttft",
    seed=0,
    settings={},
    limit=None,
    isolate=False,
    part=None,
    repetition=0,
    decode_tokens=16,
    threads=None,
    minimum_samples=8,
    minimum_seconds=2.0,
    maximum_samples=200,
    maximum_seconds=120.0,
    precision=0.02,
)


def test_every_field_of_a_cell_changes_its_key() -> None:
    changed = {"settings": {"tiles": 2}, "limit": 5, "threads": 1, "part": "llm", "isolate": True}
    keys = {CELL.key}
    for field in fields(Cell):
        value = getattr(CELL, field.name)
        other = changed.get(field.name, f"{value}x" if isinstance(value, str) else (value or 0) + 1)
        keys.add(replace(CELL, **{field.name: other}).key)  # type: ignore[arg-type]
    assert len(keys) == len(fields(Cell)) + 1


def test_a_key_does_not_depend_on_the_process() -> None:
    assert CELL.key == "994455a18607a457"
    assert CELL.path(Path("out"), "box").name.startswith("pages-m-1024px-cpu-float32-")


def test_a_side_the_model_cannot_take_names_the_nearest() -> None:
    with pytest.raises(SettingError, match=r"--res 1000: fastvlm-0.5b takes multiples of 64 .* nearest: 960 or 1024"):
        cell.settle(Asked(res=1000))


def test_a_misspelt_setting_is_guessed_among_the_cards_and_the_engines() -> None:
    asked = Asked(model="fake", device="fake", suite="pages")
    with pytest.raises(UnknownName, match=r"setting of fake 'compil' \(did you mean 'compile'\?\); known: .*encode_ms"):
        cell.settle(replace(asked, settings={"compil": True}))
    with pytest.raises(UnknownName, match=r"setting of fake 'encode_m' \(did you mean 'encode_ms'\?\)"):
        cell.settle(replace(asked, settings={"encode_m": 1.0}))


def test_a_misspelt_model_is_guessed() -> None:
    with pytest.raises(UnknownName, match=r"unknown model 'fastvlm-0.5' \(did you mean 'fastvlm-0.5b'\?\)"):
        cell.settle(Asked(model="fastvlm-0.5"))


@pytest.mark.parametrize(("side", "near"), [(1, "64"), (65, "64 or 128"), (4000, "2048"), (1023, "960 or 1024")])
def test_nearest_multiples_stay_inside_the_range(side: int, near: str) -> None:
    rule = Resolution(rule="multiple", of=64, minimum=64, maximum=2048, default=1024)
    assert str(rule.problem(side)).endswith(f"nearest: {near}")
    assert rule.problem(1024) is None


def test_choices_and_ranges() -> None:
    choice = Resolution(rule="choice", values=(768, 1024, 1536), default=768)
    assert choice.problem(768) is None
    assert str(choice.problem(900)).endswith("nearest: 768 or 1024")
    assert (
        Resolution(rule="any", minimum=28, maximum=2304, default=384).problem(5000)
        == "takes sides from 28 to 2304; nearest: 2304"
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"minimum_samples": 300}, "--min-samples 300 and --max-samples 200"),
        ({"maximum_seconds": 1.0}, "--min-seconds 2 and --max-seconds 1"),
        ({"precision": -0.1}, "--precision -0.1"),
        ({"decode_tokens": 0}, "--decode-tokens 0: must be from 1 to"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_loaded(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        cell.settle(replace(Asked(model="fake", device="fake"), **wrong))


def test_two_spellings_of_one_card_are_one_cell() -> None:
    """`cuda` and `cuda:0` take one lock; as two cells they would be two rows of one card, and measured twice."""
    devices = {name: cell.settle(Asked(model="fake", device=name)).device for name in ("cuda", "cuda:0", "cuda:1")}
    assert devices == {"cuda": "cuda", "cuda:0": "cuda", "cuda:1": "cuda:1"}


def test_an_encoder_alone_has_no_stages_to_isolate() -> None:
    """Else its log would be one part of a cell whose other parts never come, and its figures would be refused."""
    settled = cell.settle(Asked(model="encoder-convnext-l", suite="pages", isolate=True))
    assert settled.card.llm is None
    assert not settled.isolate
    assert "--isolate-stages changes nothing" in settled.notices[-1]


@pytest.mark.parametrize(
    ("model", "given", "kept"),
    [
        ("fastvlm-0.5b", {"image_backend": "pil"}, {}),  # what it does anyway: the very cell that is there already
        ("fastvlm-0.5b", {"image_backend": "torchvision"}, {"image_backend": "torchvision"}),
        ("fastvlm-0.5b", {"image_backend": "pil", "route": "auto"}, {"image_backend": "pil", "route": "auto"}),
        ("qwen2.5-vl-3b", {"image_backend": "pil"}, {"image_backend": "pil"}),
        ("qwen2.5-vl-3b", {"image_backend": "torchvision"}, {"image_backend": "torchvision"}),
        ("qwen2.5-vl-3b", {}, {}),
    ],
)
def test_the_library_that_resizes_is_in_the_key_where_it_is_not_the_familys_own(
    model: str, given: dict[str, str], kept: dict[str, str]
) -> None:
    settled = cell.settle(Asked(model=model, suite="pages", settings=given))
    assert settled.settings == kept
    assert cell.settle(settled.asked).settings == kept, "a child process is asked for the same cell"


def test_a_long_setting_leaves_a_name_that_a_file_can_have() -> None:
    names = [replace(CELL, settings={"answer": letter * 300}).path(Path("out"), "box").name for letter in "xy"]
    assert all(len(f"{name}.part") == 255 for name in names)
    assert len(set(names)) == 2
    assert CELL.path(Path("out"), "box").name == f"pages-m-1024px-cpu-float32-{CELL.key}.jsonl"


def test_a_part_that_the_model_has_not_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UnknownName, match=r"unknown part of fastvlm-0\.5b 'nonsense'; known: fastvithd, llm"):
        cell.settle(Asked(part="nonsense"))


def test_a_precision_that_the_device_emulates_is_said_before_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.machine.devices.cpu.cpu_flags", lambda: {"avx2"})
    asked = Asked(model="encoder-fastvithd", suite="pages", device="cpu")
    told = cell.settle(replace(asked, dtype="bfloat16")).notices
    assert [notice for notice in told if notice.startswith("bfloat16 is emulated") and "--dtype float32" in notice]
    assert not cell.settle(replace(asked, dtype="float32")).notices
