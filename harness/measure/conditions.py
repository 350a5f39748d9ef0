"""What a number depends on that no cell holds (packages, variables, the harness itself), and what of it has changed.

A cell says what was asked, and is the same on every machine. A log that is to count today, or to be gone on with, must
have been measured under today's conditions, or its reader is told.
"""

import hashlib
import os
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
    """Say which version, commit or code of the harness began `log`, where it is not this one.

    Where both say their code that decides, for two commits may have the same.
    """
    was, found = log.header.harness, harness()
    code = was.get("code")
    if code and code == found.get("code"):
        return ""
    unlike = [name for name in found if was.get(name, found[name]) != found[name]]
    told = [name for name in unlike if name != "code"] or unlike
    return ", ".join(f"harness {name} {was[name]} → {found[name]}" for name in told)


@cache
def harness() -> dict[str, str]:
    """Return the harness's own version, a digest of its code, and in its own checkout the commit (with `+dirty`).

    The checkout of a project that it is installed in is not its own, and an installed copy is of no commit at all,
    however new the files are that it was installed from.
    """
    told = {"version": __version__, "code": code()}
    try:
        where, head = _git("rev-parse", "--show-toplevel", "--short=12", "HEAD").splitlines()
        if Path(where).resolve() == PACKAGE.parent and _git("ls-files", Path(__file__).name):
            return told | {"commit": head + ("+dirty" if _git("status", "--porcelain", "-uno", str(PACKAGE)) else "")}
    except (OSError, subprocess.SubprocessError, ValueError):  # no git, no checkout, or one without a commit
        pass
    return told


PACKAGE = Path(__file__).resolve().parents[1]
REPORTS = "reports"
"""The folder of the package that takes no part in measuring; a test of the rooms holds it so."""


def code() -> str:
    """Return a digest of the code that measures, whatever the ends of its lines."""
    found = hashlib.blake2b(digest_size=6)
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        if name.parts[0] != REPORTS:
            found.update(f"{name.as_posix()}\0".encode() + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return found.hexdigest()


OF_A_HOOK = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")
"""They name the repository whose hook started this process, wherever it looks."""


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    here = {name: value for name, value in os.environ.items() if name not in OF_A_HOOK}
    folder = Path(__file__).parent
    done = subprocess.run(command, cwd=folder, env=here, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()
