"""Probes, status, metrics, API keys, and what happens when Redis is away or not to be trusted."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from service import acceptance, replies, runtime
from service.durability import Confirmation, NotDurableError, judge
from service.embedded_redis import EmbeddedRedis
from service.problems import UnavailableError
from tests.service.conftest import FakeWorker, Service, make_settings, picture, running_service, until
from tests.service.test_ask import problem_of
from tests.service.test_bad_input import worker_info
from tests.worker.test_ledger import new_job
from worker import ledger
from worker.contract import (
    OPEN_KEY,
    PROBLEMS,
    WORKERS_KEY,
    JobState,
    Priority,
    job_key,
    problem,
    queue_name,
    replies_key,
    watchers_key,
)

DOCS = Path(__file__).parents[2] / "docs"


def heartbeat(client: redis.Redis, name: str = "w1", age_s: int = 0) -> None:
    seconds, _ = client.time()  # type: ignore[misc]
    client.hset(WORKERS_KEY, name, worker_info((seconds - age_s) * 1000, worker=name).model_dump_json())


class TestProbes:
    def test_a_service_with_a_durable_redis_is_ready_without_any_worker(self, service: Service) -> None:
        assert service.http.get("/healthz").json() == {"status": "ok"}
        assert service.http.get("/readyz").status_code == 200

    def test_the_root_leads_to_the_documentation(self, service: Service) -> None:
        response = service.http.get("/")
        assert response.status_code == 307
        assert response.headers["location"] == "/docs"
        page = service.http.get("/docs")
        assert page.status_code == 200
        assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(assets) == 3
        for asset in assets:
            assert asset.startswith("/docs/assets/"), "the page must work without any other host"
            assert service.http.get(asset).status_code == 200

    def test_the_openapi_document_is_complete(self, service: Service) -> None:
        document = service.http.get("/openapi.json").json()
        known = set(document["components"]["schemas"])
        references = set(re.findall(r'"#/components/schemas/(\w+)"', str(document).replace("'", '"')))
        assert references <= known
        body = document["paths"]["/v1/ask"]["post"]["requestBody"]["content"]
        assert set(body) == {"multipart/form-data", "application/json"}

    @pytest.mark.parametrize(
        ("setting", "value", "good"), [("appendonly", "no", "yes"), ("maxmemory-policy", "allkeys-lru", "noeviction")]
    )
    def test_a_redis_that_may_lose_jobs_is_not_trusted(
        self,
        redis_url: str,
        redis_client: redis.Redis,
        caplog: pytest.LogCaptureFixture,
        setting: str,
        value: str,
        good: str,
    ) -> None:
        redis_client.config_set(setting, value)
        try:
            with running_service(make_settings(redis_url)) as service:
                assert service.http.get("/healthz").status_code == 200
                for response in (service.http.get("/readyz"), service.ask()):
                    assert (response.status_code, problem_of(response)) == (503, "unavailable")
                    assert setting not in response.text
                assert f"set {setting if value == 'no' else 'noeviction'}" in caplog.text
                redis_client.config_set(setting, good)
                until(lambda: not redis_client.info("persistence")["aof_rewrite_in_progress"], "the new file")
                assert service.http.get("/readyz").status_code == 200
            with running_service(make_settings(redis_url, durability="off")) as service:
                redis_client.config_set(setting, value)
                assert service.ask(headers={"Prefer": "respond-async"}).status_code == 202
        finally:
            redis_client.config_set(setting, good)
            until(lambda: not redis_client.info("persistence")["aof_rewrite_in_progress"], "the new file")

    @pytest.mark.parametrize(
        ("version", "fsync", "expected"),
        [
            ("9.1.2", "everysec", Confirmation.WAITAOF),
            ("7.2.4", "everysec", Confirmation.WAITAOF),
            ("7.0.15", "always", Confirmation.ALWAYS),
            ("7.0.15", "everysec", None),
            ("6.2", "no", None),
        ],
    )
    def test_old_servers_must_write_each_time(self, version: str, fsync: str, expected: Confirmation | None) -> None:
        config = {"appendonly": "yes", "appendfsync": fsync, "maxmemory-policy": "noeviction"}
        if expected is None:
            with pytest.raises(NotDurableError):
                judge(version, config)
        else:
            assert judge(version, config) is expected

    def test_a_replica_is_not_ready_and_after_a_failover_its_connections_are_not_kept(
        self, redis_url: str, redis_client: redis.Redis
    ) -> None:
        with running_service(make_settings(redis_url)) as service:
            assert service.http.get("/readyz").status_code == 200
            pool = service.app.state.runtime.redis.connection_pool
            redis_client.execute_command("REPLICAOF", "127.0.0.1", "1")
            try:
                ready = until(lambda: (found := service.http.get("/readyz")).status_code == 503 and found, "the look")
                assert "replica" not in ready.text
                assert not [one for one in pool._available_connections if one.is_connected]
            finally:
                redis_client.execute_command("REPLICAOF", "NO", "ONE")
            assert service.http.get("/readyz").status_code == 200

    def test_a_server_that_could_not_write_is_not_trusted(self) -> None:
        config = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction"}
        with pytest.raises(NotDurableError) as caught:
            judge("9.1.2", config, "err")
        assert "disk full" in caught.value.reason
        assert "disk" not in caught.value.detail

    def test_a_durable_accept_does_not_wait_for_the_timer_of_an_idle_redis(self, service: Service) -> None:
        took = []
        for _ in range(10):
            started = time.perf_counter()
            assert service.ask(headers={"Prefer": "respond-async"}).status_code == 202
            took.append(time.perf_counter() - started)
        assert min(took) < 0.08

    @pytest.mark.parametrize("key", ["", "k"], ids=["no key", "a key"])
    def test_an_unconfirmed_job_is_taken_back_or_stays_for_who_asks_again(
        self, service: Service, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, key: str
    ) -> None:
        headers = {"Prefer": "respond-async"} | ({"Idempotency-Key": key} if key else {})
        monkeypatch.setattr("service.acceptance._is_confirmed", lambda *_: False)
        for _ in range(2):
            response = service.ask(headers=headers)
            assert (response.status_code, problem_of(response)) == (503, "unavailable")
        jobs = worker.client.keys("erase:job:*")
        expected = [b"accepted"] if key else [b"cancelled"] * 2
        assert [worker.client.hget(job, "state") for job in jobs] == expected  # type: ignore[union-attr]
        monkeypatch.undo()
        again = service.ask(headers=headers)
        assert again.status_code == 202
        assert worker.state(again.json()["id"]) is JobState.ACCEPTED
        if key:
            assert [job.decode() for job in jobs] == [job_key(again.json()["id"])]  # type: ignore[union-attr]

    def test_who_only_waits_for_a_job_that_is_there_needs_no_confirmation(
        self, service: Service, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        headers = {"Idempotency-Key": "k"}
        first = service.later(service.ask, headers=headers)
        job = worker.take()
        until(lambda: scraped(service)["erase_http_requests_waiting"].samples[0].value == 1, "the first to wait")
        monkeypatch.setattr("service.acceptance._is_confirmed", lambda *_: False)
        second = service.later(service.ask, headers=headers)
        until(lambda: worker.client.hvals(watchers_key(job.id)) == [b"2"], "the second watcher")
        worker.succeed(job)
        assert {first.result().status_code, second.result().status_code} == {200}

    @pytest.mark.parametrize("key", ["", "k"], ids=["no key", "a key"])
    def test_a_job_whose_reply_was_lost_twice_is_taken_back_or_stays_for_who_asks_again(
        self, service: Service, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, key: str
    ) -> None:
        accept_once = acceptance._accept_once

        async def unheard(*arguments: Any) -> Any:
            await accept_once(*arguments)
            raise redis.exceptions.ConnectionError

        monkeypatch.setattr(acceptance, "_accept_once", unheard)
        refused = service.ask(headers={"Idempotency-Key": key} if key else {})
        assert (refused.status_code, problem_of(refused)) == (503, "unavailable")
        monkeypatch.undo()
        if not key:
            (job,) = worker.client.keys("erase:job:*")  # type: ignore[misc]
            until(lambda: worker.client.hget(job, "state") == b"cancelled", "the end of the job")
            return
        again = service.later(service.ask, headers={"Idempotency-Key": key})
        worker.succeed(worker.take())
        assert again.result().status_code == 200
        assert worker.client.llen(queue_name(Priority.INTERACTIVE)) == 0

    @pytest.mark.parametrize("wait", ["", ", wait=1"])
    def test_an_accepted_job_has_its_address_even_if_redis_fails_then(
        self, service: Service, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, wait: str
    ) -> None:
        async def failing(*_: Any) -> Any:
            raise redis.exceptions.ConnectionError

        monkeypatch.setattr("service.ask.read_job_async", failing)
        reply = service.ask(headers={"Prefer": f"respond-async{wait}"})
        assert (reply.status_code, reply.json()["state"]) == (202, "accepted")
        assert reply.headers["Location"] == f"/v1/jobs/{worker.take().id}"

    def test_who_attaches_for_later_has_the_address_even_if_redis_fails_then(
        self, service: Service, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def failing(*_: Any) -> Any:
            raise redis.exceptions.ConnectionError

        headers = {"Idempotency-Key": "k", "Prefer": "respond-async"}
        job_id = service.ask(headers=headers).json()["id"]
        monkeypatch.setattr("service.submission.read_job_async", failing)
        reply = service.ask(headers=headers | {"Prefer": "respond-async, wait=5"})
        assert (reply.status_code, reply.headers["Location"]) == (202, f"/v1/jobs/{job_id}")

    def test_a_wait_that_redis_ends_is_answered_with_the_address(
        self, service: Service, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def failing(*_: Any) -> Any:
            raise UnavailableError("The store of jobs cannot be reached.")

        monkeypatch.setattr("service.waiting.Watch.outcome", failing)
        reply = service.ask(headers={"Prefer": "respond-async, wait=20"})
        assert (reply.status_code, reply.headers["Location"]) == (202, f"/v1/jobs/{worker.take().id}")


class TestStatus:
    def test_it_shows_workers_queues_and_jobs(self, service: Service, redis_client: redis.Redis) -> None:
        heartbeat(redis_client)
        heartbeat(redis_client, "silent", age_s=60)
        service.ask(headers={"Prefer": "respond-async"})
        service.ask(priority="batch", headers={"Prefer": "respond-async"})
        until(lambda: redis_client.llen(queue_name(Priority.BATCH)), "the wake-up")
        until(lambda: redis_client.llen(queue_name(Priority.INTERACTIVE)), "the wake-up")
        status = service.http.get("/v1/status").json()
        assert [worker["worker"] for worker in status["workers"]] == ["w1"]
        assert status["models"] == ["demo"]
        assert status["queues"] == {"interactive": 1, "batch": 1}
        assert status["jobs_open"] == 2


def scraped(service: Service) -> dict[str, Any]:
    families = text_string_to_metric_families(service.http.get("/metrics").text)
    return {family.name: family for family in families}


class TestMetrics:
    def test_the_names_are_those_of_the_documentation(
        self, service: Service, worker: FakeWorker, redis_client: redis.Redis
    ) -> None:
        heartbeat(redis_client)
        later = service.later(service.http.post, "/v1/ask", files={"image": picture()}, data={"prompt": "?"})
        worker.succeed(worker.take())
        later.result()
        service.ask("")
        table = (DOCS / "metrics.md").read_text().split("## Service")[1].split("## Worker")[0]
        rows = re.findall(r"^\| `(\w+)` \| (\w+)(?: \(ledger\))? \| ([\w, ]*) ?\|", table, re.MULTILINE)
        documented = {
            name: (kind, {label for label in labels.strip().split(", ") if label}) for name, kind, labels in rows
        }
        exported = {}
        for name, family in scraped(service).items():
            if name.endswith("_created"):
                continue  # added by the Prometheus client to every counter and histogram
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            exported[name + ("_total" if family.type == "counter" else "")] = (family.type, labels)
        assert exported == documented

    def test_they_move_with_what_happens(self, service: Service, worker: FakeWorker) -> None:
        def value(name: str, labels: dict[str, str]) -> float:
            families = text_string_to_metric_families(service.http.get("/metrics").text)
            samples = (sample for family in families for sample in family.samples)
            return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

        file = picture()
        later = service.later(service.http.post, "/v1/ask", files={"image": file}, data={"prompt": "?"})
        job = worker.take()
        assert value("erase_http_requests_waiting", {}) == 1
        assert value("erase_jobs_open", {}) == 1
        assert value("erase_oldest_open_job_age_seconds", {}) >= 0
        worker.succeed(job)
        later.result()
        service.ask("")
        service.ask(stream=5)
        service.http.get("/nothing/secret")
        ask = {"route": "/v1/ask", "method": "POST"}
        until(lambda: value("erase_http_requests_total", {**ask, "status": "200"}) == 1, "the count")
        assert value("erase_http_requests_total", {**ask, "status": "422"}) == 2
        assert value("erase_http_requests_total", {"route": "unmatched", "status": "404"}) == 1
        assert value("erase_rejections_total", {"reason": "invalid-request"}) == 2
        assert value("erase_image_bytes_total", {}) == len(file)
        assert value("erase_jobs_accepted_total", {}) == 1
        assert value("erase_jobs_finished_total", {"state": "succeeded"}) == 1
        assert value("erase_http_requests_waiting", {}) == 0
        assert value("erase_redis_up", {}) == 1
        assert "secret" not in service.http.get("/metrics").text

    def test_jobs_that_run_do_not_hide_one_that_waits_longer(self, service: Service, redis_client: redis.Redis) -> None:
        for number in range(300):
            old = number >= 290
            job = new_job(f"job_{'0' if old else '1'}{number:031d}", max_open=1000)
            ledger.execute(redis_client, ledger.accept(job))
            if old:
                redis_client.hincrby(job_key(job.id), "queued_ms", -500_000)
                redis_client.zincrby(OPEN_KEY, 80_000, job.id)
            else:
                ledger.execute(redis_client, ledger.lease(job.id, "w", 60_000, 3))
        age = scraped(service)["erase_oldest_open_job_age_seconds"].samples[0].value
        assert 500 <= age < 560

    def test_failures_of_requests_are_told_from_ours(self, service: Service, worker: FakeWorker) -> None:
        for kind in ("invalid-image", "context-length", "internal"):
            later = service.later(service.ask)
            worker.fail(worker.take(), problem(kind, "no"))
            later.result()
        samples = {sample.name: sample.value for sample in scraped(service)["erase_jobs_faulty"].samples}
        assert samples["erase_jobs_faulty_total"] == 2


class TestKeys:
    KEYS: ClassVar = {"ada": "key-of-ada", "bob": "key-of-bob"}

    @pytest.fixture
    def closed(self, redis_url: str) -> Any:
        pairs = ",".join(f"{name}:{hashlib.sha256(key.encode()).hexdigest()}" for name, key in self.KEYS.items())
        with running_service(make_settings(redis_url, api_keys=pairs)) as service:
            yield service

    def test_every_v1_route_needs_a_key(self, closed: Service) -> None:
        job = "/v1/jobs/job_" + "0" * 32
        for method, url in (
            ("POST", "/v1/ask"),
            ("GET", "/v1/status"),
            ("GET", job),
            ("GET", job + "/events"),
            ("DELETE", job),
        ):
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic key-of-ada"}):
                response = closed.http.request(method, url, headers=header)
                assert (response.status_code, problem_of(response)) == (401, "unauthorized")
                assert response.headers["www-authenticate"] == "Bearer"
        assert closed.http.get("/healthz").status_code == 200
        assert closed.http.get("/readyz").status_code == 200

    def test_a_job_belongs_to_its_owner(self, closed: Service, worker: FakeWorker) -> None:
        ada, bob = ({"Authorization": f"Bearer {key}"} for key in self.KEYS.values())
        response = closed.ask(headers={**ada, "Prefer": "respond-async", "Idempotency-Key": "k"})
        url = response.headers["location"]
        assert worker.take().owner == "ada"
        assert closed.http.get(url, headers=ada).status_code == 200
        for method, address in (("GET", url), ("DELETE", url), ("GET", url + "/events")):
            assert problem_of(closed.http.request(method, address, headers=bob)) == "not-found"
        other = closed.ask("another", headers={**bob, "Prefer": "respond-async", "Idempotency-Key": "k"})
        assert other.status_code == 202
        worker.client.delete(job_key(response.json()["id"]))
        assert problem_of(closed.http.get(url, headers=bob)) == "not-found"


class TestRedisAway:
    def test_without_redis_requests_are_refused_and_then_accepted_again(self, tmp_path: Path) -> None:
        server = EmbeddedRedis(tmp_path).start()
        port = server.port
        try:
            with running_service(make_settings(server.url)) as service:
                job_id = service.ask(headers={"Prefer": "respond-async"}).json()["id"]
                server.kill()
                for response in (service.ask(), service.http.get("/readyz"), service.http.get(f"/v1/jobs/{job_id}")):
                    assert (response.status_code, problem_of(response)) == (503, "unavailable")
                    assert int(response.headers["retry-after"]) > 0
                assert service.http.get("/healthz").status_code == 200
                assert scraped(service)["erase_redis_up"].samples[0].value == 0
                server = EmbeddedRedis(tmp_path, port).start()
                assert service.http.get("/readyz").status_code == 200
                assert service.http.get(f"/v1/jobs/{job_id}").json()["state"] == "accepted"
                assert service.ask(headers={"Prefer": "respond-async"}).status_code == 202
        finally:
            server.stop()

    def test_a_waiting_request_survives_a_restart_of_redis(self, tmp_path: Path) -> None:
        server = EmbeddedRedis(tmp_path).start()
        try:
            with running_service(make_settings(server.url)) as service:
                later = service.later(service.ask)
                client = redis.Redis.from_url(server.url)
                job = FakeWorker(client).take()
                server.kill()
                server = EmbeddedRedis(tmp_path, server.port).start()
                FakeWorker(client).succeed(job)
                assert later.result().json()["answer"] == "42"
                client.close()
        finally:
            server.stop()

    def test_a_service_starts_before_its_redis(self, tmp_path: Path) -> None:
        with EmbeddedRedis(tmp_path / "a") as first:
            port = first.port
        with running_service(make_settings(f"redis://127.0.0.1:{port}/0")) as service:
            assert service.http.get("/readyz").status_code == 503
            with EmbeddedRedis(tmp_path / "b", port):
                assert service.http.get("/readyz").status_code == 200

    def test_a_full_redis_refuses_and_loses_nothing(self, redis_url: str, redis_client: redis.Redis) -> None:
        with running_service(make_settings(redis_url)) as service:
            redis_client.config_set("maxmemory", 1)
            try:
                response = service.http.post("/v1/ask", files={"image": picture()}, data={"prompt": "?"})
                assert (response.status_code, problem_of(response)) == (503, "storage-full")
                assert problem_of(service.ask()) == "storage-full"
            finally:
                redis_client.config_set("maxmemory", 0)
            until(lambda: service.ask(headers={"Prefer": "respond-async"}).status_code == 202, "room again")


class TestManyWaiters:
    COUNT = 200

    def test_connections_do_not_grow_with_waiting_requests(
        self, service: Service, worker: FakeWorker, redis_url: str
    ) -> None:
        client = httpx.Client(
            base_url=service.http.base_url, timeout=60, trust_env=False, limits=httpx.Limits(max_connections=None)
        )

        def one() -> None:
            answers.append(client.post("/v1/ask", json={"prompt": "?"}))

        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=one) for _ in range(self.COUNT)]
        for thread in threads:
            thread.start()
        jobs = [worker.take() for _ in threads]
        process = service.app.state.runtime
        until(lambda: len(process.replies._waiters) == self.COUNT, "all waiting")
        # The pool, the reader, the nudge, the producer's few, and the test's own.
        assert len(worker.client.client_list()) <= runtime.MOST_CONNECTIONS + 2 + 8 + 4
        for job in jobs:
            worker.succeed(job)
        for thread in threads:
            thread.join()
        client.close()
        assert [answer.status_code for answer in answers] == [200] * self.COUNT
        assert {answer.json()["id"] for answer in answers} == {job.id for job in jobs}
        assert process.replies._waiters == {}

    def test_a_forgotten_reply_stream_delays_an_answer_by_seconds_only(
        self, service: Service, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(replies.Replies, "_wake", lambda *_: None)
        later = service.later(service.ask)
        job = worker.take()
        worker.succeed(job)
        worker.client.delete(replies_key(service.app.state.runtime.service_id))
        assert later.result(timeout=10).status_code == 200

    def test_a_job_that_redis_forgot_is_said_to_be_lost(self, service: Service, worker: FakeWorker) -> None:
        later = service.later(service.ask)
        worker.take()
        worker.client.flushall()
        response = later.result(timeout=10)
        assert (response.status_code, problem_of(response)) == (503, "unavailable")

    def test_events_that_a_crash_forgot_do_not_hang_a_stream(self, service: Service, worker: FakeWorker) -> None:
        with service.http.stream("POST", "/v1/ask", json={"prompt": "?", "stream": True}) as response:
            job = worker.take()
            worker.tokens(job, "a", "b", "c")
            chunks = response.iter_text()
            text = next(chunks)
            while "id: 3" not in text:
                text += next(chunks)
            worker.client.delete(f"erase:events:{job.id}")
            worker.client.hset(job_key(job.id), "seq", 0)
            worker.succeed(job)
            assert "event: result" in "".join(chunks)


def test_the_error_table_of_the_documentation_is_the_contracts() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| (\d+) \| (.+?) \|$", (DOCS / "http.md").read_text(), re.MULTILINE)
    assert {kind: (int(status), title) for kind, status, title in rows} == {
        kind: (row.status, row.title) for kind, row in PROBLEMS.items()
    }
