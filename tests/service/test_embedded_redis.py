"""The embedded Redis starts durable, tells why it cannot start, and never outlives its parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from service import embedded_redis
from service.embedded_redis import EmbeddedRedis, EmbeddedRedisError


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_it_is_durable_and_never_evicts(redis_client: redis.Redis) -> None:
    config = redis_client.config_get("appendonly", "appendfsync", "maxmemory-policy", "bind")
    assert config == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "bind": "127.0.0.1",
    }
    assert redis_client.waitaof(0, 0, 100) is not None


def test_data_survives_a_restart_on_the_same_directory(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server:
        client = redis.Redis.from_url(server.url)
        client.set("kept", "yes")
        client.close()
        port = server.port
    with EmbeddedRedis(tmp_path, port) as server:
        client = redis.Redis.from_url(server.url)
        assert client.get("kept") == b"yes"
        client.close()
    assert server.pid is None


def test_two_servers_never_share_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_redis, "_LOCK_WAIT_S", 0.2)
    with EmbeddedRedis(tmp_path) as first:
        with pytest.raises(EmbeddedRedisError, match=r"another process keeps its Redis in .*--state"):
            EmbeddedRedis(tmp_path).start()
        first.kill()
        with EmbeddedRedis(tmp_path) as second:
            with pytest.raises(EmbeddedRedisError, match="another process"):
                first.start()
            assert second.pid is not None


def test_a_server_that_outlives_its_parent_keeps_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_redis, "_LOCK_WAIT_S", 0.2)
    monkeypatch.setattr(embedded_redis, "die_with_parent", lambda: None)
    server = EmbeddedRedis(tmp_path).start()
    process = server._process
    assert process is not None
    server._unlock()  # what the kernel does when this process ends
    with pytest.raises(EmbeddedRedisError, match="another process"):
        EmbeddedRedis(tmp_path).start()
    server.stop()
    with EmbeddedRedis(tmp_path) as second:
        assert second.pid is not None


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(EmbeddedRedisError, match=f"port {port} .* taken"):
            EmbeddedRedis(tmp_path, port).start()


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedRedisError, match="cannot write to"):
        EmbeddedRedis(tmp_path / "file" / "inside").start()


def test_a_missing_binary_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded_redis, "_bundled_server", lambda: None)
    with pytest.raises(EmbeddedRedisError, match="no Redis server found"):
        EmbeddedRedis(tmp_path).start()


def test_a_server_on_path_is_preferred_only_if_new_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = tmp_path / "redis-server"
    server.write_text("#!/bin/sh\necho 'Redis server v=7.0.15 sha=0'\n")
    server.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert embedded_redis.find_server() != server
    server.write_text("#!/bin/sh\necho 'Redis server v=7.4.1 sha=0'\n")
    assert embedded_redis.find_server() == server


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends the child only on Linux")
def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from service.embedded_redis import EmbeddedRedis; "
        f"server = EmbeddedRedis(Path({str(tmp_path)!r})).start(); print(server.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert _alive(pid)
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(pid)
