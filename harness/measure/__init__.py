"""Cells to run logs: the measuring half; `run.py` first, then `loop.py`."""
