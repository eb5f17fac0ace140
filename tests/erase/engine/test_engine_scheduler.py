"""Admission: pure, so every promise is a property."""

from hypothesis import assume, given
from hypothesis import strategies as st

from erase.engine.scheduler import Candidate, admit

candidates = st.lists(st.builds(Candidate, st.integers(1, 100), st.booleans()), max_size=8)
crowd = st.lists(st.builds(Candidate, st.integers(1, 100)), max_size=8)
runners = st.integers(1, 6)
budgets = st.integers(1, 250)


@given(candidates, crowd, runners, budgets)
def test_never_more_run_than_may(waiting, running, max_running, budget):
    running = running[:max_running]
    admitted = admit(waiting, running, max_running, budget)
    assert 0 <= admitted <= len(waiting)
    assert len(running) + admitted <= max_running


@given(candidates, runners, budgets)
def test_something_starts_whenever_nothing_runs_and_something_waits(waiting, max_running, budget):
    assume(waiting)
    assert admit(waiting, [], max_running, budget) >= 1


@given(candidates, crowd, runners, budgets)
def test_a_packed_prefill_stays_within_its_budget_unless_it_is_one_prompt(waiting, running, max_running, budget):
    admitted = admit(waiting, running[:max_running], max_running, budget)
    assert admitted <= 1 or sum(candidate.pruned_length for candidate in waiting[:admitted]) <= budget


@given(candidates, crowd, runners, budgets)
def test_who_must_run_alone_does(waiting, running, max_running, budget):
    running = running[:max_running]
    admitted = waiting[: admit(waiting, running, max_running, budget)]
    if any(candidate.alone for candidate in admitted):
        assert len(admitted) == 1
        assert not running
    assert admit(waiting, [Candidate(1, alone=True)], max_running, budget) == 0


@given(candidates, crowd, runners, budgets)
def test_as_many_start_as_the_limits_allow(waiting, running, max_running, budget):
    running = running[:max_running]
    admitted = admit(waiting, running, max_running, budget)
    assume(admitted < len(waiting))
    following = waiting[admitted]
    tokens = sum(candidate.pruned_length for candidate in waiting[: admitted + 1])
    assert (
        len(running) + admitted == max_running
        or (admitted and tokens > budget)
        or (following.alone and (running or admitted))
        or waiting[0].alone
    )


@given(candidates, runners, budgets, st.data())
def test_all_run_in_the_order_in_which_they_came(waiting, max_running, budget, data):
    running, started, left = [], [], list(enumerate(waiting))
    for _ in range(100):
        admitted = admit([item for _, item in left], [item for _, item in running], max_running, budget)
        started += left[:admitted]
        running += left[:admitted]
        left = left[admitted:]
        if running:
            running.pop(data.draw(st.integers(0, len(running) - 1)))
    assert [index for index, _ in started] == list(range(len(waiting)))
    assert not running
