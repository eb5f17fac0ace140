"""What a service or worker of the contract version before wrote is read, and what it will read is written as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis

from erase import policy
from service.workers import parse
from worker import contract, ledger
from worker.contract import (
    OLDEST_CONTRACT,
    SERVED_CONTRACTS,
    EventType,
    JobRequest,
    JobState,
    Message,
    Outcome,
    Plan,
    Priority,
    PruningOptions,
    TokenPayload,
    WorkerInfo,
    events_key,
    image_key,
    job_key,
    needed_contract,
    queue_name,
    queue_share,
    queue_task,
)
from worker.ledger import Job, NewJob, execute

# Each recorded from the last revision that knew nothing newer.
V1, V2 = (json.loads((Path(__file__).parents[1] / f"data/contract-v{version}.json").read_text()) for version in (1, 2))
REQUEST = JobRequest.model_validate_json(V1["accepted"]["request"])
JOB_ID = V1["accepted"]["id"]


def names(value: Any) -> Any:
    """A JSON value's shape: the names of its fields, all the way down."""
    if isinstance(value, dict):
        return {name: names(entry) for name, entry in value.items()}
    return [names(entry) for entry in value[:1]] if isinstance(value, list) else None


@pytest.mark.parametrize(("version", "recorded"), [(1, V1), (2, V2)], ids=["1", "2"])
def test_queues_and_tasks_keep_their_names(version: int, recorded: dict[str, Any]) -> None:
    assert {priority.value: queue_name(priority, version) for priority in Priority} == recorded["queues"]
    assert {queue_task(queue) for queue in recorded["queues"].values()} == {recorded["task"]}
    assert [queue_share(queue_name(Priority.BATCH, version)) for version in SERVED_CONTRACTS] == ["batch"] * 3


def test_a_job_of_version_1_is_read() -> None:
    job = Job.from_fields(V1["accepted"])
    assert (job.version, job.state, job.request_id, job.queued_ms) == (1, JobState.ACCEPTED, "", job.accepted_ms)
    finished = Job.from_fields(V1["finished"])
    assert finished.outcome is not None
    assert finished.plan is not None
    assert finished.outcome.answer is not None
    assert finished.outcome.answer.answer == "42"


def test_a_job_of_version_2_is_read() -> None:
    job = Job.from_fields(V2["accepted"])
    assert (job.version, job.request_id) == (2, "order-17")
    assert [message.content for message in job.request.messages if message.role == "user"] == [
        (0, "what is it ?"),
        ("sure ?",),
    ]
    finished = Job.from_fields(V2["finished"])
    assert finished.outcome is not None
    assert finished.outcome.answer is not None


@pytest.mark.parametrize(("version", "recorded"), [(1, V1), (2, V2)], ids=["1", "2"])
def test_events_and_heartbeats_are_read(version: int, recorded: dict[str, Any]) -> None:
    token, result = (ledger.Event.from_entry((entry[0], entry[1])) for entry in recorded["events"])
    assert TokenPayload.model_validate_json(token.data).ids == (4,)
    assert result.type is EventType.RESULT
    assert [worker.contract for worker in parse({b"w1": recorded["worker"].encode()})] == [version]


def test_a_conversation_is_written_as_version_2_wrote_it(redis_client: redis.Redis) -> None:
    """It refuses unknown fields, too."""
    redis_client.set(image_key("a" * 64), b"x")
    request = JobRequest.model_validate_json(V2["accepted"]["request"])
    job = NewJob(JOB_ID, "ada", Priority.BATCH, request, timeout_ms=60_000, result_ttl_ms=60_000, max_open=9)
    execute(redis_client, ledger.accept(job))
    stored: Any = redis_client.hgetall(job_key(JOB_ID))
    written = {name.decode(): value.decode() for name, value in stored.items()}
    assert written.keys() >= V2["accepted"].keys()
    assert written["queue"] == V2["queues"]["batch"]
    assert json.loads(written["request"]) == json.loads(V2["accepted"]["request"])


