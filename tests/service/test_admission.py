"""What keeps a deployment from taking in more than it can hold: limits per owner, queue, pixels, memory."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
import redis

from service import submission
from tests.service.conftest import FakeWorker, Service, make_settings, picture, running_service, until
from worker.contract import OPEN_PIXELS_KEY, JobState, owner_open_key
from worker.ledger import Accepted

LATER = {"Prefer": "respond-async"}


def kind(reply: httpx.Response) -> str:
    return str(reply.json()["type"]).rsplit(":", 1)[-1]


def refused(reply: httpx.Response, status: int, problem: str) -> None:
    assert (reply.status_code, kind(reply)) == (status, problem), reply.text
    assert int(reply.headers["Retry-After"]) >= 1


@pytest.fixture
def limited(redis_url: str, request: pytest.FixtureRequest) -> Iterator[Service]:
    with running_service(make_settings(redis_url, **request.param)) as service:
        yield service


@pytest.fixture(autouse=True)
def fresh_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts are read for every question."""
    monkeypatch.setattr("service.admission.COUNTS_GOOD_FOR_S", 0.0)
    monkeypatch.setattr("service.admission.REFUSALS_GOOD_FOR_S", 0.0)


def limits(**settings: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("limited", [settings], indirect=True, ids=[""])


@limits(key_requests_per_minute=3)
def test_an_owner_asks_so_often_a_minute_and_is_told_when_to_come_again(limited: Service) -> None:
    replies = [limited.ask(headers=LATER) for _ in range(4)]
    assert [reply.status_code for reply in replies[:3]] == [202] * 3
    refused(replies[3], 429, "rate-limit")
    assert int(replies[3].headers["Retry-After"]) <= 61
    assert limited.http.get("/v1/jobs").status_code == 200
    refused_chat = limited.http.post("/v1/chat/completions", json={})
    assert refused_chat.status_code == 429
    assert refused_chat.json()["error"]["type"] == "rate_limit_error"
    assert int(refused_chat.headers["Retry-After"]) >= 1


@limits(key_requests_per_minute=1)
def test_all_processes_count_the_rate_together(limited: Service, redis_url: str) -> None:
    assert limited.ask(headers=LATER).status_code == 202
    with running_service(make_settings(redis_url, key_requests_per_minute=1)) as other:
        refused(other.ask(headers=LATER), 429, "rate-limit")


@limits(key_concurrent_requests=2)
def test_so_many_requests_of_an_owner_are_answered_at_once(limited: Service, worker: FakeWorker) -> None:
    waiting = [limited.later(limited.ask) for _ in range(2)]
    jobs = [worker.take() for _ in waiting]
    refused(limited.ask(), 429, "too-many-requests")
    worker.succeed(jobs[0])
    until(lambda: any(one.done() for one in waiting), "an answer")
    third = limited.later(limited.ask)
    for job in (jobs[1], worker.take()):
        worker.succeed(job)
    assert {one.result().status_code for one in [*waiting, third]} == {200}
    until(lambda: not limited.app.state.runtime.admission._requests, "the last request's end in the service, too")


@limits(key_concurrent_requests=1)
def test_a_stream_counts_until_it_ends_or_its_client_leaves(limited: Service, worker: FakeWorker) -> None:
    with limited.http.stream("POST", "/v1/ask", json={"prompt": "?", "stream": True}) as stream:
        worker.take()
        assert stream.status_code == 200
        refused(limited.ask(), 429, "too-many-requests")
        assert limited.http.get("/v1/jobs").status_code == 200
    until(lambda: limited.ask(headers=LATER).status_code == 202, "the end of the stream")


@limits(key_open_jobs=2)
def test_so_many_jobs_of_an_owner_are_open(limited: Service, worker: FakeWorker) -> None:
    first, second = (limited.ask(headers={**LATER, "Idempotency-Key": key}) for key in "ab")
    refused(limited.ask(headers=LATER), 429, "open-jobs-limit")
    attached = limited.ask(headers={**LATER, "Idempotency-Key": "a"})
    assert attached.json()["id"] == first.json()["id"]
    worker.succeed(worker.take())
    assert limited.ask(headers=LATER).status_code == 202
    assert limited.http.delete(f"/v1/jobs/{second.json()['id']}").status_code == 200
    assert limited.ask(headers=LATER).status_code == 202
    assert worker.client.scard(owner_open_key("anonymous")) == 2


@limits(max_open_jobs=1)
def test_the_queue_has_a_bound_and_a_full_one_is_not_given_bodies(limited: Service, redis_client: redis.Redis) -> None:
    assert limited.ask(headers=LATER).status_code == 202
    reply = limited.http.post("/v1/ask", files={"image": picture()}, data={"prompt": "?"})
    refused(reply, 503, "queue-full")
    assert redis_client.keys("erase:image:*") == []


@limits(max_open_jobs=1)
def test_the_ledger_keeps_the_bound_where_two_ask_at_the_same_moment(
    limited: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fits(*_: object) -> bool:
        return False

    monkeypatch.setattr(limited.app.state.runtime.admission, "_is_known_or_fits", fits)
    assert limited.ask(headers=LATER).status_code == 202
    refused(limited.ask(headers=LATER), 503, "queue-full")


@limits(max_open_pixels=10_000, max_request_pixels=10_000, max_image_pixels=10_000)
def test_the_images_of_open_jobs_have_a_budget(limited: Service, worker: FakeWorker) -> None:
    def ask(width: int) -> httpx.Response:
        return limited.http.post("/v1/ask", files={"image": picture(width, 100)}, data={"prompt": "?"}, headers=LATER)

    assert ask(60).status_code == 202
    refused(ask(50), 503, "queue-full")
    assert len(worker.client.keys("erase:image:*")) == 1  # what is refused is not stored first
    assert ask(40).status_code == 202
    assert worker.client.get(OPEN_PIXELS_KEY) == b"10000"
    for _ in range(2):
        worker.succeed(worker.take())
    assert worker.client.get(OPEN_PIXELS_KEY) == b"0"
    assert ask(50).status_code == 202


@limits(max_open_pixels=10_000, max_request_pixels=10_000, max_image_pixels=10_000, key_open_jobs=1)
def test_counts_that_a_worker_of_an_older_version_left_behind_are_put_right(
    limited: Service, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.admission.RECOUNT_EVERY_S", 0.0)
    worker.client.sadd(owner_open_key("anonymous"), "job_that_ended")
    worker.client.set(OPEN_PIXELS_KEY, 99_999)
    files = {"image": picture(60, 100)}
    assert limited.http.post("/v1/ask", files=files, data={"prompt": "?"}, headers=LATER).status_code == 202
    assert worker.client.get(OPEN_PIXELS_KEY) == b"6000"
    refused(limited.ask(headers=LATER), 429, "open-jobs-limit")


@limits(max_request_pixels=5_000, max_image_pixels=5_000)
def test_the_images_of_a_request_have_a_budget(limited: Service) -> None:
    files = [("image", picture(60, 60)), ("image", picture(50, 50))]
    reply = limited.http.post("/v1/ask", files=files, data={"prompt": "?"})
    assert (reply.status_code, kind(reply)) == (413, "too-large")
    assert limited.http.post("/v1/ask", files=files[:1], data={"prompt": "?"}, headers=LATER).status_code == 202


def test_uploads_leave_redis_its_headroom(service: Service, redis_client: redis.Redis) -> None:
    memory: Any = redis_client.info("memory")
    redis_client.config_set("maxmemory", memory["used_memory"] + 5 * 2**20)
    try:
        file = {"image": picture(64, 48) + bytes(8 * 2**20)}
        refused(service.http.post("/v1/ask", files=file, data={"prompt": "?"}), 503, "storage-full")
        assert service.ask(headers=LATER).status_code == 202
    finally:
        redis_client.config_set("maxmemory", 0)


def test_a_body_that_no_limit_allows_is_too_large_however_full_redis_is(
    service: Service, redis_client: redis.Redis
) -> None:
    memory: Any = redis_client.info("memory")
    redis_client.config_set("maxmemory", memory["used_memory"] + 5 * 2**20)
    url = service.http.base_url
    try:
        with socket.create_connection((url.host, url.port or 80), timeout=5) as client:
            head = "POST /v1/ask HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: {3 * 2**30}\r\n\r\n".encode())
            assert client.recv(64).startswith(b"HTTP/1.1 413")
    finally:
        redis_client.config_set("maxmemory", 0)


def test_a_redis_that_is_full_all_the_same_refuses(
    service: Service, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fits(*_: object) -> None:
        return

    monkeypatch.setattr(service.app.state.runtime.admission._memory, "check", fits)
    redis_client.config_set("maxmemory", 1)
    try:
        refused(service.http.post("/v1/ask", files={"image": picture()}, data={"prompt": "?"}), 503, "storage-full")
        refused(service.ask(), 503, "storage-full")
    finally:
        redis_client.config_set("maxmemory", 0)


def test_another_question_under_a_known_key_stores_nothing(service: Service, redis_client: redis.Redis) -> None:
    headers = {**LATER, "Idempotency-Key": "k"}

    def ask(width: int) -> httpx.Response:
        files = {"image": picture(width, 100)}
        return service.http.post("/v1/ask", files=files, data={"prompt": "?"}, headers=headers)

    assert ask(60).status_code == 202
    assert ask(61).status_code == 422
    assert len(redis_client.keys("erase:image:*")) == 1  # type: ignore[arg-type]
    assert ask(60).status_code == 202


@limits(max_open_jobs=1)
def test_a_refusal_comes_before_a_slow_upload_has_ended(limited: Service) -> None:
    """Its 20 MB are announced; none of them needs to arrive."""
    limited.ask(headers=LATER)

    started = time.perf_counter()
    url = limited.http.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=5) as raw:
        raw.sendall(
            b"POST /v1/ask HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 20000000\r\n\r\n{"
        )
        assert raw.recv(64).startswith(b"HTTP/1.1 503")
    assert time.perf_counter() - started < 2


@pytest.fixture
def slow_uploads(limited: Service) -> Iterator[Callable[..., socket.socket]]:
    """Begins a question whose body, of the announced size, does not come."""
    url = limited.http.base_url

    def begin(size: int = 999) -> socket.socket:
        raw = socket.create_connection((url.host, url.port or 80), timeout=5)
        head = f"POST /v1/ask HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n{{"
        raw.sendall(head.encode())
        return raw

    with ExitStack() as stack:
        yield lambda *size: stack.enter_context(begin(*size))


@limits(max_open_jobs=9)
def test_uploads_on_their_way_count_against_redis_headroom(
    limited: Service,
    slow_uploads: Callable[..., socket.socket],
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.admission.COMING_S", 60.0)
    coming = limited.app.state.runtime.admission._coming
    memory: Any = redis_client.info("memory")
    redis_client.config_set("maxmemory", int(memory["used_memory"] / 0.9) + 40 * 2**20)
    try:
        first = slow_uploads(20 * 2**20)
        until(lambda: coming.size() == 20 * 2**20, "the upload")
        assert slow_uploads(20 * 2**20).recv(64).startswith(b"HTTP/1.1 503")
        first.close()
        until(lambda: coming.size() == 0, "its end")
        slow_uploads(20 * 2**20)
        until(lambda: coming.size() == 20 * 2**20, "the next one")
    finally:
        redis_client.config_set("maxmemory", 0)


@limits(max_open_jobs=3)
def test_questions_on_their_way_take_a_place_so_that_a_rush_is_refused_before_its_bodies(
    limited: Service, slow_uploads: Callable[..., socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.admission.COMING_S", 60.0)
    coming = limited.app.state.runtime.admission._coming
    uploads = [slow_uploads() for _ in range(3)]
    until(lambda: coming.all() == 3, "the uploads")
    refused(limited.ask(headers=LATER), 503, "queue-full")
    assert slow_uploads().recv(64).startswith(b"HTTP/1.1 503")
    uploads[0].close()
    until(lambda: coming.all() == 2, "the end of one")
    assert limited.ask(headers=LATER).status_code == 202
    refused(limited.ask(headers=LATER), 503, "queue-full")


@limits(max_held_bytes=150_000)
@pytest.mark.parametrize("path", ["/v1/ask", "/v1/chat/completions"])
def test_a_process_holds_so_many_bytes_of_bodies_at_a_time(limited: Service, path: str) -> None:
    held, url = limited.app.state.runtime.admission._held, limited.http.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=5) as slow:
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 120000\r\n\r\n"
        slow.sendall(head.encode() + b" " * 100_000)
        until(lambda: held.now == 100_000, "the slow body")
        form = {"image": picture() + bytes(60_000)}
        refused(limited.http.post("/v1/ask", files=form, data={"prompt": "?"}), 503, "unavailable")
        assert limited.http.post(path, json={"prompt": "x" * 60_000}).status_code == 503
    until(lambda: held.now == 0, "its end")
    assert limited.ask(headers=LATER).status_code == 202
    assert held.now == 0


@limits(key_open_jobs=2)
def test_a_question_never_counts_twice_on_its_way_and_in_the_ledger(
    limited: Service, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept_job = submission.accept_job
    noticed = threading.Event()

    async def slow_to_notice(*arguments: Any) -> Accepted:
        accepted = await accept_job(*arguments)
        if not slow:
            slow.append(accepted)
            await asyncio.to_thread(noticed.wait, 20)
        return accepted

    slow: list[Accepted] = []
    monkeypatch.setattr(submission, "accept_job", slow_to_notice)
    first = limited.later(limited.ask, headers=LATER)
    until(lambda: slow, "the first in the ledger")
    assert limited.ask(headers=LATER).status_code == 202
    noticed.set()
    assert first.result().status_code == 202


@limits(key_open_jobs=1)
def test_they_count_against_their_owner(
    limited: Service, slow_uploads: Callable[..., socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.admission.COMING_S", 60.0)
    slow_uploads()
    until(lambda: limited.app.state.runtime.admission._coming.all() == 1, "the upload")
    refused(limited.ask(headers=LATER), 429, "open-jobs-limit")


@limits(max_open_jobs=1)
def test_a_slow_upload_keeps_its_place_for_a_moment_only(
    limited: Service, slow_uploads: Callable[..., socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.admission.COMING_S", 1.0)
    coming = limited.app.state.runtime.admission._coming
    slow_uploads()
    until(lambda: coming.all() == 1, "the upload")
    refused(limited.ask(headers=LATER), 503, "queue-full")
    until(lambda: limited.ask(headers=LATER).status_code == 202, "the upload's place")
    until(lambda: coming.all() == 0, "nobody on the way")
    assert coming._since == {}


@limits(max_open_jobs=1)
def test_a_full_deployment_is_not_asked_anew_for_every_refusal(
    limited: Service, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.admission.REFUSALS_GOOD_FOR_S", 60.0)
    keyed = {**LATER, "Idempotency-Key": "a"}
    first = limited.ask(headers=keyed)
    refused(limited.ask(headers=LATER), 503, "queue-full")
    redis_client.config_resetstat()
    for _ in range(5):
        refused(limited.ask(headers=LATER), 503, "queue-full")
    assert "cmdstat_zcard" not in redis_client.info("commandstats")
    assert limited.ask(headers=keyed).json()["id"] == first.json()["id"]


def test_a_body_that_does_not_arrive_ends_with_its_time(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.ask.UPLOAD_TIMEOUT_S", 0.3)
    url = service.http.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=10) as raw:
        raw.sendall(b"POST /v1/ask HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
        assert raw.recv(64).startswith(b"HTTP/1.1 400")


def test_a_job_that_ended_twice_counts_back_once(service: Service, worker: FakeWorker) -> None:
    job_id = service.ask(headers=LATER).json()["id"]
    for _ in range(2):
        assert service.http.delete(f"/v1/jobs/{job_id}").json()["state"] == JobState.CANCELLED
    assert worker.client.scard(owner_open_key("anonymous")) == 0
