"""All checks in order, each by itself: one that breaks is a finding, and the others go on."""

from collections.abc import Callable, Iterator

from harness.clock import Monotonic
from harness.errors import DeviceError, HarnessError, OutputError, out_of_memory
from harness.machine import backend, environment, lock
from harness.measure.selftest import engines, outputs, resources, timing
from harness.measure.selftest.findings import Finding, Report
from harness.measure.selftest.subject import SIDE, Subject, subject

Check = Callable[[Subject], Iterator[Finding]]

CHECKS: dict[str, Check] = {
    "parity": outputs.parity,
    "determinism": outputs.repeated,
    "finite": outputs.finite,
    "clock": timing.clocks,
    "sync": timing.syncs,
    "planted sleep": timing.planted,
    "A/A": timing.same_twice,
    "overhead": timing.overhead,
    "memory": resources.memory,
    "gate": resources.gate,
    "energy": resources.counter,
    "roofline": resources.roofline,
    "other engines": engines.engines,
}
"""In this order: what computes wrongly is named before what measures wrongly."""


def run(
    device: str,
    dtype: str | None = None,
    side: int = SIDE,
    fault: str = "",
    wait: bool = False,
    notify: Callable[[str], None] = lambda text: None,
) -> Report:
    """Run every check on `device`, held meanwhile. Only what is asked wrongly is raised; all else is a finding."""
    watch = Monotonic()
    start_ns = watch.now_ns()
    found: list[Finding] = []
    told, what = "", device
    if fault and not hasattr(backend.of(device).module, "plant"):
        backend.of(device).plant(fault)
    try:
        with lock.hold(device, wait, notify) as unlocked:
            here = subject(device, dtype, side, fault)
            found.append(_opened(here, unlocked))
            what = f"{device} ({here.device.describe().get('model', 'unknown')})"
            told = f"{here.card.name} ({here.source.kind} weights) at {side} px, {' and '.join(here.precisions)}"
            for number, (name, check) in enumerate(CHECKS.items(), 1):
                notify(f"{number} of {len(CHECKS)}: {name}")
                found += guarded(name, check, here)
    except DeviceError as error:
        text, _, step = str(error).partition("; next: ")
        found.append(Finding("device", "failed", text, step or "`harness doctor` says what is missing"))
    facts = {**environment.describe(device), "planted_fault": fault or "none"}
    return Report(what, told, tuple(found), facts, (watch.now_ns() - start_ns) / 1e9)


def guarded(name: str, check: Check, here: Subject) -> list[Finding]:
    """Run one check; what it raises is a finding in its name, after what it had found before."""
    found: list[Finding] = []
    try:
        found += check(here)
    except OutputError:
        found.append(Finding(name, "absent", "not checked: what the model computes here is not finite"))
    except HarnessError as error:
        text, _, step = str(error).partition("; next: ")
        found.append(Finding(name, "failed", text, step))
    except Exception as error:  # noqa: BLE001 - a device that nobody has tried may raise anything, and that is the news
        first = (str(error).splitlines() or [""])[0][:300]
        step = "a lower --res" if out_of_memory(error) else "report this: the check could not be made"
        found.append(Finding(name, "failed", f"{type(error).__name__}: {first}", step))
    return found


def _opened(here: Subject, unlocked: str) -> Finding:
    facts = {name: value for name, value in here.device.describe().items() if name != "visible_devices"}
    doubts = [*here.backend.doubts(here.dtype), *([unlocked] if unlocked else [])]
    text = f"{facts.get('model', here.device.name)}, {here.dtype}"
    if doubts:
        return Finding("device", "doubt", f"{text}: {'; '.join(doubts)}", "see the doubt", facts)
    return Finding("device", "ok", text, "", facts)
