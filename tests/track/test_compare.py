"""The layers on their own: ratios, answers, history, verdict, in numbers made up; and `harness compare` on two logs."""

import json
import math
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import nursery
import pytest
import synthetic_logs as logs
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from invented_nights import arm, judge, night

from harness import cli, stats
from harness.errors import CardError, LogError, SettingError, UnknownName
from harness.measure.asked import Asked
from harness.reports import frame
from harness.runlog import log as runlog
from harness.track import answers, arms, history, interleave, nights, outputs, ratios, track
from harness.track.interleave import alternate
from harness.track.jobs import Night
from harness.track.nights import Reading
from harness.track.verdict import BROKEN, REGRESSION, SAME, UNCLEAR, Judge


def test_arms_that_want_torchs_switches_unlike_do_not_take_turns_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Path
) -> None:
    """The second model that is loaded turns the switches of both: the first would be timed with the second's."""
    monkeypatch.setenv("VLM_PARETO_CACHE", str(built))
    apart: list[tuple[Asked, Asked]] = []
    monkeypatch.setattr(interleave, "_by_process", lambda one, other, notify: apart.append((one, other)) or [])
    wish = Asked(model="fake", device="fake", suite="pages", limit=2, offline=True, minimum_samples=1,
                 maximum_samples=1, minimum_seconds=0)  # fmt: skip
    for number, (mine, others) in enumerate([("math", "math"), ("math", "flash"), ("math", None)]):
        arms_asked = [
            replace(wish, out=str(tmp_path / f"{number}{side}"), settings={"sdpa": one} if one else {})
            for side, one in enumerate((mine, others))
        ]
        said: list[str] = []
        interleave.measure(arms_asked[0], arms_asked[1], said.append)
        assert len(apart) == number
        assert any("differ in sdpa, which a process has once" in text for text in said) == bool(number)


def test_equal_arms_are_the_same_although_examples_differ_fourfold_in_size() -> None:
    found = ratios.decide([(arm(1), arm(2))])
    assert found.word == "SAME"
    assert found.ttft
    assert found.ttft.low is not None
    assert found.ttft.high is not None
    assert found.ttft.high - found.ttft.low < 0.02
    assert all(ratio.n == 20 for ratio in found.ratios)


def test_a_slower_stage_is_named_with_its_size() -> None:
    found = ratios.decide([(arm(1), arm(2, encode=1.10)), (arm(3), arm(4, encode=1.10))])
    assert found.word == "SLOWER"
    assert found.confirmed
    assert [ratio.name for ratio in found.slower] == ["ttft", "encode"]
    encode = found.slower[1]
    assert encode.low is not None
    assert encode.high is not None
    assert encode.low < 1.10 < encode.high
    assert encode.cost == pytest.approx(0.064, abs=0.015)  # 10 of 156 ms


def test_one_run_that_others_do_not_confirm_is_not_slower() -> None:
    found = ratios.decide([(arm(1), arm(2, encode=1.10)), (arm(3), arm(4))])
    assert found.word == "AMBIGUOUS"
    assert "not confirmed" in found.note
    assert ratios.again([(arm(1), arm(2, encode=1.10))])
    assert not ratios.again([(arm(1), arm(2))])
    assert not ratios.again([(arm(1), arm(2, encode=1.10)), (arm(3), arm(4))])


def test_a_change_below_the_minimum_effect_is_no_regression_however_sure() -> None:
    found = ratios.decide([(arm(1, 0.001), arm(2, 0.001, encode=1.02))])
    assert found.word == "SAME"
    assert {ratio.name: ratio.word for ratio in found.ratios}["encode"] == "SAME"


def test_a_stage_that_costs_nothing_does_not_fail_a_night() -> None:
    found = ratios.decide([(arm(1), arm(2, project=2.0))])  # 1 ms of 156
    assert {ratio.name: ratio.word for ratio in found.ratios}["project"] == "SLOWER"
    assert found.word == "SAME"


def test_work_that_moved_into_another_stage_is_no_regression_if_ttft_is_better() -> None:
    found = ratios.decide([(arm(1), arm(2, encode=0.7, prefill=1.3))])
    assert found.word == "FASTER"
    assert not found.slower


def test_few_or_no_pairs_do_not_tell() -> None:
    few = {key: arm(1)[key] for key in ("e0", "e1", "e2")}
    assert ratios.decide([(few, few)]).word == "AMBIGUOUS"
    assert ratios.decide([(arm(1), {})]).word == "AMBIGUOUS"


