"""A short storm; the long one is `python -m tests.faults.random_kills --kills 200`."""

from __future__ import annotations

from pathlib import Path

from tests.faults.random_kills import Storm

RESCUE_P99_S = 15.0


def test_under_random_kills_every_request_gets_its_one_right_answer(tmp_path: Path) -> None:
    storm = Storm(tmp_path, seed=1, clients=3)
    try:
        report = storm.run(kills=6)
    finally:
        storm.close()
    figures = report.as_dict()
    print(figures)
    assert figures["wrong"] == []
    assert figures["requests"] > 3
    assert figures["rescue_s"].get("p99", 0) < RESCUE_P99_S
