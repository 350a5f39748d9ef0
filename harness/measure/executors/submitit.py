"""Runs cells as Slurm jobs (or, where there is no Slurm, as submitit's local jobs), one job a cell."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness.errors import MissingPackage


def submit(
    commands: Sequence[Sequence[str]], folder: Path, options: Mapping[str, str] | None = None
) -> Iterator[tuple[int, int]]:
    """Submit each command as a job and yield (its position, its exit code) as it ends; a job that dies gives 1.

    `options` are submitit's parameters (`slurm_partition`, `timeout_min`, `gpus_per_node` ...). Cells that share a host
    would time each other: ask Slurm for whole nodes (`slurm_exclusive`).
    """
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise MissingPackage("submitit", "the executor 'submitit'", "slurm") from error
    executor = submitit.AutoExecutor(folder=folder / "jobs")
    executor.update_parameters(**({"timeout_min": 240} | dict(options or {})))
    jobs = [executor.submit(subprocess.call, list(command)) for command in commands]
    for position, job in enumerate(jobs):
        try:
            yield position, int(job.result())
        except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError):
            yield position, 1