def test_arms_without_a_common_example_are_compared_by_their_medians() -> None:
    other = {f"x{key}": row for key, row in arm(2, encode=1.5).items()}
    found = {ratio.name: ratio for ratio in ratios.decide([(arm(1), other)]).ratios}["encode"]
    assert found.value == pytest.approx(1.5, rel=0.05)
    assert found.low is not None
    assert found.low < 1.3  # examples' sizes are in it now


@settings(deadline=None, max_examples=25)
@given(st.floats(0.5, 2.0), st.integers(0, 1000))
def test_the_machine_cancels(speed: float, seed: int) -> None:
    """A night on which everything takes `speed` times as long has the ratios of any other night."""
    a, b = arm(seed), arm(seed + 1, prefill=1.08)
    slow_a, slow_b = ({k: {n: v * speed for n, v in row.items()} for k, row in one.items()} for one in (a, b))
    here, there = ratios.decide([(a, b)]), ratios.decide([(slow_a, slow_b)])
    assert [ratio.word for ratio in here.ratios] == [ratio.word for ratio in there.ratios]
    assert [ratio.value for ratio in there.ratios] == pytest.approx([ratio.value for ratio in here.ratios])


def test_turns_alternate_and_one_arm_may_end_first() -> None:
    sample = {"index": 0, "attempt": 1, "phase": "timed", "at": "", "clock": ""}
    one = [logs.Sample(example=f"a{i}", **sample) for i in range(4)]
    two = [logs.Sample(example=f"b{i}", **sample) for i in range(2)]
    order = [record.example for _, record in alternate(iter(one), iter(two))]
    assert order == ["a0", "b0", "b1", "a1", "a2", "a3"]


def test_a_refused_attempt_does_not_end_the_turn() -> None:
    stages = logs.Pass(stage_ns={"encode": 1})
    sample = {"index": 0, "phase": "timed", "at": "", "clock": "", "stages": stages}
    refused = logs.Sample(example="a0", attempt=1, valid=False, **sample)
    again = logs.Sample(example="a0", attempt=2, **sample)
    other = logs.Sample(example="b0", attempt=1, **sample)
    assert [record for _, record in alternate(iter([refused, again]), iter([other]))] == [refused, again, other]


# --- answers ---


