"""Leases of running jobs: renewed while the engine moves, reported lost once, given up when it stalls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.worker import helpers
from tests.worker.helpers import accept, lease, lose_lease, until
from worker import ledger
from worker.contract import JobState
from worker.leases import LeaseKeeper
from worker.ledger import execute

LEASE_S = 0.3


@dataclass
class Losing:
    """Counts the calls of `on_lost`."""

    calls: int = 0

    def __call__(self) -> None:
        self.calls += 1


@dataclass
class Stack:
    """A keeper over a client that can be made to fail, and an engine that can be made to stall."""

    client: redis.Redis
    keeper: LeaseKeeper = field(init=False)
    stalled: bool = False
    failures: int = 0
    rounds: int = 0

    def __post_init__(self) -> None:
        self.keeper = LeaseKeeper(self, LEASE_S, lambda: self.stalled)  # type: ignore[arg-type]

    def pipeline(self, **options: Any) -> Any:
        self.rounds += 1
        if self.failures:
            self.failures -= 1
            raise RedisConnectionError("away")
        return self.client.pipeline(**options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)


@pytest.fixture
def stack(redis_client: redis.Redis) -> Iterator[Stack]:
    stack = Stack(redis_client)
    stack.keeper.start()
    yield stack
    stack.keeper.stop()


def lease_end(client: redis.Redis, job_id: str = "job_1") -> int:
    return int(helpers.field(client, "lease_until_ms", job_id) or 0)


def moved(client: redis.Redis, job_id: str = "job_1") -> Callable[[], bool]:
    """True once the lease ends later than now."""
    before = lease_end(client, job_id)
    return lambda: lease_end(client, job_id) > before


def taken(client: redis.Redis, job_id: str = "job_1") -> ledger.Job:
    accept(client, job_id)
    return lease(client, job_id, lease_ms=int(LEASE_S * 1000))


def test_every_held_lease_is_renewed_again_and_again(redis_client: redis.Redis, stack: Stack) -> None:
    lost = Losing()
    first, second = taken(redis_client), taken(redis_client, "job_2")
    with stack.keeper.hold(first.id, 1, lost), stack.keeper.hold(second.id, 1, lost):
        assert stack.keeper.held == 2
        for _ in range(3):
            until(moved(redis_client), "a renewal")
        until(moved(redis_client, "job_2"), "a renewal")
        assert execute(redis_client, ledger.lease("job_1", "thief", 1000, 3)).status == "taken"
    assert stack.keeper.held == 0
    assert lost.calls == 0


def test_all_leases_are_renewed_in_one_round_trip(redis_client: redis.Redis, stack: Stack) -> None:
    for number in range(5):
        taken(redis_client, f"job_{number}")
    with ExitStack() as holds:
        for number in range(5):
            holds.enter_context(stack.keeper.hold(f"job_{number}", 1, Losing()))
        before = {number: lease_end(redis_client, f"job_{number}") for number in range(5)}
        rounds = stack.rounds
        until(lambda: all(lease_end(redis_client, f"job_{n}") > before[n] for n in before), "all renewals")
        assert stack.rounds - rounds <= 2


def test_nothing_is_renewed_when_the_block_has_ended(redis_client: redis.Redis, stack: Stack) -> None:
    taken(redis_client)
    with stack.keeper.hold("job_1", 1, Losing()):
        until(moved(redis_client), "a renewal")
    other = taken(redis_client, "job_2")
    end = lease_end(redis_client)
    with stack.keeper.hold(other.id, 1, Losing()):
        until(moved(redis_client, "job_2"), "a later renewal")
        until(moved(redis_client, "job_2"), "a second later renewal")
    assert lease_end(redis_client) == end


@pytest.mark.parametrize("how", ["another attempt", "cancelled", "gone"])
def test_a_lost_lease_is_reported_once(redis_client: redis.Redis, stack: Stack, how: str) -> None:
    lost = Losing()
    taken(redis_client)
    with stack.keeper.hold("job_1", 1, lost) as held:
        if how == "another attempt":
            lose_lease(redis_client)
            lease(redis_client)
        elif how == "cancelled":
            execute(redis_client, ledger.cancel("job_1"))
        else:
            redis_client.flushall()
        until(lambda: lost.calls, "the report")
        rounds = stack.rounds
        until(lambda: stack.rounds >= rounds + 3, "three more rounds")
        assert held.lost
    assert lost.calls == 1


def test_a_lost_lease_does_not_touch_the_others(redis_client: redis.Redis, stack: Stack) -> None:
    lost, kept = Losing(), Losing()
    taken(redis_client)
    taken(redis_client, "job_2")
    with stack.keeper.hold("job_1", 1, lost), stack.keeper.hold("job_2", 1, kept):
        execute(redis_client, ledger.cancel("job_1"))
        until(lambda: lost.calls, "the report")
        until(moved(redis_client, "job_2"), "a renewal")
    assert kept.calls == 0


def test_a_stalled_engine_lets_its_leases_run_out_until_it_moves_again(redis_client: redis.Redis, stack: Stack) -> None:
    lost = Losing()
    stack.stalled = True
    taken(redis_client)
    with stack.keeper.hold("job_1", 1, lost):
        granted = until(
            lambda: (given := execute(redis_client, ledger.lease("job_1", "thief", 60_000, 3))).job and given,
            "the end of the lease",
        )
        assert (granted.job.attempt, lost.calls, stack.rounds) == (2, 0, 0)
        stack.stalled = False
        until(lambda: lost.calls, "the report")


def test_errors_of_redis_are_survived(redis_client: redis.Redis, stack: Stack) -> None:
    lost = Losing()
    taken(redis_client)
    stack.failures = 3
    with stack.keeper.hold("job_1", 1, lost):
        until(lambda: stack.rounds >= 3, "failed rounds")
        until(moved(redis_client), "a renewal after all")
    assert lost.calls == 0
    assert helpers.state(redis_client) is JobState.RUNNING


def test_a_renewed_lease_does_not_hide_the_deadline_from_the_sweeper(redis_client: redis.Redis) -> None:
    accept(redis_client, timeout_ms=30_000)
    lease(redis_client)
    execute(redis_client, ledger.renew("job_1", 1, 60_000))
    due = redis_client.zscore("erase:open", "job_1")
    assert due == int(helpers.field(redis_client, "deadline_ms") or 0)
