"""The self-test names what is planted, and nothing else; what it writes can be sent to strangers."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.cli import program
from harness.errors import DeviceError, UnknownName
from harness.machine.devices import fake
from harness.measure.selftest import engines, findings, kit, outputs, resources, timing
from harness.measure.selftest.findings import Finding, Report
from harness.measure.selftest.subject import Subject, subject

NAMED = {
    "lagging-clock": {"clock"},
    "wrong-stage": {"clock", "planted sleep"},
    "not-finite": {"finite"},
    "wandering": {"determinism"},
    "leak": {"memory"},
    "kept-weights": {"memory"},
    "stuck-counter": {"energy"},
    "refusing-gate": {"gate"},
}
SMALL = 128


@pytest.fixture(autouse=True)
def sound() -> Iterator[None]:
    """Leave the fake machine as it was."""
    yield
    fake.reset()


@pytest.fixture(scope="module")
def cpu() -> Subject:
    return subject("cpu", "float32", SMALL, "")


def test_a_sound_device_passes_every_check_that_it_has() -> None:
    report = kit.run("fake")
    assert report.verdict == "passed"
    checked = {one.check for one in report.findings if one.level == "ok"}
    assert checked >= {
        "device", "determinism", "finite", "clock", "planted sleep", "A/A", "overhead", "memory", "gate", "energy",
    }  # fmt: skip


@pytest.mark.parametrize("fault", fake.FAULTS)
def test_a_planted_fault_is_named_and_nothing_else_is(fault: str) -> None:
    report = kit.run("fake", fault=fault)
    assert {one.check for one in report.failed} == NAMED[fault]
    assert all(one.next_step for one in report.failed), "what fails is named with the next step"
    assert report.verdict.startswith("FAILED")


def test_only_the_fake_device_can_be_told_to_fail() -> None:
    with pytest.raises(DeviceError, match="--device fake"):
        kit.run("cpu", fault="leak")
    with pytest.raises(UnknownName, match="did you mean 'leak'"):
        kit.run("fake", fault="leek")


def test_a_device_that_is_not_here_is_a_finding_with_the_next_step() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    report = kit.run("cuda")
    assert [one.check for one in report.failed] == ["device"]
    assert report.failed[0].next_step


def test_a_check_that_breaks_is_a_finding_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(subject: Subject) -> Iterator[Finding]:
        raise RuntimeError("the driver went away\nat 0x0")
        yield

    monkeypatch.setitem(kit.CHECKS, "clock", breaks)
    report = kit.run("fake")
    assert [(one.check, one.text) for one in report.failed] == [("clock", "RuntimeError: the driver went away")]
    assert any(one.check == "energy" and one.level == "ok" for one in report.findings)


def test_the_file_names_no_person_and_no_place(tmp_path: Path) -> None:
    private = f"cannot open {tmp_path}/weights/model.bin on {socket.gethostname()}, see C:\\Users\\ann\\cache\\x.json"
    found = Finding(
        "device", "failed", private, f"look at {Path.home()}/.cache/vlm-pareto/peaks", {"at": str(tmp_path)}
    )
    Report("cuda (H100)", "nano", (found,), {"torch": "2.14"}, 1.0).write(tmp_path / "selftest.txt")
    text = (tmp_path / "selftest.txt").read_text()
    assert "<path>/model.bin" in text
    for word in (str(tmp_path), str(Path.home() / ".cache"), "Users", f" {socket.gethostname()},"):
        assert word not in text
    told = json.loads(text.partition(findings.SEPARATOR)[2])
    assert told["verdict"] == "FAILED: device"
    assert told["environment"] == {"torch": "2.14"}


def test_shares_and_fractions_are_no_paths() -> None:
    assert findings.without_places("8 of 8 samples, 3/4 TFLOP/s, and/or") == "8 of 8 samples, 3/4 TFLOP/s, and/or"


def test_the_command_ends_with_1_where_a_check_failed_and_writes_the_file(tmp_path: Path) -> None:
    to = tmp_path / "sent" / "selftest.txt"
    asked = ["selftest", "--device", "fake", "--to", str(to)]
    assert program([*asked, "--fault", "leak"], standalone_mode=False) == 1
    assert "FAILED: memory" in to.read_text().splitlines()[0]
    assert program(asked, standalone_mode=False) == 0


# --- parity on the CPU, with the model that ships ---


@pytest.fixture(scope="module")
def reference(cpu: Subject) -> outputs.Trace:
    with cpu.model("float32") as model:
        return outputs.trace(model, cpu)


def test_the_cpu_agrees_with_itself_in_a_half_precision(cpu: Subject, reference: outputs.Trace) -> None:
    (half,) = [one for one in outputs.parity(replace(cpu, dtype="bfloat16")) if one.text.startswith("bfloat16")]
    assert half.level in ("ok", "doubt")  # another first token where two are nearly tied
    assert 0 < half.figures["encode differs by"] < 0.1  # type: ignore[operator]


@pytest.mark.parametrize("part", ["fastvithd", "projector", "llm"])
def test_a_wrong_stage_is_named_and_the_stages_after_it_are_not(
    cpu: Subject, reference: outputs.Trace, part: str
) -> None:
    """`llm` is both of prefill and decode; a projector's error reaches what comes after it, as nothing feeds that."""
    first = {"fastvithd": "encode", "projector": "project", "llm": "prefill"}[part]
    with cpu.model() as model:
        with torch.inference_mode():
            for parameter in model.parts[part].parameters():  # type: ignore[attr-defined]
                parameter.mul_(1.01)
        wrong = outputs.trace(model, cpu, reference)
    finding = outputs.compare(wrong, reference, outputs.expected(cpu, "float32", reference), "float32")
    assert finding.level == "failed"
    assert finding.text.startswith(f"float32: {first} ")


