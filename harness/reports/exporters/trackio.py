"""Trackio: a run per cell, kept on this machine (or in a Space, see its own documentation). `target` is the project."""

from collections.abc import Iterable, Mapping

from harness.errors import MissingPackage
from harness.reports import metrics
from harness.reports.summary import CellSummary
from harness.runlog.log import Log


def export(
    cells: Iterable[CellSummary],
    target: str,
    sources: Mapping[str, Log] | None = None,
    space_id: str | None = None,
    **options: str,
) -> list[str]:
    """Log every cell as a finished run and return the runs' names, which end with the cell's key.

    `options` go to the run's configuration, but for `space_id`, which goes to `init`.
    """
    try:
        import trackio
    except ModuleNotFoundError as error:
        raise MissingPackage("trackio", "the exporter trackio", extra="trackio") from error
    names = []
    for one in cells:
        name = f"{metrics.title(one)} {metrics.key(one)}"
        facts = metrics.facts(one) | metrics.origin(one, sources or {})
        config = {**facts, "resolution": one.cell.resolution, "cell": one.cell.name, **options}
        trackio.init(project=target, name=name, group=one.cell.suite, resume="allow", config=config, space_id=space_id)
        trackio.log(metrics.numbers(one))
        trackio.finish()
        names.append(name)
    return names
