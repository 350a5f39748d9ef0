"""Latency–accuracy benchmarking of vision-language models: read `cli.py` first."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("vlm-pareto")
except PackageNotFoundError:  # a source tree on sys.path, never installed
    __version__ = "0+unknown"
