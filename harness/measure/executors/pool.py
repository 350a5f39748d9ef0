"""Runs cells on several devices of this host, one cell on each at a time; each process sees its own device alone."""

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from harness import parent
from harness.errors import HarnessError, SettingError
from harness.machine import pool
from harness.machine.pool import Member
from harness.measure.executor import Options

OPTIONS = {"devices": "the devices, as cuda:all or cuda:0,cuda:1; `--device` says the same"}
POLL_S = 0.1
"""A look at some processes costs the machine next to nothing."""


def submit(
    commands: Sequence[Sequence[str]], folder: Path, options: Options | None = None
) -> Iterator[tuple[int, int]]:
    """Run the commands on the pool's devices and yield (its position, its exit code) of each as it ends.

    A process that dies takes its own cell's unfinished sample with it, and nothing else. Interrupting this process
    ends all, and waits for them to let go of their logs; killing it kills them.
    """
    devices = str((options or {}).get("devices", ""))
    if not devices:
        raise SettingError("--executor pool: which devices? next: --device cuda:all")
    free, left = pool.members(devices), list(enumerate(commands))
    running: dict[int, tuple[subprocess.Popen[bytes], Member]] = {}
    try:
        while left or running:
            while left and free:
                position, command = left.pop(0)
                member = free.pop(0)
                running[position] = (_start(command, member), member)
            ended = [position for position, (child, _) in running.items() if child.poll() is not None]
            for position in ended:
                child, member = running.pop(position)
                free.append(member)
                yield position, child.returncode
            if not ended:
                time.sleep(POLL_S)
    finally:
        for child, _ in running.values():
            with suppress(OSError):
                child.terminate()
        for child, _ in running.values():
            child.wait()


def _start(command: Sequence[str], member: Member) -> "subprocess.Popen[bytes]":
    environment = {**parent.environment(), **member.environment}
    try:
        with pool.bound(member.cores):
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)
    except OSError as error:
        raise HarnessError(f"{command[0]}: cannot be started: {error.strerror}; next: `harness doctor`") from error
