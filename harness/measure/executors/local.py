"""Runs cells here, one process after the other: timing cells never share a host."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness import parent
from harness.errors import HarnessError


def submit(
    commands: Sequence[Sequence[str]], folder: Path, options: Mapping[str, str] | None = None
) -> Iterator[tuple[int, int]]:
    """Run each command in a process of its own and yield (its position, its exit code) as it ends.

    Interrupting this process interrupts the child too (same terminal group), and waits for it to let go of its log.
    Killing this process kills the child.
    """
    for position, command in enumerate(commands):
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=parent.environment())
        except OSError as error:
            raise HarnessError(f"{command[0]}: cannot be started: {error.strerror}; next: `harness doctor`") from error
        try:
            yield position, child.wait()
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
