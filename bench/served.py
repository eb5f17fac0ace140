"""A service to ask: one that runs, or a whole stack of our own on free ports that ends with the benchmark."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from bench.report import REPOSITORY, BenchmarkError, progress
from service.processes import Child

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0


@contextmanager
def own_stack() -> Iterator[str]:
    """Start what `erase-serve up` starts, configured by this process's `ERASE_*`; yields the service's address.

    Raises:
        BenchmarkError: the stack ends or is not ready in time; the message has the end of its log.
    """
    port = free_port()
    environment = {**os.environ, "ERASE_PORT": str(port), "ERASE_WORKER_METRICS_PORT": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(prefix="erase-bench-") as folder:
        command = [sys.executable, "-m", "service.cli", "up", "--no-ask", "--state", str(Path(folder) / "state")]
        stack = Child("stack", command, environment, Path(folder) / "stack.log")
        progress("starting Redis, worker and service")
        stack.start()
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_until_ready(url, stack)
            yield url
        finally:
            stack.stop(STOP_TIMEOUT_S)


def _wait_until_ready(url: str, stack: Child) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(base_url=url, timeout=2.0, trust_env=False) as client:
        while time.monotonic() < deadline:
            if not stack.running:
                raise BenchmarkError(f"the stack ended with status {stack.exit_status}:\n{stack.last_lines()}")
            try:
                if client.get("/readyz").is_success and client.get("/v1/status").json()["workers"]:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    raise BenchmarkError(f"the stack was not ready after {START_TIMEOUT_S:.0f} s:\n{stack.last_lines()}")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
