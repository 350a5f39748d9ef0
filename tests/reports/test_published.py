"""Published figures are shown exactly as printed; verdicts compare what may be compared and say why not."""

import csv
import io
import re
from pathlib import Path

import pytest
import synthetic_logs

from harness import cards
from harness.errors import CardError
from harness.models.card import load_model_card
from harness.reports import accuracy as scoring
from harness.reports import frame, measured, tables
from harness.reports.card import Claim, ReportCard, Side, load_report_card
from harness.reports.formats import delimited
from harness.reports.paper import published
from harness.reports.paper.claims import findings, shown
from harness.reports.paper.evidence import Evidence

PAPER = cards.ROOT / "reports" / "paper"
REPORTS = [name for name in cards.names("reports") if load_report_card(name).kind == "published"]
NOTHING = measured.gather(frame.frame({}, {}), {})


def timed(folder: Path, *cells: tuple, **more: object) -> measured.Measured:
    for model, side, encode, prefill in cells:
        times = {"preprocess": 1.0, "encode": encode, "prefill": prefill}
        synthetic_logs.write(
            folder / f"{model}-{side}.jsonl", model=model, resolution=side, times_ms=times, n=20, residual_ms=0, **more
        )
    data = frame.load(folder)
    return measured.gather(data, scoring.of(data, remember=False))


def test_the_copied_files_are_the_originals(shared: Path) -> None:
    for path in sorted(PAPER.glob("*.csv")):
        assert path.read_bytes() == (shared / "paper" / path.name).read_bytes()


@pytest.mark.parametrize("name", REPORTS)
def test_every_published_number_in_a_table_is_the_files(name: str, tmp_path: Path) -> None:
    card = load_report_card(name)
    data = timed(tmp_path, ("fastvlm-0.5b", 1024, 100, 50), ("llava-onevision-0.5b", 1152, 900, 4000))
    with (PAPER / card.csv).open(encoding="utf-8", newline="") as lines:
        truth = [row for row in csv.DictReader(lines) if not card.tables or row["table"] in card.tables]
    for table in tables.published(card, data)[:1]:
        assert len(table.rows) == len(truth)
        for row, entries in zip(truth, table.rows, strict=True):
            for column, entry in zip(card.columns, entries[1:], strict=True):
                assert re.split(r" \(\d| · | \[", entry.text)[0] == (row[column.name] or "–")
        long = list(csv.DictReader(io.StringIO(delimited.table(table))))
        printed = {(row["row"], row["column"]): row["published"] for row in long}
        labels = [row.label for row in published.select(card)]
        compared = [column.name for column in card.columns if column.quantity != "shown"]
        expected = {(k, c): r[c] for k, r in zip(labels, truth, strict=True) for c in compared if r[c]}
        assert printed == expected


@pytest.mark.parametrize("name", cards.names("reports"))
def test_cards_name_what_exists(name: str) -> None:
    card = load_report_card(name)
    labels = {row.label for row in published.select(card)} if card.csv else set()
    subjects = [*card.matches, *(side for claim in card.claims for side in (claim.numerator, claim.denominator))]
    for match in card.matches:
        assert set(match.rows) <= labels
        assert set(match.scored) <= set(match.rows)
    for subject in subjects:
        for model in filter(None, (subject.model, *subject.alike)):
            known = load_model_card(model)
            if subject.resolution:
                assert known.resolution.problem(subject.resolution) is None, (name, model, subject.resolution)
    for column in card.columns:
        assert all(suite in cards.names("suites") for suite in column.suites)
        assert column.tolerance > 0 or column.quantity in ("shown", "tokens") or not column.suites
    for key in card.footnotes:
        assert key == "*" or key.partition("|")[0] in labels
        assert not key.partition("|")[2] or key.partition("|")[2] in {column.name for column in card.columns}
    assert not card.reference or card.reference in labels
    assert set(card.reports) <= set(cards.names("reports"))


