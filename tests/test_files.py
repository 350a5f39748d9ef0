"""Where our files lie, also for a user who has no home."""

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
