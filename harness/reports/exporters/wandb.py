"""Weights & Biases: a run per cell. `target` is the project; WANDB_MODE=offline keeps all on this machine."""

from collections.abc import Iterable, Mapping
from typing import Literal

from harness.errors import MissingPackage
from harness.reports import metrics
from harness.reports.summary import CellSummary
from harness.runlog.log import Log


def export(
    cells: Iterable[CellSummary],
    target: str,
    sources: Mapping[str, Log] | None = None,
    figures: Mapping[str, str] | None = None,
    entity: str | None = None,
    mode: Literal["online", "offline", "disabled", "shared"] | None = None,
    **options: str,
) -> list[str]:
    """Log every cell as a finished run and return the runs' ids; a cell that was exported before keeps its run.

    `sources` are the run logs by name: they become an artifact, with `figures` (SVG by name) in it. `options` go to the
    run's configuration, but for `entity` and `mode`, which go to `init`.
    """
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise MissingPackage("wandb", "the exporter wandb", extra="wandb") from error
    ids = []
    for one in (among := tuple(cells)):
        key = metrics.key(one)
        facts = metrics.facts(one) | metrics.origin(one, sources or {})
        run = wandb.init(
            project=target, id=key, resume="allow", name=metrics.title(one, among), group=one.cell.suite,
            job_type=one.cell.protocol, tags=[one.cell.model, *one.marks],
            config={**facts, "resolution": one.cell.resolution, "cell": one.cell.name, **options},
            entity=entity, mode=mode,
        )  # fmt: skip
        run.log(metrics.numbers(one))
        paths = [sources[name].path for name in one.logs if name in sources] if sources else []
        if paths:
            artifact = wandb.Artifact(f"run-logs-{key}", type="run-logs")
            for path in paths:
                artifact.add_file(str(path))
            for file, drawn in (figures or {}).items():
                with artifact.new_file(f"figures/{file}.svg", mode="w", encoding="utf-8") as written:
                    written.write(drawn)
            run.log_artifact(artifact)
        run.finish()
        ids.append(str(run.id))
    return ids
