"""The benchmarks' rules, on answers that can be judged by eye."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erase.metrics import edit_distance, score


@pytest.mark.parametrize(
    ("metric", "answer", "accepted", "expected"),
    [
        ("exact", " Red ", ["red"], 1.0),
        ("exact", "dark red", ["red"], 0.0),
        ("exact", "two", ["2", "two"], 1.0),
        ("relaxed", "104", ["100"], 1.0),
        ("relaxed", "105.1", ["100"], 0.0),
        ("relaxed", "-95", ["-100"], 1.0),
        ("relaxed", "0", ["0.0"], 1.0),
        ("relaxed", "0.01", ["0"], 0.0),
        ("relaxed", "1,040", ["$1000"], 1.0),
        ("relaxed", "42%", ["0.42"], 1.0),
        ("relaxed", "nan", ["nan"], 1.0),
        ("relaxed", "Tuesday", ["tuesday"], 1.0),
        ("relaxed", "Tuesday", ["7"], 0.0),
        ("anls", "invoice", ["invoice"], 1.0),
        ("anls", "invoica", ["invoice"], 1 - 1 / 7),
        ("anls", "in", ["invoice"], 0.0),
        ("anls", "abcd", ["abxy"], 0.5),
        ("anls", "", ["x"], 0.0),
        ("contains", "The sign says STOP.", ["stop"], 1.0),
        ("contains", "sto p", ["stop"], 0.0),
        ("contains", "main \n street", ["Main Street"], 1.0),
    ],
)
def test_scores(metric, answer, accepted, expected):
    assert score(metric, answer, accepted) == pytest.approx(expected)


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_the_edit_distance_is_that_of_the_definition(one, other):
    def slow(left: str, right: str) -> int:
        if not left or not right:
            return len(left) + len(right)
        change = slow(left[1:], right[1:]) + (left[0] != right[0])
        return min(change, slow(left[1:], right) + 1, slow(left, right[1:]) + 1)

    assert edit_distance(one, other) == slow(one, other)
