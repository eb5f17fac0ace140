"""Real questions through the whole stack."""

from __future__ import annotations

import base64
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import httpx
import openai
import pytest

from tests.system.deployment import (
    Deployment,
    Question,
    bundled_context_length,
    bundled_number,
    bundled_questions,
    metric,
    neighbour,
    stream_events,
    until,
)
from worker.contract import BASELINES

QUESTIONS = bundled_questions()
NUMBER = bundled_number()
FIRST = QUESTIONS[0]
SECOND = neighbour(FIRST)


def pruning(**options: Any) -> str:
    return json.dumps(options)


@pytest.mark.parametrize("method", ["erase", "none"])
def test_every_bundled_image_gets_its_right_answers(deployment: Deployment, method: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda q: deployment.ask(q, pruning=pruning(method=method)), QUESTIONS))
    assert [reply.status_code for reply in replies] == [200] * len(QUESTIONS)
    answers = [reply.json() for reply in replies]
    assert [answer["answer"] for answer in answers] == [question.answer for question in QUESTIONS]
    for answer in answers:
        tokens = answer["usage"]["vision_tokens"]
        if method == "none":
            assert tokens["input"] == tokens["after_stage1"] == tokens["kept"] == tokens["layer_average"]
            assert answer["usage"]["token_reduction"] == 0
        else:
            assert tokens["input"] >= tokens["after_stage1"] >= tokens["kept"] > 0
            assert answer["usage"]["token_reduction"] == pytest.approx(
                1 - tokens["layer_average"] / tokens["input"], abs=1e-3
            )
    if method == "erase":
        stages = ("input", "after_stage1", "kept")
        every = [sum(answer["usage"]["vision_tokens"][stage] for answer in answers) for stage in stages]
        assert every[0] > every[1] > every[2]


def test_a_chat_completion_is_the_same_question(deployment: Deployment) -> None:
    expected = deployment.ask(NUMBER).json()
    image = "data:image/png;base64," + base64.b64encode(NUMBER.image.read_bytes()).decode()
    content: Any = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": NUMBER.prompt}]
    with openai.OpenAI(base_url=f"{deployment.url}/v1", api_key="any", max_retries=0) as client:
        (model,) = client.models.list()
        ask = partial(client.chat.completions.create, model=model.id)
        answer = ask(messages=[{"role": "user", "content": content}])
        pieces = [
            choice.delta.content or ""
            for chunk in ask(messages=[{"role": "user", "content": content}], stream=True)
            for choice in chunk.choices
        ]
        later = ask(
            messages=[
                {"role": "user", "content": content},
                {"role": "assistant", "content": NUMBER.answer},
                {"role": "user", "content": NUMBER.prompt},
            ]
        )
    assert answer.choices[0].message.content == "".join(pieces) == expected["answer"] == NUMBER.answer
    assert answer.usage.prompt_tokens == expected["usage"]["prompt_tokens"]
    assert answer.erase["pruning"] == expected["pruning"]
    assert later.usage.prompt_tokens > answer.usage.prompt_tokens


def test_a_request_may_turn_the_dial(deployment: Deployment) -> None:
    kept = []
    for retention in (1.0, 0.6, 0.3):
        answer = deployment.ask(FIRST, pruning=pruning(method="erase", retention=retention)).json()
        assert answer["pruning"]["requested"] == retention
        kept.append(answer["usage"]["vision_tokens"]["kept"])
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == answer["usage"]["vision_tokens"]["input"] > kept[1] > kept[2]


def test_a_request_may_ask_for_the_other_revision(deployment: Deployment) -> None:
    policy = "qwen2.5-vl-7b-budget"
    whole, half = (
        deployment.ask(FIRST, pruning=pruning(policy=policy, retention=retention)).json() for retention in (1.0, 0.5)
    )
    assert whole["answer"] == FIRST.answer
    assert whole["pruning"]["layer_average"] == 1
    assert whole["pruning"]["policy"] == half["pruning"]["policy"] == policy
    assert half["pruning"]["requested"] == 0.5
    assert 0 < half["pruning"]["layer_average"] <= 0.5


@pytest.mark.parametrize("method", BASELINES)
def test_any_other_pruning_method_can_be_asked_for(deployment: Deployment, method: str) -> None:
    whole = deployment.ask(FIRST, pruning=pruning(method="none")).json()["usage"]["vision_tokens"]["input"]
    answer = deployment.ask(FIRST, pruning=pruning(method=method, retention=0.5), include="pruning_map").json()
    assert (answer["pruning"]["policy"], answer["pruning"]["requested"]) == (method, 0.5)
    tokens = answer["usage"]["vision_tokens"]
    assert 0.35 * whole <= tokens["kept"] <= 0.55 * whole
    cells = [cell for row in answer["pruning_map"][0]["rows"] for cell in row]
    assert (len(cells), cells.count(2)) == (tokens["input"], tokens["kept"])
    refused = deployment.ask(FIRST, pruning=pruning(method=method, policy="qwen2.5-vl-7b"))
    assert (refused.status_code, "leave policy out" in refused.json()["detail"]) == (422, True)