def test_a_planted_nan_is_noticed_and_a_blind_check_is_named(cpu: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.level for one in outputs.finite(cpu)] == ["ok"]
    monkeypatch.setattr("harness.models.pipeline.VisionLanguageModel.finite", lambda self, value: True)
    assert [one.level for one in outputs.finite(cpu)] == ["failed"]


def test_work_left_after_a_sync_is_named(cpu: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU computes at once; a clock that runs on after each sync is what a sync that does not wait looks like."""
    assert [one.level for one in timing.syncs(cpu)] == ["ok"]

    class Late:
        name = "late"
        at_ns = 0

        def now_ns(self) -> int:
            self.at_ns += 100_000_000
            return self.at_ns

        cpu_ns = now_ns

        def sleep_ns(self, duration_ns: int) -> None: ...

    assert [one.level for one in timing.syncs(replace(cpu, clock=Late()))] == ["failed"]


def test_refusals_for_the_machines_own_reasons_are_a_doubt() -> None:
    from collections import Counter

    def level(*reasons: str, refused: int = resources.SAMPLES) -> str:
        return next(resources.judged(Counter(reasons), refused, 5)).level

    assert level("contended", "contended") == "doubt"
    assert level("contended", "throttled") == "failed"
    assert level("throttled", refused=1) == "ok"


def test_a_whole_run_on_this_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What rests on the clock depends on who else runs here; what is computed does not."""
    monkeypatch.setattr(timing, "PAIRS", 6)
    for dear in ("roofline", "A/A", "overhead"):  # each is tested elsewhere, and costs seconds here
        monkeypatch.setitem(kit.CHECKS, dear, lambda subject: iter(()))
    report = kit.run("cpu", side=64)
    levels = {one.check: one.level for one in report.findings}
    assert [levels[check] for check in ("device", "parity", "determinism", "finite", "sync")] == ["ok"] * 5
    assert not any("could not be made" in one.next_step for one in report.findings)
    report.write(tmp_path / "selftest.txt")


@pytest.mark.gpu
def test_a_whole_run_on_cuda(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    report = kit.run("cuda")
    assert not report.failed, report.text()


def test_an_engine_that_breaks_hides_no_other(cpu: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def engine(name: str, _: Subject) -> Iterator[Finding]:
        if name == "mlx":
            raise ValueError("metal said no\nand more")
        yield Finding(name, "ok", "agrees")

    monkeypatch.setattr(engines, "engine", engine)
    found = list(engines.engines(cpu))
    assert [(one.check, one.level, one.text) for one in found] == [
        ("mlx", "failed", "ValueError: metal said no"),
        ("coreml+mlx", "ok", "agrees"),
    ]


@pytest.mark.parametrize(
    ("doubts", "same", "level", "said"),
    [
        ((), False, "ok", "planned by Core ML: neural engine 100.0 %"),
        (("not all on the Neural Engine",), False, "doubt", "not all on the Neural Engine"),
        ((), True, "doubt", "those of the CPU alone to the bit"),
    ],
)
def test_an_encoder_that_computes_the_cpus_bits_is_a_doubt_whatever_was_planned(
    doubts: tuple[str, ...], same: bool, level: str, said: str
) -> None:
    finding = engines.placed(Finding("coreml+mlx", "ok", "float16: agrees"), "neural engine 100.0 %", doubts, same)
    assert finding.level == level
    assert said in finding.text
    assert bool(finding.next_step) is (level == "doubt")
    failed = Finding("coreml+mlx", "failed", "far", "mend it")
    assert engines.placed(failed, "cpu", doubts, same).level == "failed"


def test_the_cpus_bits_are_asked_of_the_cpu_alone(cpu: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.arange(4.0)

    @contextmanager
    def model(subject: Subject) -> Iterator[Subject]:
        yield subject

    def trace(model: Subject, *_: object) -> dict[str, torch.Tensor]:
        alone = model.settings["compute_units"] == "CPU_ONLY"
        return {"encode": features if alone else features + 1}

    monkeypatch.setattr(Subject, "model", model)
    monkeypatch.setattr(engines, "trace", trace)
    asked = replace(cpu, settings={"compute_units": "CPU_AND_NE"})
    assert engines.same_on_the_cpu(asked, {"encode": features.clone()}, {})
    assert not engines.same_on_the_cpu(asked, {"encode": features * 1.001}, {})
