"""The command line of a measurement, made from `Asked`'s fields: its options, and the arguments that ask again.

A flag, its default and its help are said once, in `asked.py`.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import click

from harness import completion, parent
from harness.measure.asked import FIELDS, Asked

STATED = ("model", "suite", "device")
"""Said always: without `--device`, a child or a reader would get the best one of its machine, not the one measured."""

DECIDED_LATER = ("model", "device")
"""Their default depends on what is here, so the option has none."""


class Whole(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A whole number in plain digits: `int` also takes underscores and the digits of other scripts."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        if isinstance(value, int):
            return value
        if not re.fullmatch(r"[+-]?[0-9]{1,60}", str(value)):
            self.fail(f"{str(value)[:60]!r} is not a whole number of up to 60 digits", param, ctx)
        return int(value)


class Share(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A finite number above 0: `float` also takes nan, and a range does not refuse it."""

    name = "float"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            self.fail(f"{str(value)[:60]!r} must be a finite number above 0, e.g. 0.03 for 3 %", param, ctx)
        return number


def flag(name: str) -> str:
    """Return the flag of a field: `--min-samples` for `minimum_samples`."""
    return "--" + (FIELDS[name].metadata["flag"] or name.replace("_", "-"))


def option(name: str, **other: object) -> Callable[..., Any]:
    """Return the click option of one field of `Asked`; `other` beats what the field says."""
    field = FIELDS[name]
    told: dict[str, Any] = {"help": field.metadata["help"], "hidden": field.metadata.get("hidden", False)}
    if name == "settings":
        told |= {"multiple": True, "metavar": field.metadata["metavar"]}
    elif field.type is bool:
        told |= {"is_flag": True}
    else:
        default = None if name in DECIDED_LATER else field.default
        told |= {"default": default, "show_default": default is not None, "type": _type(name)}
    if name in ("model", "suite"):
        told |= {"shell_complete": completion.named(f"{name}s")}
    return click.option(flag(name), name, **{**told, **other})


def _type(name: str) -> object:
    field = FIELDS[name]
    if "choices" in field.metadata:
        return click.Choice(field.metadata["choices"])
    kinds: dict[object, object] = {int: Whole(), float: float, int | None: Whole()}
    return kinds.get(field.type, str)


def arguments(asked: Asked) -> list[str]:
    """Return the arguments of `harness` that ask for exactly `asked`: what a child process, or a reader, runs again."""
    standard = Asked()
    said = ["run"]
    for field in fields(asked):
        value = getattr(asked, field.name)
        if field.name not in STATED and value == getattr(standard, field.name):
            continue
        if field.name == "settings":
            said += [part for name, one in sorted(value.items()) for part in ("--set", f"{name}={json.dumps(one)}")]
        elif isinstance(value, bool):
            said.append(flag(field.name))
        else:
            said += [flag(field.name), str(value)]
    return said


def interpreter() -> list[str]:
    """Return how a child process starts this program."""
    return parent.program()
