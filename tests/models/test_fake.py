"""The fake model in virtual time: stages as its card says, and what is injected is found by its name."""

import io
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from harness import plugins
from harness.clock import Scripted
from harness.errors import ExampleError, SettingError, UnknownName
from harness.machine import backend
from harness.machine.devices import fake
from harness.machine.devices.fake import Episode
from harness.measure.gate import Gate, Verdict
from harness.measure.passes import Bench, time_stages, time_whole
from harness.models.card import check_settings, load_model_card
from harness.models.protocol import STAGES, Done, Options, Piece, Request, Seen
from harness.models.weights import Source
from harness.reports import checks
from harness.runlog.records import Pass

MS = 1_000_000


def picture(size: tuple[int, int] = (640, 480)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "white").save(buffer, "PNG")
    return buffer.getvalue()


REQUEST = Request((picture(),), "What is the total? 42", max_new_tokens=3, ignore_eos=True)


class Rig:
    """A fake model, device, clock and gate in virtual time."""

    def __init__(self, side: int = 1024, only: str | None = None, **settings: Any) -> None:
        self.clock = Scripted()
        fake.reset(self.clock)
        self.device = plugins.load("devices", "fake").open("fake", self.clock)
        self.card = load_model_card("fake")
        options = Options(side=side, only=only, settings=check_settings(self.card, settings))
        self.model = plugins.load("adapters", "fake").load(self.card, Source("random"), options)
        self.gate = Gate(backend.of("fake").probes(), self.clock)

    def stages(self, request: Request = REQUEST) -> Pass:
        return time_stages(self.model, request, Bench(self.device, self.clock))[0]

    def whole(self, request: Request = REQUEST) -> tuple[Pass, Seen | None, str]:
        return time_whole(self.model, request, Bench(self.device, self.clock))

    def ttft(self) -> int | None:
        return self.whole()[0].ttft_ns

    def judged(self) -> tuple[int | None, Verdict]:
        """One sample under the gate: TTFT and verdict."""
        before, wall, cpu = self.gate.before(), self.clock.now_ns(), self.clock.cpu_ns()
        ttft = self.ttft()
        return ttft, self.gate.after(before, self.clock.now_ns() - wall, self.clock.cpu_ns() - cpu, ttft)


@pytest.fixture(autouse=True)
def afterwards() -> Iterator[None]:
    yield
    fake.reset()


def test_stages_are_exactly_the_cards() -> None:
    bench = Rig()
    found = bench.stages()
    assert found.stage_ns == {"preprocess": 2 * MS, "encode": 10 * MS, "project": 1 * MS, "prefill": 20 * MS}
    assert found.device_ns == found.stage_ns
    assert found.piece_ns == (33 * MS, 35 * MS, 37 * MS)
    assert bench.ttft() == sum(found.stage_ns.values())
    assert bench.stages(replace(REQUEST, ignore_eos=False)).output_tokens == 1


def test_in_real_time_no_stage_is_shorter_than_the_truth() -> None:
    """How much longer is the machine's doing: `benchmarks/fake_truth.py` shows it to be under 1 % on a quiet one."""
    bench = Rig()
    fake.reset()
    found, _ = time_stages(bench.model, REQUEST, Bench(bench.device, fake.CLOCK))
    for stage in STAGES:
        # A stage's clock starts a few microseconds after the fake began its work.
        assert found.stage_ns[stage] >= 0.99 * float(bench.card.settings[f"{stage}_ms"]) * MS


def test_encode_grows_with_the_area() -> None:
    assert Rig(side=512).stages().stage_ns["encode"] == 2.5 * MS
    assert Rig(side=2048).stages().stage_ns["encode"] == 40 * MS
    assert Rig(side=2048).stages().stage_ns["prefill"] == 20 * MS


def test_five_percent_in_the_prefill_is_found_there_and_nowhere_else() -> None:
    plain, slower = Rig().stages().stage_ns, Rig(prefill_ms=21.0).stages().stage_ns
    assert {stage: slower[stage] / plain[stage] for stage in STAGES} == {
        "preprocess": 1.0,
        "encode": 1.0,
        "project": 1.0,
        "prefill": 1.05,
    }


def test_events_follow_the_protocol_and_the_answer_is_the_last_word() -> None:
    bench = Rig()
    events = list(bench.model.answer(replace(REQUEST, ignore_eos=False)))
    assert [event.stage for event in events if isinstance(event, Done)] == list(STAGES)
    assert [event.text for event in events if isinstance(event, Piece)] == ["42"]
    (seen,) = [event for event in events if isinstance(event, Seen)]
    assert seen == Seen((640, 480), (1024, 1024), 1024 * 768, 1, 256, 5)
    assert events.index(seen) < events.index(Done("prefill"))
    _, seen, answer = Rig(answer="yes, it is").whole(replace(REQUEST, ignore_eos=False, visual_only=True))
    assert answer == "yes it is"
    assert seen.text_tokens == 0