def test_a_json_body_works_with_base64_and_data_urls(deployment: Deployment) -> None:
    question = SECOND
    data = base64.b64encode(question.image.read_bytes()).decode()
    for image in ({"data": data}, {"url": f"data:image/png;base64,{data}"}):
        with deployment.http() as client:
            reply = client.post("/v1/ask", json={"prompt": question.prompt, "images": [image]})
        assert reply.json()["answer"] == question.answer


def test_several_images_and_none_are_answered(deployment: Deployment) -> None:
    with deployment.http() as client:
        two = client.post("/v1/ask", files=FIRST.files + SECOND.files, data={"prompt": FIRST.prompt}).json()
        none = client.post("/v1/ask", json={"prompt": FIRST.prompt}).json()
    assert len(two["images"]) == 2
    assert two["usage"]["vision_tokens"]["input"] == sum(image["tokens"] for image in two["images"])
    assert none["images"] == []
    assert none["usage"]["token_reduction"] == 0


def test_a_stream_delivers_the_answer_token_by_token(deployment: Deployment) -> None:
    data = {"prompt": NUMBER.prompt, "stream": "true"}
    with deployment.http() as client, client.stream("POST", "/v1/ask", files=NUMBER.files, data=data) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = list(stream_events(reply.iter_lines()))
    texts = [data["text"] for kind, data in events if kind == "token"]
    assert "".join(texts) == NUMBER.answer
    assert all(sum(map(str.isdigit, text)) <= 1 for text in texts), texts
    assert [data["seq"] for kind, data in events if kind == "token"] == list(range(1, len(texts) + 1))
    kind, result = events[-1]
    assert kind == "result"
    assert result["answer"] == NUMBER.answer


def test_an_asynchronous_job_can_be_waited_for_and_read_again(deployment: Deployment) -> None:
    question = QUESTIONS[1]
    with deployment.http() as client:
        accepted = client.post(
            "/v1/ask", files=question.files, data={"prompt": question.prompt}, headers={"Prefer": "respond-async"}
        )
        assert accepted.status_code == 202
        job = client.get(accepted.headers["location"], params={"wait": 30}).json()
        again = client.get(accepted.headers["location"]).json()
    assert job["state"] == again["state"] == "succeeded"
    assert job["answer"]["answer"] == again["answer"]["answer"] == question.answer


def test_a_repeated_key_gets_the_same_job(deployment: Deployment) -> None:
    question = QUESTIONS[2]
    with deployment.http() as client:
        replies = [
            client.post(
                "/v1/ask",
                files=question.files,
                data={"prompt": question.prompt},
                headers={"Idempotency-Key": "same-key"},
            )
            for _ in range(2)
        ]
        other = client.post(
            "/v1/ask",
            files=question.files,
            data={"prompt": f"{question.prompt} again"},
            headers={"Idempotency-Key": "same-key"},
        )
    assert replies[0].json() == replies[1].json()
    assert other.status_code == 422
    assert other.json()["type"] == "urn:erase:problem:idempotency-mismatch"


def test_sampling_repeats_with_its_seed(deployment: Deployment) -> None:
    options = {"temperature": "1.5", "seed": "7", "max_tokens": "12"}
    answers = {deployment.ask(QUESTIONS[4], **options).json()["answer"] for _ in range(3)}
    assert len(answers) == 1


def test_max_tokens_and_stop_strings_end_an_answer(deployment: Deployment) -> None:
    stop = NUMBER.answer[1:3]
    short = deployment.ask(NUMBER, max_tokens="2").json()
    stopped = deployment.ask(NUMBER, stop=stop).json()
    assert (short["answer"], short["finish_reason"]) == (NUMBER.answer[:2], "length")
    assert (stopped["answer"], stopped["finish_reason"]) == (NUMBER.answer.partition(stop)[0], "stop")


def test_the_pruning_map_counts_what_the_usage_says(deployment: Deployment) -> None:
    answer = deployment.ask(QUESTIONS[-1], include="pruning_map").json()
    cells = [cell for row in answer["pruning_map"][0]["rows"] for cell in row]
    tokens = answer["usage"]["vision_tokens"]
    assert len(cells) == tokens["input"]
    assert cells.count(2) == tokens["kept"]
    assert cells.count(1) == tokens["after_stage1"] - tokens["kept"]


