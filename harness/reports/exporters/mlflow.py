"""MLflow: a run per cell. `target` is a tracking URI: a server's, or `sqlite:///x.db` (with sqlalchemy and alembic)."""

from collections.abc import Iterable
from typing import Any

from harness.errors import MissingPackage, SettingError
from harness.reports import metrics
from harness.reports.summary import CellSummary


def export(cells: Iterable[CellSummary], target: str, experiment: str = "vlm-pareto", **options: Any) -> list[str]:
    """Log every cell as a finished run; return the run ids. `options` become tags."""
    try:
        import mlflow
    except ModuleNotFoundError as error:
        raise MissingPackage("mlflow", "the exporter mlflow", extra="mlflow") from error
    mlflow.set_tracking_uri(target)
    try:
        mlflow.set_experiment(experiment)
    except ModuleNotFoundError as error:
        raise MissingPackage(str(error.name), f"an MLflow store at {target}") from error
    except mlflow.exceptions.MlflowException as error:  # newer versions refuse plain folders
        told = str(error).splitlines()[0]
        raise SettingError(f"MLflow refuses {target}: {told}; next: give sqlite:///mlflow.db or a server") from error
    ids = []
    for row in cells:
        with mlflow.start_run(run_name=metrics.title(row)) as run:
            facts = metrics.facts(row)
            marks = {"marks": facts.pop("marks"), "doubts": facts.pop("doubts")}
            mlflow.log_params(facts)
            mlflow.set_tags({**marks, "cell": row.cell.name, **{key: str(value) for key, value in options.items()}})
            numbers: dict[str, float] = {}
            for metric in metrics.metrics(row):
                bounds = {"": metric.value, "_low": metric.low, "_high": metric.high}
                numbers |= {f"{metric.name}{part}": value for part, value in bounds.items() if value is not None}
            mlflow.log_metrics(numbers)
            ids.append(str(run.info.run_id))
    return ids
