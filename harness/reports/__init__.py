"""Run logs to tables, figures and pages: the reporting half; `render.py` first."""
