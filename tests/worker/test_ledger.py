"""Every transition of the ledger against a real Redis: who may write what, and that a job ends exactly once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
import redis
import redis.asyncio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.embedded_redis import EmbeddedRedis
from worker import ledger
from worker.contract import (
    COUNTERS_KEY,
    DEAD_KEY,
    OPEN_KEY,
    Answer,
    EventType,
    ImageReference,
    JobRequest,
    JobState,
    Outcome,
    Plan,
    Priority,
    PruningReport,
    Timings,
    TokenPayload,
    Usage,
    VisionTokens,
    events_key,
    gone_key,
    idempotency_key,
    image_key,
    job_key,
    owner_jobs_key,
    owner_open_key,
    problem,
    queue_name,
    replies_key,
    watchers_key,
)
from worker.ledger import NewJob, execute

SHA = "a" * 64
IMAGE = ImageReference(sha256=SHA, format="PNG", width=64, height=64, bytes=10)
LEASE_MS = 60_000
PLAN = Plan(model="m", model_revision="r", policy="p", policy_settings={"k": 1}, retention=0.2, seed=7)
FAILED = Outcome(problem=problem("internal", "no"))


def answer(job_id: str = "job_1") -> Outcome:
    tokens = VisionTokens(input=4, after_stage1=3, kept=1, layer_average=2.0)
    return Outcome(
        answer=Answer(
            id=job_id,
            answer="42",
            finish_reason="stop",
            model="m",
            usage=Usage(prompt_tokens=9, completion_tokens=1, vision_tokens=tokens, token_reduction=0.5),
            pruning=PruningReport(policy="p", requested=None, final=0.25, layer_average=0.5),
            images=(),
            timings_ms=Timings(queue=1, preprocess=1, encode=1, prefill=1, decode=1, first_token=1, total=5),
        )
    )


def new_job(job_id: str = "job_1", **changes: Any) -> NewJob:
    job = NewJob(
        id=job_id,
        owner="ada",
        priority=Priority.INTERACTIVE,
        request=JobRequest(prompt="What is it?", images=()),
        timeout_ms=60_000,
        result_ttl_ms=30_000,
        max_open=100,
        service="svc",
    )
    return replace(job, **changes)


def keyed(job_id: str, **changes: Any) -> NewJob:
    return new_job(job_id, **{"idempotency_key": idempotency_key("ada", "k"), "body_hash": "body", **changes})


def state(client: redis.Redis, job_id: str = "job_1") -> JobState:
    value: Any = client.hget(job_key(job_id), "state")
    return JobState(value.decode())


def counter(client: redis.Redis, name: str) -> int:
    return int(client.hget(COUNTERS_KEY, name) or 0)  # type: ignore[arg-type]


def take(client: redis.Redis, job_id: str = "job_1", holder: str = "", lease_ms: int = LEASE_MS) -> ledger.Lease:
    return execute(client, ledger.lease(job_id, holder or uuid4().hex, lease_ms, 3))


def begin(client: redis.Redis, job_id: str = "job_1", holder: str = "") -> ledger.Lease:
    """Take the job and begin to work on it."""
    lease = take(client, job_id, holder)
    if lease.tries > 1 and lease.job is not None:
        assert execute(client, ledger.begin(job_id, lease.job.attempt)).ok
    return lease


def lose_lease(client: redis.Redis, job_id: str = "job_1") -> None:
    client.hset(job_key(job_id), "lease_until_ms", 1)


def pass_deadline(client: redis.Redis, job_id: str = "job_1") -> None:
    client.hset(job_key(job_id), "deadline_ms", 1)


def final_events(client: redis.Redis, job_id: str = "job_1") -> list[ledger.Event]:
    return [event for event in ledger.read_events(client, job_id) if event.type is not EventType.TOKEN]


class TestAccept:
    def test_a_new_job_is_open_and_readable(self, redis_client: redis.Redis) -> None:
        assert execute(redis_client, ledger.accept(new_job())) == ledger.Accepted("accepted", "job_1")
        assert state(redis_client) is JobState.ACCEPTED
        assert redis_client.zscore(OPEN_KEY, "job_1")
        assert redis_client.hgetall(watchers_key("job_1")) == {b"svc": b"1"}
        assert counter(redis_client, "accepted") == 1

    def test_asking_again_after_a_lost_reply_changes_nothing(self, redis_client: redis.Redis) -> None:
        for job in (new_job(), keyed("job_2")):
            execute(redis_client, ledger.accept(job))
            take(redis_client, job.id)
            before = redis_client.hgetall(job_key(job.id))
            assert execute(redis_client, ledger.accept(job)) == ledger.Accepted("accepted", job.id)
            assert redis_client.hgetall(job_key(job.id)) == before
            assert redis_client.hgetall(watchers_key(job.id)) == {b"svc": b"1"}
        assert counter(redis_client, "accepted") == 2

    def test_the_same_key_and_body_attach_to_the_same_job(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(keyed("job_1")))
        assert execute(redis_client, ledger.accept(keyed("job_2"))) == ledger.Accepted("attached", "job_1")
        assert redis_client.exists(job_key("job_2")) == 0
        assert redis_client.hgetall(watchers_key("job_1")) == {b"svc": b"2"}

    def test_the_same_key_and_another_body_is_a_mismatch(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(keyed("job_1")))
        reply = execute(redis_client, ledger.accept(keyed("job_2", body_hash="other")))
        assert reply == ledger.Accepted("mismatch", "job_1")

    def test_a_key_whose_job_has_expired_is_free_again(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(keyed("job_1")))
        redis_client.delete(job_key("job_1"))
        assert execute(redis_client, ledger.accept(keyed("job_2", body_hash="other"))).status == "accepted"

    def test_a_key_attaches_even_when_the_queue_is_full(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(keyed("job_1", max_open=1)))
        assert execute(redis_client, ledger.accept(keyed("job_2", max_open=1))).status == "attached"

    def test_a_full_queue_accepts_nothing_and_leaves_nothing(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job("job_1", max_open=1)))
        assert execute(redis_client, ledger.accept(keyed("job_2", max_open=1))).status == "full"
        assert redis_client.exists(job_key("job_2"), idempotency_key("ada", "k")) == 0

    def test_a_missing_image_is_named(self, redis_client: redis.Redis) -> None:
        request = JobRequest(prompt="?", images=(IMAGE,))
        assert execute(redis_client, ledger.accept(new_job(request=request))) == ledger.Accepted("missing", SHA)
        assert redis_client.exists(job_key("job_1")) == 0

    def test_image_expiry_is_only_ever_extended(self, redis_client: redis.Redis) -> None:
        request = JobRequest(prompt="?", images=(IMAGE,))
        redis_client.set(image_key(SHA), b"x", ex=10)
        execute(redis_client, ledger.accept(new_job("job_1", request=request)))
        longer = int(redis_client.pttl(image_key(SHA)))  # type: ignore[arg-type]
        assert longer > 600_000
        execute(redis_client, ledger.accept(new_job("job_2", request=request, timeout_ms=1, image_ttl_slack_ms=1)))
        assert int(redis_client.pttl(image_key(SHA))) > longer - 10_000  # type: ignore[arg-type]


class TestWakeUps:
    def test_jobs_that_ended_without_a_worker_leave_no_endless_list(self, redis_client: redis.Redis) -> None:
        queue = queue_name(Priority.INTERACTIVE, 1)
        redis_client.lpush(queue, *["stale"] * 102)
        execute(redis_client, ledger.accept(new_job(wake=True, wake_after_ms=0)))
        assert redis_client.llen(queue) == 103  # two for each open job and a hundred may wait
        execute(redis_client, ledger.accept(new_job("job_2", wake=True)))
        assert redis_client.llen(queue) == 104
        redis_client.lpush(queue, *["stale"] * 10)
        assert execute(redis_client, ledger.accept(new_job("job_3", wake=True, wake_after_ms=0))).status == "accepted"
        assert redis_client.llen(queue) == 114
        assert execute(redis_client, ledger.sweep("job_3", 1_000, 3)) == ledger.Swept("wake", queue)


class TestLease:
    def test_the_first_lease_is_granted_with_the_job(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        lease = take(redis_client)
        assert lease.status == "granted"
        assert lease.tries == 1
        assert lease.job is not None
        assert (lease.job.attempt, lease.job.state) == (1, JobState.RUNNING)
        assert lease.job.request == new_job().request
        assert lease.job.leased_ms >= lease.job.accepted_ms > 0

    def test_an_unknown_job_is_gone(self, redis_client: redis.Redis) -> None:
        assert take(redis_client).status == "gone"

    def test_a_live_lease_is_not_taken_over(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        assert take(redis_client, holder="w2").status == "taken"

    def test_an_expired_lease_is_taken_over_with_the_next_attempt(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        lose_lease(redis_client)
        lease = take(redis_client, holder="w2")
        assert (lease.status, lease.tries) == ("granted", 2)
        assert lease.job is not None
        assert lease.job.attempt == 2
        assert counter(redis_client, "leases_lost") == 1

    def test_a_finished_job_is_not_leased(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        execute(redis_client, ledger.finish("job_1", 1, answer()))
        assert take(redis_client).status == "finished"

    def test_a_job_past_its_deadline_expires_instead(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        pass_deadline(redis_client)
        assert take(redis_client).status == "finished"
        assert state(redis_client) is JobState.EXPIRED

    def test_after_three_attempts_a_job_is_dead(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        for tries in range(1, 4):
            lease = begin(redis_client)
            assert (lease.status, lease.tries) == ("granted", tries)
            lose_lease(redis_client)
        assert take(redis_client).status == "finished"
        assert state(redis_client) is JobState.DEAD
        assert redis_client.zscore(DEAD_KEY, "job_1")
        assert [event.type for event in final_events(redis_client)] == [EventType.ERROR]

    def test_a_released_attempt_does_not_count(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        for attempt in range(1, 6):
            lease = take(redis_client)
            assert (lease.status, lease.tries) == ("granted", 1)
            assert execute(redis_client, ledger.release("job_1", attempt)).ok
            assert state(redis_client) is JobState.ACCEPTED

    def test_a_later_try_that_only_waited_for_its_turn_does_not_count(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        begin(redis_client)
        for _ in range(5):
            lose_lease(redis_client)
            assert execute(redis_client, ledger.sweep("job_1", 5_000, 3)).action == "wake"
            assert take(redis_client).tries == 2
        lose_lease(redis_client)
        begin(redis_client)
        lose_lease(redis_client)
        assert take(redis_client).tries == 3

    def test_a_later_try_is_begun_once_and_only_by_its_holder(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        begin(redis_client)
        lose_lease(redis_client)
        assert not execute(redis_client, ledger.begin("job_1", 2)).ok
        take(redis_client)
        assert execute(redis_client, ledger.begin("job_1", 1)).state == "running"
        for _ in range(2):
            assert execute(redis_client, ledger.begin("job_1", 2)).ok
        lose_lease(redis_client)
        assert take(redis_client).tries == 3

    @pytest.mark.parametrize("begun", [False, True])
    def test_a_later_try_that_is_given_back_does_not_count_either(self, redis_client: redis.Redis, begun: bool) -> None:
        execute(redis_client, ledger.accept(new_job()))
        begin(redis_client)
        for attempt in range(2, 6):
            lose_lease(redis_client)
            assert (begin if begun else take)(redis_client).tries == 2
            assert execute(redis_client, ledger.release("job_1", attempt)).ok

    def test_neighbours_of_a_job_that_kills_every_worker_are_never_given_up(self, redis_client: redis.Redis) -> None:
        """All are leased when the worker dies, first together, then waiting for the turn of the culprit to end."""
        jobs = ["job_0", "job_1", "job_2", "job_3"]
        for job_id in jobs:
            execute(redis_client, ledger.accept(new_job(job_id)))
        for _ in range(3):
            begin(redis_client, "job_0")
            for job_id in jobs[1:]:
                take(redis_client, job_id)
            for job_id in jobs:
                lose_lease(redis_client, job_id)
        swept = [execute(redis_client, ledger.sweep(job_id, 1_000, 3)).action for job_id in jobs]
        assert swept == ["ended", "wake", "wake", "wake"]
        assert state(redis_client, "job_0") is JobState.DEAD
        assert all(begin(redis_client, job_id).tries == 2 for job_id in jobs[1:])

    def test_a_lease_whose_reply_was_lost_can_be_asked_for_again(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        first, again = (take(redis_client, holder="w1/call") for _ in range(2))
        assert first.job is not None
        assert again.job is not None
        assert (first.job.attempt, first.tries) == (again.job.attempt, again.tries) == (1, 1)
        lose_lease(redis_client)
        first, again = (take(redis_client, holder="w2/call") for _ in range(2))
        assert first.job is not None
        assert again.job is not None
        assert (first.job.attempt, first.tries) == (again.job.attempt, again.tries) == (2, 2)


class TestFencedWrites:
    @pytest.mark.parametrize(
        "write",
        [
            ledger.renew("job_1", 1, LEASE_MS),
            ledger.emit("job_1", 1, 1, EventType.TOKEN, "{}"),
            ledger.finish("job_1", 1, answer()),
            ledger.release("job_1", 1),
            ledger.begin("job_1", 1),
        ],
        ids=lambda write: write.script,
    )
    def test_a_stale_attempt_is_refused_and_changes_nothing(
        self, redis_client: redis.Redis, write: ledger.Transition[ledger.Written]
    ) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        lose_lease(redis_client)
        take(redis_client, holder="w2")
        before = redis_client.hgetall(job_key("job_1"))
        assert execute(redis_client, write) == ledger.Written(False, "running")
        assert redis_client.hgetall(job_key("job_1")) == before
        assert ledger.read_events(redis_client, "job_1") == []

    def test_a_stale_attempt_cannot_freeze(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        assert execute(redis_client, ledger.freeze("job_1", 2, PLAN)) is None
        assert execute(redis_client, ledger.freeze("job_9", 1, PLAN)) is None

    def test_writes_to_an_unknown_job_say_so(self, redis_client: redis.Redis) -> None:
        assert execute(redis_client, ledger.finish("job_1", 1, answer())) == ledger.Written(False, "gone")
        assert execute(redis_client, ledger.emit("job_1", 1, 1, EventType.TOKEN, "{}")) == ledger.Written(False, "gone")

    def test_the_first_plan_holds(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        other = PLAN.model_copy(update={"seed": 8})
        assert execute(redis_client, ledger.freeze("job_1", 1, PLAN)) == PLAN
        lose_lease(redis_client)
        lease = take(redis_client, holder="w2")
        assert lease.job is not None
        assert lease.job.plan == PLAN
        assert execute(redis_client, ledger.freeze("job_1", 2, other)) == PLAN
        assert execute(redis_client, ledger.freeze("job_1", 2, other, replace=True)) == other

    def test_a_plan_without_pruning_comes_back_as_it_was(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        plan = PLAN.model_copy(update={"policy": "none", "policy_settings": None, "retention": None})
        assert execute(redis_client, ledger.freeze("job_1", 1, plan)) == plan

    def test_renewing_moves_the_next_check(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client, lease_ms=1_000)
        before = redis_client.zscore(OPEN_KEY, "job_1")
        assert execute(redis_client, ledger.renew("job_1", 1, LEASE_MS)).ok
        after = redis_client.zscore(OPEN_KEY, "job_1")
        assert after > before + 50_000  # type: ignore[operator]

    def test_events_are_numbered_from_one_and_noticed(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        steps = [
            ledger.emit("job_1", 1, number, EventType.TOKEN, TokenPayload(text=text, ids=(1,)).model_dump_json())
            for number, text in enumerate("abc", start=1)
        ]
        assert all(written.ok for written in ledger.execute_many(redis_client, steps))
        execute(redis_client, ledger.finish("job_1", 1, answer()))
        events = ledger.read_events(redis_client, "job_1")
        assert [event.seq for event in events] == [1, 2, 3, 4]
        assert [event.seq for event in ledger.read_events(redis_client, "job_1", after=2)] == [3, 4]
        assert Outcome.model_validate_json(events[-1].data) == answer()
        assert redis_client.xlen(replies_key("svc")) == 4

    def test_a_repeated_event_is_written_once(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        for _ in range(2):
            assert execute(redis_client, ledger.emit("job_1", 1, 1, EventType.TOKEN, "{}")).ok
        assert [event.seq for event in ledger.read_events(redis_client, "job_1")] == [1]

    def test_a_token_with_a_nul_or_an_emoji_comes_back_as_it_was(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        payload = TokenPayload(text="\0 \N{SNOWMAN} \U0001f600", ids=(1,))
        execute(redis_client, ledger.emit("job_1", 1, 1, EventType.TOKEN, payload.model_dump_json()))
        assert TokenPayload.model_validate_json(ledger.read_events(redis_client, "job_1")[0].data) == payload


class TestEnding:
    def test_the_first_outcome_wins_and_the_second_learns_of_it(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        assert execute(redis_client, ledger.finish("job_1", 1, answer())).ok
        assert execute(redis_client, ledger.finish("job_1", 1, FAILED)) == ledger.Written(False, "succeeded")
        assert execute(redis_client, ledger.cancel("job_1")) is JobState.SUCCEEDED
        assert len(final_events(redis_client)) == 1
        assert counter(redis_client, "finished:succeeded") == 1

    def test_a_failed_outcome_is_an_error_event(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        execute(redis_client, ledger.finish("job_1", 1, FAILED))
        assert state(redis_client) is JobState.FAILED
        assert [event.type for event in final_events(redis_client)] == [EventType.ERROR]

    @pytest.mark.parametrize(
        "write",
        [
            ledger.emit("job_1", 1, 1, EventType.TOKEN, "{}"),
            ledger.finish("job_1", 1, answer()),
            ledger.freeze("job_1", 1, PLAN),
            ledger.renew("job_1", 1, 1000),
            ledger.release("job_1", 1),
            ledger.begin("job_1", 1),
        ],
        ids=["emit", "finish", "freeze", "renew", "release", "begin"],
    )
    def test_fenced_writes_are_those_of_attempts_that_another_one_followed(
        self, redis_client: redis.Redis, write: ledger.Transition[Any]
    ) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        lose_lease(redis_client)
        assert take(redis_client).tries == 2
        execute(redis_client, write)
        assert redis_client.hget(COUNTERS_KEY, "fenced_writes") == b"1"

    def test_a_write_to_a_job_that_ended_under_its_holder_is_refused_and_not_counted(
        self, redis_client: redis.Redis
    ) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        execute(redis_client, ledger.cancel("job_1"))
        assert not execute(redis_client, ledger.emit("job_1", 1, 1, EventType.TOKEN, "{}")).ok
        assert redis_client.hget(COUNTERS_KEY, "fenced_writes") is None

    def test_an_ended_job_leaves_the_open_set_and_expires(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(keyed("job_1")))
        take(redis_client)
        execute(redis_client, ledger.finish("job_1", 1, answer()))
        assert redis_client.zscore(OPEN_KEY, "job_1") is None
        for key in (job_key("job_1"), events_key("job_1"), watchers_key("job_1"), idempotency_key("ada", "k")):
            assert 0 < int(redis_client.pttl(key)) <= 30_000  # type: ignore[arg-type]
        assert redis_client.get(gone_key("job_1")) == b"ada"
        assert int(redis_client.pttl(gone_key("job_1"))) > 30_000  # type: ignore[arg-type]

    @pytest.mark.parametrize("running", [False, True])
    def test_cancel_ends_an_open_job(self, redis_client: redis.Redis, running: bool) -> None:
        execute(redis_client, ledger.accept(new_job()))
        if running:
            take(redis_client)
        assert execute(redis_client, ledger.cancel("job_1")) is JobState.CANCELLED
        assert execute(redis_client, ledger.cancel("job_1")) is JobState.CANCELLED
        assert execute(redis_client, ledger.finish("job_1", 1, answer())) == ledger.Written(False, "cancelled")
        assert len(final_events(redis_client)) == 1

    def test_an_unknown_job_can_be_neither_cancelled_nor_expired(self, redis_client: redis.Redis) -> None:
        assert execute(redis_client, ledger.cancel("job_1")) is None
        assert execute(redis_client, ledger.expire("job_1")) is None

    def test_expire_waits_for_the_deadline(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        assert execute(redis_client, ledger.expire("job_1")) is JobState.ACCEPTED
        pass_deadline(redis_client)
        assert execute(redis_client, ledger.expire("job_1")) is JobState.EXPIRED

    def test_a_finish_whose_reply_was_lost_can_be_repeated_and_no_other_one(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        assert all(execute(redis_client, ledger.finish("job_1", 1, answer())).ok for _ in range(2))
        assert not execute(redis_client, ledger.finish("job_1", 1, FAILED)).ok
        assert not execute(redis_client, ledger.finish("job_1", 2, answer())).ok
        assert len(final_events(redis_client)) == 1


class TestSweep:
    def test_a_lost_wake_up_is_sent_again(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job(priority=Priority.BATCH)))
        swept = execute(redis_client, ledger.sweep("job_1", 5_000, 3))
        assert swept == ledger.Swept("wake", queue_name(Priority.BATCH))
        assert counter(redis_client, "wakeups_resent") == 1

    def test_a_busy_queue_is_asked_less_and_less_often(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job(timeout_ms=10_000_000)))
        redis_client.lpush(queue_name(Priority.INTERACTIVE), "waiting")
        waits = []
        for _ in range(3):
            execute(redis_client, ledger.sweep("job_1", 5_000, 3))
            waits.append(redis_client.zscore(OPEN_KEY, "job_1") - time.time() * 1000)  # type: ignore[operator]
        assert waits[0] < waits[1] < waits[2]

    def test_a_live_lease_is_left_alone(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        assert execute(redis_client, ledger.sweep("job_1", 5_000, 3)) == ledger.Swept("none")

    def test_a_lost_lease_wakes_another_worker(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        lose_lease(redis_client)
        assert execute(redis_client, ledger.sweep("job_1", 5_000, 3)).action == "wake"

    def test_the_third_lost_lease_buries_the_job(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        for _ in range(3):
            begin(redis_client)
            lose_lease(redis_client)
        assert execute(redis_client, ledger.sweep("job_1", 5_000, 3)) == ledger.Swept("ended", "dead")
        assert state(redis_client) is JobState.DEAD

    def test_a_passed_deadline_ends_the_job(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        pass_deadline(redis_client)
        assert execute(redis_client, ledger.sweep("job_1", 5_000, 3)) == ledger.Swept("ended", "expired")

    def test_a_job_that_another_sweeper_has_just_checked_is_left_alone(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        seen = redis_client.zscore(OPEN_KEY, "job_1") - 5_000
        redis_client.zadd(OPEN_KEY, {"job_1": seen})
        assert execute(redis_client, ledger.sweep("job_1", 5_000, 3, seen)).action == "wake"
        assert execute(redis_client, ledger.sweep("job_1", 5_000, 3, seen)) == ledger.Swept("none")
        assert counter(redis_client, "wakeups_resent") == 1

    def test_what_is_finished_or_unknown_leaves_the_open_set(self, redis_client: redis.Redis) -> None:
        redis_client.zadd(OPEN_KEY, {"job_9": 1})
        assert execute(redis_client, ledger.sweep("job_9", 5_000, 3)) == ledger.Swept("none")
        assert redis_client.zcard(OPEN_KEY) == 0


class TestWatching:
    def test_a_second_service_gets_notices_too(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        assert execute(redis_client, ledger.watch("job_1", "svc2")) is JobState.ACCEPTED
        take(redis_client)
        execute(redis_client, ledger.finish("job_1", 1, answer()))
        assert redis_client.xlen(replies_key("svc")) == redis_client.xlen(replies_key("svc2")) == 1

    def test_an_unknown_job_cannot_be_watched(self, redis_client: redis.Redis) -> None:
        assert execute(redis_client, ledger.watch("job_1", "svc")) is None
        assert redis_client.exists(watchers_key("job_1")) == 0

    def test_the_last_client_that_leaves_cancels(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        execute(redis_client, ledger.watch("job_1", "svc"))
        execute(redis_client, ledger.watch("job_1", "svc2"))
        for service in ("svc", "svc2"):
            assert execute(redis_client, ledger.unwatch("job_1", service, client_left=True)) is JobState.ACCEPTED
        assert execute(redis_client, ledger.unwatch("job_1", "svc", client_left=True)) is JobState.CANCELLED

    @pytest.mark.parametrize(
        "job", [keyed("job_1"), new_job(detached=True)], ids=["with an idempotency key", "detached"]
    )
    def test_a_job_that_is_still_wanted_goes_on(self, redis_client: redis.Redis, job: NewJob) -> None:
        execute(redis_client, ledger.accept(job))
        assert execute(redis_client, ledger.unwatch("job_1", "svc", client_left=True)) is JobState.ACCEPTED

    def test_an_answered_client_cancels_nothing(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        assert execute(redis_client, ledger.unwatch("job_1", "svc", client_left=False)) is JobState.ACCEPTED
        assert redis_client.exists(watchers_key("job_1")) == 0


class TestScriptsThatRedisForgot:
    def test_execute_sends_the_source_again(self, redis_client: redis.Redis) -> None:
        redis_client.script_flush()
        assert execute(redis_client, ledger.accept(new_job())).status == "accepted"

    def test_execute_many_sends_the_sources_again(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        take(redis_client)
        redis_client.script_flush()
        steps = [ledger.emit("job_1", 1, number, EventType.TOKEN, str(number)) for number in (1, 2, 3)]
        assert all(written.ok for written in ledger.execute_many(redis_client, steps))
        assert [event.data for event in ledger.read_events(redis_client, "job_1")] == ["1", "2", "3"]

    def test_execute_async_sends_the_source_again(self, redis_client: redis.Redis, redis_url: str) -> None:
        async def run() -> tuple[str, ledger.Job | None, list[int | None]]:
            redis_client.script_flush()
            async with redis.asyncio.Redis.from_url(redis_url) as client:
                accepted = await ledger.execute_async(client, ledger.accept(new_job()))
                job = await ledger.read_job_async(client, "job_1")
                return accepted.status, job, await ledger.last_events_async(client, ["job_1", "job_9"])

        status, job, last = asyncio.run(run())
        assert status == "accepted"
        assert job is not None
        assert job.owner == "ada"
        assert last == [0, None]


_ATTEMPTS = st.integers(0, 4)
_MACHINE: dict[str, redis.Redis] = {}


class AnyOrder(RuleBasedStateMachine):
    """Whatever transitions run in whatever order: one final event at most, and a final state never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.client = _MACHINE["client"]
        self.ended: tuple[JobState, Any] | None = None

    @initialize(key=st.booleans(), detached=st.booleans())
    def start(self, key: bool, detached: bool) -> None:
        self.client.flushall()
        self.job = keyed("job_1", detached=detached) if key else new_job(detached=detached)
        self.accept_again()

    @rule()
    def accept_again(self) -> None:
        execute(self.client, ledger.accept(self.job))

    @rule(lease_ms=st.sampled_from([1, LEASE_MS]))
    def lease(self, lease_ms: int) -> None:
        take(self.client, lease_ms=lease_ms)

    @rule(attempt=_ATTEMPTS)
    def begin(self, attempt: int) -> None:
        execute(self.client, ledger.begin("job_1", attempt))

    @rule()
    def lose_the_lease(self) -> None:
        lose_lease(self.client)

    @precondition(lambda self: self.ended is None)
    @rule()
    def pass_the_deadline(self) -> None:
        pass_deadline(self.client)

    @rule(attempt=_ATTEMPTS, number=st.integers(1, 6))
    def emit(self, attempt: int, number: int) -> None:
        written = execute(self.client, ledger.emit("job_1", attempt, number, EventType.TOKEN, "{}"))
        assert not (written.ok and self.ended)

    @rule(attempt=_ATTEMPTS, outcome=st.sampled_from([answer(), FAILED]))
    def finish(self, attempt: int, outcome: Outcome) -> None:
        written = execute(self.client, ledger.finish("job_1", attempt, outcome))
        if written.ok and self.ended:
            assert Outcome.model_validate_json(self.ended[1]) == outcome, "only a repetition may be told yes"

    @rule(attempt=_ATTEMPTS)
    def release(self, attempt: int) -> None:
        execute(self.client, ledger.release("job_1", attempt))

    @rule(attempt=_ATTEMPTS)
    def renew(self, attempt: int) -> None:
        execute(self.client, ledger.renew("job_1", attempt, LEASE_MS))

    @rule()
    def cancel(self) -> None:
        execute(self.client, ledger.cancel("job_1"))

    @rule()
    def expire(self) -> None:
        execute(self.client, ledger.expire("job_1"))

    @rule()
    def sweep(self) -> None:
        execute(self.client, ledger.sweep("job_1", 5_000, 3))

    @rule(service=st.sampled_from(["svc", "svc2"]))
    def watch(self, service: str) -> None:
        execute(self.client, ledger.watch("job_1", service))

    @rule(service=st.sampled_from(["svc", "svc2"]), left=st.booleans())
    def unwatch(self, service: str, left: bool) -> None:
        execute(self.client, ledger.unwatch("job_1", service, client_left=left))

    @invariant()
    def one_outcome(self) -> None:
        now, outcome = state(self.client), self.client.hget(job_key("job_1"), "outcome")
        events = ledger.read_events(self.client, "job_1")
        finals = final_events(self.client)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert len(finals) == int(now.final)
        assert (self.client.zscore(OPEN_KEY, "job_1") is None) == now.final
        attempts, released = (int(self.client.hget(job_key("job_1"), name) or 0) for name in ("attempt", "released"))
        assert 0 <= released <= attempts
        if now.final:
            assert events[-1] == finals[0]
            if self.ended is None:
                self.ended = (now, outcome)
            assert self.ended == (now, outcome)