def test_a_figure_that_is_not_there_is_an_error() -> None:
    assert published.cite("fastvlm_main_table.csv|T6|R4|ttft_ms") == "166"
    with pytest.raises(CardError, match="no such published figure"):
        published.cite("fastvlm_main_table.csv|T6|R99|ttft_ms")
    with pytest.raises(CardError, match="no such published figure"):
        published.cite("fastvlm_main_table.csv|T6|R10|ttft_ms")  # not reported
    with pytest.raises(CardError, match="cannot be read"):
        published.read("nothing.csv")


def verdicts(card_name: str, data: measured.Measured, row: str, column: str) -> list[published.Comparison]:
    card, evidence = load_report_card(card_name), Evidence(data)
    platform = (evidence.platforms(card.matches) or [None])[0]
    printed = next(r for r in published.select(card) if r.label == row)
    return [c for c in published.compare(card, printed, evidence, platform) if c.column == column]


def test_times_are_compared_as_ratios(tmp_path: Path) -> None:
    # The same ratio as printed (2721.4/116.3), on a machine ten times slower: it matches.
    data = timed(tmp_path, ("fastvlm-0.5b", 1024, 116.3, 50.5), ("llava-onevision-0.5b", 1152, 2721.4, 114.0))
    (encode,) = verdicts("fastvlm-table6", data, "R2", "vision_enc_latency_ms")
    assert encode.verdict == "matches"
    assert encode.measured.value == pytest.approx(23.4, rel=0.03)
    (prefill,) = verdicts("fastvlm-table6", data, "R2", "llm_prefill_ms")
    assert prefill.verdict.startswith("differs: 0.01")
    (itself,) = verdicts("fastvlm-table6", data, "R4", "ttft_ms")
    assert itself.verdict == "reference"


def test_what_was_not_run_says_why(tmp_path: Path) -> None:
    data = timed(tmp_path, ("fastvlm-0.5b", 1024, 116.3, 50.5), weights="random")
    (absent,) = verdicts("fastvlm-table6", data, "R44", "ttft_ms")
    assert (absent.verdict, absent.why_not) == ("not run here", "no run of cambrian-1-8b")
    (stranger,) = verdicts("fastvlm-table6", data, "R1", "ttft_ms")
    assert stranger.why_not == "no card of this harness is this model"
    (untrained,) = verdicts("fastvlm-table6", data, "R5", "GQA")
    assert untrained.why_not == "gqa was not run"
    (empty,) = verdicts("fastvlm-table6", data, "R10", "GQA")
    assert empty.why_not == "not reported"


def scored(folder: Path, value: float, half: float) -> measured.Measured:
    synthetic_logs.write(folder / "a.jsonl", suite="docvqa", weights="hub")
    return with_scores(frame.load(folder), docvqa=scoring.Accuracy("ANLS", value, value - half, value + half, 100))


def with_scores(data: frame.Frame, **scores: scoring.Accuracy) -> measured.Measured:
    """Give the cells of each suite this score."""
    return measured.gather(data, {each.configuration: scores[each.configuration.suite] for each in data.cells})


@pytest.mark.parametrize(
    ("value", "half", "verdict"),
    [(0.796, 0.001, "matches"), (0.60, 0.01, "differs by -19.1 points (our interval ±1.0)"), (0.75, 0.06, "matches")],
)
def test_scores_have_the_cards_tolerance_and_our_interval(
    tmp_path: Path, value: float, half: float, verdict: str
) -> None:
    data = scored(tmp_path, value, half)  # row R5 prints DocVQA 79.1
    (found,) = verdicts("fastvlm-table6", data, "R5", "DocVQA")
    assert found.verdict == verdict
    (other,) = verdicts("fastvlm-table6", data, "R4", "DocVQA")
    assert "other training" in other.why_not


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"weights": "local"}, "docvqa: scored with local weights, which need not be those that fastvlm-0.5b names"),
        (
            {"weights": "cache", "repository": "me/FastVLM-tuned@abc"},
            "docvqa: scored with the weights of me/FastVLM-tuned, which are not fastvlm-0.5b's (apple/FastVLM-0.5B)",
        ),
        (
            {"weights": "hub", "repository": "apple/FastVLM-0.5B@abc", "asked": 5349},
            "docvqa: 5249 of 5349 questions have no score",
        ),
        ({"weights": "hub", "limit": 10}, "docvqa: scored on the first 10 examples alone"),
        ({"weights": "hub", "asked": 5349}, "docvqa: 5249 of 5349 questions have no score"),
    ],
)
def test_only_the_released_weights_on_the_whole_suite_are_the_published_model(
    tmp_path: Path, about: dict, told: str
) -> None:
    """A nightly fine-tune under the card's name, or its first 100 answers, must not match anything by chance."""
    score = scoring.Accuracy("ANLS", 0.791, 0.75, 0.83, 100, asked=about.pop("asked", 100))
    synthetic_logs.write(tmp_path / "a.jsonl", suite="docvqa", **about)
    (found,) = verdicts("fastvlm-table6", with_scores(frame.load(tmp_path), docvqa=score), "R5", "DocVQA")
    assert (found.verdict, found.why_not) == ("not run here", told)


