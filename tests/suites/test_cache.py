"""The cache of examples: a place that cannot be written is named together with the variable that moves it."""

import errno
from pathlib import Path

import pytest

from harness.errors import DataError
from harness.suites import cache


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EEXIST, errno.EROFS])
def test_a_cache_that_cannot_be_made_names_its_variable(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path / "c"))
    with pytest.raises(DataError, match="VLM_PARETO_CACHE=FOLDER"), cache.writing():
        raise OSError(number, "said so", str(tmp_path / "c" / "examples"))


def test_a_file_that_is_missing_elsewhere_is_not_blamed_on_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLM_PARETO_CACHE", str(tmp_path / "c"))
    with pytest.raises(FileNotFoundError), cache.writing():
        (tmp_path / "data.parquet").read_bytes()
