"""The committed run logs and the reports made of them belong together: CI renders anew and compares."""

from pathlib import Path

import pytest

from harness.reports import render
from harness.runlog import log as runlog

ROOT = Path(__file__).parents[2]
LOGS, RENDERED = ROOT / "results" / "reference", ROOT / "reports" / "rendered"
FAMILIES = ROOT / "results" / "families"
TEXTS = ("md", "tex", "csv")
"""Pictures and pages depend on matplotlib's version in their last digits; texts and tables do not."""


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not LOGS.is_dir():
        pytest.skip(f"no reference logs in {LOGS}: not a checkout of the repository")
    folder = tmp_path_factory.mktemp("rendered")
    render.render_all(render.names(), LOGS, folder, TEXTS)
    return folder


def texts(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.suffix[1:] in TEXTS)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_the_committed_reports_are_what_the_logs_give(rendered: Path) -> None:
    """After a change on purpose: `harness report --all --logs results/reference --out reports/rendered`."""
    fresh, committed = texts(rendered), texts(RENDERED)
    assert sorted(fresh) == sorted(committed)
    different = [name for name in fresh if fresh[name] != committed[name]]
    assert not different, f"rendered anew, these differ: {different}"


def test_the_families_figure_is_what_its_logs_give(tmp_path: Path) -> None:
    """After a change on purpose: the command of benchmarks/families-cpu.toml, and `cells` of the same logs."""
    if not FAMILIES.is_dir():
        pytest.skip(f"no logs in {FAMILIES}: not a checkout of the repository")
    card = ROOT / "benchmarks" / "families-tokens.toml"
    render.render_all([str(card), "cells"], FAMILIES, tmp_path, ("md", "csv"))
    fresh, committed = texts(tmp_path), texts(ROOT / "docs" / "families")
    assert [name for name in fresh if fresh[name] != committed.get(name)] == []


@pytest.mark.parametrize("folder", [LOGS, FAMILIES])
def test_every_reference_log_is_whole_and_names_no_machines_paths(folder: Path) -> None:
    logs = list(runlog.find(folder))
    assert logs
    for path in logs:
        log = runlog.read(path)
        assert log.finished, path
        assert "/root/" not in path.read_text(), path
        trained = log.header.cell["model"] == "fastvlm-nano"
        assert log.header.weights["source"] == ("shipped" if trained else "random"), path
        assert not Path(log.header.weights["location"]).is_absolute(), path
