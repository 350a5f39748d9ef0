"""What a number depends on that no cell holds (packages, variables, the harness itself), and what of it has changed.

A cell says what was asked, and is the same on every machine. A log that is to count today, or to be gone on with, must
have been measured under today's conditions, or its reader is told.
"""

import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from harness import __version__
from harness.machine import environment
from harness.runlog.conditions import OF_A_MEMBER, OF_NO_MATTER, OTHERS, POOL
from harness.runlog.log import Log


def changed(then: Mapping[str, str], device: str, pooled: bool = False) -> str:
    """Say what of a log's environment is not so now, or nothing: `OMP_NUM_THREADS 1 → none, torch 2.9.0 → 2.9.1`.

    A package that one of the two times was not there, or not looked at, is no change: what runs needs its own.
    `pooled`: this process does not measure, it hands cells to the members of a pool, each with its share of the cores.
    """
    now = environment.describe(device)
    of_no_matter = {*OF_NO_MATTER}
    if POOL in then and (pooled or POOL in now):
        of_no_matter |= {*OF_A_MEMBER, *(["cores_usable"] if pooled else [])}
    told = []
    for name in sorted({*then, *now}):
        was, found = then.get(name), now.get(name)
        variable, package = name.startswith("env_"), name.startswith("package_")
        matters = variable or name in OTHERS or (package and was and found)
        if was != found and matters and name not in of_no_matter:
            told.append(f"{name.removeprefix('env_').removeprefix('package_')} {was or 'none'} → {found or 'none'}")
    return ", ".join(told)


def since(log: Log, device: str, pooled: bool = False) -> str:
    """Say what has changed since `log` was begun: its environment, and the harness's own version and commit."""
    return ", ".join(filter(None, [changed_harness(log), changed(log.header.environment, device, pooled)]))


def changed_harness(log: Log) -> str:
    """Say which version or commit of the harness began `log`, where it is not this one."""
    was, found = log.header.harness, harness()
    return ", ".join(
        f"harness {name} {was[name]} → {found[name]}" for name in found if was.get(name, found[name]) != found[name]
    )


@cache
def harness() -> dict[str, str]:
    """Return the harness's own version and git commit (with `+dirty`; outside a checkout there is none)."""
    told = {"version": __version__}
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return told | {"commit": head + ("+dirty" if _git("status", "--porcelain", "-uno", ".") else "")}
    except (OSError, subprocess.SubprocessError):
        return told


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    folder = Path(__file__).parent
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
