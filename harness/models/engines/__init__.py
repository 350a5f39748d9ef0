"""What runs a model: `place(device) -> device`, its own `SETTINGS` with defaults, and `load(card, source, options)`.

It may have `decide(settings, subject, wait)`: "auto" becomes what takes effect, before a cell is named; and
`distinct(card, settings)`: which of the changed settings make another cell of this card.
"""
