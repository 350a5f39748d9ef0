"""Whether memory goes back, the gate sees the machine and lets steady load pass, and energy and peaks make sense."""

import gc
from collections import Counter
from collections.abc import Iterator
from statistics import median

from harness.machine import backend, energy, peaks
from harness.measure import profile
from harness.measure.gate import REASONS, Gate
from harness.measure.loop import Measured, headline_ns, work
from harness.measure.passes import time_stages, time_whole
from harness.measure.selftest.findings import Finding
from harness.measure.selftest.subject import Subject
from harness.measure.selftest.timing import one_token
from harness.models.protocol import Piece

MB = 1 << 20
ANSWERS = 10
MOST_KEPT = 4 * MB
"""An allocator that counts bytes: what may be left after closing, and what ten answers may add."""
MOST_KEPT_RESIDENT = 96 * MB
"""Where only the process's resident set is known: allocators keep freed pages."""
SAMPLES = 8
MACHINES_OWN = (
    "contended", "cpu_starved", "on_battery", "low_power_mode", "thermal_pressure", "memory_pressure", "slept",
    "other_process_on_device",
)  # fmt: skip
"""Reasons that tell of this machine now, and not of a gate that is wrong."""


def memory(subject: Subject) -> Iterator[Finding]:
    """See that answers keep no memory, and that closing a model gives all of it back."""
    with subject.model() as model:
        for _ in model.answer(subject.request):
            pass  # libraries load once and stay: the first model is not looked at
    before, counted = held(subject)
    with subject.model() as model:
        for number in range(ANSWERS + 2):
            for _ in model.answer(subject.request):
                pass
            if number == 1:
                warm, _ = held(subject)
        grown = held(subject)[0] - warm
    kept = held(subject)[0] - before
    most = MOST_KEPT if counted else MOST_KEPT_RESIDENT
    figures = {"grown_bytes": grown, "kept_bytes": kept, "counted by the allocator": counted}
    by = "" if counted else " (of the whole process)"
    if grown > most:
        text = f"{ANSWERS} answers kept {grown / MB:.0f} MiB{by}: a leak"
        yield Finding("memory", "failed", text, "long runs will end without memory: report this", figures)
    elif kept > most:
        text = f"{kept / MB:.0f} MiB{by} did not come back when the model was closed"
        yield Finding("memory", "failed", text, "sweeps run each cell in a process of its own; report this", figures)
    else:
        text = f"{ANSWERS} answers kept {grown / MB:.1f} MiB, closing left {kept / MB:.1f} MiB{by}"
        yield Finding("memory", "ok", text, "", figures)


def held(subject: Subject) -> tuple[int, bool]:
    """Return the bytes in use, and whether the device's allocator counted them (else: the process's resident set)."""
    gc.collect()
    subject.device.sync()
    told = subject.device.memory()
    allocated = told.get("allocated_bytes")
    return (told.get("rss_bytes") or 0, False) if allocated is None else (allocated, True)


def gate(subject: Subject) -> Iterator[Finding]:
    """See that the gate reads this machine, and lets steady load pass."""
    probes = subject.backend.probes()
    if subject.backend.card() and len(probes) <= len(backend.host_probes()):
        step = "pip install nvidia-ml-py; in a container: the `utility` capability"
        yield Finding("gate", "failed", "nothing watches the card: throttling would go unseen", step)
        return
    read = {name: value for probe in probes for name, value in probe.read().items() if value is not None}
    if not read:
        yield Finding("gate", "failed", "no probe reads anything here", "report this")
        return
    judge = Gate(probes, subject.clock)
    reasons: Counter[str] = Counter()
    refused = 0
    with subject.model() as model:
        for number in range(SAMPLES + 2):
            before = judge.before()
            whole, seen, _ = time_whole(model, one_token(subject), subject.bench)
            stages, _ = time_stages(model, one_token(subject), subject.bench)
            measured = Measured(stages, whole, seen, None)
            verdict = judge.after(before, *work(measured), headline_ns(measured))
            if number >= 2:  # the first answers are slow by nature
                reasons.update(verdict.reasons)
                refused += not verdict.valid
    yield from judged(reasons, refused, len(read))


