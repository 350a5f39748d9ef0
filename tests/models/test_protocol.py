"""What a stage must do, against what the machine can."""

import pytest

from harness.models.protocol import Work


@pytest.mark.parametrize(
    ("work", "duration_ns", "share"),
    [
        (Work(10**9, 0), 2_000_000, 0.5),  # 1 ms of computing in 2 ms
        (Work(10**9, 10**9), 20_000_000, 0.5),  # reading the weights takes 10 ms
        (Work(0, 10**9), 10_000_000, 1.0),
        (Work(0, 0), 1_000, None),
        (Work(10**9, 0), 0, None),
    ],
)
def test_the_share_of_the_roofline_is_the_least_time_over_the_time(
    work: Work, duration_ns: int, share: float | None
) -> None:
    assert work.share_of_roofline(duration_ns, 1e12, 1e11) == (None if share is None else pytest.approx(share))
