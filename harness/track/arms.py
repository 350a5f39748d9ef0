"""What can be compared: a checkpoint's folder, a model, or random weights; and how a checkpoint wants to be run.

A checkpoint's folder may hold a `nightly.toml` with `weights = "random"` and `[settings]` of the model's card: what
this checkpoint needs beside what the command line says.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import cards
from harness.errors import CardError, SettingError, UnknownName, guess
from harness.measure.asked import Asked
from harness.models import synthesis

OWN = "nightly.toml"
FIELDS = ("weights", "settings")


def arm(asked: Asked, text: str) -> Asked:
    """Return `asked` with the weights, or the model, that `text` names.

    A folder is weights for the model of `asked`; a card and a Hub id are models themselves, as `--model` takes them.
    Raises `SettingError` for none of these, and `CardError` for a bad `nightly.toml`.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        own = read_own(path)
        settings = {**asked.settings, **own.get("settings", {})}
        return replace(asked, weights=own.get("weights", str(path)), settings=settings)
    if text == "random":
        return replace(asked, weights="random")
    # a name in a folder that is here is a slip of a checkpoint's name: the Hub is not asked for it
    repo = synthesis.is_repo(text) and not path.parent.is_dir()
    if path.is_file() or text in cards.names("models") or repo:
        return replace(asked, model=text)
    raise SettingError(
        f"{text}: no folder of a checkpoint, no model card, no Hub id and not `random`"
        f"{guess(text, cards.names('models'))}; next: give one of these, or two run logs without --interleave"
    )


def read_own(folder: Path) -> Mapping[str, Any]:
    """Return the folder's `nightly.toml`, or nothing."""
    path = folder / OWN
    if not path.is_file():
        return {}
    table, _ = cards.table(path)
    for name, value in table.items():
        if name not in FIELDS:
            raise UnknownName(f"field in {path}", name, FIELDS)
        if not isinstance(value, dict if name == "settings" else str):
            raise CardError(f"{path}: {name} must be {'a table' if name == 'settings' else 'a text'}; next: mend it")
    return table
