"""`harness` and `python -m harness`: from our first line on a signal is heard in one line."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn


def main() -> NoReturn:
    """Run the program. Importing it takes a while: what interrupts that has nothing to keep."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _early)
    if sys.flags.optimize > 1:  # transformers builds its classes from docstrings, which -OO throws away
        if os.environ.get("PYTHONOPTIMIZE", "1") != "1":  # meant for all programs: once more, with docstrings
            os.environ["PYTHONOPTIMIZE"] = "1"
            os.execv(sys.executable, sys.orig_argv)
        os.write(2, b"harness: python -OO throws away what transformers needs; next: without it\n")
        sys.exit(2)
    from harness import parent

    parent.follow()
    from harness import cli

    cli.main()


def _early(number: int, frame: FrameType | None) -> None:
    followed = getattr(sys.modules.get("harness.parent"), "followed", False)
    if not followed and "HARNESS_PARENT" not in os.environ:  # else the line of the process that started this one tells
        os.write(2, b"harness: interrupted before anything was measured; next: the same command\n")
    os._exit(130)


if __name__ == "__main__":
    main()
