"""OpenAI's routes, asked by OpenAI's own client."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import redis

from service.embedded_redis import EmbeddedRedis
from tests.service.conftest import FakeWorker, Service, make_settings, picture, running_service, until
from worker.contract import (
    CONTRACT_VERSION,
    OPEN_KEY,
    WORKERS_KEY,
    GenerationOptions,
    JobState,
    Priority,
    WorkerInfo,
    problem,
    queue_name,
    watchers_key,
)

JSON = {"Content-Type": "application/json"}

IMAGE = {"url": "data:image/png;base64," + base64.b64encode(picture()).decode()}
QUESTION: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": IMAGE}, {"type": "text", "text": "What is it?"}],
    }
]


def openai_url(service: Service) -> str:
    return str(service.http.base_url).rstrip("/") + "/v1"


@pytest.fixture
def client(service: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=openai_url(service), api_key="any", max_retries=0, timeout=30) as made:
        yield made


def test_a_question_about_an_image_is_answered(client: openai.OpenAI, service: Service, worker: FakeWorker) -> None:
    later = service.threads.submit(
        client.chat.completions.create, model="demo", messages=QUESTION, max_completion_tokens=7, seed=3, stop="\n"
    )
    job = worker.take()
    assert job.request.messages[0].content == (0, "What is it?")
    assert job.request.images[0].width == 64
    assert job.request.generation == GenerationOptions(max_tokens=7, seed=3, stop=("\n",))
    worker.succeed(job)
    answer = later.result()
    assert answer.choices[0].message.content == "42"
    assert (answer.choices[0].finish_reason, answer.model, answer.id) == ("stop", "demo", job.id)
    assert abs(answer.created - job.accepted_ms / 1000) < 2
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (20, 2, 22)
    assert answer.model_extra is not None
    assert answer.model_extra["erase"]["token_reduction"] == 0.625


def test_a_conversation_keeps_its_order(client: openai.OpenAI, service: Service, worker: FakeWorker) -> None:
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "First:"}, {"type": "image_url", "image_url": IMAGE}]},
        {"role": "assistant", "content": "A square."},
        {"role": "user", "content": [{"type": "image_url", "image_url": IMAGE}, {"type": "text", "text": "And it?"}]},
    ]
    body = {"pruning": {"retention": 0.5}, "priority": "batch", "timeout_s": 30}
    later = service.threads.submit(
        client.chat.completions.create, model="demo", messages=messages, user="someone", n=1, extra_body=body
    )
    job = worker.take(Priority.BATCH)
    assert [(message.role, message.content) for message in job.request.messages] == [
        ("system", ("Be brief.",)),
        ("user", ("First:", 0)),
        ("assistant", ("A square.",)),
        ("user", (1, "And it?")),
    ]
    assert job.request.pruning.retention == 0.5
    worker.succeed(job)
    assert later.result().choices[0].message.content == "42"


def test_an_idle_stream_is_kept_alive(
    client: openai.OpenAI, service: Service, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.chat.KEEP_ALIVE_S", 0.05)
    body = {"model": "demo", "messages": QUESTION, "stream": True}
    with service.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        lines = reply.iter_lines()
        assert next(lines) == ": keep-alive"
        worker.succeed(worker.take())
        assert "data: [DONE]" in list(lines)
    # The official client takes no notice of comments.
    later = service.threads.submit(
        lambda: list(client.chat.completions.create(model="demo", messages=QUESTION, stream=True))
    )
    job = worker.take()
    time.sleep(0.3)
    worker.succeed(job)
    assert later.result()[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("usage", [False, True])
def test_a_stream_brings_the_answer_in_pieces(
    client: openai.OpenAI, service: Service, worker: FakeWorker, usage: bool
) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if usage else {}

    def ask() -> list[Any]:
        return list(client.chat.completions.create(model="demo", messages=QUESTION, stream=True, **options))

    later = service.threads.submit(ask)
    job = worker.take()
    worker.tokens(job, "4", "", "2")
    worker.succeed(job)
    chunks = later.result()
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "42"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
    assert {chunk.id for chunk in chunks} == {job.id}
    counted = [chunk.usage.total_tokens for chunk in chunks if chunk.usage]
    assert counted == ([22] if usage else [])


def test_done_comes_after_success_only(service: Service, worker: FakeWorker) -> None:
    body = {"model": "demo", "messages": QUESTION, "stream": True}
    for fails in (False, True):
        later = service.later(service.http.post, "/v1/chat/completions", json=body)
        job = worker.take()
        if fails:
            worker.fail(job, problem("invalid-image", "image 0 cannot be decoded"))
        else:
            worker.succeed(job)
        reply = later.result()
        events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data:")]
        assert (events[-1] == "[DONE]") == (not fails)
        if fails:
            assert json.loads(events[-1])["error"]["code"] == "invalid_image"


def test_nothing_counts_as_an_answer_before_its_first_token(service: Service, worker: FakeWorker) -> None:
    body = {"model": "demo", "messages": QUESTION, "stream": True}
    with service.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        job = worker.take()
        assert reply.headers["content-location"] == f"/v1/jobs/{job.id}"
        worker.fail(job, problem("deadline", "too late"))
        events = [json.loads(line.removeprefix("data: ")) for line in reply.iter_lines() if line.startswith("data:")]
    assert [list(event) for event in events] == [["error"]]


def test_an_answer_can_be_sent_back_in_the_next_turn(
    client: openai.OpenAI, service: Service, worker: FakeWorker
) -> None:
    later = service.threads.submit(client.chat.completions.create, model="demo", messages=QUESTION)
    worker.succeed(worker.take())
    answer = later.result().choices[0].message
    for sent in (answer, answer.model_dump()):
        messages: list[Any] = [*QUESTION, sent, {"role": "user", "content": "Why?"}]
        later = service.threads.submit(client.chat.completions.create, model="demo", messages=messages)
        job = worker.take()
        assert job.request.messages[1].content == ("42",)
        worker.succeed(job)
        assert later.result().choices[0].finish_reason == "stop"


@pytest.mark.parametrize(("kind", "status"), [("cancelled", 409), ("dead-letter", 500), ("deadline", 504)])
def test_openais_client_does_not_send_a_failed_job_again(
    service: Service, worker: FakeWorker, kind: str, status: int
) -> None:
    with openai.OpenAI(base_url=openai_url(service), api_key="any", max_retries=2) as client:
        later = service.threads.submit(client.chat.completions.create, model="demo", messages=QUESTION)
        job = worker.take()
        worker.fail(job, problem(kind, "no"))
        with pytest.raises(openai.APIStatusError) as failed:
            later.result()
    assert failed.value.status_code == status
    assert failed.value.response.headers["content-location"] == f"/v1/jobs/{job.id}"
    assert failed.value.request_id == job.request_id
    assert worker.client.llen(queue_name(Priority.INTERACTIVE)) == 0


def test_a_client_that_leaves_cancels_its_job(service: Service, worker: FakeWorker) -> None:
    for stream in (False, True):
        body = json.dumps({"model": "demo", "messages": QUESTION, "stream": stream})
        url = service.http.base_url
        with socket.create_connection((url.host, url.port)) as connection:
            head = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}{body}".encode())
            job = worker.take()
        until(lambda: worker.state(job.id) is JobState.CANCELLED, "the cancellation")  # noqa: B023
        assert worker.client.exists(watchers_key(job.id)) == 0


def test_keys_are_needed_and_their_lack_is_told_in_openais_shape(redis_url: str) -> None:
    pair = f"ada:{hashlib.sha256(b'key').hexdigest()}"
    with running_service(make_settings(redis_url, api_keys=pair, max_body_bytes=1024)) as closed:
        for key, expected in (("wrong", openai.AuthenticationError), ("key", None)):
            with openai.OpenAI(base_url=openai_url(closed), api_key=key, max_retries=0) as client:
                for call in (
                    lambda: list(client.models.list()),
                    lambda: client.chat.completions.create(model="demo", messages=[]),
                ):
                    try:
                        call()
                    except openai.APIStatusError as error:
                        refused = error
                        if expected:
                            assert isinstance(refused, expected)
                            assert refused.code == "invalid_api_key"
                    else:
                        assert expected is None
        too_large = closed.http.post(
            "/v1/chat/completions", content=b"x" * 2000, headers={"Authorization": "Bearer key"} | JSON
        )
        assert (too_large.status_code, too_large.json()["error"]["code"]) == (413, "too_large")


def test_without_redis_a_question_is_refused_for_now(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, running_service(make_settings(server.url)) as service:
        server.kill()
        body = {"model": "demo", "messages": QUESTION}
        reply = service.http.post("/v1/chat/completions", json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
        assert int(reply.headers["retry-after"]) > 0
        assert "x-should-retry" not in reply.headers


def test_the_models_are_those_of_the_workers(
    client: openai.OpenAI, service: Service, redis_client: redis.Redis
) -> None:
    assert list(client.models.list()) == []
    seconds, _ = redis_client.time()
    info = WorkerInfo(
        worker="w",
        contract=CONTRACT_VERSION,
        model="demo",
        model_revision="r",
        device="cpu",
        dtype="float32",
        context_length=100,
        cell=28,
        max_image_pixels=10**6,
        policies=(),
        default_policy="demo",
        slots=1,
        running=0,
        started_ms=seconds * 1000,
        heartbeat_ms=seconds * 1000,
    )
    redis_client.hset(WORKERS_KEY, "w", info.model_dump_json())
    service.app.state.runtime.workers._read_at = float("-inf")
    assert [(model.id, model.created) for model in client.models.list()] == [("demo", seconds)]
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("meta/other")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert missing.value.code == "model_not_found"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "two answers": ({"n": 2}, "n"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    "JSON wanted": ({"response_format": {"type": "json_object"}}, "response_format.type"),
    "probabilities": ({"logprobs": True}, "logprobs"),
    "penalty": ({"presence_penalty": 0.5}, "presence_penalty"),
    "unknown field": ({"audio": {}}, "audio"),
    "no messages": ({"messages": []}, "messages"),
    "a tool's message": ({"messages": [{"role": "tool", "content": "?"}]}, "messages.0.role"),
    "answer at the end": ({"messages": [*QUESTION, {"role": "assistant", "content": "A"}]}, "body"),
    "blank": ({"messages": [{"role": "user", "content": " "}]}, "body"),
    "two limits": ({"max_tokens": 1, "max_completion_tokens": 2}, "body"),
    "options without a stream": ({"stream_options": {"include_usage": True}}, "body"),
    "none and a dial": ({"pruning": {"method": "none", "retention": 0.5}}, ""),
    "too many messages": ({"messages": [{"role": "user", "content": ""}] * 257}, "messages"),
    "a video": ({"messages": [{"role": "user", "content": [{"type": "video_url"}]}]}, "messages.0.content"),
    "fetched image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}]}]},
        "",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_done_is_refused_in_openais_shape(
    service: Service, redis_client: redis.Redis, name: str
) -> None:
    changes, param = WRONG[name]
    reply = service.http.post("/v1/chat/completions", json={"model": "demo", "messages": QUESTION, **changes})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_request")
    assert (error["param"] or "").startswith(param)
    assert redis_client.zcard(OPEN_KEY) == 0


def test_values_that_ask_for_nothing_are_taken(service: Service, worker: FakeWorker) -> None:
    neutral = {
        "n": 1,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "logprobs": False,
        "logit_bias": {},
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "top_logprobs": 0,
        "modalities": ["text"],
        "store": False,
        "metadata": {"trace": "1"},
        "user": "someone",
        "pruning": None,
        "stop": None,
        "stream": False,
    }
    body = {"model": "demo", "messages": QUESTION, **neutral}
    later = service.later(service.http.post, "/v1/chat/completions", json=body)
    worker.succeed(worker.take())
    assert later.result().status_code == 200


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [(b"{", "application/json", 400), (b"a=b", "application/x-www-form-urlencoded", 415), (b"", "", 415)],
)
def test_other_bodies_are_refused(service: Service, content: bytes, kind: str, status: int) -> None:
    reply = service.http.post("/v1/chat/completions", content=content, headers={"Content-Type": kind})
    assert reply.status_code == status
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_an_idempotency_key_attaches_to_the_same_answer(
    client: openai.OpenAI, service: Service, worker: FakeWorker
) -> None:
    def ask() -> Any:
        return client.chat.completions.create(
            model="demo", messages=QUESTION, extra_headers={"Idempotency-Key": "order-1"}
        )

    later = service.threads.submit(ask)
    worker.succeed(worker.take())
    assert later.result().id == ask().id
