"""A Mac that is measured must not fall asleep: its clock stands still then, and what it does half awake would count.

`caffeinate` is macOS's own; it ends with this process, however that ends. Closing the lid of a laptop is beyond it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CAFFEINATE = "/usr/bin/caffeinate"
ON_A_MAC = sys.platform == "darwin"
KEEPERS: list[subprocess.Popen[bytes]] = []
"""What keeps this machine awake now, begun by this process."""


@contextmanager
def keep() -> Iterator[str]:
    """Keep a Mac from idle sleep meanwhile; gives a doubt where that cannot be had, else an empty text."""
    if not ON_A_MAC:
        yield ""
        return
    command = [CAFFEINATE, "-is", "-w", str(os.getpid())]
    try:
        keeper = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, close_fds=False)
    except OSError as error:
        yield f"nothing keeps this Mac awake ({CAFFEINATE}: {error.strerror}); next: caffeinate -is harness ..."
        return
    KEEPERS.append(keeper)
    try:
        yield ""
    finally:
        KEEPERS.remove(keeper)
        keeper.terminate()
        keeper.wait()


def kept() -> str | None:
    """Return for the log what keeps this Mac awake, "no" where nothing does; None elsewhere."""
    if not ON_A_MAC:
        return None
    return "caffeinate -is" if any(keeper.poll() is None for keeper in KEEPERS) else "no"
