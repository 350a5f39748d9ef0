"""What runs a model: `place(device) -> device`, its own `SETTINGS` with defaults, and `load(card, source, options)`."""
