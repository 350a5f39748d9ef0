"""A child process runs this very package, and ends with the process that started it.

A killed sweep must not leave a run that holds the device. The parent says its number in the environment; the child asks
the kernel to be killed when that process ends. Run logs are made to be torn: what was measured is kept. No thread
watches, which would be timed.
"""

import os
import site
import sys
import threading
from contextlib import suppress
from pathlib import Path

NAME = "HARNESS_PARENT"
PR_SET_PDEATHSIG = 1
SIGKILL = 9


followed = False
"""Whether this process is such a child: what interrupts both, as Ctrl-C in a terminal does, the parent alone says."""


def python() -> list[str]:
    """Return how a child process starts Python: a folder `harness` where it happens to start is not imported."""
    return [sys.executable, "-P"]


def program() -> list[str]:
    """Return how a child process starts this program; with `paths` it is this package whatever else is installed."""
    return [*python(), "-m", "harness"]


def paths() -> dict[str, str]:
    """Return the variables by which a child, and its children, import this very package.

    A package in one of Python's own folders is found there: put first in PYTHONPATH, that folder would hide the
    standard library's modules behind old packages of their names.
    """
    home = Path(__file__).resolve().parents[1]
    own = [Path(folder).resolve() for folder in (*site.getsitepackages(), site.getusersitepackages())]
    before = os.environ.get("PYTHONPATH", "")
    found = before if home in own else os.pathsep.join(filter(None, [str(home), before]))
    return {"PYTHONSAFEPATH": "1", **({"PYTHONPATH": found} if found else {})}


def surroundings() -> dict[str, str]:
    """Return the environment of a child that imports this very package."""
    return {**os.environ, **paths()}


def environment() -> dict[str, str]:
    """Return the environment of a child that is to end with this process as well."""
    return {**surroundings(), NAME: str(os.getpid())}


def follow() -> None:
    """End with the process that started this one, if it asked for that."""
    global followed
    number = os.environ.pop(NAME, "")
    if not number.isdecimal():
        return
    followed = True
    if sys.platform == "linux":
        import ctypes

        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
    elif hasattr(sys.modules.get("select") or __import__("select"), "kqueue"):
        threading.Thread(target=_wait, args=(int(number),), daemon=True).start()  # asleep in the kernel until then
    if sys.platform != "win32" and os.getppid() != int(number):
        os._exit(128 + SIGKILL)  # it has ended already


def _wait(number: int) -> None:
    """Wait on macOS and BSD for the process to end, then end."""
    import select

    queue = select.kqueue()  # type: ignore[attr-defined,unused-ignore]
    watched = select.kevent(  # type: ignore[attr-defined,unused-ignore]
        number, select.KQ_FILTER_PROC, select.KQ_EV_ADD, select.KQ_NOTE_EXIT  # type: ignore[attr-defined,unused-ignore]
    )  # fmt: skip
    with suppress(OSError):  # it has ended already
        queue.control([watched], 1)
    os._exit(128 + SIGKILL)
