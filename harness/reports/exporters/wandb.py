"""Weights & Biases, or Trackio, which has the same calls: a run per cell. `target` is the project."""

import importlib
from collections.abc import Iterable
from typing import Any

from harness.errors import MissingPackage
from harness.reports import metrics
from harness.reports.summary import CellSummary


def export(cells: Iterable[CellSummary], target: str, library: str = "wandb", **options: Any) -> list[str]:
    """Log every cell as a finished run; return the runs' names. `library` is `wandb` or `trackio`.

    `options` go to `init` (`entity`, `group`, `mode="offline"` of wandb; `space_id` of Trackio).
    """
    try:
        tracker = importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise MissingPackage(library, f"the exporter {library}", extra=library) from error
    names = []
    for row in cells:
        name = metrics.title(row)
        run = tracker.init(project=target, name=name, config={**metrics.facts(row), "cell": row.cell.name}, **options)
        numbers: dict[str, float] = {}
        for metric in metrics.metrics(row):
            bounds = {"": metric.value, "_low": metric.low, "_high": metric.high}
            numbers |= {f"{metric.name}{part}": value for part, value in bounds.items() if value is not None}
        tracker.log(numbers)
        tracker.finish()
        names.append(str(getattr(run, "name", name)))
    return names
