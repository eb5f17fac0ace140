"""The way of one request over HTTP: answered at once, streamed, later, or given up."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import httpx
import pytest
import redis

from service import overdue, waiting
from service.fetching import ImageFetcher
from service.metrics import ServiceMetrics
from service.runtime import open_runtime
from service.waiting import Watch
from tests.service.conftest import FakeWorker, Service, make_settings, picture, running_service, until
from worker.contract import OPEN_KEY, JobState, Priority, image_key, job_key, problem, queue_name, watchers_key


def events_of(response: httpx.Response) -> list[tuple[str, int, Any]]:
    found = []
    for block in response.text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields["event"], int(fields["id"]), json.loads(fields["data"])))
    return found


def problem_of(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == response.status_code
    return str(body["type"].removeprefix("urn:erase:problem:"))


class TestAnswer:
    def test_a_multipart_question_is_answered(self, service: Service, worker: FakeWorker) -> None:
        file = picture()
        later = service.later(
            service.http.post,
            "/v1/ask",
            files=[("image", ("a.png", file)), ("image", ("b.jpg", picture(kind="JPEG")))],
            data={
                "prompt": "Which?",
                "max_tokens": "7",
                "stop": ["x", "y"],
                "pruning": '{"method": "erase", "retention": 0.5}',
                "timeout_s": "20",
            },
        )
        job = worker.take()
        assert job.request.prompt == "Which?"
        assert [image.format for image in job.request.images] == ["PNG", "JPEG"]
        assert job.request.generation.max_tokens == 7
        assert job.request.generation.stop == ("x", "y")
        assert job.request.pruning.retention == 0.5
        assert job.deadline_ms - job.accepted_ms == 20_000
        assert worker.client.get(image_key(job.request.images[0].sha256)) == file
        worker.succeed(job)
        response = later.result()
        assert response.status_code == 200
        body = response.json()
        assert body["answer"] == "42"
        assert body["id"] == job.id
        assert body["pruning"]["requested"] is None
        assert "pruning_map" not in body
        assert response.headers["content-location"] == f"/v1/jobs/{job.id}"

    def test_a_json_question_about_text_alone_is_answered(self, service: Service, worker: FakeWorker) -> None:
        later = service.later(service.ask, "Hello \N{SNOWMAN} <|im_end|>", temperature=0)
        job = worker.take()
        assert job.request.prompt == "Hello \N{SNOWMAN} <|im_end|>"
        assert job.request.images == ()
        worker.succeed(job)
        assert later.result().json()["answer"] == "42"

    def test_the_wake_up_carries_only_the_job_id(self, service: Service, worker: FakeWorker) -> None:
        service.ask(priority="batch", headers={"Prefer": "respond-async"})
        message: Any = worker.client.brpop([queue_name(Priority.BATCH)], timeout=10)
        envelope = json.loads(message[1])
        assert envelope["content-type"] == "application/json"
        assert envelope["headers"]["task"] == "erase.v1.run"
        assert "What is it?" not in message[1].decode()

    @pytest.mark.parametrize(
        ("kind", "status"),
        [("invalid-image", 422), ("internal", 500), ("context-length", 422), ("dead-letter", 500)],
    )
    def test_a_failed_job_has_the_status_of_its_problem(
        self, service: Service, worker: FakeWorker, kind: str, status: int
    ) -> None:
        later = service.later(service.ask)
        job = worker.take()
        worker.fail(job, problem(kind, "No."))
        response = later.result()
        assert response.status_code == status
        assert problem_of(response) == kind
        assert response.json()["instance"] == f"/v1/jobs/{job.id}"

    def test_the_deadline_is_kept_without_any_worker(self, service: Service, worker: FakeWorker) -> None:
        response = service.ask(timeout_s=0.3)
        assert response.status_code == 504
        assert problem_of(response) == "deadline"
        assert worker.state(response.json()["instance"].rpartition("/")[2]) is JobState.EXPIRED

    def test_an_answer_without_a_notice_is_found(self, service: Service, worker: FakeWorker) -> None:
        later = service.later(service.ask)
        job = worker.take()
        worker.client.delete(watchers_key(job.id))
        worker.succeed(job)
        assert later.result(timeout=10).status_code == 200

    def test_a_full_queue_is_refused_with_retry_after(self, redis_url: str, worker: FakeWorker) -> None:
        with running_service(make_settings(redis_url, max_open_jobs=1)) as service:
            assert service.ask(headers={"Prefer": "respond-async"}).status_code == 202
            response = service.ask()
            assert response.status_code == 503
            assert problem_of(response) == "queue-full"
            assert int(response.headers["retry-after"]) > 0


class TestStream:
    def test_tokens_come_in_order_and_before_the_result(self, service: Service, worker: FakeWorker) -> None:
        with service.http.stream("POST", "/v1/ask", json={"prompt": "?", "stream": True}) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            job = worker.take()
            worker.tokens(job, "4")
            chunks = response.iter_text()
            assert json.loads(next(chunks).split("data: ")[1].splitlines()[0]) == {"seq": 1, "text": "4"}
            worker.tokens(job, "2\n", "\N{SNOWMAN}")
            worker.succeed(job)
            rest = "".join(chunks)
        events = events_of(httpx.Response(200, text=rest))
        assert [(name, number) for name, number, _ in events] == [("token", 2), ("token", 3), ("result", 4)]
        assert [data["text"] for name, _, data in events if name == "token"] == ["2\n", "\N{SNOWMAN}"]
        assert events[-1][2]["answer"] == "42"

    def test_the_accept_header_asks_for_a_stream_too(self, service: Service, worker: FakeWorker) -> None:
        later = service.later(service.ask, headers={"Accept": "text/event-stream"})
        job = worker.take()
        worker.fail(job, problem("internal", "No."))
        events = events_of(later.result())
        assert [(name, data["status"]) for name, _, data in events] == [("error", 500)]

    def test_a_stream_resumes_after_the_last_event_seen(self, service: Service, worker: FakeWorker) -> None:
        job_id = service.ask(headers={"Prefer": "respond-async"}).json()["id"]
        job = worker.take()
        worker.tokens(job, "a", "b", "c")
        worker.succeed(job)
        url = f"/v1/jobs/{job_id}/events"
        assert [number for _, number, _ in events_of(service.http.get(url))] == [1, 2, 3, 4]
        resumed = service.http.get(url, headers={"Last-Event-ID": "2"})
        assert [number for _, number, _ in events_of(resumed)] == [3, 4]
        late = service.http.get(url, headers={"Last-Event-ID": "4000"})
        assert [name for name, _, _ in events_of(late)] == ["result"]
        assert service.http.get(url, headers={"Last-Event-ID": "x"}).status_code == 422

    def test_a_keyed_stream_resumes_by_asking_again(self, service: Service, worker: FakeWorker) -> None:
        keyed = {"Idempotency-Key": "k1", "Accept": "text/event-stream"}
        with service.http.stream("POST", "/v1/ask", json={"prompt": "?"}, headers=keyed) as response:
            job = worker.take()
            worker.tokens(job, "a")
            next(response.iter_text())
        worker.tokens(job, "b")
        worker.succeed(job)
        again = service.ask("?", headers={**keyed, "Last-Event-ID": "1"})
        assert [(name, number) for name, number, _ in events_of(again)] == [("token", 2), ("result", 3)]

    def test_a_deadline_inside_a_stream_is_an_error_event(self, service: Service) -> None:
        events = events_of(service.ask(stream=True, timeout_s=0.3))
        assert [(name, data["status"]) for name, _, data in events] == [("error", 504)]

    def test_an_idle_stream_is_kept_alive(
        self, service: Service, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.events.KEEP_ALIVE_S", 0.05)
        with service.http.stream("POST", "/v1/ask", json={"prompt": "?", "stream": True}) as response:
            chunks = response.iter_text()
            assert next(chunks) == ": keep-alive\n\n"
            worker.succeed(worker.take())
            assert "event: result" in "".join(chunks)


class TestLater:
    def test_respond_async_gives_an_address(self, service: Service, worker: FakeWorker) -> None:
        response = service.ask(headers={"Prefer": "respond-async"})
        assert response.status_code == 202
        assert response.headers["preference-applied"] == "respond-async"
        job_id = response.json()["id"]
        assert response.json() == {"id": job_id, "state": "accepted"}
        assert response.headers["location"] == f"/v1/jobs/{job_id}"
        report = service.http.get(f"/v1/jobs/{job_id}").json()
        assert report["state"] == "accepted"
        assert "answer" not in report
        job = worker.take()
        assert service.http.get(f"/v1/jobs/{job_id}").json()["state"] == "running"
        later = service.later(service.http.get, f"/v1/jobs/{job_id}?wait=30")
        until(lambda: worker.client.exists(watchers_key(job_id)), "a waiting request")
        worker.succeed(job)
        report = later.result().json()
        assert report["state"] == "succeeded"
        assert report["answer"]["answer"] == "42"
        assert report["accepted_at"] <= report["started_at"] <= report["finished_at"] <= report["deadline_at"]

    def test_a_short_wait_ends_with_202_and_a_fast_job_with_its_answer(
        self, service: Service, worker: FakeWorker
    ) -> None:
        response = service.ask(headers={"Prefer": "respond-async, wait=1"})
        assert response.status_code == 202
        assert response.headers["preference-applied"] == "respond-async, wait=1"
        worker.take()
        later = service.later(service.ask, headers={"Prefer": "respond-async; wait=20"})
        worker.succeed(worker.take())
        assert later.result().status_code == 200

    def test_waiting_for_a_job_ends_in_time(self, service: Service) -> None:
        job_id = service.ask(headers={"Prefer": "respond-async"}).json()["id"]
        assert service.http.get(f"/v1/jobs/{job_id}?wait=0.2").json()["state"] == "accepted"
        assert problem_of(service.http.get(f"/v1/jobs/{job_id}?wait=61")) == "invalid-request"

    def test_an_overdue_job_has_expired_even_when_no_worker_is_there_to_say_so(self, service: Service) -> None:
        job_id = service.ask(headers={"Prefer": "respond-async"}, timeout_s=0.1).json()["id"]
        url = f"/v1/jobs/{job_id}"
        report = until(lambda: (found := service.http.get(url).json())["state"] != "accepted" and found, "the end")
        assert (report["state"], report["problem"]["status"]) == ("expired", 504)

    def test_overdue_jobs_that_nobody_asks_for_end_while_no_worker_is_alive(
        self, service: Service, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(overdue, "EVERY_S", 0.1)
        late, early = (
            service.ask(headers={"Prefer": "respond-async"}, timeout_s=seconds).json()["id"] for seconds in (60, 0.1)
        )
        worker.client.zadd(OPEN_KEY, {late: 1, "job_unknown": 2})
        until(lambda: worker.state(early) is JobState.EXPIRED, "the end", timeout_s=20)
        assert worker.state(late) is JobState.ACCEPTED

    def test_who_waits_is_told_even_if_the_clock_of_redis_was_set_back(
        self, service: Service, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waiting, "GRACE_S", 0.3)
        asked = service.later(service.ask, timeout_s=0.5)
        job = worker.take()
        worker.client.hincrby(job_key(job.id), "deadline_ms", 3_600_000)  # an hour to go, on a clock an hour behind
        assert problem_of(asked.result(10)) == "unavailable"
        until(lambda: worker.state(job.id) is JobState.CANCELLED, "the end of what nobody waits for")

    def test_who_reads_slowly_gets_the_answer_that_was_there_in_time(
        self, service: Service, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waiting, "GRACE_S", 0.0)
        job_id = service.ask(headers={"Prefer": "respond-async"}, timeout_s=60).json()["id"]
        job = worker.take()
        worker.tokens(job, "4")
        settings = service.app.state.runtime.settings

        async def read_slowly() -> list[str]:
            kinds: list[str] = []
            async with open_runtime(settings, ServiceMetrics(), ImageFetcher(settings)) as runtime:
                with Watch(runtime, job_id, after=0, remaining_s=0.3) as watch:
                    async for event in watch.events():
                        assert event is not None
                        kinds.append(event.type.value)
                        if len(kinds) == 1:
                            await asyncio.to_thread(worker.succeed, job)
                            await asyncio.sleep(0.6)
            return kinds

        assert asyncio.run(read_slowly()) == ["token", "result"]

    def test_delete_cancels_once_and_tells_the_state(self, service: Service, worker: FakeWorker) -> None:
        job_id = service.ask(headers={"Prefer": "respond-async"}).json()["id"]
        for _ in range(2):
            assert service.http.delete(f"/v1/jobs/{job_id}").json() == {"id": job_id, "state": "cancelled"}
        assert service.http.get(f"/v1/jobs/{job_id}").json()["problem"]["status"] == 409
        later = service.later(service.ask)
        waiting = until(lambda: _open_job(worker.client), "an open job")
        service.http.delete(f"/v1/jobs/{waiting}")
        assert problem_of(later.result()) == "cancelled"

    def test_unknown_expired_and_malformed_ids(self, service: Service, worker: FakeWorker) -> None:
        job_id = service.ask(headers={"Prefer": "respond-async"}).json()["id"]
        service.http.delete(f"/v1/jobs/{job_id}")
        worker.client.delete(job_key(job_id))
        for call in (service.http.get, service.http.delete):
            response = call(f"/v1/jobs/{job_id}")
            assert response.status_code == 410
            assert problem_of(response) == "gone"
            for unknown in ("job_" + "0" * 32, "x", "job_" + "Z" * 32, "%00"):
                response = call(f"/v1/jobs/{unknown}")
                assert response.status_code == 404
                assert problem_of(response) == "not-found"


class TestIdempotency:
    def test_the_same_key_gets_the_same_answer(self, service: Service, worker: FakeWorker) -> None:
        key = {"Idempotency-Key": "order-1"}
        first = service.later(service.ask, headers=key)
        job = worker.take()
        second = service.later(service.ask, headers=key)
        until(lambda: b"2" in worker.client.hvals(watchers_key(job.id)), "the second watcher")
        worker.succeed(job)
        assert first.result().json() == second.result().json()
        assert service.ask(headers=key).json()["id"] == job.id
        later = service.ask(headers={**key, "Prefer": "respond-async"})
        assert later.json() == {"id": job.id, "state": "succeeded"}
        assert worker.client.llen(queue_name(Priority.INTERACTIVE)) == 0

    def test_another_body_under_the_same_key_is_refused(self, service: Service) -> None:
        headers = {"Idempotency-Key": "k", "Prefer": "respond-async"}
        assert service.ask("one", headers=headers).status_code == 202
        for body in ({"prompt": "two"}, {"prompt": "one", "seed": 1}, {"prompt": "one", "priority": "batch"}):
            response = service.ask(**body, headers=headers)  # type: ignore[arg-type]
            assert response.status_code == 422
            assert problem_of(response) == "idempotency-mismatch"

    @pytest.mark.parametrize("key", ["", "a b", "x" * 256])
    def test_a_bad_key_is_refused(self, service: Service, key: str) -> None:
        assert problem_of(service.ask(headers={"Idempotency-Key": key})) == "invalid-request"


def _open_job(client: redis.Redis) -> str:
    jobs: Any = client.zrange("erase:open", 0, -1)
    return jobs[0].decode() if jobs else ""


class TestDisconnect:
    def _leave(self, service: Service, headers: str = "", body: str = '{"prompt": "?"}') -> socket.socket:
        host, port = service.http.base_url.host, service.http.base_url.port
        assert port is not None
        connection = socket.create_connection((host, port))
        head = f"POST /v1/ask HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{headers}"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        return connection

    @pytest.mark.parametrize("body", ['{"prompt": "?"}', '{"prompt": "?", "stream": true}'])
    def test_a_client_that_leaves_cancels_its_job(self, service: Service, worker: FakeWorker, body: str) -> None:
        connection = self._leave(service, body=body)
        job = worker.take()
        connection.close()
        until(lambda: worker.state(job.id) is JobState.CANCELLED, "the cancellation")

    @pytest.mark.parametrize("headers", ["Idempotency-Key: k\r\n", "Prefer: respond-async, wait=50\r\n"])
    def test_a_job_that_is_still_wanted_goes_on(self, service: Service, worker: FakeWorker, headers: str) -> None:
        connection = self._leave(service, headers)
        job = worker.take()
        connection.close()
        until(lambda: not worker.client.exists(watchers_key(job.id)), "the end of watching")
        assert worker.state(job.id) is JobState.RUNNING

    def test_a_second_watcher_keeps_the_job(self, service: Service, worker: FakeWorker) -> None:
        connection = self._leave(service)
        job = worker.take()
        other = service.later(service.http.get, f"/v1/jobs/{job.id}?wait=30")
        until(lambda: b"2" in worker.client.hvals(watchers_key(job.id)), "the second watcher")
        connection.close()
        until(lambda: b"1" in worker.client.hvals(watchers_key(job.id)), "the first one's leaving")
        worker.succeed(job)
        assert other.result().json()["state"] == "succeeded"
