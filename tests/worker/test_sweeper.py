"""The rescue of open jobs, by a sweeper that shares its work with those of other workers."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import cast

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError

from tests.worker.helpers import accept, field, lease, lose_lease, outcome, state, until
from worker import ledger
from worker.contract import OPEN_KEY, SWEEPER_LOCK_KEY, WORKERS_KEY, JobState, Priority, job_key, queue_name
from worker.ledger import execute
from worker.sweeper import FORGET_WORKER_AFTER_MS, JOBS_AT_ONCE, Sweeper, redis_now_ms
from worker.wakeups import send_wakeup

INTERACTIVE, BATCH = queue_name(Priority.INTERACTIVE), queue_name(Priority.BATCH)


class Woken(list[tuple[str, str]]):
    """Wake-ups sent: (job, queue); `first` holds the jobs whose wake-up went to the head of the queue."""

    def __init__(self) -> None:
        super().__init__()
        self.first: list[str] = []

    def __call__(self, job_id: str, queue: str, first: bool) -> None:
        self.append((job_id, queue))
        if first:
            self.first.append(job_id)


@pytest.fixture
def woken() -> Woken:
    return Woken()


def make(
    client: redis.Redis, wake: Callable[[str, str, bool], None], name: str = "w1", every_s: float = 0.1
) -> Sweeper:
    return Sweeper(client, wake, name=name, every_s=every_s, wake_after_s=5, max_attempts=3)


def due_now(client: redis.Redis, *jobs: str) -> None:
    """As if the time of the next check had come."""
    for job_id in jobs or ("job_1",):
        client.zadd(OPEN_KEY, {job_id: 1})


def fail_all_attempts(client: redis.Redis) -> None:
    """A job whose workers died at each of its three attempts, due for a check."""
    accept(client)
    for _ in range(3):
        lease(client)
        lose_lease(client)
    due_now(client)


class TestOneSweep:
    @pytest.mark.parametrize("priority", list(Priority))
    def test_a_lost_wake_up_is_sent_again_to_its_own_queue(
        self, redis_client: redis.Redis, woken: Woken, priority: Priority
    ) -> None:
        accept(redis_client, priority=priority)
        due_now(redis_client)
        assert make(redis_client, woken).sweep() == 1
        assert woken == [("job_1", queue_name(priority))]
        assert woken.first == []

    def test_a_broken_record_does_not_keep_the_others_from_being_rescued(
        self, redis_client: redis.Redis, woken: Woken
    ) -> None:
        redis_client.set(job_key("job_0"), "no hash at all")
        redis_client.hset(WORKERS_KEY, "broken", "{}")
        accept(redis_client)
        due_now(redis_client, "job_0", "job_1")
        assert make(redis_client, woken).sweep() == 1
        assert woken == [("job_1", INTERACTIVE)]
        assert not redis_client.hexists(WORKERS_KEY, "broken")

    def test_a_job_is_not_woken_before_its_time(self, redis_client: redis.Redis, woken: Woken) -> None:
        accept(redis_client)
        assert make(redis_client, woken).sweep() == 0
        assert woken == []

    def test_a_running_job_with_a_live_lease_is_left_alone(self, redis_client: redis.Redis, woken: Woken) -> None:
        accept(redis_client)
        lease(redis_client)
        due_now(redis_client)
        assert make(redis_client, woken).sweep() == 0
        assert state(redis_client) is JobState.RUNNING

    def test_a_dead_workers_job_is_handed_on(self, redis_client: redis.Redis, woken: Woken) -> None:
        accept(redis_client, priority=Priority.BATCH)
        lease(redis_client)
        lose_lease(redis_client)
        due_now(redis_client)
        make(redis_client, woken).sweep()
        assert woken == [("job_1", BATCH)]
        assert woken.first == ["job_1"]
        assert lease(redis_client).attempt == 2

    def test_what_was_worked_on_comes_before_what_waits(self, redis_client: redis.Redis) -> None:
        for name in ("job_0", "job_2"):
            accept(redis_client, name)
            send_wakeup(redis_client, name, INTERACTIVE, first=False)
        accept(redis_client)
        execute(redis_client, ledger.release("job_1", lease(redis_client).attempt))
        make(redis_client, partial(send_wakeup, redis_client)).sweep()
        queue = cast("list[bytes]", redis_client.lrange(INTERACTIVE, 0, -1))
        bodies = [json.loads(base64.b64decode(json.loads(message)["body"])) for message in queue]
        assert [body[0][0] for body in bodies] == ["job_2", "job_0", "job_1"], "a worker takes the last one"

    def test_a_dead_letter_that_is_asked_again_waits_like_a_new_job(
        self, redis_client: redis.Redis, woken: Woken
    ) -> None:
        fail_all_attempts(redis_client)
        make(redis_client, woken).sweep()
        redis_client.hset(job_key("job_1"), "leased_ms", redis_now_ms(redis_client) - 1000)
        assert execute(redis_client, ledger.requeue("job_1", 60_000, 99_000_000, 1)) == ("ok", JobState.ACCEPTED)
        due_now(redis_client)
        assert make(redis_client, woken).sweep() == 1
        assert woken.first == []

    def test_a_redis_that_refuses_writes_ends_the_sweep_and_keeps_the_jobs(
        self, redis_client: redis.Redis, woken: Woken
    ) -> None:
        names = [f"job_{number}" for number in range(5)]
        for name in names:
            accept(redis_client, name)
        due_now(redis_client, *names)
        redis_client.config_set("maxmemory", 1)
        try:
            with pytest.raises(OutOfMemoryError):
                make(redis_client, woken).sweep()
        finally:
            redis_client.config_set("maxmemory", 0)
        assert woken == []
        assert make(redis_client, woken).sweep() == 5

    def test_a_job_is_dead_after_its_last_attempt(self, redis_client: redis.Redis, woken: Woken) -> None:
        fail_all_attempts(redis_client)
        make(redis_client, woken).sweep()
        assert woken == []
        assert state(redis_client) is JobState.DEAD
        problem = outcome(redis_client).problem
        assert problem is not None
        assert problem.type.endswith("dead-letter")

    @pytest.mark.parametrize("running", [False, True])
    def test_an_overdue_job_is_expired_even_under_a_live_lease(
        self, redis_client: redis.Redis, woken: Woken, running: bool
    ) -> None:
        accept(redis_client)
        if running:
            lease(redis_client)
        redis_client.hset(job_key("job_1"), "deadline_ms", 1)
        due_now(redis_client)
        make(redis_client, woken).sweep()
        assert woken == []
        assert state(redis_client) is JobState.EXPIRED

    def test_a_finished_job_leaves_no_trace_among_the_open_ones(self, redis_client: redis.Redis, woken: Woken) -> None:
        accept(redis_client)
        execute(redis_client, ledger.cancel("job_1"))
        due_now(redis_client, "job_1", "job_unknown")
        assert make(redis_client, woken).sweep() == 0
        assert redis_client.zcard(OPEN_KEY) == 0

    def test_more_jobs_than_it_reads_at_once_are_reached_by_one_sweep(
        self, redis_client: redis.Redis, woken: Woken
    ) -> None:
        names = [f"job_{number}" for number in range(2 * JOBS_AT_ONCE + 30)]
        for name in names:
            accept(redis_client, name)
        due_now(redis_client, *names)
        for number in range(3):
            redis_client.set(job_key(f"broken_{number}"), "no hash at all")
            redis_client.zadd(OPEN_KEY, {f"broken_{number}": number})
        sweeper = make(redis_client, woken, every_s=60)
        assert [sweeper.sweep(), sweeper.sweep()] == [len(names), 0]
        assert sorted(job for job, _ in woken) == sorted(names)

    def test_a_sweep_ends_when_its_lock_does(self, redis_client: redis.Redis, woken: Woken) -> None:
        names = [f"job_{number}" for number in range(2 * JOBS_AT_ONCE)]
        for name in names:
            accept(redis_client, name)
        due_now(redis_client, *names)
        sweeper = make(redis_client, woken, every_s=0.0)
        assert [sweeper.sweep() for _ in range(3)] == [JOBS_AT_ONCE, JOBS_AT_ONCE, 0]

    def test_a_job_in_a_growing_queue_is_woken_a_bounded_number_of_times(
        self, redis_client: redis.Redis, woken: Woken
    ) -> None:
        """Ten minutes of waiting behind others, with a sweep each second, on a clock that this test moves."""
        names = [f"job_{number}" for number in range(5)]
        for name in names:
            accept(redis_client, name, timeout_ms=1_200_000)

        def wake(job_id: str, queue: str, first: bool) -> None:
            woken(job_id, queue, first)
            redis_client.lpush(queue, job_id)

        sweeper = make(redis_client, wake)
        redis_client.lpush(INTERACTIVE, *names)
        for _ in range(600):
            for name in names:
                redis_client.zincrby(OPEN_KEY, -1000, name)
            sweeper.sweep()
        counts = Counter(job for job, _ in woken)
        assert set(counts) == set(names)
        assert max(counts.values()) <= 12

    def test_a_drained_queue_without_a_worker_is_tried_every_time(
        self, redis_client: redis.Redis, woken: Woken
    ) -> None:
        accept(redis_client)
        sweeper = make(redis_client, woken)
        for _ in range(3):
            due_now(redis_client)
            sweeper.sweep()
            wait = redis_client.zscore(OPEN_KEY, "job_1") - redis_now_ms(redis_client)  # type: ignore[operator]
            assert 4_000 < wait <= 5_000
        assert len(woken) == 3

    def test_a_wake_up_that_could_not_be_sent_is_sent_later(self, redis_client: redis.Redis, woken: Woken) -> None:
        accept(redis_client)
        due_now(redis_client)

        def refuse(job_id: str, queue: str, first: bool) -> None:
            raise OSError("the broker is away")

        with pytest.raises(OSError, match="away"):
            make(redis_client, refuse).sweep()
        assert redis_client.zscore(OPEN_KEY, "job_1") is not None
        due_now(redis_client)
        assert make(redis_client, woken).sweep() == 1


class TestWorkers:
    def test_workers_that_died_long_ago_are_forgotten(self, redis_client: redis.Redis, woken: Woken) -> None:
        now = redis_now_ms(redis_client)
        for name, age in (("fresh", 0), ("silent", FORGET_WORKER_AFTER_MS // 2), ("dead", FORGET_WORKER_AFTER_MS + 1)):
            redis_client.hset(WORKERS_KEY, name, json.dumps({"heartbeat_ms": now - age}))
        make(redis_client, woken).sweep()
        assert sorted(redis_client.hkeys(WORKERS_KEY)) == [b"fresh", b"silent"]


class TestThread:
    def test_the_lock_lets_only_one_sweep(self, redis_client: redis.Redis, woken: Woken) -> None:
        redis_client.set(SWEEPER_LOCK_KEY, "someone else", px=60_000)
        accept(redis_client)
        due_now(redis_client)
        looked = Counter[str]()

        class Looking:
            def __getattr__(self, name: str) -> object:
                looked[name] += 1
                return getattr(redis_client, name)

        sweeper = make(Looking(), woken, every_s=0.02)  # type: ignore[arg-type]
        sweeper.start()
        until(lambda: looked["set"] >= 3, "three tries")
        assert woken == []
        redis_client.delete(SWEEPER_LOCK_KEY)
        until(lambda: woken == [("job_1", INTERACTIVE)], "the sweep")
        sweeper.stop()

    def test_two_sweepers_send_each_wake_up_once(self, redis_client: redis.Redis, woken: Woken) -> None:
        names = [f"job_{number}" for number in range(20)]
        sweepers = [make(redis_client, woken, name=f"w{number}", every_s=0.02) for number in range(2)]
        for name in names:
            accept(redis_client, name)
        due_now(redis_client, *names)
        for sweeper in sweepers:
            sweeper.start()
        until(lambda: len(woken) >= 20, "all wake-ups")
        for sweeper in sweepers:
            sweeper.stop()
        assert sorted(job for job, _ in woken) == sorted(names)

    def test_a_failed_sweep_does_not_end_the_sweeper(self, redis_client: redis.Redis) -> None:
        troubles: list[Exception] = [RuntimeError("broker"), RedisConnectionError("Redis")]
        sent: list[str] = []

        def wake(job_id: str, queue: str, first: bool) -> None:
            if troubles:
                raise troubles.pop()
            sent.append(job_id)

        accept(redis_client)
        sweeper = make(redis_client, wake, every_s=0.02)
        sweeper.start()

        def woken_in_the_end() -> bool:
            due_now(redis_client)
            return bool(sent)

        until(woken_in_the_end, "a wake-up")
        sweeper.stop()
        assert field(redis_client, "state") == "accepted"
