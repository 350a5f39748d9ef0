"""Of a folder only the task's tables are taken: by configuration, split and shard; the rest is named or refused."""

from pathlib import Path

import pytest

from harness.errors import DataError
from harness.suites import tables
from harness.suites.definitions import Definition

DOCVQA = Definition(Path("x.yaml"), "some/DocVQA", "DocVQA", "validation")
PLAIN = Definition(Path("x.yaml"), "some/textvqa", None, "validation")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path / "cache"))


def folder(root: Path, *names: str, same: bool = False) -> Path:
    """Make files of these names; what is in them plays no part, but whether it is the same."""
    place = root / "given"
    for name in names:
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x" if same else name)
    return place


def taken(place: Path, definition: Definition) -> list[str]:
    """Return the names of the files that are taken."""
    return [file.relative_to(place).as_posix() for file in tables.choose(place, definition).files]


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["DocVQA/validation-00000-of-00001.parquet", "InfographicVQA/validation-00000-of-00001.parquet"], [0]),
        (["DocVQA/train/0000.parquet", "DocVQA/validation/0000.parquet", "DocVQA/test/0000.parquet"], [1]),
        (["default/test/0000.parquet", "default/partial-validation/0000.parquet"], [1]),
        (["train-00000-of-00001.parquet", "val-00000-of-00001.parquet"], [1]),
        (["data/dev.parquet", "data/test.parquet"], [0]),
        (["docvqa_val.parquet", "docvqa_test.parquet"], [0]),
        (["._docs.parquet", ".cache/old.parquet", "docs.parquet"], [2]),
        (["validation.parquet", "val.parquet"], [0]),
        (["0000.parquet", "0001.parquet"], [0, 1]),
        (["validation-00000-of-00002-ab12.parquet", "validation-00001-of-00002-cd34.parquet"], [0, 1]),
    ],
)
def test_split_and_configuration_are_read_off_names_and_folders(
    tmp_path: Path, names: list[str], wanted: list[int]
) -> None:
    place = folder(tmp_path, *names)
    assert taken(place, DOCVQA) == [names[at] for at in wanted]
    said = tables.choose(place, DOCVQA).said
    left = [name for at, name in enumerate(names) if at not in wanted and "/." not in f"/{name}"]
    assert all(name in said for name in left), "what is left out is named"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ["validation-00000-of-00003.parquet", "validation-00002-of-00003.parquet"],
            "1 of 3 files missing: validation-00001-of",
        ),
        (["validation/0000.parquet", "validation/0002.parquet"], "missing: validation/0001"),
        (["train.parquet", "test.parquet"], "no file of the task's split validation, only test, train"),
        (["val.parquet", "dev.parquet"], "files of dev and val"),
        (["InfographicVQA/validation.parquet"], "files in InfographicVQA; the task's configuration is DocVQA"),
        (["a/validation.parquet", "b/validation.parquet"], "files in a, b; the task's configuration is DocVQA"),
        (
            [
                "validation-00000-of-00001.parquet",
                "validation-00000-of-00002.parquet",
                "validation-00001-of-00002.parquet",
            ],
            "two versions of one table",
        ),
        (["validation-00000-of-00001-ab.parquet", "validation-00000-of-00001-cd.parquet"], "two versions of one table"),
        (["validation.parquet", "validation (1).parquet"], r"validation \(1\).parquet is called a copy and has other"),
        ([".hidden.parquet"], "no Parquet files in it"),
    ],
)
def test_what_nothing_decides_is_refused(tmp_path: Path, names: list[str], told: str) -> None:
    with pytest.raises(DataError, match=told):
        tables.choose(folder(tmp_path, *names), DOCVQA)


def test_a_link_to_a_file_that_is_gone_is_named_and_not_left_out(tmp_path: Path) -> None:
    place = folder(tmp_path, "validation.parquet")
    (place / "validation-more.parquet").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"validation-more\.parquet: a broken link"):
        tables.choose(place, PLAIN)
    (place / "validation-more.parquet").unlink()
    (place / "empty.parquet").mkdir()
    assert taken(place, PLAIN) == ["validation.parquet"]


def test_a_copy_is_left_out_and_named(tmp_path: Path) -> None:
    place = folder(tmp_path, "validation-00000-of-00001.parquet", "validation-00000-of-00001 (1).parquet", same=True)
    chosen = tables.choose(place, PLAIN)
    assert [file.name for file in chosen.files] == ["validation-00000-of-00001.parquet"]
    assert "left out as copies: validation-00000-of-00001 (1).parquet" in chosen.said


def test_folders_between_which_nothing_decides_are_refused_for_a_task_without_configurations(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="files in a, b; nothing says which is meant"):
        tables.choose(folder(tmp_path, "a/validation.parquet", "b/validation.parquet"), PLAIN)
    assert taken(tmp_path / "given" / "a", PLAIN) == ["validation.parquet"]


def test_a_file_by_its_path_is_obeyed_and_what_its_name_says_is_told(tmp_path: Path) -> None:
    place = folder(tmp_path, "train-00000-of-00002.parquet", "DocVQA/validation.parquet", "InfographicVQA/0000.parquet")
    chosen = tables.choose(place / "train-00000-of-00002.parquet", DOCVQA)
    assert chosen.said == "its name says train, the task's split is validation; one of 2 files: the others are left out"
    beside = tables.choose(place / "InfographicVQA", DOCVQA)
    assert "this folder is InfographicVQA, the task's configuration DocVQA lies beside it" in beside.said
