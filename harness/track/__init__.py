"""Nightly checkpoints: two arms measured side by side, their ratio, the history, and one verdict."""
