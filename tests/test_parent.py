"""A child ends with the process that started it, however that ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

CHILD = "from harness import parent; import time; parent.follow(); print('ready', flush=True); time.sleep(60)"
PARENT = f"""
import subprocess, sys, time
from harness import parent
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], env=parent.environment(), stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signal")
def test_a_killed_parent_takes_its_child_with_it() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    os.kill(child, 0)  # it lives
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(600):
        if not alive(child):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {child} outlives its parent")


def alive(number: int) -> bool:
    """Return whether the process runs; one that only waits to be buried does not."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(number)], capture_output=True, text=True, check=False)
    return bool(done.stdout.strip()) and not done.stdout.startswith("Z")
