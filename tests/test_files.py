"""Where our files lie, also for a user who has no home."""

import errno
import os
import tempfile
from pathlib import Path

import pytest

from harness import files


def test_a_user_without_a_home_has_a_cache_in_the_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(_: type[Path]) -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("VLM_PARETO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", classmethod(no_home))
    assert files.cache_folder().parent == Path(tempfile.gettempdir())


def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as `write` does: it knows no name

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"verdict\.md") as raised:
        files.write_atomically(tmp_path / "verdict.md", "x")
    assert raised.value.filename == str(tmp_path / "verdict.md")
    assert list(tmp_path.iterdir()) == []
