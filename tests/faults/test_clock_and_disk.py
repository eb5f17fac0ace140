"""The clock of the machine jumps, or its disk is slow: every job still has its one outcome.

Time is what Redis says, so its clock is the one that jumps, by libfaketime; the disk is slowed by strace, which delays
what the append-only file waits for. Without these two (Debian: `faketime`, `strace`) the tests are skipped.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.starter import STARTER
from tests.system.deployment import FAST_RESCUE, Deployment, bundled_number, neighbour, until
from tests.system.test_kills import ask_async, assert_answered_once

QUESTION = bundled_number(STARTER / "samples")
NEIGHBOUR = neighbour(QUESTION)
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
STRACE = shutil.which("strace")
DELAY_S = 0.4

needs_faketime = pytest.mark.skipif(FAKETIME is None, reason="needs libfaketime")
needs_strace = pytest.mark.skipif(STRACE is None, reason="needs strace")
MakeDeployment = Callable[..., Deployment]


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Turns the clock of a Redis that is started afterwards, by `+3600s` or the like."""
    file = tmp_path / "clock"

    def turn(by: str) -> None:
        (tmp_path / "next").write_text(by + "\n")
        (tmp_path / "next").replace(file)

    turn("+0s")
    monkeypatch.setenv("LD_PRELOAD", str(FAKETIME))
    monkeypatch.setenv("FAKETIME_TIMESTAMP_FILE", str(file))
    monkeypatch.setenv("FAKETIME_NO_CACHE", "1")
    monkeypatch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    return turn


def redis_seconds(running: Deployment) -> float:
    seconds, micro = running.client.time()
    return float(seconds) + float(micro) / 1e6


@needs_faketime
def test_a_clock_that_is_put_back_costs_no_job(
    make_deployment: MakeDeployment, clock: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = make_deployment(**FAST_RESCUE)
    monkeypatch.delenv("LD_PRELOAD")
    running.start_service()
    running.start_worker()
    jobs = [(ask_async(running, question), question) for question in [QUESTION, NEIGHBOUR] * 6]
    clock("-3600s")
    until(lambda: abs(redis_seconds(running) - time.time() + 3600) < 2, what="the clock's turn back")
    later = [(ask_async(running, question), question) for question in [QUESTION, NEIGHBOUR] * 3]
    for job_id, question in jobs + later:
        assert_answered_once(running, job_id, question)
    assert httpx.get(f"{running.url}/readyz", trust_env=False).is_success
    assert running.ask(NEIGHBOUR).json()["answer"] == NEIGHBOUR.answer


@needs_faketime
def test_leases_that_a_jump_ended_are_taken_up_again(
    make_deployment: MakeDeployment, clock: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = make_deployment(**FAST_RESCUE | {"ERASE_LEASE_S": "300"})
    monkeypatch.delenv("LD_PRELOAD")
    running.start_service()
    doomed = running.start_worker(ERASE_FAILPOINTS="in_decode=kill")
    job_id = ask_async(running, QUESTION, timeout_s="600")
    until(lambda: not doomed.running, what="the death of the worker")
    running.start_worker()
    clock("+400s")
    begun = time.monotonic()
    assert_answered_once(running, job_id, QUESTION)
    assert time.monotonic() - begun < 60  # and not after the lease of 300 seconds


@pytest.fixture
def slow_disk(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Delays every fsync of a process from now on."""
    tracers = []

    def slow(pid: int) -> None:
        inject = f"inject=fdatasync,fsync:delay_enter={int(DELAY_S * 1e6)}"
        command = [str(STRACE), "-f", "-qq", "-e", "trace=fdatasync,fsync", "-e", inject, "-p", str(pid)]
        with (tmp_path / "strace").open("w") as said:
            tracers.append(subprocess.Popen(command, stderr=said))
        until(lambda: _traced(pid) or tracers[-1].poll() is not None, what="strace")
        if tracers[-1].poll() is not None:
            pytest.skip(f"strace cannot attach here: {(tmp_path / 'strace').read_text()}")

    yield slow
    for tracer in tracers:
        tracer.terminate()
        tracer.wait()


def _traced(pid: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


def _seconds(call: Callable[[], object]) -> float:
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


@needs_strace
def test_a_slow_disk_only_slows(make_deployment: MakeDeployment, slow_disk: Callable[[int], None]) -> None:
    running = make_deployment(**FAST_RESCUE)
    running.client.config_set("appendfsync", "always")
    running.start_service()
    running.start_worker()
    assert running.ask(QUESTION).json()["answer"] == QUESTION.answer
    slow_disk(int(running.client.info("server")["process_id"]))
    until(lambda: _seconds(lambda: running.client.set("probe", "1")) >= DELAY_S, what="the slow disk")
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(running.ask, [QUESTION, NEIGHBOUR] * 2))
    assert [reply.status_code for reply in replies] == [200] * 4, [reply.text for reply in replies]
    assert [reply.json()["answer"] for reply in replies] == [QUESTION.answer, NEIGHBOUR.answer] * 2
    assert running.open_jobs() == 0
