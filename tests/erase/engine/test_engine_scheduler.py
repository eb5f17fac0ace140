"""Admission: pure, so every promise is a property."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from erase.engine.scheduler import Budget, Candidate, Shares, admit

POOL = 500
sizes = (st.integers(1, 100), st.integers(1, POOL))  # prompt tokens, cache rows
candidates = st.lists(st.builds(Candidate, *sizes, st.booleans()), max_size=8)
crowd = st.lists(st.builds(Candidate, *sizes), max_size=8)
runners = st.integers(1, 6)
budgets = st.integers(1, 250)


def left(running, max_running, prefill_tokens):
    """What may still be taken beside those that run."""
    rows = POOL - sum(candidate.cache_rows for candidate in running)
    return Budget(max_running - len(running), prefill_tokens, max(0, rows))


@given(candidates, crowd, runners, budgets)
def test_never_more_run_than_may(waiting, running, max_running, budget):
    running = running[:max_running]
    admitted = admit(waiting, running, left(running, max_running, budget))
    assert 0 <= admitted <= len(waiting)
    assert len(running) + admitted <= max_running


@given(candidates, runners, budgets)
def test_something_starts_whenever_nothing_runs_and_something_waits(waiting, max_running, budget):
    assume(waiting)
    assert admit(waiting, [], left([], max_running, budget)) >= 1


@given(candidates, crowd, runners, budgets)
def test_a_packed_prefill_stays_within_its_budget_unless_it_is_one_prompt(waiting, running, max_running, budget):
    running = running[:max_running]
    admitted = admit(waiting, running, left(running, max_running, budget))
    assert admitted <= 1 or sum(candidate.pruned_length for candidate in waiting[:admitted]) <= budget


@given(candidates, crowd, runners, budgets)
def test_who_must_run_alone_does(waiting, running, max_running, budget):
    running = running[:max_running]
    admitted = waiting[: admit(waiting, running, left(running, max_running, budget))]
    if any(candidate.alone for candidate in admitted):
        assert len(admitted) == 1
        assert not running
    assert admit(waiting, [Candidate(1, alone=True)], left([], max_running, budget)) == 0


@given(candidates, crowd, runners, budgets)
def test_as_many_start_as_the_limits_allow(waiting, running, max_running, budget):
    running = running[:max_running]
    admitted = admit(waiting, running, left(running, max_running, budget))
    assume(admitted < len(waiting))
    following = waiting[admitted]
    tokens = sum(candidate.pruned_length for candidate in waiting[: admitted + 1])
    assert (
        len(running) + admitted == max_running
        or (admitted and tokens > budget)
        or sum(candidate.cache_rows for candidate in [*running, *waiting[: admitted + 1]]) > POOL
        or (following.alone and (running or admitted))
        or waiting[0].alone
    )


@given(candidates, runners, budgets, st.data())
def test_all_run_in_the_order_in_which_they_came(waiting, max_running, budget, data):
    running, started, queue = [], [], list(enumerate(waiting))
    for _ in range(100):
        beside = [item for _, item in running]
        admitted = admit([item for _, item in queue], beside, left(beside, max_running, budget))
        started += queue[:admitted]
        running += queue[:admitted]
        queue = queue[admitted:]
        if running:
            running.pop(data.draw(st.integers(0, len(running) - 1)))
    assert [index for index, _ in started] == list(range(len(waiting)))
    assert not running


@given(candidates, crowd, runners, budgets)
def test_the_pool_of_caches_is_never_overdrawn(waiting, running, max_running, budget):
    running = running[:max_running]
    budget = left(running, max_running, budget)
    admitted = waiting[: admit(waiting, running, budget)]
    assert all(candidate.alone for candidate in admitted) or (
        sum(candidate.cache_rows for candidate in admitted) <= budget.cache_rows
    )


@given(st.floats(0.05, 0.95), st.lists(st.tuples(st.integers(1, 100), st.integers(1, 100)), min_size=200, max_size=200))
def test_while_both_priorities_wait_each_gets_its_share_of_the_tokens(share, prompts):
    shares, tokens = Shares(share), {"interactive": 0, "batch": 0}
    for interactive, batch in prompts:
        turn = shares.next(["interactive", "batch"])
        own = interactive if turn == "interactive" else batch
        shares.served(turn, own)
        tokens[turn] += own
    total = sum(tokens.values())
    assert abs(tokens["interactive"] - share * total) <= 200


@pytest.mark.parametrize(("steady", "blinking"), [("batch", "interactive"), ("interactive", "batch")])
def test_what_is_owed_to_a_priority_is_not_lost_while_the_other_pauses(steady, blinking):
    shares = Shares(0.5)
    turns = []
    for _ in range(20):
        turns.append(shares.next(["interactive", "batch"]))
        shares.served(turns[-1], 100)
        if turns[-1] == blinking:  # away for a moment, in which nothing fits, so nobody is served
            assert shares.next([steady]) == steady
    assert abs(turns.count(steady) - 10) <= 1


def test_a_priority_that_did_not_wait_has_saved_nothing_up():
    shares = Shares(0.5)
    for _ in range(10):
        assert shares.next(["interactive"]) == "interactive"
        shares.served("interactive", 100)
    turns = []
    for _ in range(6):
        turns.append(shares.next(["interactive", "batch"]))
        shares.served(turns[-1], 100)
    assert sorted(turns) == ["batch"] * 3 + ["interactive"] * 3
