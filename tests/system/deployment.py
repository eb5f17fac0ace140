"""A real deployment for tests: Redis, workers and a service as processes on loopback."""

from __future__ import annotations

import io
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import redis

from service.embedded_redis import EmbeddedRedis
from service.processes import Child
from service.sample import samples_folder
from worker.contract import OPEN_KEY, WORKERS_KEY, Outcome
from worker.ledger import Event, read_events

T = TypeVar("T")
FAST_RESCUE = {"ERASE_LEASE_S": "1.5", "ERASE_WAKE_AFTER_S": "0.5", "ERASE_SWEEP_EVERY_S": "0.2"}


@dataclass(frozen=True)
class Question:
    """One bundled question with its right answer."""

    image: Path
    prompt: str
    answer: str

    @property
    def files(self) -> list[tuple[str, tuple[str, bytes, str]]]:
        return [("image", (self.image.name, self.image.read_bytes(), "image/png"))]


def bundled_questions(folder: Path | None = None) -> list[Question]:
    """The questions of the bundled model, or of another folder of samples."""
    folder = folder or samples_folder()
    samples = json.loads((folder / "samples.json").read_text())
    return [
        Question(folder / sample["image"], turn["question"], turn["answer"])
        for sample in samples
        for turn in sample["turns"]
    ]


def bundled_number(folder: Path | None = None) -> Question:
    """One of `bundled_questions` whose answer has several tokens: a number, since digits are single tokens.

    It has at least three digits; failing that, it is the answer that begins with the most.
    """
    questions = bundled_questions(folder)
    numbers = [question for question in questions if question.answer.isdigit() and len(question.answer) >= 3]
    by_digits_at_the_start = max(questions, key=lambda q: len(q.answer) - len(q.answer.lstrip("0123456789")))
    return (numbers or [by_digits_at_the_start])[0]


def neighbour(question: Question) -> Question:
    """The first question about another image of the same folder."""
    return next(other for other in bundled_questions(question.image.parent) if other.image != question.image)


def bundled_context_length() -> int:
    """Tokens of the bundled model's context."""
    config = json.loads((samples_folder().parent / "config.json").read_text())
    return int(config.get("text_config", config)["max_position_embeddings"])


def until(condition: Callable[[], T], timeout_s: float = 60.0, what: str = "the condition") -> T:
    """Poll until the condition is true; fail loudly when it never is."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true within {timeout_s} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Deployment:
    """Start and kill the parts at will; every part logs into `folder`."""

    make_child: Callable[..., Child] = Child

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.redis = EmbeddedRedis(folder / "redis", port=free_port())
        self.redis.start()
        self.client = redis.Redis.from_url(self.redis.url)
        self.settings = {"ERASE_REDIS_URL": self.redis.url, "ERASE_CPU_THREADS": "1", **settings}
        self.children: list[Child] = []
        self.url = ""

    def start_service(self, **settings: str) -> Child:
        port = free_port()
        child = self._start("service", {"ERASE_PORT": str(port), **settings})
        self.url = f"http://127.0.0.1:{port}"
        until(lambda: self._ready(child), what="the service's readiness")
        return child

    def start_worker(self, *, wait: bool = True, **settings: str) -> Child:
        before = self.client.hlen(WORKERS_KEY)
        port = free_port()
        child = self._start("worker", {"ERASE_WORKER_METRICS_PORT": str(port), **settings})
        child.metrics_url = f"http://127.0.0.1:{port}/metrics"  # type: ignore[attr-defined]
        if wait:
            until(lambda: self._alive(child) and self.client.hlen(WORKERS_KEY) > before, what="the worker's heartbeat")
        return child

    def http(self, timeout: float = 60.0) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=timeout, trust_env=False)

    def ask(self, question: Question, **fields: Any) -> httpx.Response:
        with self.http() as client:
            return client.post("/v1/ask", files=question.files, data={"prompt": question.prompt, **fields})

    def open_jobs(self) -> int:
        return int(self.client.zcard(OPEN_KEY))

    def events(self, job_id: str) -> list[Event]:
        return read_events(self.client, job_id)

    def outcome(self, job_id: str) -> Outcome:
        """The one outcome of a job: fails when there are more final events or none."""
        final = [event for event in self.events(job_id) if event.type != "token"]
        assert len(final) == 1, final
        return Outcome.model_validate_json(final[0].data)

    def close(self) -> None:
        for child in self.children:
            child.stop(timeout_s=10)
        self.client.close()
        self.redis.stop()

    def _start(self, name: str, settings: dict[str, str]) -> Child:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ERASE_")}
        log = self.folder / f"{name}-{len(self.children)}.log"
        command = [sys.executable, "-m", name]
        child = self.make_child(name, command, {**inherited, **self.settings, **settings}, log)
        child.start()
        self.children.append(child)
        return child

    def _alive(self, child: Child) -> bool:
        assert child.running, f"{child.name} ended with {child.exit_status}:\n{child.last_lines(40)}"
        return True

    def _ready(self, child: Child) -> bool:
        self._alive(child)
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False).is_success
        except httpx.TransportError:
            return False


def stream_events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Server-sent events as (type, data)."""
    kind = ""
    for line in lines:
        if line.startswith("event:"):
            kind = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            yield kind, json.loads(line.removeprefix("data:"))


def metric(text: str, name: str, **labels: str) -> float:
    """Sum of a metric's samples with these labels; 0 when there is none."""
    total = 0.0
    for line in io.StringIO(text):
        if line.startswith((f"{name} ", f"{name}{{")) and all(f'{k}="{v}"' in line for k, v in labels.items()):
            total += float(line.rsplit(" ", 1)[1])
    return total
