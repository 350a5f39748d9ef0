"""Plug-ins: the file name is the name; out of the tree, entry points of the same group."""

import importlib
import pkgutil
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

from harness.errors import MissingPackage, UnknownName

GROUPS = {
    "adapters": "harness.models.families",
    "engines": "harness.models.engines",
    "devices": "harness.machine.devices",
    "executors": "harness.measure.executors",
    "figures": "harness.reports.figures",
    "exporters": "harness.reports.exporters",
}
"""Where our own plug-ins of each group lie; the entry points' groups are `harness.adapters`, `harness.devices`, ..."""


@cache
def foreign(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of `group`: asking reads the metadata of every installed package, 20 ms a time."""
    return tuple(entry_points(group=f"harness.{group}"))


def names(group: str) -> list[str]:
    """Return the names of all plug-ins of `group`, our own and those of entry points, without importing any."""
    package = importlib.import_module(GROUPS[group])
    own = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]
    return sorted({*own, *(point.name for point in foreign(group))})


def load(group: str, name: str) -> ModuleType:
    """Import the plug-in `name` of `group`; a package it lacks is named."""
    known = names(group)
    if name not in known:
        raise UnknownName(group.removesuffix("s"), name, known)
    found = [point for point in foreign(group) if point.name == name]
    try:
        if not found:
            return importlib.import_module(f"{GROUPS[group]}.{name}")
        loaded = found[0].load()
        assert isinstance(loaded, ModuleType), f"entry point {found[0].value} must be a module"
        return loaded
    except ModuleNotFoundError as error:
        if error.name and not error.name.startswith("harness"):
            raise MissingPackage(error.name, f"{group.removesuffix('s')} {name!r}") from error
        raise
