"""Published figures beside ours, and the verdicts."""
