"""The first screen of a page: what it says of the cell that it tells people to take."""

from pathlib import Path

import synthetic_logs

from harness.reports import frame, front, measured
from harness.reports.accuracy import Accuracy
from harness.reports.document import Table
from harness.stats import mean_interval_clustered


def test_a_doubt_goes_with_the_cell_that_is_to_be_taken(tmp_path: Path) -> None:
    synthetic_logs.write(tmp_path / "a.jsonl", model="a", n=30, failures=2)
    scores, clusters = tuple(float(k % 3 > 0) for k in range(60)), tuple(f"i{k}" for k in range(60))
    mean = mean_interval_clustered(scores, clusters)
    score = Accuracy("ANLS", mean.value, mean.low, mean.high, 60, "", scores, clusters, asked=60)
    data = frame.load(tmp_path)
    (choice,), _ = front.front(measured.gather(data, {each.configuration: score for each in data.cells}), [])
    assert isinstance(choice, Table)
    take = choice.rows[-1][1]
    assert take.text == "a at 1024 px"
    assert "doubted" in take.marks
    assert "; doubt: 2 examples failed" in take.hover
    assert "doubted" in choice.marks, "the page's legend explains the sign"
