"""What runs a model: `place(device) -> device`, its own `SETTINGS` with defaults, and `load(card, source, options)`.

It may have `decide(settings, subject, wait)`: "auto" becomes what takes effect, before a cell is named.
"""
