"""A card for a folder or a Hub id: which family, which sides, which licence; and what is said of an unknown one."""

import json
from pathlib import Path

import pytest
import tiny_vlms

from harness import images, lmms_plugin
from harness.cli import program
from harness.errors import SettingError, UnknownName, WeightsError
from harness.models import synthesis, weights
from harness.models.card import load_model_card
from harness.models.protocol import Piece, Request


def folder(at: Path, **fields: object) -> Path:
    """Write a folder with a `config.json` alone."""
    at.mkdir(parents=True, exist_ok=True)
    (at / "config.json").write_text(json.dumps(fields))
    return at


def test_a_folder_of_another_family_gets_a_card_of_family_auto(tmp_path: Path) -> None:
    made = folder(tmp_path / "my-tune", model_type="qwen2_5_vl", architectures=["Qwen2_5_VLForConditionalGeneration"])
    (made / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- x\n---\n# Mine\n")
    card = synthesis.model_card(str(made))
    assert (card.name, card.adapter, card.resolution.rule) == ("my-tune", "auto", "area")
    assert card.license == "apache-2.0 (the checkpoint's own README)"
    assert "family qwen2_5_vl" in card.notes
    (made / "README.md").unlink()
    assert synthesis.model_card(str(made)).license == synthesis.NOT_STATED
    before = card.digest
    folder(made, model_type="qwen2_5_vl", vision_config={"depth": 3})
    assert synthesis.model_card(str(made)).digest != before


def test_a_family_with_one_size_keeps_one_point(tmp_path: Path) -> None:
    made = folder(tmp_path / "g", model_type="gemma3", vision_config={"image_size": 896})
    rule = synthesis.model_card(str(made)).resolution
    assert (rule.rule, rule.default) == ("fixed", 896)
    (made / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 448, "width": 448}}))
    assert synthesis.model_card(str(made)).resolution.default == 448


def test_pixtral_calls_itself_llava(tmp_path: Path) -> None:
    made = folder(tmp_path / "p", model_type="llava", vision_config={"model_type": "pixtral"}, text_config={})
    assert synthesis.model_card(str(made)).resolution.rule == "longest_edge"


def test_a_folder_whose_size_one_of_our_cards_has_runs_by_that_card(tmp_path: Path) -> None:
    made = folder(
        tmp_path / "nightly", model_type="llava_qwen2", hidden_size=896, num_hidden_layers=24, num_attention_heads=14
    )
    card = synthesis.model_card(str(made))
    assert (card.name, card.adapter, card.folder) == ("fastvlm-0.5b", "fastvlm", str(made))


def test_what_nothing_here_can_run_is_told_in_one_line(tmp_path: Path) -> None:
    unknown = folder(tmp_path / "u", model_type="moondream1", architectures=["Moondream"], auto_map={"AutoConfig": "x"})
    with pytest.raises(WeightsError, match=r"Moondream .*brings code of its own, which is never run") as told:
        synthesis.model_card(str(unknown))
    assert "\n" not in str(told.value)
    near = folder(tmp_path / "n", model_type="qwen2_5vl")
    with pytest.raises(WeightsError, match="did you mean 'qwen2_5_vl'"):
        synthesis.model_card(str(near))
    ours = folder(tmp_path / "o", model_type="llava_qwen2", hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    with pytest.raises(WeightsError, match="read by family fastvlm, but no shipped card"):
        synthesis.model_card(str(ours))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"no config\.json in it"):
        synthesis.model_card(str(tmp_path / "empty"))


def test_names_ids_and_paths_are_told_apart(tmp_path: Path) -> None:
    assert synthesis.model_card("fastvlm-0.5b") == load_model_card("fastvlm-0.5b")
    assert synthesis.model_card("Qwen/Qwen3-VL-2B-Instruct", offline=True).name == "qwen3-vl-2b"
    assert synthesis.model_card("apple/FastVLM-0.5B", offline=True).name == "fastvlm-0.5b"
    unknown = r"no folder of that name here, and nobody/nothing is not \(or not all\) in the Hub cache"
    with pytest.raises(SettingError, match=unknown):
        synthesis.model_card("nobody/nothing", offline=True)
    with pytest.raises(SettingError, match="no such folder"):
        synthesis.model_card(str(tmp_path / "gone"))
    with pytest.raises(UnknownName, match=r"did you mean 'fastvlm-0\.5b'"):
        synthesis.model_card("fastvlm-0.5")