def test_a_mean_of_suites_carries_the_marks_of_all(tmp_path: Path) -> None:
    for suite, more in (("docvqa", {}), ("textvqa", {"finished": False}), ("gqa", {"data": "embedded"})):
        synthetic_logs.write(tmp_path / f"{suite}.jsonl", suite=suite, weights="hub", **more)
    score = scoring.Accuracy("ANLS", 0.5, 0.4, 0.6, 100)
    evidence = Evidence(with_scores(frame.load(tmp_path), docvqa=score, textvqa=score, gqa=score))
    found = evidence.score(Side(title="x", model="fastvlm-0.5b"), ("docvqa", "textvqa", "gqa"))
    assert found.marks == ("embedded", "torn")
    assert len(found.sources) == 3
    assert found.estimate.high == pytest.approx(50 + 10 / 3**0.5)


def test_a_difference_of_scores_carries_the_marks_of_both_sides(tmp_path: Path) -> None:
    (claim,) = [one for one in load_report_card("claims").claims if one.name == "+12.5 DocVQA"]
    for number, side in enumerate((claim.numerator, claim.denominator)):
        more = {"model": side.model, "resolution": side.resolution or 336, "finished": not number}
        synthetic_logs.write(tmp_path / f"{number}.jsonl", suite=claim.suite, weights="hub", **more)
    score = scoring.Accuracy("ANLS", 0.5, 0.4, 0.6, 100)
    data = with_scores(frame.load(tmp_path), **{claim.suite: score})
    (finding,) = [f for f in findings(load_report_card("claims"), Evidence(data)) if f.claim.name == claim.name]
    assert finding.protocol == "scored"
    assert finding.marks == ("torn",)


@pytest.mark.parametrize(
    ("protocol", "other"),
    [
        ("paper", {"suite": "docvqa"}), ("paper", {"data_digest": "d1"}), ("paper", {"limit": 12}),
        ("paper", {"suite_digest": "s1"}), ("ttft", {"part": "llm"}),
    ],
)  # fmt: skip
def test_times_of_other_questions_make_no_ratio(tmp_path: Path, protocol: str, other: dict) -> None:
    """The ratio would be that of the pages, of the threads, or of a whole run to a sum of parts."""
    base = {"times_ms": {"preprocess": 1.0, "encode": 100.0, "prefill": 50.0}, "protocol": protocol}
    synthetic_logs.write(tmp_path / "a.jsonl", model="fastvlm-0.5b", resolution=1024, **base)
    synthetic_logs.write(tmp_path / "b.jsonl", model="llava-onevision-0.5b", resolution=1152, **base, **other)
    data = measured.gather(frame.load(tmp_path), {})
    (encode,) = verdicts("fastvlm-table6", data, "R2", "vision_enc_latency_ms")
    assert encode.verdict == "not run here"
    assert "llava-onevision-0.5b and fastvlm-0.5b were never timed on the same questions" in encode.why_not
    (finding,) = [f for f in findings(load_report_card("claims"), Evidence(data)) if f.claim.name == "85x: encode"]
    assert finding.why_not.startswith("both sides were never timed on the same questions")


