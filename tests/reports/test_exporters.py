"""Exporters: the files have the shape their readers expect, marks travel along, a missing package is named."""

import importlib.util
import json
from pathlib import Path

import msgspec
import pytest
import synthetic_logs

from harness import plugins
from harness.errors import MissingPackage
from harness.reports import accuracy, frame, measured, metrics


@pytest.fixture
def rows(tmp_path: Path) -> list:
    synthetic_logs.write(tmp_path / "logs" / "a.jsonl", suite="docvqa", n=20)
    synthetic_logs.write(tmp_path / "logs" / "b.jsonl", suite="docvqa", n=20, protocol="paper", weights="random")
    data = frame.load(tmp_path / "logs")
    accuracies = {
        cell.configuration: accuracy.Accuracy("ANLS", 0.7, 0.6, 0.8, 50, asked=53, failed=3)
        for cell in data.cells
        if cell.configuration.weights != "random"
    }
    return list(measured.gather(data, accuracies).cells)


def test_there_is_one_file_each() -> None:
    assert plugins.names("exporters") == ["github_benchmark", "hud", "mlflow", "trackio", "wandb"]


class Part(msgspec.Struct, forbid_unknown_fields=True):
    """A field of the HUD's published table `oss_ci_benchmark_v3` that has fields: texts by name beside its own."""

    extra_info: dict[str, str] = {}


class HudBenchmark(Part):
    name: str = ""
    mode: str = ""
    dtype: str = ""


class HudModel(Part):
    name: str = ""
    type: str = ""
    backend: str = ""
    origins: list[str] = []


class HudMetric(Part):
    name: str = ""
    benchmark_values: list[float] = []
    target_value: float = 0.0


class HudRunner(Part):
    name: str = ""
    type: str = ""


class HudRecord(msgspec.Struct, forbid_unknown_fields=True):
    timestamp: int
    schema_version: str
    name: str
    runners: list[HudRunner]
    benchmark: HudBenchmark
    model: HudModel
    metric: HudMetric


def test_hud(rows: list, tmp_path: Path) -> None:
    (path,) = plugins.load("exporters", "hud").export(rows, tmp_path / "hud.json", branch="main")
    records = json.loads(path.read_text())
    typed = msgspec.json.decode(path.read_bytes(), type=list[HudRecord])
    assert {one.schema_version for one in typed} == {"v3"}
    assert all(one.timestamp > 1_700_000_000 for one in typed)
    assert {"unit", "low", "high"} in [set(one.metric.extra_info) for one in typed]
    for record in records:
        (value,) = record["metric"]["benchmark_values"]
        assert isinstance(value, float)
        assert record["benchmark"]["extra_info"]["branch"] == "main"
    found = {(r["model"]["name"], r["metric"]["name"]): r["metric"]["benchmark_values"][0] for r in records}
    plain = next(row for row in rows if row.process.trained)
    assert found["fastvlm-0.5b docvqa 1024px cpu float32 ttft", "ttft_ms"] == plain.times.ns("ttft") / 1e6
    assert any("[random, paper]" in name for name, _ in found), "marks are part of the name"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"limit": 12}, "first 12"),
        ({"threads": 8}, "threads=8"),
        ({"weights_digest": "0123456789"}, "weights=01234567"),
        ({"engine": "openai"}, "engine=openai"),
        ({"seed": 7}, "seed=7"),
        ({"decode_tokens": 64}, "decode_tokens=64"),
        ({"asked_suite": "docvqa"}, "asked_suite=docvqa"),
    ],
)
def test_another_limit_or_checkpoint_is_another_series(tmp_path: Path, more: dict[str, object], told: str) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl")
    synthetic_logs.write(tmp_path / "b.jsonl", of_cell=more)
    cells = measured.gather(frame.load(tmp_path), {}).cells
    names = {metrics.title(one, cells) for one in cells}
    assert len(names) == 2
    assert any(told in name for name in names)
    ((name, value),) = more.items()
    assert str(value) in {metrics.facts(one).get(name) for one in cells}


def test_two_servers_are_two_series(tmp_path: Path) -> None:
    urls = [f"http://here:{port}/v1" for port in (1, 2)]
    for number, url in enumerate(urls):
        synthetic_logs.write(tmp_path / f"{number}.jsonl", endpoint=url, concurrency=4)
    cells = measured.gather(frame.load(tmp_path), {}).cells
    titles = sorted(metrics.title(one, cells) for one in cells)
    assert [url in title for url, title in zip(urls, titles, strict=True)] == [True, True]
    assert {(facts["endpoint"], facts["concurrency"]) for facts in map(metrics.facts, cells)} == {
        (url, "4") for url in urls
    }