def test_the_folder_is_where_the_weights_are(tmp_path: Path) -> None:
    made = tiny_vlms.write(tmp_path / "tiny", "qwen2_5_vl")
    card = synthesis.model_card(str(made))
    source = weights.resolve(card, None)
    assert (source.kind, source.folder) == ("local", made)
    assert weights.resolve(card, "random").kind == "random"


def test_routes() -> None:
    routes = {
        name: synthesis.routes(load_model_card(name)) for name in ("fastvlm-0.5b", "cambrian-1-8b", "qwen3-vl-2b")
    }
    assert routes == {"fastvlm-0.5b": ["own", "auto"], "cambrian-1-8b": ["own"], "qwen3-vl-2b": ["auto"]}


def test_a_folder_without_a_card_is_measured_and_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`harness run --model FOLDER`: the log says family, route and stages, and the answers are scored."""
    made = tiny_vlms.write(tmp_path / "tiny-qwen", "qwen2_5_vl")
    capsys.readouterr()
    arguments = f"--suite pages --limit 2 --res 112 --device cpu --offline --wait --out {tmp_path / 'logs'}"
    rule = "--min-samples 1 --min-seconds 0 --max-samples 1 --max-seconds 20 --decode-tokens 2"
    code = program(["run", "--model", str(made), *arguments.split(), *rule.split()], standalone_mode=False)
    assert code == 0
    (path,) = (tmp_path / "logs").rglob("*.jsonl")
    header, *rest = map(json.loads, path.read_text().splitlines())
    assert header["effective"]["route"] == "auto"
    assert header["effective"]["family"] == "qwen2_5_vl"
    assert header["weights"]["source"] == "local"
    timed = [line for line in rest if line["kind"] == "sample" and line["phase"] == "timed" and line.get("stages")]
    assert list(timed[0]["stages"]["stage_ns"]) == ["preprocess", "encode", "project", "prefill"]
    assert timed[0]["visual_tokens"] == 12  # 84 x 112 px of a page, in squares of 28
    assert "ANLS" in capsys.readouterr().out


RULE = "--min-samples 2 --min-seconds 0 --max-samples 2 --max-seconds 20 --decode-tokens 2"


@pytest.mark.slow
def test_two_folders_without_cards_are_compared_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`compare --interleave`: a fine-tune against its base, both by route auto."""
    folders = [str(tiny_vlms.write(tmp_path / name, "qwen2_5_vl", seed)) for seed, name in enumerate(("base", "tune"))]
    arguments = f"--interleave --model {folders[0]} --suite pages --limit 2 --res 112 --device cpu --offline --wait"
    out = ["--out", str(tmp_path / "logs"), "--json"]
    capsys.readouterr()
    code = program(["compare", *folders, *arguments.split(), *RULE.split(), *out], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)
    assert code in (0, 1, 2)  # two pairs do not tell which is faster, and a busy machine's are refused
    headers = [json.loads(path.read_text().splitlines()[0]) for path in (tmp_path / "logs").rglob("*.jsonl")]
    assert len(headers) in (2, 4), "one log each; two where the first round could not tell, and it was measured again"
    assert {header["effective"]["route"] for header in headers} == {"auto"}
    assert len({header["cell"]["weights_digest"] for header in headers}) == 2


@pytest.mark.slow
def test_nights_of_a_family_without_a_card_are_tracked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`track`: nightly folders of a family that only transformers knows."""
    for seed, name in enumerate(("n1", "n2")):
        tiny_vlms.write(tmp_path / "nights" / name, "qwen2_5_vl", seed)
    model, out = str(tmp_path / "nights" / "n1"), ["--out", str(tmp_path / "logs"), "--verdict", str(tmp_path / "said")]
    arguments = f"--model {model} --suite pages --limit 2 --res 112 --device cpu --offline --wait"
    code = program(["track", str(tmp_path / "nights"), *arguments.split(), *RULE.split(), *out], standalone_mode=False)
    assert code in (0, 1, 2)
    verdict = json.loads((tmp_path / "said" / "verdict.json").read_text())
    assert (verdict["checkpoint"], verdict["baseline"]) == ("n2", "n1")
    assert verdict["accuracy"]["metric"] == "ANLS"


def test_lmms_eval_is_served_by_a_folder_without_a_card(tmp_path: Path) -> None:
    made = tiny_vlms.write(tmp_path / "tiny-qwen", "qwen2_5_vl")
    answers = lmms_plugin.Answers(card=str(made), res=112, device="cpu")
    picture = images.png(images.blank((90, 120)).image)
    text = [
        event.text for event in answers.model.answer(Request((picture,), "What is it?", 4)) if isinstance(event, Piece)
    ]
    assert answers.model.describe()["route"] == "auto"
    assert 1 <= len(text) <= 4
