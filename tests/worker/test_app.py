"""The Celery application: what it accepts, when it acknowledges, and where wake-ups go."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from celery import Celery

from worker import ledger
from worker.app import make_app
from worker.contract import SERVED_CONTRACTS, JobRequest, Priority, queue_name, queue_task
from worker.ledger import NewJob, execute
from worker.settings import Settings
from worker.wakeups import send_wakeup, wakeup_message

TASKS = sorted({queue_task(queue_name(Priority.BATCH, version)) for version in SERVED_CONTRACTS})
Publish = Callable[[str, Priority], None]


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    app = make_app(Settings(redis_url=redis_url), lambda _: None)
    yield app
    app.close()


@pytest.fixture(params=["worker", "bare producer", "service"])
def publish(request: pytest.FixtureRequest, app: Celery, redis_url: str) -> Iterator[Publish]:
    """The three ways in which a wake-up is sent."""
    if request.param == "worker":
        with redis.Redis.from_url(redis_url) as client:
            yield lambda job_id, priority: send_wakeup(client, job_id, queue_name(priority), first=False)
    elif request.param == "bare producer":
        with Celery("producer", broker=redis_url, set_as_current=False) as bare:
            yield lambda job_id, priority: bare.send_task(TASKS[0], args=[job_id], queue=queue_name(priority)) and None
    else:
        client = redis.Redis.from_url(redis_url)

        def accept(job_id: str, priority: Priority) -> None:
            request = JobRequest(prompt="?", images=())
            job = NewJob(job_id, "ada", priority, request, 60_000, 60_000, max_open=9, wake=True)
            assert execute(client, ledger.accept(job)).status == "accepted"

        yield accept
        client.close()


def waiting(client: redis.Redis, priority: Priority) -> list[str]:
    """Job ids in a queue's Redis list, oldest first."""
    messages: Any = client.lrange(queue_name(priority), 0, -1)
    return [json.loads(base64.b64decode(json.loads(raw)["body"]))[0][0] for raw in reversed(messages)]


def test_only_json_is_taken_and_sent(app: Celery) -> None:
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_serializer == "json"


def test_a_wake_up_is_acknowledged_late_and_leaves_no_result(app: Celery) -> None:
    assert app.conf.task_acks_late is True
    assert app.conf.task_ignore_result is True
    assert app.conf.result_backend is None
    for name in TASKS:
        assert app.tasks[name].acks_late is True
        assert app.tasks[name].ignore_result is True


def test_celery_itself_redelivers_nothing_for_an_hour(app: Celery) -> None:
    assert app.conf.broker_transport_options["visibility_timeout"] == 3600
    assert app.conf.worker_cancel_long_running_tasks_on_connection_loss is False


def test_nothing_is_fetched_before_there_is_a_thread_for_it(app: Celery) -> None:
    assert app.conf.worker_prefetch_multiplier == 1
    assert app.conf.worker_disable_prefetch is True


def test_the_worker_comes_back_however_long_redis_was_away(app: Celery) -> None:
    assert app.conf.broker_connection_max_retries is None
    assert app.conf.broker_connection_retry_on_startup is True


def test_the_worker_reads_the_queues_of_every_version_each_by_its_own_key(app: Celery) -> None:
    queues = app.amqp.queues.consume_from
    assert set(queues) == {queue_name(priority, version) for priority in Priority for version in SERVED_CONTRACTS}
    for name, queue in queues.items():
        assert (queue.routing_key, queue.exchange.name) == (name, name)


def test_a_task_runs_the_job_it_was_woken_for(redis_url: str) -> None:
    seen: list[str] = []
    app = make_app(Settings(redis_url=redis_url), seen.append)
    for number, name in enumerate(TASKS):
        app.tasks[name](f"job_{number}")
    assert seen == [f"job_{number}" for number in range(len(TASKS))]


def test_a_worker_held_at_an_older_contract_reads_only_its_queues(redis_url: str) -> None:
    app = make_app(Settings(redis_url=redis_url, contract=1), lambda _: None)
    assert set(app.amqp.queues.consume_from) == {queue_name(priority, 1) for priority in Priority}
    app.close()


@pytest.mark.parametrize("priority", list(Priority))
def test_a_wake_up_lies_in_its_own_queue_only(redis_client: redis.Redis, publish: Publish, priority: Priority) -> None:
    publish("job_1", priority)
    publish("job_2", priority)
    other = next(candidate for candidate in Priority if candidate != priority)
    assert waiting(redis_client, priority) == ["job_1", "job_2"]
    assert waiting(redis_client, other) == []


def test_queues_declared_by_worker_and_producer_do_not_mix(
    app: Celery, redis_client: redis.Redis, publish: Publish
) -> None:
    with app.connection() as connection:
        for queue in app.amqp.queues.consume_from.values():
            queue(connection.default_channel).declare()
    for number, priority in enumerate((Priority.BATCH, Priority.INTERACTIVE, Priority.BATCH)):
        publish(f"job_{number}", priority)
    assert waiting(redis_client, Priority.BATCH) == ["job_0", "job_2"]
    assert waiting(redis_client, Priority.INTERACTIVE) == ["job_1"]
    lists = [key for key in redis_client.scan_iter() if redis_client.type(key) == b"list"]
    assert sorted(lists) == sorted(queue_name(priority).encode() for priority in Priority)


def test_our_own_message_has_all_that_celerys_has(app: Celery, redis_client: redis.Redis) -> None:
    queue = queue_name(Priority.BATCH)
    app.send_task(queue_task(queue), args=["job_1"], queue=queue)
    redis_client.lpush(queue, wakeup_message("job_1", queue))
    raw: Any = redis_client.lrange(queue, 0, -1)
    ours, theirs = (json.loads(message) for message in raw)
    assert ours.keys() == theirs.keys()
    assert ours["properties"].keys() == theirs["properties"].keys()
    assert ours["headers"].keys() >= theirs["headers"].keys()
    assert base64.b64decode(ours["body"]) == base64.b64decode(theirs["body"])
    for part, name in (("headers", "task"), ("properties", "delivery_info"), ("properties", "body_encoding")):
        assert ours[part][name] == theirs[part][name]