def test_the_answers_test_knows_that_questions_share_images() -> None:
    before = [1.0] * 40
    after = [0.0] * 10 + [1.0] * 30  # all that was lost is on two images of eight
    alone = answers.difference(before, after, [str(i) for i in range(40)])
    together = answers.difference(before, after, [str(i // 5) for i in range(40)])
    assert alone.word == "WORSE"
    assert together.word == "SAME"
    assert together.detectable is not None
    assert alone.detectable is not None
    assert together.detectable > alone.detectable


def test_the_smallest_detectable_drop_is_detected_four_times_in_five() -> None:
    """From a quiet night, where two of 200 answers changed: the spread of so few changes promised a drop that was then
    seen in 4 to 51 % of nights, since the drop brings its own spread."""
    rng = random.Random(5)
    before = [1.0] * 160 + [0.0] * 40
    quiet = [*before]
    quiet[0], quiet[199] = 0.0, 1.0
    images = [str(i // 4) for i in range(200)]
    promised = answers.difference(before, quiet, images).detectable
    assert promised is not None
    found = 0
    for _ in range(200):
        after = [0.0 if score and rng.random() < promised / 0.8 else score for score in before]
        found += stats.paired_difference(after, before, images, level=answers.LEVEL).high < 0  # type: ignore[operator]
    assert found / 200 == pytest.approx(0.8, abs=0.1)


# --- history ---


def level(*steps: tuple[int, float], noise: float = 0.02, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [1e8 * factor * rng.lognormvariate(0, noise) for count, factor in steps for _ in range(count)]


def test_a_step_is_found_where_it_is_and_in_its_direction() -> None:
    found = history.trend(level((20, 1.0), (6, 1.15)))
    assert found.word == "slower"
    assert found.first_bad == 20
    assert found.ratio == pytest.approx(1.15, rel=0.03)
    (change,) = found.changes
    assert change.slower
    faster = history.trend(level((20, 1.0), (6, 0.85)))
    assert faster.word == "quiet"
    assert not faster.changes[0].slower


def test_nights_that_wander_are_no_change_of_level() -> None:
    """Change points assume independent nights: of nights that follow one another, 6 to 38 % of series alarmed."""
    rng = np.random.default_rng(4)
    alarms, seen = 0, 0
    for _ in range(8):
        shocks = rng.normal(0, 0.03, 50)
        nights = np.zeros(50)
        for k in range(1, 50):
            nights[k] = 0.6 * nights[k - 1] + shocks[k]
        medians = (1e8 * np.exp(nights)).tolist()
        alarms += bool(history.change_points(medians))
        seen += history.wandering(medians) > 0
        assert history.wandering((1e8 * np.exp(shocks)).tolist()) < 0.6
    assert alarms <= 1
    assert seen >= 6
    walk = (1e8 * np.exp(np.cumsum(rng.normal(0, 0.02, 60)))).tolist()
    assert history.wandering(walk) > history.NO_LEVEL
    assert history.change_points(walk) == ()
    assert history.trend(walk).wandering > history.NO_LEVEL


def test_one_slow_night_is_suspicious_and_two_agree() -> None:
    quiet = level((20, 1.0), noise=0.01)
    assert history.trend(quiet).word == "quiet"
    assert history.trend([*quiet, 1.2e8]).word == "suspicious"
    assert history.trend([*quiet, 1.2e8, 1.2e8]).word == "slower"
    assert history.trend([*quiet, 1.2e8, 1.0e8]).word == "quiet"


def test_what_was_slow_and_came_back_is_quiet() -> None:
    assert history.trend(level((15, 1.0), (6, 1.2), (8, 1.0))).word == "quiet"


def test_the_reference_is_the_baselines_level() -> None:
    nights_ns = level((15, 1.0), (15, 1.2))
    assert history.trend(nights_ns, reference=0).word == "slower"
    assert history.trend(nights_ns, reference=20).word == "quiet"


def test_quiet_series_stay_quiet() -> None:
    words = [history.trend(level((60, 1.0), noise=0.03, seed=seed)).word for seed in range(40)]
    assert words.count("slower") <= 1  # alone it is not perfectly quiet; beside a baseline it never fails a night


# --- verdict ---


def test_pairs_of_one_page_are_not_independent(tmp_path: Path) -> None:
    """Fifteen questions on one page that got slower are one page: they must not fail a night as fifteen pairs would."""
    a, b = arm(1), arm(2)
    page = [f"e{k}" for k in range(15)]
    b = {key: {name: (1.08 if key in page else 0.98) * ns for name, ns in row.items()} for key, row in b.items()}
    assert ratios.decide([(a, b)]).word == "SLOWER"
    images = {key: "page" if key in page else key for key in a}
    found = ratios.decide([(ratios.Timings(a, images), ratios.Timings(b, images))])
    assert found.word == "AMBIGUOUS"
    everywhere = {key: {name: 1.08 * ns for name, ns in row.items()} for key, row in arm(3).items()}
    alone = {key: key for key in a}
    assert ratios.decide([(ratios.Timings(a, alone), ratios.Timings(everywhere, alone))]).word == "SLOWER"


def test_images_name_the_clusters_unless_all_of_the_suites_were_timed(tmp_path: Path) -> None:
    some = {"images": 6, "suite_images": 40}
    for facts, count in ((some, 6), ({}, 6), ({"images": 6, "suite_images": 6}, 0)):
        path = logs.write(tmp_path / "one.jsonl", n=12, rests_on=facts)
        assert len(set(ratios.times(runlog.read(path)).images.values())) == count


def test_wandering_is_said_in_the_verdict() -> None:
    walk, level_ms = [], 156.0
    rng = np.random.default_rng(5)
    for number in range(1, 41):
        level_ms *= float(np.exp(rng.normal(0, 0.02)))
        walk.append(Reading(str(number), "valid", median_ns=level_ms * 1e6, n=20, fingerprint=(("os", "one"),)))
    verdict = judge(*walk).verdict()
    assert any("wander by themselves" in notice and "no level" in notice for notice in verdict.notices)
    assert verdict.as_dict()["history_wanders"] > history.NO_LEVEL
    steady = [night(str(n), ms=156 * (1 + 0.01 * (-1) ** n)) for n in range(1, 12)]
    assert not any("wander" in notice for notice in judge(*steady).verdict().notices)


def test_the_first_bad_checkpoint_is_where_the_trailing_bad_ones_begin() -> None:
    readings = [night("1", encode=1.2), night("2"), night("3", encode=1.2), Reading("4", "broken", "x")]
    readings += [Reading("5", "invalid", "throttled"), night("6", encode=1.2)]
    verdict = judge(*readings).verdict()
    assert verdict.code == REGRESSION
    assert (verdict.stage, verdict.first_bad, verdict.last_good) == ("encode", "3", "2")


def test_an_unconfirmed_slower_does_not_fail_the_night() -> None:
    verdict = judge(night("1", rounds=1, encode=1.2)).verdict()
    assert verdict.code == UNCLEAR
    assert "not confirmed" in verdict.lines[0]


def test_a_slower_machine_is_no_regression_of_the_checkpoint() -> None:
    readings = [night(str(n)) for n in range(1, 12)] + [night(str(n), ms=200) for n in range(12, 18)]
    verdict = judge(*readings).verdict()
    assert verdict.code == SAME
    assert any("the machine became slower" in notice for notice in verdict.notices)


def test_history_alone_decides_where_nothing_ran_side_by_side() -> None:
    readings = [night(str(n), rounds=0) for n in range(1, 12)] + [night(str(n), ms=200, rounds=0) for n in (12, 13)]
    verdict = judge(*readings).verdict()
    assert verdict.code == REGRESSION
    assert verdict.first_bad == "12"
    assert judge(*readings[:-1]).verdict().code == UNCLEAR  # one night: suspicious


def test_a_new_driver_starts_a_segment_and_alarms_nobody() -> None:
    readings = [night(str(n), rounds=0) for n in range(1, 12)]
    changed = [
        Reading(str(n), "valid", median_ns=200e6, n=9, fingerprint=(("os", "two"),)) for n in (12, 13, 14, 15, 16, 17)
    ]
    verdict = judge(*readings, *changed).verdict()
    assert verdict.code == SAME
    assert "new segment from 12: os one → two; nights before it are no longer compared with" in verdict.notices


@pytest.mark.parametrize(("state", "code"), [("broken", BROKEN), ("invalid", UNCLEAR), ("unready", UNCLEAR)])
def test_a_night_without_a_point_has_a_verdict_of_its_own(state: nights.State, code: int) -> None:
    made = judge(night("1"), Reading("2", state, "because"))
    assert made.verdict().code == code
    assert "because" in made.verdict().lines[0]


def test_a_checkpoint_that_does_not_load_is_an_error_with_a_next_step() -> None:
    written = [Path("v/verdict.md"), Path("v/junit.xml")]
    broken = judge(night("1"), Reading("2", "broken", "unknown field 'x'")).verdict()
    assert outputs.aside(broken, written) == [
        "note: v has verdict.md, junit.xml",
        "harness: 2: the checkpoint cannot be measured: unknown field 'x'; next: mend it, then the same command",
    ]
    told = judge(night("1"), Reading("2", "broken", "torn; next: fetch it anew")).verdict()
    assert outputs.aside(told, written)[1].count("next: ") == 1
    assert len(outputs.aside(judge(night("1")).verdict(), written)) == 1


def test_worse_answers_fail_a_night_without_a_valid_time() -> None:
    made = judge(night("1"), Reading("2", "invalid", "contended"))
    made.accuracies["2"] = answers.difference([1.0] * 20, [0.0] * 19 + [1.0], [str(i) for i in range(20)])
    verdict = made.verdict()
    assert (verdict.code, verdict.stage, verdict.first_bad) == (REGRESSION, "answers", "2")


def test_annotations_are_escaped_for_github() -> None:
    (line, *_) = outputs.annotations(judge(night("1", encode=1.2)).verdict())
    assert line.startswith("::error title=REGRESSION%3A 1 against 0::TTFT is slower: +")
    assert "%25" in line
    assert "\n" not in line


# --- arms and nights ---


def test_arms_are_folders_cards_hub_ids_or_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(model="fake")
    assert arms.arm(asked, str(tmp_path)).weights == str(tmp_path)
    assert arms.arm(asked, "random").weights == "random"
    assert arms.arm(asked, "fastvlm-0.5b").model == "fastvlm-0.5b"
    assert arms.arm(asked, "Qwen/Qwen2.5-VL-3B-Instruct").model == "Qwen/Qwen2.5-VL-3B-Instruct"
    monkeypatch.chdir(tmp_path.parent)
    for neither in (f"{tmp_path.name}/step-3", "./nightlies/step-3", "/nowhere/step-3", "~/step-3", "a/b/c", "ours/"):
        with pytest.raises(SettingError, match="no folder of a checkpoint"):
            arms.arm(asked, neither)
    (tmp_path / "nightly.toml").write_text('weights = "random"\n[settings]\nprefill_ms = 40.0\n')
    own = arms.arm(asked, str(tmp_path))
    assert (own.weights, own.settings) == ("random", {"prefill_ms": 40.0})
    with pytest.raises(SettingError, match=r"did you mean 'fastvlm-0.5b'"):
        arms.arm(asked, "fastvlm-05b")
    (tmp_path / "nightly.toml").write_text("model = 'x'\n")
    with pytest.raises(UnknownName, match=r"field in .*nightly.toml"):
        arms.arm(asked, str(tmp_path))
    (tmp_path / "nightly.toml").write_text("weights = 3\n")
    with pytest.raises(CardError, match="weights must be a text"):
        arms.arm(asked, str(tmp_path))


def test_nights_are_sorted_as_people_count(tmp_path: Path) -> None:
    for name in ("step-100", "step-20", ".tmp", "step-3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert [each.name for each in nights.discover(tmp_path).nights] == ["step-3", "step-20", "step-100"]
    with pytest.raises(SettingError, match="no such folder"):
        nights.discover(tmp_path / "nowhere")


def test_broken_and_future_logs_are_named(tmp_path: Path) -> None:
    series = nights.Series("box", "cpu", "torch", "float32", 1024, "fastvlm-0.5b", "pages", "ttft")
    folder = tmp_path / "n1" / "alone" / "checkpoint" / "box"
    logs.write(folder / "good.jsonl")
    logs.write(folder / "future.jsonl", schema=99)
    (folder / "junk.jsonl").write_text("{]\n")
    reading = nights.read(tmp_path, "n1", nights.Expected(series), None)
    assert reading.state == "valid"
    verdict = Judge([reading], "n1", 0.03).verdict()
    assert any("future.jsonl: skipped: schema 99" in notice for notice in verdict.notices)
    assert any("junk.jsonl: skipped" in notice for notice in verdict.notices)
    another = nights.Series(*("x" for _ in range(4)), 1, *("x" for _ in range(3)))  # type: ignore[misc, call-arg]
    other = nights.read(tmp_path, "n1", nights.Expected(another), None)
    assert other.state == "missing"


def test_refused_nights_are_stored_and_no_points(tmp_path: Path) -> None:
    series = nights.Series("box", "cpu", "torch", "float32", 1024, "fastvlm-0.5b", "pages", "ttft")
    path = logs.write(tmp_path / "n1" / "alone" / "checkpoint" / "box" / "a.jsonl", n=3)
    text = path.read_text().replace('"phase":"timed"', '"phase":"timed","valid":false,"reasons":["throttled"]')
    path.write_text(text)
    reading = nights.read(tmp_path, "n1", nights.Expected(series), None)
    assert (reading.state, reading.is_point) == ("invalid", False)
    assert reading.reason == "the gate refused every sample (throttled 3 times)"


# --- the command on two logs ---


def compare(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli.program, ["compare", *arguments], standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.return_value, done.output


def test_two_logs_are_compared_with_a_warning(tmp_path: Path) -> None:
    a = logs.write(tmp_path / "a.jsonl", weights="random", seed=1)
    b = logs.write(tmp_path / "b.jsonl", weights="random", seed=2, times_ms={**logs.TIMES_MS, "prefill": 80.0})
    code, text = compare(str(a), str(b), "--json")
    verdict = json.loads(text)
    assert code == verdict["exit_code"] == REGRESSION
    assert verdict["stage"] == "prefill"
    assert any("did not take turns" in notice for notice in verdict["notices"])
    assert math.isclose(next(r["ratio"] for r in verdict["ratios"] if r["name"] == "prefill"), 1.6, rel_tol=0.05)
    code, text = compare(str(a), str(a))
    assert code == SAME
    assert "TTFT SAME: +0.0%" in text


def test_questions_that_only_the_baseline_answers_are_a_regression(tmp_path: Path) -> None:
    """NaN on a quarter of the pages, as fast as ever on the rest: no mean over what both answered sees that."""
    a = logs.write(tmp_path / "a.jsonl", weights="random", n=16)
    lost = [f"e{k}" for k in range(12, 16)]
    b = logs.write(tmp_path / "b.jsonl", weights="random", n=12, failed=lost)
    code, text = compare(str(a), str(b), "--json")
    verdict = json.loads(text)
    assert (code, verdict["stage"], verdict["accuracy"]["lost"]) == (REGRESSION, "answers", 4)
    assert verdict["reasons"][0].startswith("4 questions that the baseline answers fail tonight, most often with: pre")
    assert compare(str(b), str(a))[0] == SAME  # what the baseline failed at is no loss
    later = logs.write(tmp_path / "c.jsonl", weights="random", n=12, failed=lost, error="OutOfMemoryError")
    code, text = compare(str(a), str(later))
    assert code == UNCLEAR
    assert "4 questions that the baseline answers failed tonight for reasons that may pass" in text


def test_a_run_that_was_given_up_is_never_the_same(tmp_path: Path) -> None:
    """Whoever gave up: of the rest of the questions nothing is known."""
    whole = logs.write(tmp_path / "a.jsonl", weights="random")
    failed = [f"f{k}" for k in range(5)]
    cut = logs.write(tmp_path / "b.jsonl", weights="random", failed=failed, stopped="failures")
    for pair in ((whole, cut), (cut, whole), (cut, cut)):
        code, text = compare(*map(str, pair))
        assert code == UNCLEAR
        assert "was given up after too many failures in a row (prefill: logits that are not finite)" in text
    assert not nights.reading("b", frame.load(cut), None).is_point  # the median of what came before is of other pages
    passing = logs.write(tmp_path / "c.jsonl", failed=failed, stopped="failures", error="OutOfMemoryError")
    assert nights.reading("c", frame.load(passing), None).torn  # so that the same command goes on with it


def test_trained_answers_that_changed_and_cannot_be_scored_are_not_ok(tmp_path: Path) -> None:
    """No card says how the suite `mine` is scored: answers that stayed need no score, others do."""
    a = logs.write(tmp_path / "a.jsonl", suite="mine", answers=["yes"])
    same = logs.write(tmp_path / "b.jsonl", suite="mine", answers=["yes"])
    other = logs.write(tmp_path / "c.jsonl", suite="mine", answers=["no"])
    code, text = compare(str(a), str(other))
    assert code == UNCLEAR
    assert "accuracy not compared: the baseline: " in text
    assert compare(str(a), str(same))[0] == SAME
    code, _ = compare(str(a), str(logs.write(tmp_path / "d.jsonl", suite="mine", answers=["no"], weights="random")))
    assert code == SAME  # random weights say nothing


def test_answers_to_other_questions_of_the_same_name_are_not_compared(tmp_path: Path) -> None:
    """An older night's log counts for the history whatever data it saw; `e7` was another question there."""
    now, before = (
        frame.load(logs.write(tmp_path / f"{digest}.jsonl", data_digest=digest, answers=["yes"])) for digest in "ab"
    )
    found = answers.compare(now, before)
    assert (found.word, found.reason) == ("NOT SCORED", "not the same questions (another data_digest)")
    assert found.open
    assert not found.changed


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({"resolution": 512}, {"resolution": 1024}, "resolution 512 → 1024"),
        ({}, {"machine": "elsewhere"}, "machine box → elsewhere"),
        ({"settings": {"tiles": 1}}, {"settings": {"tiles": 4}}, "settings tiles=1 → tiles=4"),
        ({"threads": 4}, {"threads": 1}, "threads 4 → 1"),
        ({}, {"threads": 1}, "threads none → 1"),
        ({"of_device": {"threads": "8"}}, {"of_device": {"threads": "1"}}, "device's threads 8 → 1"),
        ({"environment": {"package_torch": "2.9"}}, {"environment": {"package_torch": "2.11"}}, "torch 2.9 → 2.11"),
    ],
)
def test_logs_that_differ_in_more_than_the_checkpoint_are_no_regression(
    tmp_path: Path, before: dict[str, object], after: dict[str, object], told: str
) -> None:
    """Three times slower: by the other machine, setting or number of threads, for all that anybody knows."""
    slow = {name: 3 * ms for name, ms in logs.TIMES_MS.items()}
    a = logs.write(tmp_path / "a.jsonl", weights="random", **before)  # type: ignore[arg-type]
    b = logs.write(tmp_path / "b.jsonl", weights="random", times_ms=slow, **after)  # type: ignore[arg-type]
    code, text = compare(str(a), str(b))
    assert code == UNCLEAR
    assert text.startswith(f"COULD NOT TELL: {b} against {a}")
    assert f"the logs differ in more than the checkpoints: {told}; " in text
    assert "TTFT is slower: +" in text  # what was seen stays
    code, text = compare(str(b), str(a))  # and faster is no "OK"
    assert code == UNCLEAR


def test_another_commit_of_the_harness_is_a_notice(tmp_path: Path) -> None:
    slow = {name: 3 * ms for name, ms in logs.TIMES_MS.items()}
    a = logs.write(tmp_path / "a.jsonl", weights="random")
    b = logs.write(tmp_path / "b.jsonl", weights="random", times_ms=slow, commit="def")
    code, text = compare(str(a), str(b))
    assert code == REGRESSION
    assert "! measured by different states of the harness: harness commit abc → def" in text


def test_a_folder_of_several_cells_says_what_they_differ_in(tmp_path: Path) -> None:
    logs.write(tmp_path / "a" / "1.jsonl", weights="random")
    logs.write(tmp_path / "a" / "2.jsonl", weights="random", machine="elsewhere")
    with pytest.raises(LogError, match="holds logs of 2 cells, which differ in machine; next: give one log"):
        compare(str(tmp_path / "a"), str(tmp_path / "a"))


def test_interleaved_logs_are_recognised(tmp_path: Path) -> None:
    a, b = (runlog.read(logs.write(tmp_path / f"{name}.jsonl")) for name in "ab")
    assert not ratios.interleaved(a, b) or a.samples[0].at == b.samples[0].at


# --- which nights are measured ---


def test_only_the_newest_is_measured_and_the_first_bad_is_found_by_halving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring is played by made-up nights; which of them are measured, and what is concluded, is the real thing."""
    for number in range(1, 21):
        (tmp_path / "nights" / str(number)).mkdir(parents=True)
        (tmp_path / "nights" / str(number) / "nightly.toml").write_text('weights = "random"\n')
    measured: list[str] = []

    def play(asked: Asked, wanted: Night, *rest: object) -> Reading:
        measured.append(wanted.name)
        slower = {"encode": 1.2} if int(wanted.name) >= 8 else {}
        return night(wanted.name, rounds=3 if wanted.baseline else 0, **slower)

    monkeypatch.setattr(track.jobs, "night", play)
    monkeypatch.setattr(answers, "compare", lambda a, b: None)
    wish = track.Wish(
        Asked(model="fake", device="fake", suite="pages"),
        nights.discover(tmp_path / "nights").nights, tmp_path / "out", latest=True,
    )  # fmt: skip
    verdict = track.track(wish, lambda text: None).verdict
    assert verdict.code == REGRESSION
    assert (verdict.night, verdict.first_bad, verdict.last_good) == ("20", "8", "7")
    assert measured[:2] == ["1", "20"]
    assert len(measured) <= 2 + 5  # log2 of the 18 between


@pytest.mark.slow
def test_two_cards_are_measured_side_by_side_by_the_program(tmp_path: Path) -> None:
    """Two folders of the fake model, one of which takes twice as long in prefill: real processes, real time."""
    for name, prefill_ms in (("good", 8.0), ("bad", 24.0)):
        (tmp_path / name).mkdir()
        settings = f"encode_ms = 2.0\nprefill_ms = {prefill_ms}\npreprocess_ms = 0.5\n"
        (tmp_path / name / "nightly.toml").write_text(f'weights = "random"\n[settings]\n{settings}')
    command = ["compare", "good", "bad", "--interleave", "--model", "fake", "--device",
               "fake", "--suite", "pages", "--limit", "12", "--min-seconds", "0", "--min-effect", "0.5", "--json",
               "--decode-tokens", "2"]  # fmt: skip
    environment = {**os.environ, "VLM_PARETO_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = nursery.opened().run(command, tmp_path, environment)
    verdict = json.loads(done.stdout)
    assert done.returncode == REGRESSION, done.stdout + done.stderr
    assert verdict["stage"] == "prefill"
    assert not any("did not take turns" in notice for notice in verdict["notices"])
    found = [runlog.read(path) for path in runlog.find(tmp_path / "results" / "compared" / "bad" / "against-good")]
    assert len(found) == 6  # both arms, three runs
    assert all(log.finished for log in found)
