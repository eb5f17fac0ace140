"""Every failpoint along the way of a request, with a crash and with a hang: each job has one outcome, the right one.

All places are tried with a crash. With a hang, only those of `HANGS` are, unless `ERASE_FAULTS=long` stands in the
environment of the tests.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.processes import Child
from tests.starter import STARTER
from tests.system.deployment import FAST_RESCUE, Deployment, bundled_number, neighbour, until
from tests.system.forked import FastDeployment, ForkedWorker, is_stopped
from tests.system.test_kills import ask_async, assert_answered_once
from worker.contract import OPEN_KEY, Priority, owner_jobs_key, queue_name
from worker.failpoints import IN_SERVICE, IN_WORKER

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads the state of processes from /proc")

QUESTION = bundled_number(STARTER / "samples")
NEIGHBOUR = neighbour(QUESTION)
LONG = os.environ.get("ERASE_FAULTS") == "long"
HANGS = {"after_lease", "in_decode", "before_write", "before_finish", "before_renew", "before_wake", "after_accept"}
RESCUE_S = 15.0
# How many jobs it takes to get there: a lease is renewed, and a job given back, only while others still run.
CROWD = {"before_renew": 24, "before_release": 12}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastDeployment]:
    running = FastDeployment(tmp_path_factory.mktemp("faults"), ERASE_MODEL=str(STARTER), **FAST_RESCUE)
    running.start_service()
    yield running
    running.close()


def places(names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [
        (name, action) for name in names for action in ("kill", "stop") if action == "kill" or LONG or name in HANGS
    ]


def gone(child: Child, action: str) -> bool:
    return is_stopped(child) if action == "stop" else not child.running


@pytest.mark.parametrize(("place", "action"), places(IN_WORKER))
def test_a_worker_that_fails_anywhere_costs_no_job(stack: FastDeployment, place: str, action: str) -> None:
    crowd = CROWD.get(place, 1)
    jobs = [(ask_async(stack, question), question) for question in [QUESTION, NEIGHBOUR] * (crowd // 2)]
    jobs = jobs or [(ask_async(stack, QUESTION), QUESTION)]
    if place == "before_wake":
        until(lambda: stack.client.rpop(queue_name(Priority.INTERACTIVE)), what="the wake-up, which gets lost")
    if place == "after_begin":
        first = stack.start_worker(wait=False, ERASE_FAILPOINTS="after_lease=kill", ERASE_LEASE_S="1")
        until(lambda: not first.running, what="the end of the first try: only a later one begins")
    failpoints = f"{place}={action}"
    if place == "before_release":
        failpoints += ",in_prefill=stop"
    doomed = stack.start_worker(wait=False, ERASE_FAILPOINTS=failpoints, ERASE_DRAIN_S="0", ERASE_LEASE_S="1")
    assert isinstance(doomed, ForkedWorker)
    if place == "before_release":
        until(lambda: is_stopped(doomed), what="the worker with its jobs")
        doomed.terminate()
        doomed.send(signal.SIGCONT)
    until(lambda: gone(doomed, action), what=f"the worker's failure {place}")
    if action == "kill":
        assert doomed.exit_status == -signal.SIGKILL, doomed.last_lines(40)
    failed = time.monotonic()
    healthy = stack.start_worker(wait=False)
    until(lambda: not stack.client.zcard(OPEN_KEY), what="the end of all jobs")
    took = time.monotonic() - failed
    print(f"{place} {action}: rescued {len(jobs)} after {took:.1f} s, with the start of the worker")
    assert took < RESCUE_S
    if action == "stop":
        # It wakes up and goes on with what is no longer its own.
        doomed.send(signal.SIGCONT)
        doomed.terminate()
        until(lambda: not doomed.running, what="the exit of the worker that hung")
    for job_id, question in jobs:
        assert_answered_once(stack, job_id, question)
    healthy.stop(timeout_s=10)


def ask_keyed(stack: Deployment, key: str) -> httpx.Response:
    with stack.http() as client:
        return client.post(
            "/v1/ask", files=QUESTION.files, data={"prompt": QUESTION.prompt}, headers={"Idempotency-Key": key}
        )


@pytest.mark.parametrize(("place", "action"), places(IN_SERVICE))
def test_a_service_that_fails_anywhere_costs_no_keyed_request(stack: FastDeployment, place: str, action: str) -> None:
    before = stack.client.zcard(owner_jobs_key("anonymous"))
    for image in stack.client.keys("erase:image:*"):  # type: ignore[union-attr]
        stack.client.delete(image)  # of jobs that have ended; a known image is not stored again
    worker = stack.start_worker()
    doomed = stack.start_service(ERASE_FAILPOINTS=f"{place}={action}")
    key = f"{place}-{action}"
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask_keyed, stack, key)
        until(lambda: gone(doomed, action), what=f"the service's failure {place}")
        if action == "stop":
            time.sleep(0.5)
            assert doomed.pid is not None
            os.kill(doomed.pid, signal.SIGCONT)
            reply = asked.result()
        else:
            with pytest.raises(httpx.TransportError):
                asked.result()
            stack.start_service()
            reply = ask_keyed(stack, key)
    assert reply.status_code == 200, reply.text
    assert reply.json()["answer"] == QUESTION.answer
    assert_answered_once(stack, reply.json()["id"], QUESTION)
    assert stack.client.zcard(owner_jobs_key("anonymous")) == before + 1
    doomed.stop(timeout_s=5)
    worker.stop(timeout_s=10)
    if action == "stop":
        stack.start_service()
