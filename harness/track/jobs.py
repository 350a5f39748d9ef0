"""Measures a night in a process of its own (this one has pandas loaded), and once more where a second look is due."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from harness import plugins
from harness.errors import HarnessError
from harness.measure import command
from harness.measure.asked import Asked
from harness.measure.executor import INTERRUPTED
from harness.track import interleave, nights, ratios
from harness.track.nights import Expected, Reading

Say = Callable[[str], None]


def measure(
    asked: Asked, candidate: Path | str, baseline: Path | str | None, folder: Path, repetition: int = 0
) -> None:
    """Measure `candidate`, beside `baseline` if there is one, into `folder`, in a process of its own.

    Raises `NotTonight` where measuring failed for reasons that are not the checkpoint's own.
    """
    (folder / interleave.TROUBLE).unlink(missing_ok=True)
    flags = command.arguments(replace(asked, out=str(folder), weights=None))[1:]
    arms = [str(baseline if baseline is not None else candidate), str(candidate)]
    alone = [] if baseline is not None else ["--alone"]
    words = [*command.interpreter(), "compare", *arms, "--interleave", "--bare", *alone, *flags]
    words += ["--repetition", str(repetition)] if repetition else []
    code = next(code for _, code in plugins.load("executors", "local").submit([words], folder, {}))
    if code in INTERRUPTED:
        raise KeyboardInterrupt
    if code == BUG:
        raise HarnessError(f"{candidate}: could not be measured (exit code {code}); next: see the lines above")
    if code < 0 or code >= 128:
        number = -code if code < 0 else code - 128
        raise NotTonight(f"the measuring process died (signal {number}{', perhaps no memory' if number == 9 else ''})")
    if code:
        raise NotTonight(interleave.trouble(folder) or f"the measuring process ended with exit code {code}")


class NotTonight(HarnessError):
    """A checkpoint that could not be measured for a reason that may pass."""


BUG = 70
"""The exit code of a child that fell over its own feet."""


@dataclass(frozen=True, slots=True)
class Night:
    """A night to be measured: its checkpoint, and the baseline's name and checkpoint if it is measured beside it."""

    name: str
    candidate: Path | str
    expected: Expected
    baseline: tuple[str, Path | str] | None = None
    again: bool = False
    """Whether what is measured now comes on top of what is there."""


def night(asked: Asked, wanted: Night, out: Path, minimum_effect: float, say: Say) -> Reading:
    """Measure a night and return its reading; what looks slower, or is not clear, is measured again.

    A process that dies is tonight's trouble, not the checkpoint's.
    """
    name, candidate, baseline, expected = wanted.name, wanted.candidate, wanted.baseline, wanted.expected
    beside = baseline[0] if baseline else None
    folder = nights.job_folder(out, name, beside)
    checkpoint = baseline[1] if baseline else None
    before = nights.read(out, name, expected, beside)
    first, had = (before.repetitions, len(before.rounds)) if wanted.again else (0, 0)
    say(f"measuring {name}" + (f" beside {beside}" if beside else ""))
    try:
        measure(asked, candidate, checkpoint, folder, first)
        found = nights.read(out, name, expected, beside)
        for more in range(1, 1 + ratios.CONFIRMATIONS):
            if len(found.rounds) != had + more or not ratios.again(found.rounds, minimum_effect):
                break
            say(f"note: {name}: not the same at first sight; measuring both once more")
            measure(asked, candidate, checkpoint, folder, first + more)
            found = nights.read(out, name, expected, beside)
    except NotTonight as error:
        return Reading(name, "unready", str(error), changed=before.changed)
    return replace(found, changed=found.changed or before.changed)