def test_an_isolated_sum_beside_a_whole_one_of_the_papers_protocol_carries_its_mark(tmp_path: Path) -> None:
    base = {"times_ms": {"preprocess": 1.0, "encode": 100.0, "prefill": 50.0}, "protocol": "paper"}
    synthetic_logs.write(tmp_path / "a.jsonl", model="fastvlm-0.5b", resolution=1024, **base)
    synthetic_logs.write(tmp_path / "b.jsonl", model="llava-onevision-0.5b", resolution=1152, part="llm", **base)
    (encode,) = verdicts("fastvlm-table6", measured.gather(frame.load(tmp_path), {}), "R2", "vision_enc_latency_ms")
    assert encode.measured.value == pytest.approx(1, rel=0.05)
    assert "isolated" in encode.marks


@pytest.mark.parametrize(("prefill_ms", "verdict"), [(114.0, "differs: 0.01"), (6842.0, "undecided, no interval: -4")])
def test_a_ratio_without_an_interval_differs_only_by_a_factor_of_two(
    tmp_path: Path, prefill_ms: float, verdict: str
) -> None:
    """Two pages say little of the next ones: near the published ratio it matches, somewhat off nothing is decided."""
    cells = (("fastvlm-0.5b", 1024, 116.3, 50.5), ("llava-onevision-0.5b", 1152, 2721.4, prefill_ms))
    data = timed(tmp_path, *cells, images=2)
    (encode,) = verdicts("fastvlm-table6", data, "R2", "vision_enc_latency_ms")
    assert (encode.verdict, encode.measured.low) == ("matches", None)
    (prefill,) = verdicts("fastvlm-table6", data, "R2", "llm_prefill_ms")
    assert prefill.verdict.startswith(verdict)
    (table, *_) = tables.published(load_report_card("fastvlm-table6"), data)
    assert any(verdict in entry.text for row in table.rows for entry in row)
    (finding,) = [f for f in findings(load_report_card("claims"), Evidence(data)) if f.claim.name == "85x: prefill"]
    assert finding.verdict.startswith(verdict)


def test_a_ratio_is_as_sure_as_the_tables_intervals(tmp_path: Path) -> None:
    """Twenty samples of two pages bound no median, and no ratio of it."""
    for model, side in (("fastvlm-0.5b", 1024), ("llava-onevision-0.5b", 1152)):
        synthetic_logs.write(tmp_path / f"{model}.jsonl", model=model, resolution=side, n=20, images=2)
    upper, lower = measured.gather(frame.load(tmp_path), {}).cells
    assert upper.times.of("ttft").low is None
    found = Evidence(NOTHING).ratio(upper, lower, "ttft")
    assert found.value is not None
    assert found.low is None


def test_claims_add_up_to_what_is_claimed() -> None:
    found = {f.claim.name: f for f in findings(load_report_card("claims"), Evidence(NOTHING))}
    assert set(found) == {
        "85x", "7.9x", "3.2x", "2.3x", "22 %", "2x", "3.4x smaller", "4x fewer tokens", "85x: encode", "85x: prefill",
        "+8.4 TextVQA", "+12.5 DocVQA", "5x fewer tokens", "2.3x fewer tokens",
    }  # fmt: skip
    for finding in found.values():
        assert shown(finding.claim, finding.published) == pytest.approx(finding.claim.claimed, rel=0.03)
        assert finding.verdict == "not run here"
        assert any(word in finding.why_not for word in ("harness run", "was not run", "no card of this harness"))
    assert found["85x"].published_encode == pytest.approx(23.4, abs=0.05)
    assert found["85x"].published_prefill == pytest.approx(226, abs=0.5)
    assert found["7.9x"].published_encode == pytest.approx(33.2, abs=0.05)
    assert found["7.9x"].published_prefill == pytest.approx(2.33, abs=0.01)