def test_whatever_the_order_a_job_ends_at_most_once(redis_server: EmbeddedRedis, redis_client: redis.Redis) -> None:
    _MACHINE["client"] = redis_client
    AnyOrder.TestCase.settings = settings(
        max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
    )
    AnyOrder.TestCase("runTest").runTest()


class TestDeadLetters:
    """What `erase-serve jobs` does with them."""

    def bury(self, redis_client: redis.Redis, *, tokens: int = 0, image: bool = True) -> None:
        if image:
            redis_client.set(image_key(SHA), b"x", px=600_000)
        job = keyed("job_1", request=JobRequest(prompt="?", images=(IMAGE,) if image else ()))
        assert execute(redis_client, ledger.accept(job)).status == "accepted"
        for attempt in range(1, 4):
            taken = execute(redis_client, ledger.lease("job_1", f"w{attempt}", LEASE_MS, 3))
            assert taken.job is not None
            assert execute(redis_client, ledger.begin("job_1", attempt)).ok
            if attempt == 1:
                execute(redis_client, ledger.freeze("job_1", 1, PLAN))
                for number in range(1, tokens + 1):
                    data = TokenPayload(text="x", ids=(number,)).model_dump_json()
                    assert execute(redis_client, ledger.emit("job_1", 1, number, EventType.TOKEN, data)).ok
            redis_client.hset(job_key("job_1"), "lease_until_ms", 1)
        assert execute(redis_client, ledger.sweep("job_1", 1000, 3)).subject == "dead"

    def test_it_and_its_image_stay_longer_than_a_result(self, redis_client: redis.Redis) -> None:
        self.bury(redis_client)
        for key in (job_key("job_1"), image_key(SHA), events_key("job_1")):
            assert redis_client.pttl(key) > 80_000_000, key
        assert redis_client.zscore(DEAD_KEY, "job_1") is not None

    @pytest.mark.parametrize("tokens", [0, 2])
    def test_asked_again_it_goes_on_as_if_it_had_only_been_given_back(
        self, redis_client: redis.Redis, tokens: int
    ) -> None:
        self.bury(redis_client, tokens=tokens)
        assert execute(redis_client, ledger.requeue("job_1", 30_000, 99_000_000, 1)) == ("ok", JobState.ACCEPTED)
        assert redis_client.zcard(DEAD_KEY) == 0
        assert redis_client.zcard(OPEN_KEY) == redis_client.scard(owner_open_key("ada")) == 1
        assert redis_client.exists(gone_key("job_1")) == 0
        for key in (job_key("job_1"), idempotency_key("ada", "k")):
            assert redis_client.pttl(key) == -1, key
        swept = execute(redis_client, ledger.sweep("job_1", 1000, 3))
        assert swept.action == "wake"
        taken = execute(redis_client, ledger.lease("job_1", "w9", LEASE_MS, 3))
        assert taken.job is not None
        assert (taken.tries, taken.job.attempt, taken.job.last_event) == (1, 4, tokens + 1)
        assert (taken.job.plan is not None) == (tokens > 0)
        assert taken.job.queued_ms > taken.job.accepted_ms
        assert execute(redis_client, ledger.finish("job_1", 4, answer())).ok
        events = ledger.read_events(redis_client, "job_1")
        assert [event.seq for event in events] == [*range(1, tokens + 1), tokens + 2]
        assert events[-1].type is EventType.RESULT

    def test_without_its_image_it_stays_dead(self, redis_client: redis.Redis) -> None:
        self.bury(redis_client)
        redis_client.delete(image_key(SHA))
        assert execute(redis_client, ledger.requeue("job_1", 30_000, 1, 1)) == ("missing", JobState.DEAD)

    def test_only_a_dead_one_can_be_asked_again(self, redis_client: redis.Redis) -> None:
        assert execute(redis_client, ledger.requeue("job_1", 1000, 1, 1)) == ("gone", None)
        execute(redis_client, ledger.accept(new_job()))
        assert execute(redis_client, ledger.requeue("job_1", 1000, 1, 1)) == ("not-dead", JobState.ACCEPTED)
        execute(redis_client, ledger.cancel("job_1"))
        assert execute(redis_client, ledger.requeue("job_1", 1000, 1, 1)) == ("not-dead", JobState.CANCELLED)

    def test_dropped_it_is_gone_for_its_owner_and_its_key_is_free(self, redis_client: redis.Redis) -> None:
        self.bury(redis_client)
        assert execute(redis_client, ledger.drop("job_1")) is None
        assert redis_client.get(gone_key("job_1")) == b"ada"
        left = {key for key in redis_client.keys("erase:*") if b"job_1" in key}  # type: ignore[union-attr]
        assert all(0 < redis_client.pttl(key) <= 60_000 for key in left - {gone_key("job_1").encode()})
        assert redis_client.exists(idempotency_key("ada", "k"), DEAD_KEY, owner_jobs_key("ada")) == 0

    def test_an_expired_one_is_no_longer_among_the_dead(self, redis_client: redis.Redis) -> None:
        redis_client.zadd(DEAD_KEY, {"job_0": 1, "job_9": 9e15})
        self.bury(redis_client)
        assert set(redis_client.zrange(DEAD_KEY, 0, -1)) == {b"job_1", b"job_9"}  # type: ignore[arg-type]
        assert execute(redis_client, ledger.requeue("job_9", 1, 1, 1)) == ("gone", None)
        assert redis_client.zrange(DEAD_KEY, 0, -1) == [b"job_1"]

    def test_an_open_job_is_not_dropped(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        assert execute(redis_client, ledger.drop("job_1")) is JobState.ACCEPTED
        assert redis_client.exists(job_key("job_1"))


class TestOwnersList:
    def test_it_is_newest_first_in_pages_and_forgets_what_is_too_old(
        self, redis_client: redis.Redis, redis_url: str
    ) -> None:
        async def page(before: str | None, limit: int) -> ledger.JobPage:
            client = redis.asyncio.Redis.from_url(redis_url)
            async with client:
                return await ledger.list_jobs_async(client, "ada", before=before, limit=limit)

        old = ledger.job_id_at(time.time() - 7201) + "0" * 20
        ids = [ledger.job_id_at(time.time() + offset) + "0" * 20 for offset in range(5)]
        for job_id in [old, *ids]:
            execute(redis_client, ledger.accept(new_job(job_id)))
        first = asyncio.run(page(None, 3))
        assert [job.id for job in first.jobs] == ids[:1:-1]
        second = asyncio.run(page(first.cursor, 3))
        assert [job.id for job in second.jobs] == ids[1::-1]
        assert second.cursor is None

    def test_an_expired_job_is_left_out(self, redis_client: redis.Redis) -> None:
        execute(redis_client, ledger.accept(new_job()))
        assert [job.id for job in ledger.summarize(redis_client, ["job_0", "job_1"])] == ["job_1"]
