"""Token events on their way to Redis: each once, in order, few round trips, and never on behalf of a stale attempt."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from service.embedded_redis import EmbeddedRedis
from tests.worker.helpers import accept, field, lease, lose_lease, until
from worker import emitter as emitter_module
from worker import ledger
from worker.contract import TokenPayload, events_key, job_key
from worker.emitter import Emitter, EventWriter
from worker.errors import EmitStalledError
from worker.ledger import execute


class Client:
    """A Redis client whose pipelines can be counted, and made to fail before or after Redis got them."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.rounds = 0
        self.fail_after_sending = 0
        self.fail_before_sending = 0
        self.unknown_script_at: int | None = None

    def pipeline(self, **options: Any) -> _Pipeline:
        return _Pipeline(self, self.client.pipeline(**options))

    def eval(self, *arguments: Any) -> Any:
        return self.client.eval(*arguments)


class _Pipeline:
    def __init__(self, owner: Client, pipeline: Any) -> None:
        self.owner = owner
        self.pipeline = pipeline
        self.size = 0

    def evalsha(self, sha1: str, *arguments: Any) -> None:
        if self.size == self.owner.unknown_script_at:
            self.owner.unknown_script_at = None
            sha1 = "0" * 40
        self.size += 1
        self.pipeline.evalsha(sha1, *arguments)

    def execute(self, **options: Any) -> Any:
        self.owner.rounds += 1
        if self.owner.fail_before_sending:
            self.owner.fail_before_sending -= 1
            raise RedisConnectionError("not sent")
        replies = self.pipeline.execute(**options)
        if self.owner.fail_after_sending:
            self.owner.fail_after_sending -= 1
            raise RedisConnectionError("the reply was lost")
        return replies


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emitter_module, "RETRY_S", 0.02)


@pytest.fixture
def client(redis_client: redis.Redis) -> Client:
    redis_client.script_load(ledger.script_source("emit"))
    return Client(redis_client)


@pytest.fixture
def emitter(client: Client) -> Iterator[Emitter]:
    emitter = Emitter(client)  # type: ignore[arg-type]
    yield emitter
    if emitter._thread.ident is not None:
        emitter.stop()


def held(client: redis.Redis, job_id: str = "job_1", on_fenced: Callable[[], None] = lambda: None) -> EventWriter:
    """The writer of a fresh job's first attempt."""
    accept(client, job_id)
    job = lease(client, job_id)
    return EventWriter(job_id, job.attempt, job.last_event, on_fenced)


def send(emitter: Emitter, writer: EventWriter, words: str) -> None:
    for word in words:
        emitter.emit(writer, TokenPayload(text=word, ids=(ord(word),)))