def test_a_claim_is_measured_per_platform_and_protocol(tmp_path: Path) -> None:
    cells = (("fastvlm-0.5b", 1024, 116.3, 50.5), ("llava-onevision-0.5b", 1152, 2721.4, 11402.4))
    for device in ("cpu", "cuda"):
        for protocol in ("ttft", "paper"):
            data = timed(tmp_path / device / protocol, *cells, device=device, protocol=protocol)
    data = frame.load(tmp_path)
    data = measured.gather(data, scoring.of(data, remember=False))
    found = [f for f in findings(load_report_card("claims"), Evidence(data)) if f.claim.name == "85x"]
    assert [(f.platform[1], f.protocol) for f in found] == [
        ("cpu", "ttft"), ("cpu", "paper"), ("cuda", "ttft"), ("cuda", "paper"),
    ]  # fmt: skip
    for finding in found:
        assert finding.verdict == "matches"
        assert finding.measured.low < 85 * 1.02
        assert finding.encode.value == pytest.approx(23.4, rel=0.03)


def test_what_is_to_be_run_pairs_with_what_is_there(tmp_path: Path) -> None:
    """Without the other side's suite, limit, precision and protocol the row stayed unpaired after the run."""
    about = {"device": "cuda", "protocol": "paper", "dtype": "bfloat16", "threads": 4}
    timed(tmp_path / "whole", ("llava-onevision-0.5b", 1152, 900.0, 4000.0), limit=12, **{**about, "protocol": "ttft"})
    data = timed(tmp_path, ("llava-onevision-0.5b", 1152, 900.0, 4000.0), limit=12, **about)
    (finding,) = [f for f in findings(load_report_card("claims"), Evidence(data)) if f.claim.name == "85x"]
    command = (
        "harness run --model fastvlm-0.5b --res 1024 --suite pages --data THE-SAME-FILE --limit 12 --device cuda "
        "--dtype bfloat16 --threads 4 --protocol paper"
    )
    assert finding.why_not == f"not measured; next: on box, `{command}`"
    data = timed(tmp_path, ("fastvlm-0.5b", 1024, 100.0, 50.0), limit=12, **about)  # as that command measures
    (finding,) = [f for f in findings(load_report_card("claims"), Evidence(data)) if f.claim.name == "85x"]
    assert finding.measured is not None


def test_sides_that_do_not_pair_are_told_what_would(tmp_path: Path) -> None:
    timed(tmp_path, ("llava-onevision-0.5b", 1152, 900.0, 4000.0), dtype="bfloat16", data="embedded")
    data = timed(tmp_path, ("fastvlm-0.5b", 1024, 100.0, 50.0), data="embedded")
    (finding,) = [f for f in findings(load_report_card("claims"), Evidence(data)) if f.claim.name == "85x"]
    assert finding.why_not == (
        "both sides were measured, but never on the same machine, device and precision by the same protocol; next: on "
        "box, `harness run --model llava-onevision-0.5b --res 1152 --suite pages --device cpu --dtype float32`"
    )
    (finding,) = [f for f in findings(load_report_card("claims"), Evidence(NOTHING)) if f.claim.name == "85x"]
    assert finding.why_not.count("--suite pages --protocol paper`") == 2, "no log says how: the two pair all the same"


def test_a_saving_is_compared_in_percentage_points(tmp_path: Path) -> None:
    data = timed(tmp_path, ("convllava-7b-768", 768, 200.0, 300.0), ("fastvlm-vicuna-7b", 768, 150.0, 300.0))
    (finding,) = [f for f in findings(load_report_card("claims"), Evidence(data)) if f.claim.name == "22 %"]
    assert shown(finding.claim, finding.measured.value) == pytest.approx(0.1, abs=0.02)
    assert finding.verdict.startswith("differs by -1")
    assert finding.verdict.endswith("percentage points")


@pytest.mark.parametrize(
    ("figure", "said"), [("x|y", "file|table|row|column"), ("../../a.csv|t|r|c", "out of reports/paper")]
)
def test_a_citation_that_names_no_published_figure_is_refused(figure: str, said: str) -> None:
    with pytest.raises(CardError, match=re.escape(said)):
        published.cite(figure)


def test_a_claim_whose_sides_cite_nothing_is_refused() -> None:
    claim = Claim(
        name="a", text="b", claimed=2.0, quantity="ttft", numerator=Side(title="n"), denominator=Side(title="d")
    )
    with pytest.raises(CardError, match="claim 'a': a side cites no published ttft; next:"):
        findings(ReportCard(title="x", kind="claims", claims=(claim,)), Evidence(NOTHING))