def test_throttling_is_caught_by_name() -> None:
    bench = Rig()
    fake.EPISODES.append(Episode(100 * MS, 200 * MS, 1.4, "throttled"))
    judged = [bench.judged() for _ in range(10)]
    bad = [verdict.reasons for _, verdict in judged if not verdict.valid]
    assert set(bad) == {("throttled",)}
    assert all(ttft == 33 * MS for ttft, verdict in judged if verdict.valid)
    assert any(ttft > 40 * MS for ttft, verdict in judged if not verdict.valid)
    doubts = checks.examine(checks.Measured(valid=[v.valid for _, v in judged], reasons=[v.reasons for _, v in judged]))
    assert doubts[0].name == "throttled"


def test_unannounced_contention_is_caught_as_cpu_starved() -> None:
    bench = Rig()
    quiet = [bench.judged()[1] for _ in range(6)]
    fake.EPISODES.append(Episode(bench.clock.now_ns(), 10**12, 2.0, "", on_cpu=False))
    assert all(verdict.valid for verdict in quiet)
    assert bench.judged()[1].reasons == ("cpu_starved",)


def test_drift_is_caught_by_gate_and_checks() -> None:
    bench = Rig(drift=0.02)
    judged = [bench.judged() for _ in range(30)]
    assert judged[-1][1].reasons == ("drift",)
    assert "drift" in [doubt.name for doubt in checks.examine(checks.Measured([ttft for ttft, _ in judged]))]
    steady = Rig(jitter=0.02)
    judged = [steady.judged() for _ in range(30)]
    assert all(verdict.valid for _, verdict in judged)
    assert checks.examine(checks.Measured([ttft for ttft, _ in judged])) == []


def test_a_slow_first_run_is_caught_by_name() -> None:
    bench = Rig(slow_first=3.0)
    times = [bench.ttft() for _ in range(10)]
    assert times[0] == 3 * times[1]
    assert [doubt.name for doubt in checks.examine(checks.Measured(times[1:], cold_ns=times[0]))] == ["cold_start"]
    assert "slow_first" in [doubt.name for doubt in checks.examine(checks.Measured(times))]


@pytest.mark.parametrize(("settings", "sign"), [({"sample_ms": 4.0}, 1), ({"launch_ms": 3.0}, -1)])
def test_residuals_of_both_signs_are_caught(settings: dict[str, float], sign: int) -> None:
    bench = Rig(**settings)
    ttft = [bench.ttft() for _ in range(8)]
    sums = [sum(bench.stages().stage_ns.values()) for _ in range(8)]
    (doubt,) = checks.examine(checks.Measured(ttft, sums))
    assert doubt.name == "residual"
    assert doubt.amount * sign > 0
    assert (ttft[0] - sums[0]) * sign > 0


def test_a_clock_gap_is_caught() -> None:
    bench = Rig()
    fake.STATE.clock_rate = 0.95
    passes = [bench.stages() for _ in range(8)]
    host = [sum(p.stage_ns.values()) for p in passes]
    device = [sum(p.device_ns.values()) for p in passes]
    assert checks.clock_gap(host, device).amount == pytest.approx(0.05)


def test_peak_memory_by_stage() -> None:
    found = Rig(side=512, weights_mb=100, activations_mb=40).stages()
    mb = 2**20
    assert found.stage_peak_bytes == {
        "preprocess": 100 * mb,
        "encode": 110 * mb,
        "project": 110 * mb,
        "prefill": 110 * mb,
    }


def test_closing_early_gives_the_memory_back() -> None:
    bench = Rig(weights_mb=0)
    for count in range(1, 7):
        events = bench.model.answer(REQUEST)
        list(itertools.islice(events, count))
        events.close()
        assert bench.device.memory()["allocated_bytes"] == 0
    bench.model.close()


def test_parts_alone() -> None:
    assert set(Rig(only="eye").stages().stage_ns) == {"preprocess", "encode"}
    assert set(Rig(only="llm").stages().stage_ns) == {"preprocess", "project", "prefill"}
    with pytest.raises(SettingError, match="parts: eye, llm"):
        Rig(only="ear")


@pytest.mark.parametrize("data", [b"", b"not an image", picture()[:20]])
@pytest.mark.parametrize("decode", [True, False])
def test_bad_images_are_failures_and_not_answers(data: bytes, decode: bool) -> None:
    with pytest.raises(ExampleError):
        Rig(decode=decode).whole(replace(REQUEST, images=(data,)))


def test_a_strip_that_cannot_be_padded_is_refused_where_images_are_decoded() -> None:
    strip = io.BytesIO()
    Image.new("1", (60_000, 1)).save(strip, "PNG")
    request = replace(REQUEST, images=(strip.getvalue(),))
    with pytest.raises(ExampleError, match="60000x1"):
        Rig(decode=True).whole(request)
    Rig(decode=False).whole(request)


def test_a_misspelt_setting_is_refused() -> None:
    with pytest.raises(UnknownName, match="prefill_ms"):
        Rig(prefil_ms=1.0)


def test_jitter_is_seeded() -> None:
    assert [Rig(jitter=0.1).ttft() for _ in range(2)] == [Rig(jitter=0.1).ttft()] * 2
    bench = Rig(jitter=0.1)
    assert bench.ttft() != bench.ttft()


def test_work_is_given_for_every_model_stage() -> None:
    bench = Rig(side=512)
    _, seen, _ = bench.whole()
    work = bench.model.work(seen)
    assert work["encode"].flops == 2.5e9
    assert set(work) == {"encode", "project", "prefill"}
    assert bench.model.describe()["prefill_ms"] == "20.0"
