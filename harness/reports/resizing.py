"""Which library resized the images of cells that are compared: another one takes another time, to other pixels."""

from collections.abc import Sequence

from harness.reports.summary import CellSummary
from harness.units import some

MOST_NAMED = 3
UNNAMED = "a library that older logs do not name"


def library(told: str) -> str:
    """Return the library that a log's `image_backend` tells of, or nothing where it tells of none."""
    first = told.partition(", by ")[0]  # "torchvision, by Qwen2VLImageProcessor", as family `auto` says it
    if "ImageProcessor" in first and " " not in first:  # older logs have the class alone
        return "PIL" if first.endswith("Pil") else UNNAMED
    if ", then " in first:
        return first
    return next((name for name in ("PIL", "torchvision") if first.startswith(name)), first)


def short(cells: Sequence[CellSummary]) -> str:
    """Say for a picture by which libraries the images of these cells were resized; nothing where it was one."""
    by: dict[str, list[str]] = {}
    for one in cells:
        name = "" if one.cell.endpoint else library(one.process.image_backend)  # what a server does is the server's
        if name and one.cell.label not in by.setdefault(name, []):
            by[name].append(one.cell.label)
    if len(by) < 2:
        return ""
    return "; ".join(f"by {name}: {some(labels, MOST_NAMED)}" for name, labels in sorted(by.items()))


def notes(cells: Sequence[CellSummary]) -> tuple[str, ...]:
    """Say, in one line, where the images of these cells were resized by different libraries, and what to do."""
    told = short(cells)
    if not told:
        return ()
    return (
        f"images were resized by different libraries, which take other times and make other pixels ({told}); like for "
        "like: measure all of them with `--set image_backend=pil`, or all with `--set image_backend=torchvision`",
    )
