"""Ten times as many requests as can be answered: the answers keep coming, and refusals come at once.

`python -m bench.front --only overload --overload-seconds 300` is the long form.
"""

from __future__ import annotations

from pathlib import Path

from bench.front import measure_overload, measure_waiters, picture

LEAST_GOODPUT = 0.9
SLOWEST_REFUSAL_S = 0.5
"""Of the median refusal, also on a machine that does something else beside; the benchmark's figures are what counts."""


def test_under_ten_times_the_peak_goodput_stays_and_refusals_are_fast(tmp_path: Path) -> None:
    overload = measure_overload(tmp_path, seconds=12, times=10, image=picture(100_000))
    print(overload)
    assert overload.refused > 0
    assert overload.others == {"not sent in time": 0}
    assert overload.share >= LEAST_GOODPUT
    assert overload.refusal_p50 < SLOWEST_REFUSAL_S


def test_waiting_requests_take_no_connections_and_are_all_answered(tmp_path: Path) -> None:
    waiters = measure_waiters(tmp_path, 300)
    print(waiters)
    assert waiters.answered == 300
    assert waiters.connections <= 24  # the pool, the readers, and the benchmark's own
