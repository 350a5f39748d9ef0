"""Latency–accuracy benchmarking of vision-language models: read `cli.py` first.

From Python: `load`, `summary` and `run` (see docs/python.md). Each imports what it needs when it is called.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.api import load, run, summary

    __version__: str

__all__ = ["__version__", "load", "run", "summary"]


def __getattr__(name: str) -> object:
    """Import the Python face when it is used: the measuring half must never bring pandas along.

    The version too: what reads it takes most of the time until `__main__` can hear a signal.
    """
    if name == "__version__":
        return _version()
    if name in ("load", "run", "summary"):
        return getattr(import_module("harness.api"), name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("vlm-pareto")
    except PackageNotFoundError:  # a source tree on sys.path, never installed
        return "0+unknown"
