"""PyTorch HUD: the benchmark JSON of PyTorch's CI, a record per cell and metric, as vLLM writes it too."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.reports import metrics
from harness.reports.metrics import Row


def export(summary: Iterable[Row], target: str | Path, name: str = "vlm-pareto", **options: Any) -> list[Path]:
    """Write the records of every row of `summary` to the file `target`. `options` go into each `extra_info`."""
    records = []
    for row in summary:
        facts = metrics.facts(row)
        for metric in metrics.metrics(row):
            bounds: dict[str, float | str | None] = {"unit": metric.unit}
            bounds |= {"low": metric.low, "high": metric.high} if metric.low is not None else {}
            benchmark = {
                "name": name,
                "mode": "inference",
                "dtype": row["dtype"],
                "extra_info": {**facts, **{key: str(value) for key, value in options.items()}},
            }
            records.append(
                {
                    "benchmark": benchmark,
                    "model": {"name": metrics.title(row), "type": row["model"], "backend": row["engine"]},
                    "metric": {
                        "name": metric.name,
                        "benchmark_values": [metric.value],
                        "extra_info": bounds,
                    },
                    "runners": [{"name": row["machine"], "type": row["device"]}],
                }
            )
    path = Path(target)
    path.write_text(json.dumps(records, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return [path]
