"""Connections before there is a request: what never ends, or never comes, is closed, without any key."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from service import connections
from tests.service.conftest import FakeWorker, Service, make_settings, running_service

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def raw(service: Service) -> Iterator[socket.socket]:
    url = service.http.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=10) as connection:
        yield connection


def rest(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    try:
        return b"".join(iter(lambda: connection.recv(65536), b""))
    except ConnectionResetError:
        return b""


def send_for_ever(connection: socket.socket, data: bytes, most: int) -> int:
    """Bytes that could be sent until the other side closed."""
    sent = 0
    with suppress(OSError):
        while sent < most:
            sent += connection.send(data)
    return sent


def seconds_until_closed(connection: socket.socket, data: bytes) -> float:
    """How long a little more can be sent again and again, at most five seconds."""
    started = time.monotonic()
    with suppress(OSError):
        while time.monotonic() - started < 5:
            connection.sendall(data)
            time.sleep(0.02)
    return time.monotonic() - started


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /" + b"a" * 100, b"a" * 10_000),
        (REQUEST + b"X-Long: ", b"b" * 10_000),
        (REQUEST, b"X-Many: c\r\n" * 1000),
    ],
    ids=["request line", "header", "headers"],
)
def test_a_head_that_does_not_end_is_cut_off(raw: socket.socket, begin: bytes, more: bytes) -> None:
    raw.sendall(begin)
    time.sleep(0.1)
    assert send_for_ever(raw, more, 50 * 2**20) < 20 * 2**20  # what the sockets between us hold
    assert rest(raw)[:12] in (b"HTTP/1.1 431", b"")


def test_a_large_head_that_ends_is_answered(raw: socket.socket) -> None:
    raw.sendall(REQUEST)
    time.sleep(0.05)
    raw.sendall(b"X-Long: " + b"b" * 50_000 + b"\r\nConnection: close\r\n\r\n")
    assert rest(raw).startswith(b"HTTP/1.1 200")


def test_a_head_in_two_parts_with_a_large_body_behind_it_is_answered(raw: socket.socket) -> None:
    body = b"{" + b" " * 200_000
    kind = "Content-Type: application/json\r\nConnection: close"
    raw.sendall(f"POST /v1/ask HTTP/1.1\r\nHost: x\r\n{kind}\r\nContent-Length: {len(body)}\r\nX-Tok".encode())
    time.sleep(0.05)
    raw.sendall(b"en: a\r\n\r\n" + body)
    assert rest(raw).startswith(b"HTTP/1.1 400")


def test_a_trailer_that_does_not_end_is_cut_off(raw: socket.socket) -> None:
    raw.sendall(b"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX-Long: ")
    time.sleep(0.1)
    assert send_for_ever(raw, b"b" * 10_000, 50 * 2**20) < 20 * 2**20


def test_what_is_cut_off_behind_a_running_request_does_not_write_into_its_answer(
    service: Service, raw: socket.socket, worker: FakeWorker
) -> None:
    body = b'{"prompt": "?"}'
    head = f"POST /v1/ask HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    raw.sendall(head.encode() + body)
    worker.take()
    assert send_for_ever(raw, b"GET /" + b"a" * 10_000, 50 * 2**20) < 20 * 2**20
    assert b"431" not in rest(raw)


@pytest.mark.parametrize("sent", [b"", b"\r\n", REQUEST])
def test_a_connection_that_says_no_more_is_closed(
    service: Service, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    url = service.http.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=10) as raw:
        raw.sendall(sent)
        started = time.monotonic()
        rest(raw)
    assert time.monotonic() - started < 4


def test_a_head_that_comes_byte_by_byte_has_its_time(raw: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.5)
    raw.sendall(REQUEST + b"Connection: keep-alive\r\n\r\n")
    assert raw.recv(65536).startswith(b"HTTP/1.1 200")
    assert seconds_until_closed(raw, b"G") < 3


def test_a_request_may_wait_for_its_answer_longer(
    service: Service, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 1.0)
    waiting = service.later(service.ask)
    job = worker.take()
    time.sleep(1.5)
    worker.succeed(job)
    assert waiting.result().status_code == 200


def test_the_body_of_a_refused_request_is_not_read_for_ever(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BODY_S", 0.5)
    monkeypatch.setattr("service.admission.COUNTS_GOOD_FOR_S", 0.0)
    with running_service(make_settings(redis_url, max_open_jobs=1)) as service:
        service.ask(headers={"Prefer": "respond-async"})
        url = service.http.base_url
        with socket.create_connection((url.host, url.port or 80), timeout=10) as raw:
            raw.sendall(b"POST /v1/ask HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n{")
            assert raw.recv(65536).startswith(b"HTTP/1.1 503")
            assert seconds_until_closed(raw, b" ") < 3