def test_metrics_move_by_what_the_answers_said(deployment: Deployment) -> None:
    worker = next(child for child in deployment.children if child.name == "worker")

    def scrape() -> tuple[str, str]:
        service = httpx.get(f"{deployment.url}/metrics", trust_env=False).text
        return httpx.get(worker.metrics_url, trust_env=False).text, service  # type: ignore[attr-defined]

    before, service_before = scrape()
    answers = [deployment.ask(question).json() for question in QUESTIONS[:6]]

    def observed() -> tuple[str, str] | None:
        # The worker counts right after it finished the job, so a client may be a moment ahead.
        now = scrape()
        finished = metric(now[0], "erase_jobs_total") - metric(before, "erase_jobs_total")
        return now if finished == len(answers) else None

    after, service_after = until(observed, what="the worker's count of finished jobs")

    def moved(name: str, **labels: str) -> float:
        return metric(after, name, **labels) - metric(before, name, **labels)

    for stage in ("input", "after_stage1", "kept", "layer_average"):
        expected = sum(answer["usage"]["vision_tokens"][stage] for answer in answers)
        assert moved("erase_vision_tokens_total", stage=stage) == pytest.approx(expected)
    assert moved("erase_prompt_tokens_total") == sum(answer["usage"]["prompt_tokens"] for answer in answers)
    assert moved("erase_generation_tokens_total") == sum(answer["usage"]["completion_tokens"] for answer in answers)
    assert moved("erase_time_to_first_token_seconds_count") == len(answers)
    for phase in ("queue", "preprocess", "encode", "prefill", "decode"):
        assert moved("erase_phase_duration_seconds_count", phase=phase) == len(answers)
    assert moved("erase_phase_duration_seconds_sum", phase="decode") == pytest.approx(
        sum(answer["timings_ms"]["decode"] for answer in answers) / 1000, abs=1e-3
    )
    accepted = metric(service_after, "erase_jobs_accepted_total") - metric(service_before, "erase_jobs_accepted_total")
    assert accepted == len(answers)
    assert metric(service_after, "erase_workers") == 1
    assert metric(service_after, "erase_jobs_open") == 0


NEARLY_TOO_LONG = "7" * (bundled_context_length() - 97)  # a digit is a token, whatever the tokenizer


def broken(question: Question) -> bytes:
    data = question.image.read_bytes()
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("image", "fields", "status", "kind"),
    [
        pytest.param(b"not an image at all", {}, 415, "unsupported-image-format", id="not an image"),
        pytest.param(broken(FIRST), {}, 422, "invalid-image", id="truncated"),
        pytest.param(None, {"prompt": ""}, 422, "invalid-request", id="empty prompt"),
        pytest.param(None, {"max_tokens": "many"}, 422, "invalid-request", id="wrong type"),
        pytest.param(None, {"colour": "red"}, 422, "invalid-request", id="unknown option"),
        pytest.param(None, {"pruning": '{"method": "magic"}'}, 422, "invalid-request", id="unknown method"),
        pytest.param(None, {"pruning": '{"policy": "nobody"}'}, 422, "unknown-policy", id="unknown policy"),
        pytest.param(None, {"prompt": NEARLY_TOO_LONG, "max_tokens": "200"}, 422, "context-length", id="too long"),
    ],
)
def test_bad_input_gets_a_clear_problem_and_leaves_nothing_open(
    deployment: Deployment, image: bytes | None, fields: dict[str, str], status: int, kind: str
) -> None:
    data = image if image is not None else FIRST.image.read_bytes()
    with deployment.http() as client:
        reply = client.post(
            "/v1/ask", files=[("image", ("x.png", data, "image/png"))], data={"prompt": FIRST.prompt, **fields}
        )
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["type"] == f"urn:erase:problem:{kind}"
    assert deployment.open_jobs() == 0


def test_a_request_line_that_does_not_end_is_cut_off(deployment: Deployment) -> None:
    url = httpx.URL(deployment.url)
    with socket.create_connection((url.host, url.port or 80), timeout=10) as raw:
        raw.sendall(b"GET /a")
        with suppress(OSError):
            for _ in range(1000):
                raw.sendall(b"a" * 10_000)
        with suppress(ConnectionResetError):
            assert raw.recv(100).startswith(b"HTTP/1.1 431")


def test_a_cancelled_job_stays_cancelled_and_frees_the_worker(deployment: Deployment) -> None:
    question = QUESTIONS[5]
    with deployment.http() as client:
        accepted = client.post(
            "/v1/ask", files=question.files, data={"prompt": question.prompt}, headers={"Prefer": "respond-async"}
        )
        states = {client.delete(accepted.headers["location"]).json()["state"] for _ in range(2)}
    assert len(states) == 1
    assert states <= {"cancelled", "succeeded"}
    assert deployment.ask(question).json()["answer"] == question.answer
