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
        ("contains", "15", ["5"], 1.0),
        ("words", "The sign says STOP.", ["stop"], 1.0),
        ("words", "It is 5.", ["5"], 1.0),
        ("words", "(5)", ["5"], 1.0),
        ("words", "15", ["5"], 0.0),
        ("words", "5.25", ["5"], 0.0),
        ("words", "1.5", ["5"], 0.0),
        ("words", "north", ["no"], 0.0),
        ("words", "bored", ["red"], 0.0),
        ("words", "costs 54% today", ["54%"], 1.0),
        ("words", "main \n street", ["Main Street"], 1.0),
        ("vqa", "Stop!", ["stop"] * 3 + ["go"] * 7, (3 * 2 / 3 + 7 * 1) / 10),
        ("vqa", "the stop", ["stop"] * 10, 1.0),
        ("vqa", "stop", ["stop"] + ["go"] * 9, 9 / 10 / 3),
        ("vqa", "left", ["stop"] + ["go"] * 9, 0.0),
        ("vqa", "two", ["2"], 1.0),
        ("words", "5,000", ["5"], 0.0),
        ("words", "1,5", ["5"], 0.0),
        ("words", "-5", ["5"], 0.0),
        ("words", "5:30", ["5"], 0.0),
        ("words", "5, 6", ["5"], 1.0),
        ("vqa", "1,000", ["1000"], 1.0),
        ("vqa", "1,000", ["1.000"], 0.0),
        ("vqa", "50%", ["50"], 0.0),
        ("vqa", "$5", ["5"], 0.0),
        ("vqa", "dr. no", ["Dr No"], 1.0),
        ("vqa", "stop-go", ["stop go"], 1.0),
        ("vqa", "stop", ["stop", "go"], 1.0),
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
