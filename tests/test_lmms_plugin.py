"""lmms-eval itself, its command line included, runs our adapters through its plug-in group."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from harness import lmms_plugin
from harness.errors import HarnessError, OutputError, SettingError, UnknownName, WeightsError
from harness.images import png

TASK = """\
task: mini
dataset_path: parquet
dataset_kwargs: {data_files: {validation: FILE}}
test_split: validation
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answers
generation_kwargs: {max_new_tokens: 4}
metric_list: [{metric: anls, aggregation: mean, higher_is_better: true}]
"""

FUNCTIONS = """\
def visual(doc):
    return [doc["image"].convert("RGB")]


def text(doc):
    return doc["question"]
"""

FAST = {f"{stage}_ms": 0 for stage in ("preprocess", "encode", "project", "prefill", "decode")}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task of two questions, of which the fake model (it says the question's last word) knows one; offline."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "utils.py").write_text(FUNCTIONS)
    write(tmp_path, png(Image.new("L", (4, 3))))
    return tmp_path


def write(folder: Path, image: bytes) -> None:
    """Write the task's data and the task."""
    rows = [
        {"question": f"Is it {word}?", "answers": ["red"], "image": {"bytes": image, "path": None}}
        for word in ("red", "blue")
    ]
    table = pa.Table.from_pylist(rows)
    features = {"question": {"dtype": "string", "_type": "Value"}, "image": {"_type": "Image"}}
    features["answers"] = {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"}
    known = {"huggingface": json.dumps({"info": {"features": {name: features[name] for name in table.column_names}}})}
    parquet.write_table(table.replace_schema_metadata(known), folder / "data.parquet")
    (folder / "tasks" / "mini.yaml").write_text(TASK.replace("FILE", str(folder / "data.parquet")))


def rows(folder: Path) -> Any:
    """Return the data as lmms-eval loads them."""
    import datasets

    return datasets.load_dataset("parquet", data_files={"validation": str(folder / "data.parquet")})["validation"]


def request(at: int) -> Any:
    """Return what lmms-eval asks a model."""
    return SimpleNamespace(args=("Is it red?", {"max_new_tokens": 4}, visual, at, "mini", "validation"))


def visual(doc: Any) -> list[Any]:
    """Do as the task's function does."""
    return [doc["image"].convert("RGB")]


def test_the_command_line_of_lmms_eval_runs_our_model(folder: Path) -> None:
    arguments = ",".join(["card=fake", "device=fake", "res=512", *(f"{name}={value}" for name, value in FAST.items())])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lmms_eval", "--model", "vlm_pareto", "--model_args", arguments),
            *("--tasks", "mini", "--include_path", "tasks", "--output_path", "out", "--log_samples"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (folder / "out").rglob("*results.json")
    assert json.loads(results.read_text())["results"]["mini"]["anls,none"] == 0.5
    (samples,) = (folder / "out").rglob("*samples_mini.jsonl")
    answers = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    assert answers == ["red", "blue"]


def test_one_instance_serves_two_evaluations(folder: Path) -> None:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    model = lmms_plugin.VlmPareto(card="fake", device="fake", **FAST)
    for _ in range(2):
        manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
        found = simple_evaluate(model=model, tasks=["mini"], task_manager=manager, bootstrap_iters=0)
        assert found["results"]["mini"]["anls,none"] == 0.5


def test_the_model_gets_the_data_sets_own_bytes(folder: Path) -> None:
    own = png(Image.new("L", (4, 3)))
    assert lmms_plugin.visuals(visual, rows(folder), 1) == [own]
    plain = [{"image": Image.new("CMYK", (4, 3))}]
    assert lmms_plugin.visuals(visual, plain, 0) == [png(Image.new("CMYK", (4, 3)).convert("RGB"))]


def test_a_failure_is_raised_or_marked_and_never_an_empty_answer(folder: Path) -> None:
    write(folder, b"no image")
    split = rows(folder)
    with pytest.raises(HarnessError, match="mini, document 0: ExampleError: not a readable image"):
        lmms_plugin.Answers(card="fake", device="fake", **FAST).answer(request(0), split)
    marking = lmms_plugin.Answers(card="fake", device="fake", failures="mark", **FAST)
    assert marking.answer(request(0), split).startswith("[vlm_pareto failed: ExampleError: not a readable image")
    assert marking.failed == 1


def test_an_answer_that_rests_on_no_number_is_a_failure(folder: Path) -> None:
    """As in a run of ours: NaN logits have a largest element too."""

    def verify() -> None:
        raise OutputError("fake computed logits of token 1 that are not finite", "prefill")

    answers = lmms_plugin.Answers(card="fake", device="fake", **FAST)
    answers.model.verify = verify
    with pytest.raises(HarnessError, match=r"mini, document 0: OutputError: .*not finite"):
        answers.answer(request(0), rows(folder))


def test_random_weights_are_not_scored_unless_they_are_asked_for() -> None:
    with pytest.raises(WeightsError, match="lmms-eval would score them as the model's; next: weights=FOLDER"):
        lmms_plugin.Answers(card="fastvlm-0.5b", device="cpu")


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(SettingError, match="batch_size 4: vlm_pareto answers one request at a time"):
        lmms_plugin.Answers(card="fake", device="fake", batch_size=4)
    with pytest.raises(UnknownName, match="unknown setting of fake 'colour'"):
        lmms_plugin.Answers(card="fake", device="fake", colour="red")
    with pytest.raises(UnknownName, match="did you mean 'fake'"):
        lmms_plugin.Answers(card="fakee", device="fake")
    with pytest.raises(SettingError, match="--res 1000: fake takes multiples of 64"):
        lmms_plugin.Answers(card="fake", device="fake", res=1000)


def test_importing_the_module_imports_nothing() -> None:
    program = "import sys, harness.lmms_plugin; print(sorted({'torch', 'lmms_eval', 'datasets'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
