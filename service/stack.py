"""`erase-serve up`: the whole stack on one machine - Redis, worker, service - watched over until Ctrl-C or SIGTERM."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import httpx
import redis

from service.embedded_redis import EmbeddedRedis, EmbeddedRedisError
from service.processes import Child
from service.sample import ask_sample, describe
from worker.settings import Settings, SettingsError, load_settings

REDIS_URL_FILE = "redis-url"
"""Where, in the state folder, other commands find the Redis that this one started."""
USUAL_STATE = ".erase"
LEAST_FREE_BYTES = 200 * 2**20
MOST_RESTARTS = 5
RESTART_WINDOW_S = 60.0


def find_redis(settings: Settings, state: Path | None) -> str | None:
    """URL of the Redis that other commands mean: of this state folder, of `ERASE_REDIS_URL`, or of the usual folder.

    None if no stack has noted one.
    """
    if state is None and os.environ.get("ERASE_REDIS_URL"):
        return settings.redis_url
    noted = (state or Path(USUAL_STATE)) / REDIS_URL_FILE
    return noted.read_text().strip() if noted.is_file() else None


class StackError(Exception):
    """The stack cannot start or go on; the message says why and what to do."""


def run_stack(state: Path, *, ask: bool = True) -> int:
    """Start everything, ask the bundled question, serve until a signal. Returns the exit status."""
    stop = threading.Event()
    again = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        (again if stop.is_set() else stop).set()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    stack = None
    try:
        settings = load_settings()
        stack = Stack(settings, state)
        stack.start(stop)
        if ask and not stop.is_set():
            _say("asking a bundled image a first question")
            with stack.client() as client:
                print(describe(ask_sample(client)), flush=True)
        if not stop.is_set():
            _say_addresses(stack)
        stack.watch(stop)
    except (SettingsError, StackError, EmbeddedRedisError, httpx.HTTPError) as error:
        print(f"erase-serve: {error}", file=sys.stderr, flush=True)
        return 1 if stack and stack.ready else 2
    finally:
        if stack is not None:
            if stop.is_set():
                _say("stopping: running jobs are finished first (Ctrl-C again to stop at once)")
            stack.stop(again)
    _say("stopped")
    return 0


class Stack:
    """Redis (unless `ERASE_REDIS_URL` names one), one worker and one service as child processes."""

    def __init__(self, settings: Settings, state: Path) -> None:
        self.settings = settings
        self.state = state.resolve()
        self.ready = False
        self.redis = None if os.environ.get("ERASE_REDIS_URL") else EmbeddedRedis(self.state / "redis")
        self.children: list[Child] = []
        self._restarts: list[float] = []
        self._environment = dict(os.environ)
        self.headers: dict[str, str] = {}
        if settings.keys_configured:
            # A key of our own, known to this stack only, so that the first question can be asked here, too.
            key = secrets.token_urlsafe(32)
            own = f"erase-serve-up:{hashlib.sha256(key.encode()).hexdigest()}"
            self._environment["ERASE_API_KEYS"] = f"{settings.api_keys},{own}"
            self.headers = {"Authorization": f"Bearer {key}"}

    @property
    def url(self) -> str:
        """Address of the service."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.settings.host, self.settings.host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.settings.port}"

    def client(self) -> httpx.Client:
        """A client of the service, also where it asks for keys."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=2.0, trust_env=False)

    def start(self, stop: threading.Event) -> None:
        """Start all parts and wait until a question can be answered.

        Raises:
            StackError: a port is taken, the disk is full, or a part ended.
            EmbeddedRedisError: Redis does not start.
        """
        self._check_disk()
        self._check_port("ERASE_HOST/ERASE_PORT", self.settings.host, self.settings.port)
        if self.settings.worker_metrics_port:
            host, port = self.settings.worker_metrics_host, self.settings.worker_metrics_port
            self._check_port("ERASE_WORKER_METRICS_PORT", host, port)
        if self.redis is not None:
            _say("starting Redis")
            self.redis.start()
            self._environment["ERASE_REDIS_URL"] = self.redis.url
            (self.state / REDIS_URL_FILE).write_text(self.redis.url)
        else:
            self._check_redis()
        logs = self.state / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        for name in ("worker", "service"):
            child = Child(name, [sys.executable, "-m", name], self._environment, logs / f"{name}.log")
            child.log.write_bytes(b"")
            child.start()
            self.children.append(child)
        _say("starting service and worker (the model loads)")
        self._wait_until_ready(stop)

    def watch(self, stop: threading.Event) -> None:
        """Start parts that end on their own again, until `stop`. Raises `StackError` when they keep ending."""
        while not stop.wait(0.2):
            for child in self.children:
                if not child.running:
                    self._restart(child)
            if self.redis is not None and self.redis.pid is None:
                self._note_restart("redis", "it ended")
                self.redis.start()

    def stop(self, at_once: threading.Event) -> None:
        """Stop exactly what was started: service, then worker, then Redis, so that running jobs can finish."""
        for name in ("service", "worker"):
            for child in self.children:
                if child.name == name:
                    self._stop_child(child, at_once)
        if self.redis is not None:
            self.redis.stop()
            with suppress(OSError):
                (self.state / REDIS_URL_FILE).unlink()

    def _stop_child(self, child: Child, at_once: threading.Event) -> None:
        child.terminate()
        deadline = time.monotonic() + self.settings.drain_s + 10
        while child.running and time.monotonic() < deadline and not at_once.wait(0.05):
            pass
        child.stop(timeout_s=0.1 if at_once.is_set() else 1.0)

    def _wait_until_ready(self, stop: threading.Event) -> None:
        begun = time.monotonic()
        told = 0.0
        with self.client() as client:
            while not stop.wait(0.1):
                for child in self.children:
                    if not child.running:
                        raise StackError(
                            f"the {child.name} ended with status {child.exit_status}; the end of {child.log}:\n"
                            f"{child.last_lines()}"
                        )
                missing = self._missing(client)
                if not missing:
                    self.ready = True
                    _say(f"ready after {time.monotonic() - begun:.1f} s")
                    return
                if time.monotonic() - begun - told >= 10:
                    told = time.monotonic() - begun
                    _say(f"not ready after {told:.0f} s: {missing} (logs: {self.state / 'logs'})")

    def _missing(self, client: httpx.Client) -> str:
        """What is still missing before a question can be answered; empty when nothing is."""
        try:
            ready = client.get("/readyz")
            if not ready.is_success:
                return str(ready.json().get("detail", ready.text))
            return "" if client.get("/v1/status").json()["workers"] else "the worker loads its model"
        except (httpx.TransportError, ValueError, KeyError):
            return "the service does not answer yet"

    def _restart(self, child: Child) -> None:
        self._note_restart(child.name, f"it ended with status {child.exit_status}")
        child.start()

    def _note_restart(self, name: str, why: str) -> None:
        now = time.monotonic()
        self._restarts = [at for at in self._restarts if now - at < RESTART_WINDOW_S] + [now]
        if len(self._restarts) > MOST_RESTARTS:
            raise StackError(f"{name} keeps ending ({why}); the logs are in {self.state / 'logs'}")
        _say(f"starting {name} again: {why}")

    def _check_redis(self) -> None:
        try:
            with redis.Redis.from_url(self.settings.redis_url, socket_connect_timeout=3, socket_timeout=3) as client:
                client.ping()
        except redis.RedisError as error:
            raise StackError(f"the Redis of ERASE_REDIS_URL cannot be used: {error}") from None

    def _check_disk(self) -> None:
        try:
            self.state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StackError(f"cannot make the folder {self.state}: {error.strerror}") from None
        free = shutil.disk_usage(self.state).free
        if free < LEAST_FREE_BYTES:
            raise StackError(
                f"the disk of {self.state} has only {free // 2**20} MiB left; "
                f"Redis and the logs need {LEAST_FREE_BYTES // 2**20} MiB: free some or choose another --state folder"
            )

    def _check_port(self, setting: str, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise StackError(
                    f"cannot listen on {host}:{port} ({error.strerror}): stop what listens there or set {setting}"
                ) from None


def _say(text: str) -> None:
    print(f"[erase-serve] {text}", flush=True)


def _say_addresses(stack: Stack) -> None:
    host, port = stack.settings.worker_metrics_host, stack.settings.worker_metrics_port
    print(
        f"""
  API docs         {stack.url}/docs
  ask              POST {stack.url}/v1/ask
  status           {stack.url}/v1/status
  metrics          {stack.url}/metrics  (service)
                   http://{host}:{port}/metrics  (worker)
  logs             {stack.state / "logs"}

Serving until Ctrl-C.""",
        flush=True,
    )