def test_a_heartbeat_of_a_later_version_is_read_without_what_it_adds() -> None:
    later = json.dumps({**json.loads(V1["worker"]), "contract": 9, "added_later": [1]})
    assert WorkerInfo.model_validate_json(later).contract == 9


def test_a_prompt_is_written_so_that_version_1_reads_it(redis_client: redis.Redis) -> None:
    redis_client.set(image_key("a" * 64), b"x")
    job = NewJob(JOB_ID, "ada", Priority.BATCH, REQUEST, timeout_ms=60_000, result_ttl_ms=60_000, max_open=9)
    execute(redis_client, ledger.accept(job))
    stored: Any = redis_client.hgetall(job_key(JOB_ID))
    written = {name.decode(): value.decode() for name, value in stored.items()}
    assert written.keys() >= V1["accepted"].keys()
    assert (written["version"], written["queue"]) == ("1", V1["queues"]["batch"])
    request, recorded = json.loads(written["request"]), json.loads(V1["accepted"]["request"])
    assert request.keys() <= recorded.keys()
    for name, value in request.items():
        # What is left out has the default that version 1 knows.
        assert value == ({key: recorded[name][key] for key in value} if isinstance(value, dict) else recorded[name])


def test_plan_and_outcome_hold_nothing_that_version_1_would_refuse(redis_client: redis.Redis) -> None:
    """It refuses unknown fields, so what is written today must have the recorded fields and no others."""
    outcome = Outcome.model_validate_json(V1["finished"]["outcome"])
    assert names(json.loads(outcome.model_dump_json())) == names(json.loads(V1["finished"]["outcome"]))
    plan = Plan.model_validate_json(V1["finished"]["plan"])
    assert names(json.loads(plan.model_dump_json())) == names(json.loads(V1["finished"]["plan"]))
    token = TokenPayload.model_validate_json(V1["events"][0][1]["data"])
    assert json.loads(token.model_dump_json()) == json.loads(V1["events"][0][1]["data"])


@pytest.mark.parametrize("recorded", [V1, V2], ids=["1", "2"])
def test_a_job_that_an_older_version_accepted_runs_to_its_end(
    redis_client: redis.Redis, recorded: dict[str, Any]
) -> None:
    redis_client.hset(job_key(JOB_ID), mapping={**recorded["accepted"], "deadline_ms": 9_000_000_000_000})
    redis_client.zadd("erase:open", {JOB_ID: 0})
    taken = execute(redis_client, ledger.lease(JOB_ID, "w", 60_000, 3))
    assert taken.job is not None
    assert execute(
        redis_client, ledger.finish(JOB_ID, 1, Outcome.model_validate_json(recorded["finished"]["outcome"]))
    ).ok
    assert redis_client.xlen(events_key(JOB_ID)) == 1
    assert redis_client.get("erase:open_pixels") is None


def test_a_conversation_needs_version_2() -> None:
    assert needed_contract(REQUEST) == OLDEST_CONTRACT == 1
    talk = JobRequest(messages=(Message(role="user", content=("?",)),), images=())
    assert needed_contract(talk) == 2


def test_another_pruning_method_needs_version_3() -> None:
    asked = PruningOptions(method="fastv")
    assert needed_contract(REQUEST.model_copy(update={"pruning": asked})) == 3
    talk = JobRequest(messages=(Message(role="user", content=("?",)),), images=(), pruning=asked)
    assert needed_contract(talk) == 3


def test_the_contract_names_the_librarys_methods() -> None:
    assert contract.BASELINES == policy.BASELINES


@pytest.mark.parametrize("name", sorted(V1["accepted"]))
def test_every_field_of_a_version_1_job_is_still_written(name: str) -> None:
    source = (Path(ledger.__file__).parent / "lua/accept.lua").read_text()
    assert f"'{name}'" in source
