"""What groups of cells are called: no two alike, for files and answers are told apart by it."""

from pathlib import Path

import synthetic_logs

from harness.reports import frame, measured, wording


def test_groups_of_one_suite_and_platform_say_which_questions(tmp_path: Path) -> None:
    """With `--limit 4` first and all questions afterwards there were two figures under one title."""
    for number, limit in enumerate((None, 4)):
        synthetic_logs.write(tmp_path / f"{number}.jsonl", of_cell={"limit": limit})
    synthetic_logs.write(tmp_path / "other.jsonl", machine="elsewhere")
    groups = measured.by_platform(measured.gather(frame.load(tmp_path), {}).cells, suites=True)
    assert sorted(wording.abouts(groups)) == [
        "pages on box, cpu, torch, float32, all questions",
        "pages on box, cpu, torch, float32, the first 4 questions",
        "pages on elsewhere, cpu, torch, float32",
    ]


def test_other_data_are_named_by_their_digest(tmp_path: Path) -> None:
    for digest in ("d0", "d1aaaaaaaaaa"):
        synthetic_logs.write(tmp_path / f"{digest}.jsonl", data_digest=digest)
    groups = measured.by_platform(measured.gather(frame.load(tmp_path), {}).cells, suites=True)
    assert sorted(wording.abouts(groups)) == [
        "pages on box, cpu, torch, float32, data d0",
        "pages on box, cpu, torch, float32, data d1aaaaaa",
    ]
