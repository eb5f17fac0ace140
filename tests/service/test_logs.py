"""Log lines: which request, which job, and never what was asked."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.service.conftest import FakeWorker, Service, picture, until
from worker.contract import job_key, problem
from worker.logs import JsonFormatter, TextFormatter, _Subject, about


@pytest.fixture
def lines() -> Iterator[Any]:
    """All log lines so far, parsed."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(_Subject())
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel("DEBUG")
    yield lambda: [line for line in map(json.loads, stream.getvalue().splitlines()) if is_the_services(line["logger"])]
    root.removeHandler(handler)
    root.setLevel(before)


def is_the_services(logger: str) -> bool:
    """The test's own client logs into the same process, and the server's access log is off in a real one."""
    return not logger.startswith(("httpx", "httpcore", "uvicorn.access"))


def access_lines(lines: Any) -> list[dict[str, Any]]:
    """They are written after the answer."""
    until(lambda: [line for line in lines() if line["logger"] == "erase.requests"], "a line for the request")
    return [line for line in lines() if line["logger"] == "erase.requests"]


def test_a_request_is_named_in_answer_job_and_log(service: Service, worker: FakeWorker, lines: Any) -> None:
    reply = service.ask("tell me the secret", headers={"Prefer": "respond-async", "X-Request-ID": "order-17"})
    assert reply.headers["x-request-id"] == "order-17"
    job_id = reply.json()["id"]
    assert worker.client.hget(job_key(job_id), "request_id") == b"order-17"
    (line,) = access_lines(lines)
    assert {"request_id": "order-17", "job_id": job_id, "status": 202, "owner": "anonymous"}.items() <= line.items()
    assert (line["route"], line["method"], line["level"]) == ("/v1/ask", "POST", "info")


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'quote"', "{}"])
def test_an_id_that_cannot_be_used_is_replaced(service: Service, given: str) -> None:
    named = service.http.get("/healthz", headers={"X-Request-ID": given}).headers["x-request-id"]
    assert named != given
    assert len(named) == 32


def test_a_job_that_fails_is_logged_with_its_problem(service: Service, worker: FakeWorker, lines: Any) -> None:
    later = service.later(service.ask)
    worker.fail(worker.take(), problem("context-length", "too long"))
    assert later.result().status_code == 422
    (line,) = access_lines(lines)
    assert (line["status"], line["problem"]) == (422, "context-length")
    assert "reason" not in service.http.get("/metrics").text.partition("erase_rejections_total{")[2]


def test_a_refusal_is_logged_with_its_problem(service: Service, lines: Any) -> None:
    assert service.ask("").status_code == 422
    (line,) = access_lines(lines)
    assert (line["status"], line["problem"]) == (422, "invalid-request")


def test_probes_are_quiet(service: Service, lines: Any) -> None:
    service.http.get("/readyz")
    assert {line["level"] for line in access_lines(lines)} == {"debug"}


def test_neither_prompt_nor_image_nor_key_is_ever_logged(service: Service, worker: FakeWorker, lines: Any) -> None:
    secret = "do-not-log-me"
    for data in (picture(), b"\x89PNG\r\n\x1a\n" + secret.encode()):
        service.http.post(
            f"/v1/ask?{secret}",
            files={"image": (secret, data)},
            data={"prompt": secret, "stop": secret},
            headers={"Prefer": "respond-async", "Authorization": f"Bearer {secret}", "Idempotency-Key": secret},
        )
    service.ask(secret, images=[{"url": f"https://host/{secret}"}])
    service.ask(secret, images=[{"data": secret}], **{secret: 1})
    service.http.get(f"/v1/jobs/{secret}")
    assert access_lines(lines)
    assert secret not in json.dumps(lines())


def test_a_subject_ends_with_its_block_and_may_be_refined(lines: Any) -> None:
    logger = logging.getLogger("test")
    with about(request_id="r", trace=""):
        logger.info("one")
        with about(job_id="j"):
            logger.info("two", extra={"ms": 3})
        logger.info("three")
    logger.info("four")
    found = [
        {name: value for name, value in line.items() if name in ("request_id", "job_id", "ms", "trace")}
        for line in lines()
        if line["logger"] == "test"
    ]
    assert found == [{"request_id": "r"}, {"request_id": "r", "job_id": "j", "ms": 3}, {"request_id": "r"}, {}]


def test_people_get_the_same_fields_behind_the_text() -> None:
    record = logging.LogRecord("erase", logging.INFO, "", 0, "job %s", ("succeeded",), None)
    record.ms = 12
    with about(job_id="job_1"):
        _Subject().filter(record)
    assert TextFormatter().format(record).endswith("INFO erase: job succeeded job_id=job_1 ms=12")


def test_an_exception_stays_one_line_of_json() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.LogRecord("erase", logging.ERROR, "", 0, "failed", (), (type(error), error, None))
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert "two\nlines" in json.loads(line)["error"]
