"""The other engines of this machine (MLX, Core ML on a Mac) against torch on the CPU, stage by stage."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness import plugins
from harness.errors import HarnessError, MissingPackage, SettingError
from harness.machine import backend, environment
from harness.measure import cell
from harness.measure.selftest.findings import Finding, Level
from harness.measure.selftest.outputs import STAGES, Trace, compare, trace
from harness.measure.selftest.subject import Subject

NEEDS = {"mlx": ("mlx", "mlx-lm"), "coreml+mlx": ("coremltools", "mlx", "mlx-lm")}
"""In this order: macOS was seen to kill the process at a Core ML prediction (apple/coremltools, issue 2758)."""
FAR = {"float32": 1e-3, "float16": 3e-2}
"""The norm of the difference over the norm, over all stages up to there: projector and prefill are not fed apart."""


def engines(subject: Subject) -> Iterator[Finding]:
    """Compare every other engine that says it runs on this device; an absent package is named with its command."""
    if subject.backend.only_card:
        return
    known = [one.replace("_", "+") for one in plugins.names("engines")]
    for name in (one for one in NEEDS if one in known):
        try:
            yield from engine(name, subject)
        except HarnessError as error:
            yield Finding(name, "failed", str(error), "report this")
        except Exception as error:  # noqa: BLE001 - one engine's libraries must not hide what the other does
            first = (str(error).splitlines() or [""])[0][:300]
            yield Finding(name, "failed", f"{type(error).__name__}: {first}", "report this")


def engine(name: str, subject: Subject) -> Iterator[Finding]:
    """Compare one engine with torch on the CPU in float32; and say where Core ML runs its package."""
    missing = [package for package in NEEDS[name] if environment.installed(package) is None]
    try:
        place = cell.engine(name).place(str(subject.device.name))
    except (SettingError, MissingPackage):
        return  # it runs on other devices
    if backend.of(place).absence() or missing:
        why = f"not installed: {', '.join(missing)}" if missing else backend.of(place).absence()
        yield Finding(name, "absent", why, "on a Mac: pip install 'vlm-pareto[apple]'")
        return
    dtype = "float32" if place.endswith(":cpu") else "float16"
    with subject.model("float32", "cpu") as model:
        reference = trace(model, subject)
    other = replace(subject, engine=name, dtype=dtype, device=backend.of(place).open(subject.clock))
    with other.model() as model:
        found = trace(model, other, reference)
        told, doubts = dict(model.describe()), tuple(getattr(model, "doubts", ()))
    finding = compare(found, reference, dict.fromkeys(STAGES, FAR[dtype]), dtype, name)
    if planned := told.get("planned_placement"):
        finding = placed(finding, planned, doubts, same_on_the_cpu(other, found, reference))
    yield finding


def same_on_the_cpu(other: Subject, found: Trace, reference: Trace) -> bool:
    """Return whether the encoder gives the very same bits where Core ML may use the CPU alone."""
    import torch

    alone = replace(other, settings={**other.settings, "compute_units": "CPU_ONLY"})
    with alone.model() as model:
        return torch.equal(trace(model, alone, reference)["encode"], found["encode"])


def placed(finding: Finding, planned: str, doubts: Sequence[str], same_as_cpus: bool) -> Finding:
    """Add where the encoder ran: as planned, as doubted, and by its bits, for a plan may hide a failed compilation."""
    doubts = list(doubts)
    if same_as_cpus:
        doubts.append("the encoder's features are those of the CPU alone to the bit: no other unit had a part in them")
    text = "; ".join([finding.text, f"planned by Core ML: {planned}", *doubts])
    figures = {**finding.figures, "placement": planned, "encode equals the CPU's": same_as_cpus}
    level: Level = "doubt" if doubts and finding.level == "ok" else finding.level
    step = finding.next_step or ("send this: which Macs do so is not known" if doubts else "")
    return replace(finding, level=level, text=text, next_step=step, figures=figures)
