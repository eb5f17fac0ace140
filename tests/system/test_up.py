"""`erase-serve up`, as a newcomer runs it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.system.deployment import bundled_questions, free_port, until

FIRST = bundled_questions()[0]
MARK = "ERASE_TEST_MARK_"


class Up:
    """One run of the command, recognisable with all its children by a mark in their environment."""

    def __init__(self, state: Path, **settings: str) -> None:
        self.mark = f"{MARK}{secrets.token_hex(8)}".removeprefix("ERASE_")
        self.port = free_port()
        self.state = state
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ERASE_")}
        environment = {
            **inherited,
            "ERASE_PORT": str(self.port),
            "ERASE_WORKER_METRICS_PORT": str(free_port()),
            self.mark: "1",
            **settings,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "up", "--state", str(state)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""

    def read_until(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"{text!r} never came:\n{self.output}")

    def finish(self) -> int:
        assert self.process.stdout is not None
        self.output += self.process.stdout.read()
        return self.process.wait(timeout=60)

    def living(self) -> list[int]:
        """Processes that carry the mark, or (Redis, which overwrites its environment) run in the state folder."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                marked = self.mark.encode() in (folder / "environ").read_bytes()
                if marked or (folder / "cwd").readlink().is_relative_to(self.state):
                    found.append(int(folder.name))
        return found


@pytest.fixture
def runs() -> Iterator[list[Up]]:
    started: list[Up] = []
    yield started
    for up in started:
        if up.process.poll() is None:
            up.process.kill()
        up.process.wait()
        assert up.process.stdout is not None
        up.process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_its_own_question_serves_and_leaves_nothing_behind(
    tmp_path: Path, runs: list[Up], number: signal.Signals
) -> None:
    up = Up(tmp_path / "state")
    runs.append(up)
    up.read_until("Serving until Ctrl-C")
    assert f"question         {FIRST.prompt}  ({FIRST.image.name})\n" in up.output
    assert f"answer           {FIRST.answer}\n" in up.output
    assert re.search(r"token reduction  [1-9]\d?% ", up.output)
    assert f"http://127.0.0.1:{up.port}/docs" in up.output
    assert httpx.get(f"http://127.0.0.1:{up.port}/readyz", trust_env=False).is_success
    assert len(up.living()) == 4, "launcher, Redis, worker and service"
    up.process.send_signal(number)
    assert up.finish() == 0, up.output
    assert up.living() == []


def test_it_asks_itself_also_where_keys_are_needed(tmp_path: Path, runs: list[Up]) -> None:
    up = Up(tmp_path / "state", ERASE_API_KEYS=f"someone:{'0' * 64}")
    runs.append(up)
    up.read_until("Serving until Ctrl-C")
    assert f"answer           {FIRST.answer}\n" in up.output
    assert httpx.post(f"http://127.0.0.1:{up.port}/v1/ask", trust_env=False).status_code == 401
    up.process.terminate()
    assert up.finish() == 0


def test_children_die_with_a_killed_launcher_and_killed_children_come_back(tmp_path: Path, runs: list[Up]) -> None:
    up = Up(tmp_path / "state")
    runs.append(up)
    up.read_until("Serving until Ctrl-C")
    worker = next(pid for pid in up.living() if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(worker, signal.SIGKILL)
    up.read_until("starting worker again")
    up.process.kill()
    until(lambda: up.living() == [], what="the end of all children")


def test_a_killed_redis_comes_back_where_everybody_looks_for_it(tmp_path: Path, runs: list[Up]) -> None:
    up = Up(tmp_path / "state")
    runs.append(up)
    up.read_until("Serving until Ctrl-C")
    server = next(pid for pid in up.living() if b"valkey" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(server, signal.SIGKILL)
    up.read_until("starting redis again")
    question = {"prompt": FIRST.prompt}

    def answered() -> bool:
        return httpx.post(f"http://127.0.0.1:{up.port}/v1/ask", json=question, timeout=60, trust_env=False).is_success

    until(answered, what="an answer after Redis came back")
    up.process.terminate()
    assert up.finish() == 0


def test_a_taken_port_is_a_clear_message_and_a_failure(tmp_path: Path, runs: list[Up]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        up = Up(tmp_path / "state", ERASE_PORT=str(port))
        runs.append(up)
        assert up.finish() == 2
    assert f"cannot listen on 127.0.0.1:{port}" in up.output
    assert "ERASE_PORT" in up.output
    assert up.living() == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ERASE_PROT", "8000", "unknown setting ERASE_PROT"),
        ("ERASE_TIMEOUT_S", "soon", "ERASE_TIMEOUT_S"),
        ("ERASE_HOST", "0.0.0.0", "ERASE_API_KEYS"),
        ("ERASE_MODEL", "/no/such/folder", "no model folder"),
        ("ERASE_POLICY", "no-such-policy", "no-such-policy"),
        ("ERASE_REDIS_URL", "redis://127.0.0.1:1/0", "Redis"),
    ],
)
def test_a_wrong_setting_is_a_clear_message_and_a_failure(
    tmp_path: Path, runs: list[Up], name: str, value: str, message: str
) -> None:
    up = Up(tmp_path / "state", **{name: value})
    runs.append(up)
    assert up.finish() == 2, up.output
    assert message in up.output
    assert "Traceback" not in up.output
    assert up.living() == []


def test_a_folder_that_cannot_be_written_is_a_clear_message_and_a_failure(tmp_path: Path, runs: list[Up]) -> None:
    (tmp_path / "file").write_text("")
    up = Up(tmp_path / "file" / "state")
    runs.append(up)
    assert up.finish() == 2
    assert "cannot make the folder" in up.output
