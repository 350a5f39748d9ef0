"""github-action-benchmark: its custom JSON, one file where smaller is better and one where bigger is."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.files import write_atomically
from harness.reports import metrics
from harness.reports.metrics import Metric
from harness.reports.summary import CellSummary
from harness.runlog.log import Log


def export(
    cells: Iterable[CellSummary], target: str | Path, sources: Mapping[str, Log] | None = None, **options: object
) -> list[Path]:
    """Write `target` (times, memory: tool `customSmallerIsBetter`) and `<target>-accuracy` (`customBiggerIsBetter`).

    The second file is written only if anything was scored. `options` are added to each entry's `extra`.
    """
    smaller: list[dict[str, object]] = []
    bigger: list[dict[str, object]] = []
    for row in (rows := tuple(cells)):
        title = metrics.title(row, rows)
        facts = {**metrics.facts(row), **metrics.origin(row, sources or {}), **options}
        extra = "\n".join(f"{key}: {value}" for key, value in facts.items() if value not in ("", None))
        for metric in metrics.metrics(row):
            if metric.name != "visual_tokens":
                (bigger if metric.bigger_is_better else smaller).append(_entry(title, metric, extra))
    path = Path(target)
    files = [(path, smaller)]
    if bigger:
        files.append((path.with_name(f"{path.stem}-accuracy{path.suffix}"), bigger))
    for file, entries in files:
        write_atomically(file, json.dumps(entries, indent=1) + "\n")
    return [file for file, _ in files]


def _entry(title: str, metric: Metric, extra: str) -> dict[str, object]:
    entry = {"name": f"{title} {metric.name}", "unit": metric.unit, "value": metric.value, "extra": extra}
    if metric.low is not None and metric.high is not None:
        entry["range"] = f"{metric.low:.6g} to {metric.high:.6g} (95 %)"
    return entry
