"""Whether times are to be believed: the host's clock against the device's, syncs that wait, what is planted, A/A."""

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

from harness.measure import experiments
from harness.measure.experiments import PairRatio
from harness.measure.passes import time_stages
from harness.measure.selftest.findings import Finding
from harness.measure.selftest.subject import Subject
from harness.models.protocol import Model, Request

PAIRS = 12
SAMPLES = 5
CLOCKS_AGREE = (0.90, 1.03)
"""The device's own time of all stages over the host's: less than 1 by what a sync costs, never much more."""
LATEST_SHARE = 0.2
"""How much of queued work may still be running when a sync has come back, as its result is copied to the host."""
PLANTED = 0.5
"""How long the planted sleep is, as a share of its stage."""
PLANTED_IN = ("encode", "prefill")
RESOLVES_PERCENT = 5.0
"""A half-width beyond this is a doubt: small regressions cannot be seen on such a machine."""
LONG_ENOUGH_NS = 50_000_000


def clocks(subject: Subject) -> Iterator[Finding]:
    """Compare the device's own clock with the host's over whole answers."""
    with subject.model() as model:
        passes = [time_stages(model, one_token(subject), subject.bench)[0] for _ in range(SAMPLES + 1)][1:]
    shares = [
        sum(one.device_ns.values()) / sum(one.stage_ns[name] for name in one.device_ns)
        for one in passes
        if one.device_ns
    ]
    if not shares:
        yield Finding("clock", "absent", "this device has no clock of its own; the host's is used after a sync")
        return
    share, (least, most) = median(shares), CLOCKS_AGREE
    figures = {"device time over host time": share}
    if least <= share <= most:
        yield Finding("clock", "ok", f"events take {share:.3f} of the host's time of the same stages", "", figures)
        return
    text = f"events take {share:.3f} of the host's time of the same stages (expected {least} to {most})"
    step = (
        "the device's clock lags, or the host waits for more than the device's work (a slow sync): report this"
        if share < least
        else "a sync comes back before the work is done: no time of this device can be trusted; report this"
    )
    yield Finding("clock", "failed", text, step, figures)


def syncs(subject: Subject) -> Iterator[Finding]:
    """Queue work, sync, and see that its result is there: what a sync does not wait for, no stage's time has."""
    if subject.backend.only_card or not subject.backend.peak_copy_bytes:
        return
    import torch

    place, clock = subject.device.torch_name, subject.clock
    side = torch.ones(1024, 1024, device=place) / 1024

    def work(times: int) -> tuple[int, int]:
        product = side
        subject.device.sync()
        start_ns = clock.now_ns()
        for _ in range(times):
            product = product @ side
        subject.device.sync()
        synced_ns = clock.now_ns()
        float(product[0, 0].cpu())
        return synced_ns - start_ns, clock.now_ns() - start_ns

    times = 4
    work(times)  # the first product loads its kernel, for longer than all that follow
    while work(times)[1] < LONG_ENOUGH_NS and times < 1 << 14:
        times *= 2
    synced_ns, whole_ns = work(times)
    late = (whole_ns - synced_ns) / whole_ns
    figures = {"share of the work after the sync": late, "work_ms": whole_ns / 1e6}
    if late <= LATEST_SHARE:
        text = f"of {whole_ns / 1e6:.0f} ms of queued work {late:.1%} was left after the sync"
        yield Finding("sync", "ok", text, "", figures)
    else:
        text = f"{late:.0%} of {whole_ns / 1e6:.0f} ms of queued work was still to be done after the sync"
        yield Finding("sync", "failed", text, "no stage's time of this device can be trusted; report this", figures)


def one_token(subject: Subject) -> Request:
    """Return the request with an answer of one token."""
    return Request(subject.request.images, subject.request.question, 1, ignore_eos=True)


def experiment(subject: Subject, model: Model, kind: str, stage: str = "prefill") -> tuple[PairRatio, ...]:
    """Run interleaved pairs of an experiment and return the ratios by stage."""
    design = experiments.Design(PAIRS, stage, PLANTED, answers=1)
    rounds = list(experiments.pairs(kind, model, subject.bench, subject.examples[:1], design))
    names = [name for name in rounds[0].a_ns if all(name in pair.b_ns and pair.a_ns[name] > 0 for pair in rounds)]
    return tuple(
        experiments.ratio(name, [p.a_ns[name] for p in rounds], [p.b_ns[name] for p in rounds], len(names))
        for name in names
    )


def planted(subject: Subject) -> Iterator[Finding]:
    """Let one stage sleep, and see that it shows there and nowhere else."""
    with subject.model() as model:
        for stage in PLANTED_IN:
            passed, verdict, ratios = twice(
                lambda stage=stage: experiment(subject, model, "injection", stage),  # type: ignore[misc]
                lambda ratios, stage=stage: experiments.judge("injection", ratios, stage, PLANTED),  # type: ignore[misc]
            )
            figures = {f"{one.name} with the sleep over without": one.value for one in ratios}
            step = "" if passed else "a sync that does not wait, or a stage that ends elsewhere: report this"
            yield Finding("planted sleep", "ok" if passed else "failed", verdict, step, figures)


def twice(
    run: Callable[[], tuple[PairRatio, ...]], judge: Callable[[tuple[PairRatio, ...]], tuple[bool, str]]
) -> tuple[bool, str, tuple[PairRatio, ...]]:
    """Run and judge; what does not hold is tried once more, as one experiment in twenty fails on a perfect machine."""
    ratios = run()
    passed, verdict = judge(ratios)
    if not passed:
        ratios = run()
        passed, verdict = judge(ratios)
    return passed, verdict, ratios


def same_twice(subject: Subject) -> Iterator[Finding]:
    """Compare A with A: what cannot be told apart, and how small a difference could be."""
    with subject.model() as model:
        passed, verdict, ratios = twice(
            lambda: experiment(subject, model, "aa"), lambda found: experiments.judge("aa", found, "", 0)
        )
    widths = {one.name: one.half_width_percent for one in ratios}
    figures = {f"half-width of {name}, %": width for name, width in widths.items()}
    width = widths.get("ttft")
    told = f"{verdict}; {PAIRS} pairs resolve {width:.1f} % of TTFT" if width is not None else verdict
    if not passed:
        step = "close other programs, lock the clocks, and run it again; `harness doctor` names causes"
        yield Finding("A/A", "failed", told, step, figures)
    elif width is not None and width > RESOLVES_PERCENT:
        step = "a quieter machine, or more samples: smaller differences drown here"
        yield Finding("A/A", "doubt", told, step, figures)
    else:
        yield Finding("A/A", "ok", told, "", figures)


def overhead(subject: Subject) -> Iterator[Finding]:
    """Compare our whole pass with a bare loop of two clock reads."""
    with subject.model() as model:
        (cost,) = experiment(subject, model, "overhead")
    if not cost.value or cost.low is None or cost.high is None:
        yield Finding("overhead", "doubt", "no pair could be compared", "report this")
        return
    value, least, most = 1 / cost.value, 1 / cost.high, 1 / cost.low
    figures: dict[str, Any] = {"TTFT with over without": value, "low": least, "high": most}
    text = f"TTFT with our instrumentation over without: {value:.4f} ({least:.4f} to {most:.4f})"
    limit = experiments.LARGEST_OVERHEAD
    if least > limit:
        yield Finding("overhead", "failed", f"{text}, allowed {limit}", "report this: measuring disturbs", figures)
    elif value > limit:
        yield Finding("overhead", "doubt", f"{text}, allowed {limit}", "run it again on a quiet machine", figures)
    else:
        yield Finding("overhead", "ok", text, "", figures)