def test_two_machines_are_two_series(tmp_path: Path) -> None:
    for machine in ("one", "two"):
        synthetic_logs.write(tmp_path / f"{machine}.jsonl", machine=machine)
    cells = measured.gather(frame.load(tmp_path), {}).cells
    assert sorted(metrics.title(one, cells) for one in cells) == [
        f"fastvlm-0.5b pages 1024px cpu float32 ttft machine={name}" for name in ("one", "two")
    ]
    (path,) = plugins.load("exporters", "github_benchmark").export(cells, tmp_path / "bench.json")
    names = [entry["name"] for entry in json.loads(path.read_text())]
    assert len(names) == len(set(names))


def test_a_checkpoint_of_each_night_is_one_series(tmp_path: Path) -> None:
    """A chart over nights needs one name; which weights they were stands beside each number."""
    titles = []
    for night in ("0123456789", "abcdefabcd"):
        (tmp_path / night).mkdir()
        synthetic_logs.write(tmp_path / night / "a.jsonl", of_cell={"weights_digest": night})
        (one,) = measured.gather(frame.load(tmp_path / night), {}).cells
        titles.append(metrics.title(one, [one]))
        assert metrics.facts(one)["weights_digest"] == night
    assert titles[0] == titles[1]


def test_what_belongs_beside_an_accuracy_is_exported_with_it(rows: list) -> None:
    scored = next(row for row in rows if row.process.trained)
    facts, numbers = metrics.facts(scored), metrics.numbers(scored)
    assert facts["accuracy_n"] == "50"
    assert facts["accuracy_remarks"] == "3 of 53 failed and are left out"
    assert numbers["accuracy_n"] == 50
    unscored = next(row for row in rows if not row.process.trained)
    assert not {"accuracy_n", "accuracy_remarks"} & {*metrics.facts(unscored), *metrics.numbers(unscored)}


def test_github_benchmark(rows: list, tmp_path: Path) -> None:
    files = plugins.load("exporters", "github_benchmark").export(rows, tmp_path / "bench.json")
    assert [path.name for path in files] == ["bench.json", "bench-accuracy.json"]
    smaller, bigger = (json.loads(path.read_text()) for path in files)
    for entry in smaller + bigger:
        assert {"name", "unit", "value", "extra"} <= set(entry)
        assert isinstance(entry["value"], int | float)
    assert {entry["unit"] for entry in smaller} == {"ms", "bytes"}
    assert [(entry["value"], entry["range"]) for entry in bigger] == [(0.7, "0.6 to 0.8 (95 %)")]


@pytest.mark.parametrize(
    ("name", "package", "options"), [("mlflow", "mlflow", {}), ("trackio", "trackio", {}), ("wandb", "wandb", {})]
)
def test_a_missing_package_is_named(rows: list, tmp_path: Path, name: str, package: str, options: dict) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed here")
    with pytest.raises(MissingPackage, match=rf"pip install 'vlm-pareto\[{package}\]'"):
        plugins.load("exporters", name).export(rows, "target", **options)


def test_mlflow(rows: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the store of files, which needs no database and which newer versions must be told to allow."""
    tracking = pytest.importorskip("mlflow.tracking", reason="mlflow is not installed: its exporter is not run")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    target, data = (tmp_path / "mlruns").as_uri(), frame.load(tmp_path / "logs")
    export = plugins.load("exporters", "mlflow").export
    first, second = (
        export(rows, target, sources=data.records, figures={"pareto": "<svg/>"}, night="7") for _ in range(2)
    )
    assert first == second, "a cell's run is found again by its key"
    client = tracking.MlflowClient(tracking_uri=target)
    runs = [client.get_run(each) for each in first]
    assert {run.data.metrics["ttft_ms"] for run in runs} == {row.times.ns("ttft") / 1e6 for row in rows}
    assert {run.data.tags["marks"] for run in runs} == {"", "random paper"}
    assert {run.data.tags["harness_commit"] for run in runs} == {"abc"}
    assert {run.data.tags["night"] for run in runs} == {"7"}
    started = {run.info.start_time for run in runs}
    assert started == {1795435200000}, "the run starts when the measurement did"
    assert [artifact.path for artifact in client.list_artifacts(first[0], "run_logs")] != []
    assert [artifact.path for artifact in client.list_artifacts(first[0], "figures")] == ["figures/pareto.svg"]


def test_trackio(rows: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not installed: the W&B calls are not run against it")
    for _ in range(2):
        names = plugins.load("exporters", "trackio").export(rows, "project")
        assert len(names) == 2
    assert list((tmp_path / "trackio").rglob("*.db"))


def test_wandb_offline(rows: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: its exporter is not run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    data = frame.load(tmp_path / "logs")
    first, second = (
        plugins.load("exporters", "wandb").export(
            rows, "project", sources=data.records, figures={"pareto": "<svg/>"}, mode="offline"
        )
        for _ in range(2)
    )
    assert first == second, "a cell's run is found again by its key"
    assert len(set(first)) == 2
    assert len(list((tmp_path / "wandb").rglob("*.wandb"))) >= 2
