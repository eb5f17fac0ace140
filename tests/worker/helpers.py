"""Jobs and pictures for the tests of the worker, and how to wait for something."""

from __future__ import annotations

import hashlib
import io
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import redis
from PIL import Image

from tests.starter import STARTER
from worker import ledger
from worker.contract import (
    GenerationOptions,
    ImageReference,
    JobRequest,
    JobState,
    Message,
    Outcome,
    Priority,
    PruningOptions,
    image_key,
    job_key,
)
from worker.ledger import NewJob, execute

Format = Literal["JPEG", "PNG", "WEBP"]


def until(condition: Callable[[], Any], what: str = "the condition", timeout_s: float = 15.0) -> Any:
    """Wait for a condition; its value when it holds."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout_s} s"
        time.sleep(0.005)
    return value


def encoded(image: Image.Image, kind: Format = "PNG", **options: Any) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reference(data: bytes, kind: Format = "PNG", size: tuple[int, int] | None = None) -> ImageReference:
    """What admission would have announced; `size` says something else than the file."""
    if size is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                size = image.size
    return ImageReference(
        sha256=hashlib.sha256(data).hexdigest(), format=kind, width=size[0], height=size[1], bytes=max(1, len(data))
    )


@dataclass(frozen=True)
class Sample:
    """A picture, a question about it, and what the starter model answers."""

    data: bytes
    question: str
    answer: str


def sample(number: int, turn: int) -> Sample:
    """One of the starter model's own samples."""
    entry = json.loads((STARTER / "samples" / "samples.json").read_text())[number]
    asked = entry["turns"][turn]
    return Sample((STARTER / "samples" / entry["image"]).read_bytes(), asked["question"], asked["answer"])


def accept(
    client: redis.Redis,
    job_id: str = "job_1",
    *,
    prompt: str = "what is it ?",
    messages: tuple[Message, ...] = (),
    images: tuple[bytes, ...] = (),
    kind: Format = "PNG",
    priority: Priority = Priority.INTERACTIVE,
    pruning: PruningOptions = PruningOptions(),  # noqa: B008 (frozen)
    include: tuple[Literal["pruning_map"], ...] = (),
    timeout_ms: int = 60_000,
    **generation: Any,
) -> JobRequest:
    """Store the pictures and accept a job about them, as the service does."""
    for data in images:
        client.set(image_key(hashlib.sha256(data).hexdigest()), data, px=600_000)
    request = JobRequest(
        prompt="" if messages else prompt,
        messages=messages,
        images=tuple(reference(data, kind) for data in images),
        generation=GenerationOptions(**generation),
        pruning=pruning,
        include=include,
    )
    job = NewJob(
        id=job_id,
        owner="ada",
        priority=priority,
        request=request,
        timeout_ms=timeout_ms,
        result_ttl_ms=60_000,
        max_open=1000,
    )
    assert execute(client, ledger.accept(job)).status == "accepted"
    return request


def lease(client: redis.Redis, job_id: str = "job_1", *, lease_ms: int = 60_000) -> ledger.Job:
    """Take the job and begin to work on it, as some worker would."""
    taken = execute(client, ledger.lease(job_id, "other", lease_ms, 3))
    assert taken.job is not None, taken.status
    assert execute(client, ledger.begin(job_id, taken.job.attempt)).ok
    return taken.job


def lose_lease(client: redis.Redis, job_id: str = "job_1") -> None:
    """As if the worker that holds the job had been silent for too long."""
    client.hset(job_key(job_id), "lease_until_ms", 1)


def field(client: redis.Redis, name: str, job_id: str = "job_1") -> str | None:
    """One field of the job's hash."""
    value: Any = client.hget(job_key(job_id), name)
    return None if value is None else value.decode()


def state(client: redis.Redis, job_id: str = "job_1") -> JobState:
    """Where the job stands."""
    return JobState(field(client, "state", job_id) or "")


def outcome(client: redis.Redis, job_id: str = "job_1") -> Outcome:
    """How the job ended."""
    value = field(client, "outcome", job_id)
    assert value is not None, f"{job_id} is {state(client, job_id)}"
    return Outcome.model_validate_json(value)
