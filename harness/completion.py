"""What the shell is told of names that could come next: those of the cards, found by their files alone."""

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem

from harness import cards

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def named(kind: str) -> Complete:
    """Return what completes the name of a card of `kind`: models, suites or reports."""

    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in cards.names(kind) if name.startswith(begun)]

    return complete


def listed(kind: str) -> Complete:
    """Return what completes the last of several names with commas between."""

    def complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        before, comma, last = begun.rpartition(",")
        return [CompletionItem(f"{before}{comma}{name}") for name in cards.names(kind) if name.startswith(last)]

    return complete
