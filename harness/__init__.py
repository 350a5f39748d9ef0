"""Latency–accuracy benchmarking of vision-language models: read `cli.py` first.

From Python: `load`, `summary` and `run` (see docs/python.md). Each imports what it needs when it is called.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.api import load, run, summary

try:
    __version__ = version("vlm-pareto")
except PackageNotFoundError:  # a source tree on sys.path, never installed
    __version__ = "0+unknown"

__all__ = ["__version__", "load", "run", "summary"]


def __getattr__(name: str) -> object:
    """Import the Python face when it is used: the measuring half must never bring pandas along."""
    if name in ("load", "run", "summary"):
        return getattr(import_module("harness.api"), name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
