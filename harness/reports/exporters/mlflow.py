"""MLflow: a run per cell. `target` is a tracking URI: a server's, or `sqlite:///x.db` (with sqlalchemy and alembic)."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING

from harness.errors import MissingPackage, SettingError
from harness.reports import metrics
from harness.reports.summary import CellSummary
from harness.runlog.log import Log

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def export(
    cells: Iterable[CellSummary],
    target: str,
    sources: Mapping[str, Log] | None = None,
    experiment: str = "vlm-pareto",
    figures: Mapping[str, str] | None = None,
    **options: str,
) -> list[str]:
    """Log every cell as a finished run and return the run ids; a cell that was exported before keeps its run.

    The run starts when the measurement did. `sources` are the run logs by name: they become artifacts, as do `figures`
    (SVG by name); version, commit and `options` become tags.
    """
    client, experiment_id = _opened(target, experiment)
    ids = []
    for one in (among := tuple(cells)):
        facts = metrics.facts(one) | metrics.origin(one, sources or {})
        tags = {"cell_key": metrics.key(one), "cell": one.cell.name, **facts, **options}
        run_id = _run(client, experiment_id, one, metrics.title(one, among), tags)
        for name, value in metrics.numbers(one).items():
            client.log_metric(run_id, name, value)
        for name in one.logs:
            if sources and name in sources:
                client.log_artifact(run_id, str(sources[name].path), "run_logs")
        for name, drawn in (figures or {}).items():
            client.log_text(run_id, drawn, f"figures/{name}.svg")
        client.set_terminated(run_id)
        ids.append(run_id)
    return ids


def _opened(target: str, experiment: str) -> tuple["MlflowClient", str]:
    try:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
    except ModuleNotFoundError as error:
        raise MissingPackage("mlflow", "the exporter mlflow", extra="mlflow") from error
    if target.startswith("sqlite:") and not find_spec("sqlalchemy"):
        raise MissingPackage("sqlalchemy", f"an MLflow store at {target}")
    try:
        client = MlflowClient(tracking_uri=target)
        known = client.get_experiment_by_name(experiment)
        return client, known.experiment_id if known else client.create_experiment(experiment)
    except ModuleNotFoundError as error:
        raise MissingPackage(str(error.name), f"an MLflow store at {target}") from error
    except MlflowException as error:  # newer versions refuse plain folders
        told = str(error).splitlines()[0]
        raise SettingError(f"MLflow refuses {target}: {told}; next: give sqlite:///mlflow.db or a server") from error


def _run(client: "MlflowClient", experiment_id: str, one: CellSummary, name: str, tags: Mapping[str, str]) -> str:
    found = client.search_runs([experiment_id], f"tags.cell_key = '{tags['cell_key']}'")
    if found:
        run_id = str(found[0].info.run_id)
        for tag, value in tags.items():
            client.set_tag(run_id, tag, value)
        return run_id
    started_ms = int(datetime.fromisoformat(one.process.started_at).timestamp() * 1000)
    run = client.create_run(experiment_id, start_time=started_ms, tags=dict(tags), run_name=name)
    return str(run.info.run_id)
