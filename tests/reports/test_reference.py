"""The committed run logs and the reports made of them belong together: CI renders anew and compares."""

from pathlib import Path

import pytest

from harness.reports import render
from harness.runlog import log as runlog

ROOT = Path(__file__).parents[2]
LOGS, RENDERED = ROOT / "results" / "reference", ROOT / "reports" / "rendered"
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


def test_every_reference_log_is_whole_and_names_no_machines_paths() -> None:
    logs = list(runlog.find(LOGS))
    assert logs
    for path in logs:
        log = runlog.read(path)
        assert log.finished, path
        assert "/root/" not in path.read_text(), path
        trained = log.header.cell["model"] == "fastvlm-nano"
        assert log.header.weights["source"] == ("shipped" if trained else "random"), path
        assert not Path(log.header.weights["location"]).is_absolute(), path