def judged(reasons: Counter[str], refused: int, readings: int) -> Iterator[Finding]:
    """Return what the gate did with steady load: a reason that is the machine's own is a doubt, another a fault."""
    figures = {
        "samples": SAMPLES,
        "refused": refused,
        "readings": readings,
        **{f"as {r}": n for r, n in reasons.items()},
    }
    if 2 * refused <= SAMPLES:
        text = f"{readings} readings; {refused} of {SAMPLES} samples under steady load were refused"
        yield Finding("gate", "ok", text, "", figures)
        return
    told = ", ".join(f"{reason} ({REASONS.get(reason, reason)})" for reason, _ in reasons.most_common())
    text = f"{refused} of {SAMPLES} samples under steady load were refused: {told}"
    if all(reason in MACHINES_OWN for reason in reasons):
        yield Finding("gate", "doubt", text, "`harness doctor` says what to do; then run it again", figures)
    else:
        step = "if nothing slows the device down, the gate reads it wrongly: report this"
        yield Finding("gate", "failed", text, step, figures)


def counter(subject: Subject) -> Iterator[Finding]:
    """See that the energy counter moves, and shows load above rest."""
    found = subject.backend.counter()
    if found is None:
        yield Finding("energy", "absent", "this machine has no energy counter that may be read: no energy is reported")
        return
    meter = energy.watched(found, subject.clock)
    if meter is None:
        text = f"the counter stands still: {found.method}"
        yield Finding("energy", "failed", text, "no energy is reported here; update the driver, or report this")
        return
    clock = subject.clock
    idle = profile.repeat(lambda: clock.sleep_ns(max(1, meter.update_ns // 4)), meter, clock)
    with subject.model() as model:

        def answer() -> None:
            for event in model.answer(one_token(subject)):
                if isinstance(event, Piece):
                    subject.device.sync()

        answer()
        load = profile.repeat(answer, meter, clock)
    if idle is None or load is None:
        yield Finding("energy", "failed", f"the counter stopped moving: {found.method}", "report this")
        return
    figures = {"idle_w": idle.watts, "load_w": load.watts, "update_ms": meter.update_ns / 1e6}
    text = f"{idle.watts:.1f} W at rest, {load.watts:.1f} W under load ({meter.resolution})"
    if load.watts > idle.watts:
        yield Finding("energy", "ok", text, "", figures)
    else:
        step = "other programs use the machine, or the load is too small to be seen: stages may have no figure"
        yield Finding("energy", "doubt", text, step, figures)


def roofline(subject: Subject) -> Iterator[Finding]:
    """See that no stage is faster than the machine's measured peak allows."""
    if not subject.backend.peak_copy_bytes:
        yield Finding("roofline", "absent", "torch cannot measure this device's peak: no roofline is reported")
        return
    peak = peaks.measure(str(subject.device.name), subject.dtype)
    if peak is None:
        yield Finding("roofline", "failed", "the peak could not be measured", "HARNESS_TRACEBACK=1 harness run; report")
        return
    with subject.model() as model:
        taken = [time_stages(model, one_token(subject), subject.bench) for _ in range(SAMPLES)]
        seen = taken[-1][1]
        counted = model.work(seen) if seen else {}
    shares = {}
    for stage, one in counted.items():
        times = [each.stage_ns[stage] for each, _ in taken if stage in each.stage_ns]
        share = one.share_of_roofline(median(times), peak.flops_per_s, peak.bytes_per_s) if times else None
        if share is not None and "." not in stage:
            shares[stage] = share
    figures = {"peak_flops_per_s": peak.flops_per_s, "peak_bytes_per_s": peak.bytes_per_s}
    figures |= {f"{stage}, share of the roofline": share for stage, share in shares.items()}
    beyond = [stage for stage, share in shares.items() if share > 1 and stage != "project"]
    told = ", ".join(f"{stage} {share:.1%}" for stage, share in shares.items())
    if beyond:
        step = (
            "remove the kept peak (`peaks` in the cache folder) and run it again on a quiet machine; else report this"
        )
        yield Finding("roofline", "failed", f"faster than the measured peak: {told}", step, figures)
    else:
        yield Finding(
            "roofline", "ok", f"of the measured peak ({peak.flops_per_s / 1e12:.3g} TFLOP/s): {told}", "", figures
        )