def words(client: redis.Redis, job_id: str = "job_1") -> str:
    events = ledger.read_events(client, job_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return "".join(TokenPayload.model_validate_json(event.data).text for event in events)


def test_events_keep_the_order_in_which_they_were_given(redis_client: redis.Redis, emitter: Emitter) -> None:
    writers = [held(redis_client, f"job_{number}") for number in range(3)]
    emitter.start()
    for word in "abcdefghijklmnopqrstuvwxyz":
        for writer in writers:
            send(emitter, writer, word)
    for writer in writers:
        emitter.flush(writer, 10)
        assert words(redis_client, writer.job_id) == "abcdefghijklmnopqrstuvwxyz"


def test_everything_that_is_ready_goes_in_one_round_trip(
    redis_client: redis.Redis, client: Client, emitter: Emitter
) -> None:
    writers = [held(redis_client, f"job_{number}") for number in range(4)]
    for writer in writers:
        send(emitter, writer, "abcdefghij")
    emitter.start()
    for writer in writers:
        emitter.flush(writer, 10)
    assert client.rounds == 1


def test_a_round_is_bounded(redis_client: redis.Redis, client: Client, emitter: Emitter) -> None:
    writer = held(redis_client)
    send(emitter, writer, "x" * (2 * emitter_module.MOST_PER_ROUND + 1))
    emitter.start()
    emitter.flush(writer, 10)
    assert client.rounds == 3


def test_stopping_writes_what_is_left(redis_client: redis.Redis, emitter: Emitter) -> None:
    writer = held(redis_client)
    send(emitter, writer, "abc")
    emitter.start()
    emitter.stop()
    assert words(redis_client) == "abc"


def test_events_are_written_once_although_the_reply_was_lost(
    redis_client: redis.Redis, client: Client, emitter: Emitter
) -> None:
    client.fail_after_sending = 3
    writer = held(redis_client)
    send(emitter, writer, "abc")
    emitter.start()
    emitter.flush(writer, 10)
    assert client.rounds == 4
    assert words(redis_client) == "abc"
    assert not writer.fenced


def test_events_given_while_redis_is_away_follow_in_order(
    redis_client: redis.Redis, client: Client, emitter: Emitter
) -> None:
    client.fail_before_sending = 3
    writer = held(redis_client)
    emitter.start()
    send(emitter, writer, "a")
    until(lambda: client.rounds >= 2, "a failed round")
    send(emitter, writer, "bc")
    emitter.flush(writer, 10)
    assert words(redis_client) == "abc"


def test_a_script_that_redis_forgot_for_one_event_mixes_nothing_up(
    redis_client: redis.Redis, client: Client, emitter: Emitter
) -> None:
    client.unknown_script_at = 0
    writer = held(redis_client)
    send(emitter, writer, "abc")
    emitter.start()
    emitter.flush(writer, 10)
    assert words(redis_client) == "abc"
    assert not writer.fenced


def test_an_attempt_ends_when_redis_lost_events_that_it_had_confirmed(
    redis_client: redis.Redis, emitter: Emitter
) -> None:
    fenced = threading.Event()
    writer = held(redis_client, on_fenced=fenced.set)
    emitter.start()
    send(emitter, writer, "ab")
    emitter.flush(writer, 10)
    entries: Any = redis_client.xrange(events_key("job_1"))
    first: Any = entries[0][1]
    redis_client.delete(events_key("job_1"))
    redis_client.xadd(events_key("job_1"), first, id="1-0")
    redis_client.hset(job_key("job_1"), "seq", 1)
    send(emitter, writer, "c")
    assert fenced.wait(10)
    assert words(redis_client) == "a"


@pytest.mark.parametrize("how", ["another attempt", "cancelled"])
def test_a_fenced_writer_stops_and_hears_of_it_once(redis_client: redis.Redis, emitter: Emitter, how: str) -> None:
    calls: list[str] = []
    writer = held(redis_client, on_fenced=lambda: calls.append("fenced"))
    other = held(redis_client, "job_2")
    emitter.start()
    send(emitter, writer, "ab")
    emitter.flush(writer, 10)
    if how == "cancelled":
        execute(redis_client, ledger.cancel("job_1"))
    else:
        lose_lease(redis_client)
        lease(redis_client)
    before = ledger.read_events(redis_client, "job_1")
    send(emitter, writer, "cdef")
    emitter.flush(writer, 10)
    send(emitter, writer, "gh")
    send(emitter, other, "xyz")
    emitter.flush(other, 10)
    assert writer.fenced
    assert calls == ["fenced"]
    assert ledger.read_events(redis_client, "job_1") == before
    assert words(redis_client, "job_2") == "xyz"


def test_flush_of_a_fenced_writer_does_not_wait(redis_client: redis.Redis, emitter: Emitter) -> None:
    writer = held(redis_client)
    writer.fenced = True
    send(emitter, writer, "a")
    emitter.flush(writer, 0)


def test_flush_gives_up_after_its_time(redis_client: redis.Redis, emitter: Emitter) -> None:
    writer = held(redis_client)
    send(emitter, writer, "ab")
    with pytest.raises(EmitStalledError, match="2 events of job job_1"):
        emitter.flush(writer, 0.05)


def test_a_second_attempt_numbers_on_behind_the_first(redis_client: redis.Redis, emitter: Emitter) -> None:
    writer = held(redis_client)
    emitter.start()
    send(emitter, writer, "ab")
    emitter.flush(writer, 10)
    lose_lease(redis_client)
    job = lease(redis_client)
    second = EventWriter(job.id, job.attempt, job.last_event, lambda: None)
    send(emitter, second, "cd")
    emitter.flush(second, 10)
    assert words(redis_client) == "abcd"


def test_everything_arrives_after_redis_was_stopped_and_started_again(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as first:
        client = redis.Redis.from_url(first.url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=1)
        writer = held(client)
        emitter = Emitter(client)
        emitter.start()
        send(emitter, writer, "ab")
        emitter.flush(writer, 10)
        first.stop()
        send(emitter, writer, "cd")
        with pytest.raises(EmitStalledError):
            emitter.flush(writer, 0.1)
        with EmbeddedRedis(tmp_path, port=first.port):
            emitter.flush(writer, 15)
            assert words(client) == "abcd"
            assert field(client, "seq") == "4"
            emitter.stop()
            client.close()


def test_a_job_whose_record_is_broken_ends_alone(redis_client: redis.Redis, emitter: Emitter) -> None:
    refused = threading.Event()
    broken, sound = held(redis_client, "job_0", refused.set), held(redis_client)
    redis_client.delete(events_key("job_0"))
    redis_client.set(events_key("job_0"), "no stream at all")
    send(emitter, broken, "ab")
    send(emitter, sound, "cd")
    emitter.start()
    emitter.flush(sound, 10)
    assert words(redis_client) == "cd"
    assert refused.wait(10)
