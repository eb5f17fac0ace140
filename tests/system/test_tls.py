"""Redis behind TLS (`rediss://`): all parts verify its certificate, and speak nothing else to it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import trustme
from kombu.exceptions import OperationalError

from tests.starter import STARTER
from tests.system.deployment import Deployment, bundled_number
from worker.app import make_app
from worker.settings import Settings
from worker.slots import SlotTransport

QUESTION = bundled_number(STARTER / "samples")


class TlsEnd:
    """Takes TLS connections on loopback and forwards what is in them to a Redis that speaks plainly."""

    def __init__(self, target: int, context: ssl.SSLContext) -> None:
        self._target = target
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                raw, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        with contextlib.suppress(OSError), raw:
            front = self._context.wrap_socket(raw, server_side=True)
            self.connections += 1
            with front, socket.create_connection(("127.0.0.1", self._target)) as back:
                answers = threading.Thread(target=self._forward, args=(back, front), daemon=True)
                answers.start()
                self._forward(front, back)
                answers.join()

    @staticmethod
    def _forward(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def make_tls(authority: trustme.CA) -> Iterator[Callable[..., TlsEnd]]:
    ends = []

    def make(port: int, name: str = "127.0.0.1") -> TlsEnd:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        ends.append(TlsEnd(port, context))
        return ends[-1]

    yield make
    for end in ends:
        end.close()


def port_of(running: Deployment) -> int:
    return int(redis.Redis.from_url(running.redis.url).connection_pool.connection_kwargs["port"])


def test_a_question_is_answered_over_tls(
    make_deployment: Callable[..., Deployment],
    make_tls: Callable[..., TlsEnd],
    authority: trustme.CA,
    tmp_path: Path,
) -> None:
    running = make_deployment()
    end = make_tls(port_of(running))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    running.settings["ERASE_REDIS_URL"] = f"rediss://127.0.0.1:{end.port}/0?ssl_ca_certs={tmp_path / 'ca.pem'}"
    running.start_service()
    running.start_worker()
    assert running.ask(QUESTION).json()["answer"] == QUESTION.answer
    assert end.connections > 3


@pytest.mark.parametrize("wrong", ["authority", "name"])
def test_another_certificate_than_the_servers_is_refused(
    make_tls: Callable[..., TlsEnd], authority: trustme.CA, tmp_path: Path, redis_url: str, wrong: str
) -> None:
    """Also by Celery, which on its own would take any."""
    plain = redis.Redis.from_url(redis_url).connection_pool.connection_kwargs
    end = make_tls(int(plain["port"]), "other.test" if wrong == "name" else "127.0.0.1")
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    options = f"?ssl_ca_certs={tmp_path / 'ca.pem'}" if wrong == "name" else ""
    url = f"rediss://127.0.0.1:{end.port}/0{options}"
    with pytest.raises(redis.exceptions.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        redis.Redis.from_url(url).ping()
    app = make_app(Settings(redis_url=url), lambda job_id: None)
    with app.connection_for_read() as connection:
        assert isinstance(connection.transport, SlotTransport)
        with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
            connection.ensure_connection(max_retries=1)
    assert end.connections == 0
