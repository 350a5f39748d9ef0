"""Ids and text: the checkpoint's own tokenizer in each of its file layouts, and the stand-in."""

import json
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import WeightsError
from harness.models import templates, tokenizers

BEFORE, AFTER = templates.qwen_2("What is the date of the letter? it's  12 你好 😀")


@pytest.fixture(scope="module")
def qwen2(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for layout, whole in (("tokenizer.json", True), ("vocab.json", False)):
        folders[layout] = tmp_path_factory.mktemp("qwen2")
        tiny.write_qwen2_tokenizer(folders[layout], whole)
        tiny.write_config(folders[layout])  # a type that only remote code knows
    return folders


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory: pytest.TempPathFactory, tiny: ModuleType) -> Path:
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("vicuna")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*tiny.LINES, templates.VICUNA_SYSTEM, "USER: ASSISTANT:"] * 5),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=360,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    return folder


@pytest.mark.parametrize("layout", ["tokenizer.json", "vocab.json"])
def test_both_layouts_of_qwen2_give_the_files_own_ids(
    qwen2: dict[str, Path], tiny: ModuleType, layout: str, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tokenizers.find(qwen2[layout], vocab=1)
    reference = tiny.qwen2_tokenizer()
    for text in (BEFORE, AFTER, "\n", " ", "a\n\nb"):
        assert tokenizer.encode(text) == reference.encode(text).ids
    start, end = reference.token_to_id("<|im_start|>"), reference.token_to_id("<|im_end|>")
    assert [i for i in tokenizer.encode(BEFORE + AFTER) if i in (start, end)] == [start, end, start, end, start]
    assert tokenizer.decode(tokenizer.encode(AFTER)) == AFTER.replace("<|im_end|>", "").replace("<|im_start|>", "")
    assert capfd.readouterr() == ("", "")  # not a word from transformers about the unknown model type


def test_a_bare_sentencepiece_model_is_tokenized_as_the_original_does(vicuna: Path) -> None:
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_file=str(vicuna / "tokenizer.model"))
    tokenizer = tokenizers.find(vicuna, vocab=1)
    before, after = templates.vicuna_v1("What is the date?")
    assert tokenizer.encode(before) == reference.encode(before)
    assert tokenizer.encode(after) == reference.encode(after)
    pieces = [reference.id_to_piece(i) for i in tokenizer.encode(after)]
    assert pieces[:2] == ["▁", "<0x0A>"]  # the leading space that Llama's tokenizer puts before each half
    assert tokenizer.decode(tokenizer.encode("The date of the 你好")) == "The date of the 你好"
    assert tokenizer.encode("form</s>")[-1] == 2
    assert tokenizer.decode([1, *reference.encode("a form"), 2, 400]) == "a form"  # 400: a padded row of the logits


@pytest.mark.parametrize("kind", ["tokenizer.json", "vocab.json", "sentencepiece"])
@given(text=st.text(min_size=1, max_size=30))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_pieces_of_a_stream_add_up_to_the_text(qwen2: dict[str, Path], vicuna: Path, kind: str, text: str) -> None:
    tokenizer = _cached(vicuna if kind == "sentencepiece" else qwen2[kind])
    ids = tokenizer.encode(text)
    whole = tokenizer.decode(ids)
    stream = tokenizers.Stream(tokenizer)
    said = "".join(stream.add(i) for i in ids)
    assert said == whole or (whole.startswith(said) and whole.endswith("\ufffd"))


_FOUND: dict[Path, tokenizers.Tokenizer] = {}


def _cached(folder: Path) -> tokenizers.Tokenizer:
    return _FOUND.setdefault(folder, tokenizers.find(folder, 1))


def test_half_a_character_waits_for_its_other_half(qwen2: dict[str, Path]) -> None:
    tokenizer = tokenizers.find(qwen2["tokenizer.json"], vocab=1)
    ids = tokenizer.encode("ß")
    assert len(ids) == 2
    stream = tokenizers.Stream(tokenizer)
    assert [stream.add(i) for i in ids] == ["", "ß"]


def test_spaces_before_apostrophes_are_not_taken_back(qwen2: dict[str, Path]) -> None:
    """Cleaning up would turn "a 's" into "a's" after " '" has been said already."""
    tokenizer = tokenizers.find(qwen2["tokenizer.json"], vocab=1)
    text = "the form 's line . n't"
    stream = tokenizers.Stream(tokenizer)
    assert "".join(stream.add(i) for i in tokenizer.encode(text)) == text


def test_trained_weights_without_a_tokenizer_are_refused_and_random_ones_get_the_stand_in(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")  # settings alone are no tokenizer
    with pytest.raises(WeightsError, match=r"has no tokenizer.*next: copy"):
        tokenizers.find(tmp_path, vocab=100, trained=True)
    assert "stand-in" in tokenizers.find(tmp_path, vocab=100).name
    assert "stand-in" in tokenizers.find(None, vocab=100).name


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", "{"), ("tokenizer.model", "not a model"), ("vocab.json", "{}")],
)
def test_a_broken_tokenizer_is_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(WeightsError, match=f"{tmp_path.name}: its tokenizer cannot be read: .*; next: "):
        tokenizers.find(tmp_path, vocab=1)


def test_a_tokenizer_with_code_of_its_own_is_not_run(tmp_path: Path, tiny: ModuleType) -> None:
    """A folder may ask for remote code; its files are read by our classes, or refused."""
    tiny.write_qwen2_tokenizer(tmp_path)
    settings_file = tmp_path / "tokenizer_config.json"
    told = json.loads(settings_file.read_text())
    told |= {"tokenizer_class": "Odd", "auto_map": {"AutoTokenizer": ["odd.Odd", None]}}
    settings_file.write_text(json.dumps(told))
    (tmp_path / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Odd: pass\n")
    tokenizers.find(tmp_path, vocab=1).encode("a form")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(WeightsError):
        tokenizers.find(tmp_path, vocab=1)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("<|im_start|>system\n", 3),
        ("What are these?", 4),
        ("\nAnswer the question using a single word or phrase.", 11),
        ("2026-11-23", 10),
        ("", 0),
    ],
)
def test_the_stand_in_counts_like_a_byte_pair_vocabulary(text: str, count: int) -> None:
    ids = tokenizers.StandIn(1000).encode(text)
    assert len(ids) == count
    assert all(0 <= i < 1000 for i in ids)
