"""Retention under overload: only below a wait that the operator accepts, never below the operator's floor."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erase import BinnedPolicy
from worker.contract import GenerationOptions, JobRequest, PruningOptions
from worker.overload import LoadAdaptation
from worker.policies import PolicyBook

fractions = st.floats(0.05, 1.0)
waits = st.floats(0.0, 1000.0)


@given(fractions, waits)
def test_without_a_floor_nothing_is_ever_lowered(usual, waited):
    assert LoadAdaptation(None, 1.0).retention(usual, waited) == usual


@given(fractions, fractions, waits, waits)
def test_retention_falls_with_the_wait_between_usual_and_floor(usual, floor, one, other):
    adaptation = LoadAdaptation(floor, 2.0)
    short, long = sorted((one, other))
    assert adaptation.retention(usual, long) <= adaptation.retention(usual, short) <= usual
    assert adaptation.retention(usual, long) >= min(usual, floor) - 1e-4


def test_the_first_wait_changes_nothing_and_four_times_as_much_reaches_the_floor():
    adaptation = LoadAdaptation(0.2, 2.0)
    assert adaptation.retention(0.5, 2.0) == 0.5
    assert adaptation.retention(0.5, 5.0) == pytest.approx(0.35)
    assert adaptation.retention(0.5, 8.0) == adaptation.retention(0.5, 100.0) == 0.2


class Loaded:
    name, revision = "model", "0"


@pytest.mark.parametrize(
    ("asked", "waited", "used", "usual"),
    [(None, 0.0, 0.4, None), (None, 60.0, 0.1, 0.4), (0.8, 60.0, 0.8, None)],
    ids=["no wait", "overload", "retention named by the request"],
)
def test_only_requests_that_name_no_retention_are_pruned_more(asked, waited, used, usual):
    policy = BinnedPolicy((), (0.9,), 0.4)
    book = PolicyBook({"own": policy}, "own", LoadAdaptation(0.1, 2.0))
    request = JobRequest(prompt="?", images=(), generation=GenerationOptions(), pruning=PruningOptions(retention=asked))
    plan = book.plan(request, Loaded(), waited)
    assert plan.retention == plan.policy_settings["final_retention"] == used
    assert plan.usual_retention == usual
