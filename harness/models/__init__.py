"""What a model is, and how a checkpoint becomes one; `protocol.py` first."""
