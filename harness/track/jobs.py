"""Measures a night in a process of its own (this one has pandas loaded), and once more where a second look is due."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from harness import plugins
from harness.errors import HarnessError
from harness.measure import command
from harness.measure.asked import Asked
from harness.measure.sweep import INTERRUPTED
from harness.track import nights, ratios
from harness.track.nights import Reading, Series

Say = Callable[[str], None]


def measure(asked: Asked, candidate: Path | str, baseline: Path | str | None, folder: Path, repetition: int = 0) -> int:
    """Measure `candidate`, beside `baseline` if there is one, into `folder`; return the exit code of the process.

    Raises `HarnessError` where measuring failed for reasons that are not the checkpoint's own; the line that the
    process printed says which.
    """
    flags = command.arguments(replace(asked, out=str(folder), weights=None))[1:]
    arms = [str(baseline if baseline is not None else candidate), str(candidate)]
    alone = [] if baseline is not None else ["--alone"]
    words = [*command.interpreter(), "compare", *arms, "--interleave", "--bare", *alone, *flags]
    words += ["--repetition", str(repetition)] if repetition else []
    code = next(code for _, code in plugins.load("executors", "local").submit([words], folder, {}))
    if code in INTERRUPTED:
        raise KeyboardInterrupt
    if code > 0 and code < 128:
        raise HarnessError(f"{candidate}: could not be measured (exit code {code}); next: see the line above")
    return int(code)


def night(
    asked: Asked,
    wanted: Series,
    name: str,
    candidate: Path | str,
    baseline: tuple[str, Path | str] | None,
    out: Path,
    minimum_effect: float,
    say: Say,
    theirs: Series | None = None,
    confirmations: int = ratios.CONFIRMATIONS,
) -> Reading:
    """Measure a night and return its reading; what looks slower, or is not clear, is measured again.

    `baseline` is its name and its checkpoint, `theirs` its series if it is another. A process that dies is a broken
    checkpoint, not our crash.
    """
    beside = baseline[0] if baseline else None
    folder = nights.job_folder(out, name, beside)
    checkpoint = baseline[1] if baseline else None
    say(f"measuring {name}" + (f" beside {beside}" if beside else ""))
    code = measure(asked, candidate, checkpoint, folder)
    if code:
        return Reading(name, "broken", f"the measuring process died (exit code {code})")
    found = nights.read(out, name, wanted, beside, theirs)
    for repetition in range(1, 1 + confirmations):
        if len(found.rounds) != repetition or not ratios.again(found.rounds, minimum_effect):
            break
        say(f"{name}: not the same at first sight; measuring both once more")
        if measure(asked, candidate, checkpoint, folder, repetition) != 0:
            break
        found = nights.read(out, name, wanted, beside, theirs)
    return found
