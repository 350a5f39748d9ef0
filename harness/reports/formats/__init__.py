"""How a report is written down: one file each, `write(report) -> str`, no files touched."""
