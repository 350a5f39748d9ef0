"""PyTorch HUD: the benchmark JSON of PyTorch's CI (schema v3), a record per cell and metric, as vLLM writes it too.

Its database types every `extra_info` as texts by name: numbers are written as texts there.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

from harness import files
from harness.reports import metrics
from harness.reports.summary import CellSummary
from harness.runlog.log import Log


def export(
    cells: Iterable[CellSummary],
    target: str | Path,
    sources: Mapping[str, Log] | None = None,
    name: str = "vlm-pareto",
    **options: object,
) -> list[Path]:
    """Write the records of every cell to the file `target`. `options` go into each `extra_info`."""
    records = []
    for row in (rows := tuple(cells)):
        facts = metrics.facts(row) | metrics.origin(row, sources or {})
        for metric in metrics.metrics(row):
            bounds = {"unit": metric.unit}
            for side, bound in (("low", metric.low), ("high", metric.high)):
                bounds |= {} if bound is None else {side: f"{bound:.9g}"}
            benchmark = {
                "name": name,
                "mode": "inference",
                "dtype": row.cell.dtype,
                "extra_info": {**facts, **{key: str(value) for key, value in options.items()}},
            }
            records.append(
                {
                    "schema_version": "v3",
                    "timestamp": int(datetime.fromisoformat(row.process.started_at).timestamp()),
                    "name": name,
                    "benchmark": benchmark,
                    "model": {
                        "name": metrics.title(row, rows),
                        "type": row.cell.model,
                        "backend": row.cell.engine,
                        "origins": [],
                    },
                    "metric": {
                        "name": metric.name,
                        "benchmark_values": [metric.value],
                        "extra_info": bounds,
                    },
                    "runners": [{"name": row.cell.machine, "type": row.cell.device}],
                }
            )
    path = Path(target)
    files.write_atomically(path, json.dumps(records, indent=1, sort_keys=True) + "\n")
    return [path]
