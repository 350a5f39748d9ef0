"""The file between the two halves: `records.py` says what a line holds, `log.py` writes and reads it."""
