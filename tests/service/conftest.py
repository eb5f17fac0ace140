"""A real service process in a thread, and a worker that the test plays through ledger transitions."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import redis
import uvicorn
from PIL import Image

from service.app import create_app
from service.connections import BoundedConnection
from worker import ledger
from worker.contract import (
    SERVED_CONTRACTS,
    Answer,
    EventType,
    JobState,
    Outcome,
    Priority,
    Problem,
    PruningReport,
    Timings,
    TokenPayload,
    Usage,
    VisionTokens,
    job_key,
    queue_name,
)
from worker.settings import Settings


def until(condition: Callable[[], Any], what: str = "the condition", timeout_s: float = 15.0) -> Any:
    """Wait for a condition; its value when it holds."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout_s} s"
        time.sleep(0.01)
    return value


def picture(width: int = 64, height: int = 48, kind: str = "PNG", **options: Any) -> bytes:
    """A file of one grey picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (90, 120, 150)).save(buffer, kind, **options)
    return buffer.getvalue()


def make_answer(job_id: str, text: str = "42") -> Answer:
    return Answer(
        id=job_id,
        answer=text,
        finish_reason="stop",
        model="demo",
        usage=Usage(
            prompt_tokens=20,
            completion_tokens=2,
            vision_tokens=VisionTokens(input=16, after_stage1=9, kept=3, layer_average=6.0),
            token_reduction=0.625,
        ),
        pruning=PruningReport(policy="demo", requested=None, final=0.19, layer_average=0.375),
        images=(),
        timings_ms=Timings(queue=1, preprocess=1, encode=1, prefill=1, decode=1, first_token=2, total=5),
    )


@dataclass
class FakeWorker:
    """Takes wake-ups and moves jobs by the same transitions as a real worker."""

    client: redis.Redis

    def take(self, priority: Priority = Priority.INTERACTIVE, timeout_s: float = 10) -> ledger.Job:
        """Wait for a wake-up and lease its job."""
        queues = [queue_name(priority, version) for version in SERVED_CONTRACTS]
        message: Any = self.client.brpop(queues, timeout=timeout_s)
        assert message, "no wake-up came"
        envelope = json.loads(message[1])
        arguments, _, _ = json.loads(base64.b64decode(envelope["body"]))
        lease = ledger.execute(self.client, ledger.lease(arguments[0], "test", 60_000, 3))
        assert lease.job is not None, lease.status
        return lease.job

    def tokens(self, job: ledger.Job, *texts: str) -> None:
        written: Any = self.client.hget(job_key(job.id), "seq")
        for number, text in enumerate(texts, start=int(written) + 1):
            data = TokenPayload(text=text, ids=(1,)).model_dump_json()
            assert ledger.execute(self.client, ledger.emit(job.id, job.attempt, number, EventType.TOKEN, data)).ok

    def succeed(self, job: ledger.Job, text: str = "42") -> None:
        outcome = Outcome(answer=make_answer(job.id, text))
        assert ledger.execute(self.client, ledger.finish(job.id, job.attempt, outcome)).ok

    def fail(self, job: ledger.Job, problem: Problem) -> None:
        assert ledger.execute(self.client, ledger.finish(job.id, job.attempt, Outcome(problem=problem))).ok

    def state(self, job_id: str) -> JobState:
        value: Any = self.client.hget(job_key(job_id), "state")
        return JobState(value.decode())


class Service:
    """A running service and a client for it."""

    def __init__(self, url: str, app: Any) -> None:
        self.app = app
        self.http = httpx.Client(base_url=url, timeout=30)
        self.threads = ThreadPoolExecutor(8)

    def ask(self, prompt: str = "What is it?", **body: Any) -> httpx.Response:
        headers = body.pop("headers", None)
        return self.http.post("/v1/ask", json={"prompt": prompt, **body}, headers=headers)

    def later(self, call: Callable[..., httpx.Response], *args: Any, **options: Any) -> Future[httpx.Response]:
        return self.threads.submit(call, *args, **options)


def make_settings(redis_url: str, **changes: Any) -> Settings:
    return Settings(redis_url=redis_url, **changes)


@contextmanager
def running_service(settings: Settings) -> Iterator[Service]:
    """Start the application on a free port of loopback."""
    app = create_app(settings)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, http=BoundedConnection, log_config=None, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive(), "the start of the service")
        port = server.servers[0].sockets[0].getsockname()[1]
        service = Service(f"http://127.0.0.1:{port}", app)
        try:
            yield service
        finally:
            service.threads.shutdown(wait=True, cancel_futures=True)
            service.http.close()
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def service(redis_url: str) -> Iterator[Service]:
    with running_service(make_settings(redis_url)) as running:
        yield running


@pytest.fixture
def worker(redis_client: redis.Redis) -> FakeWorker:
    return FakeWorker(redis_client)
