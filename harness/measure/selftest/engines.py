"""The other engines of this machine (MLX, Core ML on a Mac) against torch on the CPU, stage by stage."""

from collections.abc import Iterator
from dataclasses import replace

from harness import plugins
from harness.errors import HarnessError, MissingPackage, SettingError
from harness.machine import backend, environment
from harness.measure import cell
from harness.measure.selftest.findings import Finding
from harness.measure.selftest.outputs import STAGES, compare, trace
from harness.measure.selftest.subject import Subject

NEEDS = {"mlx": ("mlx", "mlx-lm"), "coreml+mlx": ("coremltools", "mlx", "mlx-lm")}
FAR = {"float32": 1e-3, "float16": 3e-2}
"""The norm of the difference over the norm, over all stages up to there: projector and prefill are not fed apart."""


def engines(subject: Subject) -> Iterator[Finding]:
    """Compare every other engine that says it runs on this device; an absent package is named with its command."""
    if subject.backend.only_card:
        return
    for name in (one.replace("_", "+") for one in plugins.names("engines")):
        if name in NEEDS:
            yield from engine(name, subject)


def engine(name: str, subject: Subject) -> Iterator[Finding]:
    """Compare one engine with torch on the CPU in float32; and say where Core ML plans to run its package."""
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
    try:
        with subject.model("float32", "cpu") as model:
            reference = trace(model, subject)
        other = replace(subject, engine=name, dtype=dtype, device=backend.of(place).open(subject.clock))
        with other.model() as model:
            found = trace(model, other, reference)
            told = dict(model.describe())
    except HarnessError as error:
        yield Finding(name, "failed", str(error), "report this")
        return
    finding = compare(found, reference, dict.fromkeys(STAGES, FAR[dtype]), dtype, name)
    planned = told.get("planned_placement")
    more = f"; planned by Core ML: {planned}" if planned else ""
    yield replace(finding, text=finding.text + more, figures={**finding.figures, "placement": planned})
