"""Busy time and energy of short stages, in passes of their own: on the fake device, whose truth is known."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.clock import Scripted
from harness.errors import DeviceError
from harness.images import blank, png
from harness.machine import backend, energy
from harness.machine.devices import cuda, fake
from harness.machine.devices.fake import Power
from harness.measure import profile, run
from harness.measure.asked import Asked
from harness.measure.job import prepare
from harness.measure.passes import Bench, time_stages
from harness.models.card import load_model_card
from harness.models.families.fake import FakeModel
from harness.models.protocol import Options, Request
from harness.reports import result
from harness.runlog import log as runlog
from harness.runlog.records import Busy, Energy

MS = 1_000_000
REQUEST = Request((png(blank((64, 64)).image),), "what is the total?", ignore_eos=True, max_new_tokens=4)
TIMES = {"preprocess_ms": 1, "encode_ms": 8, "project_ms": 0.5, "prefill_ms": 4, "decode_ms": 2, "sample_ms": 0.0}


@pytest.fixture
def clock() -> Iterator[Scripted]:
    clock = Scripted()
    fake.reset(clock)
    yield clock
    fake.reset()


def model(**settings: float) -> FakeModel:
    card = load_model_card("fake")
    settled = {**card.settings, **TIMES, "jitter": 0.0, "drift": 0.0, "slow_first": 1.0, **settings}
    return FakeModel(card, Options(side=1024, settings=settled))


def records(clock: Scripted, bench: Bench, **settings: float) -> list[Busy | Energy]:
    measured = model(**settings)
    usual, _ = time_stages(measured, REQUEST, bench)
    return list(profile.profile(measured, bench, REQUEST, usual))


def test_a_device_that_works_all_the_time_is_busy(clock: Scripted) -> None:
    (found,) = records(clock, Bench(fake.Fake("fake"), clock))
    assert isinstance(found, Busy)
    assert found.stage_busy_ns["encode"] == found.stage_ns["encode"] == 8 * MS
    assert found.stage_busy_ns["prefill"] == found.stage_ns["prefill"] == 4 * MS
    assert found.stage_busy_ns["decode"] == found.stage_ns["decode"] == 3 * 2 * MS


def test_launching_is_not_being_busy(clock: Scripted) -> None:
    """Events around a stage show its wall time; what the device did of it is counted apart."""
    (found,) = records(clock, Bench(fake.Fake("fake"), clock), launch_ms=6.0)
    assert isinstance(found, Busy)
    assert found.stage_ns["encode"] == 14 * MS
    assert found.stage_busy_ns["encode"] == 8 * MS


def test_a_device_that_cannot_tell_says_nothing(clock: Scripted) -> None:
    class Silent:
        def __getattr__(self, name: str) -> object:
            if name in ("work", "work_method"):
                raise AttributeError(name)
            return getattr(fake.Fake("fake"), name)

    assert records(clock, Bench(Silent(), clock)) == []  # type: ignore[arg-type]


def test_a_profiler_that_fails_or_sees_nothing_costs_no_run(clock: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(fake.Fake("fake"), clock)
    close = fake.QueueTime.close
    monkeypatch.setattr(fake.QueueTime, "close", lambda self: [0 for _ in close(self)])
    (nothing,) = records(clock, bench)
    assert (nothing.note, getattr(nothing, "stage_busy_ns", None)) == ("the profiler saw no work on the device", {})

    def broken(self: object) -> None:
        raise RuntimeError("CUPTI_ERROR_NOT_INITIALIZED")

    monkeypatch.setattr(fake.QueueTime, "cut", broken)
    (failed,) = records(clock, bench)
    assert failed.note == "not measured: RuntimeError: CUPTI_ERROR_NOT_INITIALIZED"


@pytest.mark.parametrize(
    ("spans", "busy"),
    [([], 0), ([(0, 10), (20, 30)], 20), ([(0, 10), (5, 15)], 15), ([(0, 100), (10, 20)], 100), ([(5, 9), (0, 5)], 9)],
)
def test_overlapping_kernels_count_once(spans: list[tuple[int, int]], busy: int) -> None:
    assert cuda.union_ns(spans) == busy


def kernels(*names: str, step_ns: int = 10, took_ns: int = 4) -> list[cuda.Kernel]:
    return [
        cuda.Kernel(name, place * step_ns, place * step_ns + took_ns, not name.startswith("#"))
        for place, name in enumerate(names)
    ]


MARK = "void at::cuda::(anonymous namespace)::spin_kernel(long)"


@pytest.mark.parametrize("lost", [0, 5, cuda.MAY_BE_LOST])
def test_kernels_belong_to_the_span_between_two_marks(lost: int) -> None:
    first = [MARK] * (cuda.MAY_BE_LOST - lost)
    seen = kernels(*first, MARK, "gemm", "conv", MARK, "#annotation", MARK, "gemm", MARK)
    assert cuda.spans_ns(reversed(seen), 3) == [8, 0, 4]


def test_a_profiler_that_loses_marks_says_nothing_of_the_spans() -> None:
    with pytest.raises(DeviceError, match="saw 3 marks, expected 4 to"):
        cuda.spans_ns(kernels(MARK, "gemm", MARK, "gemm", MARK), 3)


class OldEvent:
    """An event as torch 2.11 has it: it does not tell its kind."""

    def __init__(self, name: str, annotation: bool) -> None:
        self._name, self._annotation = name, annotation

    def name(self) -> str:
        return self._name

    def start_ns(self) -> int:
        return 5

    def duration_ns(self) -> int:
        return 3

    def is_user_annotation(self) -> bool:
        return self._annotation


class NewEvent(OldEvent):
    def activity_type(self) -> str:
        return self._name


@pytest.mark.parametrize(
    ("event", "is_work"),
    [
        (OldEvent("gemm", False), True),
        (OldEvent("my step", True), False),
        (NewEvent("kernel", False), True),
        (NewEvent("gpu_user_annotation", True), False),
        (NewEvent("cuda_sync", False), False),
    ],
)
def test_what_is_work_on_the_gpu_in_old_and_new_versions_of_torch(event: OldEvent, is_work: bool) -> None:
    read = cuda.Kernel.of(event)
    assert (read.start_ns, read.end_ns, read.is_work) == (5, 8, is_work)


# --- energy ---


@pytest.mark.parametrize("update_ms", [1, 20, 100])
def test_stages_shorter_than_the_counters_steps_have_energy(clock: Scripted, update_ms: int) -> None:
    """40 W idle, 300 W at work: 260 W above idle for as long as the stage takes."""
    fake.POWER[:] = [Power(40.0, 300.0, update_ms * MS)]
    meter = energy.watched(backend.of("fake").counter(), clock)
    assert meter
    found = records(clock, Bench(fake.Fake("fake"), clock, meter))[-1]
    assert isinstance(found, Energy)
    assert found.idle_w == pytest.approx(40.0, rel=0.05)
    truth_mj = {"preprocess": 1 * 260.0, "encode": 8 * 260.0, "project": 0.5 * 260.0, "prefill": 4 * 260.0}
    short = {stage for stage in truth_mj if TIMES[f"{stage}_ms"] < 5 * update_ms}
    assert short <= set(found.stages)
    for stage, drawn in found.stages.items():
        assert drawn.low_mj <= truth_mj[stage] <= drawn.high_mj, stage
    widest = max(found.stages.values(), key=lambda each: each.above_idle_mj)
    assert widest.high_mj - widest.low_mj < 0.3 * widest.above_idle_mj, "an interval that says nothing is none"
    assert found.stages["encode"].gross_mj == pytest.approx(8 * 300.0, rel=0.1)


def test_long_stages_are_left_to_the_timed_passes(clock: Scripted) -> None:
    fake.POWER[:] = [Power(40.0, 300.0, MS)]
    meter = energy.watched(backend.of("fake").counter(), clock)
    long = dict.fromkeys(("preprocess_ms", "encode_ms", "project_ms", "prefill_ms"), 100.0)
    found = records(clock, Bench(fake.Fake("fake"), clock, meter), **long)[-1]
    assert isinstance(found, Energy)
    assert found.stages == {}
    assert "long enough" in found.note


def test_a_counter_that_stops_is_said(clock: Scripted) -> None:
    stuck = energy.Counter(lambda: 5.0, "stuck", "1 mJ", 20 * MS)
    found = records(clock, Bench(fake.Fake("fake"), clock, stuck))[-1]
    assert (found.note, getattr(found, "stages", None)) == ("the counter stood still", {})


# --- in a run ---


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Scripted) -> Asked:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path / "cache"))
    settings = {name: float(value) for name, value in TIMES.items()}
    return Asked(
        model="fake", device="fake", suite="pages", limit=3, precision=0, minimum_seconds=0, offline=True,
        out=str(tmp_path / "out"), settings=settings,
    )  # fmt: skip


def test_a_launch_bound_cell_says_so(asked: Asked, clock: Scripted) -> None:
    job = prepare(replace(asked, settings={**asked.settings, "launch_ms": 30.0}))
    list(run.run_job(job, lambda _: None, clock))
    (found,), _ = result.of([job.path])
    doubts = [text for text in found.cell.doubts if text.startswith("launch-bound")]
    assert len(doubts) == 1
    assert "21% of encode" in doubts[0]
    assert "12% of prefill" in doubts[0]
    rows = {row["stage"]: row for row in found.as_dict()["stages"]}
    assert rows["prefill"]["launch_bound"]
    assert "21% of encode" in found.as_dict()["also"]["device busy"]


def test_a_stage_above_the_roofline_is_a_doubt_about_the_peak(asked: Asked, clock: Scripted) -> None:
    job = prepare(asked)
    list(run.run_job(job, lambda _: None, clock))
    (found,), _ = result.of([job.path])
    fast = replace(found, of_roofline={"encode": 0.9, "prefill": 6.1}).as_dict()["doubts"]
    assert [text for text in fast if text.startswith("prefill reaches 610% of the roofline")]
    assert not [text for text in replace(found, of_roofline={"encode": 1.0}).as_dict()["doubts"] if "roofline" in text]


def test_a_cell_that_is_not_launch_bound_has_no_such_doubt(asked: Asked, clock: Scripted) -> None:
    fake.POWER[:] = [Power(40.0, 300.0, 20 * MS)]
    job = prepare(asked)
    list(run.run_job(job, lambda _: None, clock))
    (found,), _ = result.of([job.path])
    assert not [text for text in found.cell.doubts if "launch" in text]
    assert found.cell.hardware.busy_share["encode"] == 1.0
    assert "W" in found.as_dict()["also"]["energy above idle"]
    log = runlog.read(job.path)
    assert len(log.busy) == len(log.energy) == 1
    assert len([s for s in log.samples if s.phase == "timed"]) == log.footer.samples if log.footer else False
