"""The network between a part and Redis is cut, refused or silent: nothing is lost, everything comes back by itself.

Each test takes one kind of cut, and both with `ERASE_FAULTS=long` in the environment of the tests.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.faults.network import Line, Network
from tests.starter import STARTER
from tests.system.deployment import FAST_RESCUE, Deployment, bundled_number, neighbour, until
from tests.system.forked import is_stopped
from tests.system.test_kills import ask_async, assert_answered_once

QUESTION = bundled_number(STARTER / "samples")
NEIGHBOUR = neighbour(QUESTION)
CUTS: tuple[Line, ...] = ("refused", "silent")
LONG = os.environ.get("ERASE_FAULTS") == "long"
REFUSED_AFTER_S = 12.0
"""A request may wait for a connection and for an answer, 5 seconds each."""


def cut_as(cut: Line) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("cut", CUTS if LONG else (cut,))


@pytest.fixture
def network() -> Iterator[Callable[[Deployment], Network]]:
    made: list[Network] = []

    def between(running: Deployment) -> Network:
        made.append(Network(running.redis.port))
        return made[-1]

    yield between
    for one in made:
        one.close()


@cut_as("silent")
def test_a_worker_that_is_cut_off_loses_its_jobs_to_another_and_writes_no_more(
    make_deployment: Callable[..., Deployment], network: Callable[[Deployment], Network], cut: Line
) -> None:
    running = make_deployment(**FAST_RESCUE)
    running.start_service()
    line = network(running)
    # The first worker stops in its job; when it goes on, its lease is another's.
    first = running.start_worker(ERASE_REDIS_URL=line.url, ERASE_FAILPOINTS="in_decode=stop")
    jobs = [(ask_async(running, question), question) for question in (QUESTION, NEIGHBOUR)]
    until(lambda: is_stopped(first), what="the first worker's stop")
    line.line = cut
    second = running.start_worker()
    for job_id, question in jobs:
        assert_answered_once(running, job_id, question)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGCONT)
    time.sleep(2.0)
    line.line = "open"
    again = ask_async(running, QUESTION)
    assert_answered_once(running, again, QUESTION)
    for job_id, question in jobs:
        assert_answered_once(running, job_id, question)
    second.terminate()
    until(lambda: not second.running, what="the second worker's exit")
    # Alone, the first one works again.
    last = ask_async(running, NEIGHBOUR)
    assert_answered_once(running, last, NEIGHBOUR)
    assert first.running, first.last_lines(40)


@cut_as("silent")
def test_a_service_that_is_cut_off_refuses_and_comes_back(
    make_deployment: Callable[..., Deployment], network: Callable[[Deployment], Network], cut: Line
) -> None:
    running = make_deployment(**FAST_RESCUE)
    line = network(running)
    running.start_service(ERASE_REDIS_URL=line.url)
    running.start_worker()
    assert running.ask(QUESTION).json()["answer"] == QUESTION.answer
    line.line = cut
    begun = time.monotonic()
    reply = running.ask(QUESTION)
    assert time.monotonic() - begun < REFUSED_AFTER_S
    assert (reply.status_code, reply.headers["content-type"]) == (503, "application/problem+json")
    assert int(reply.headers["retry-after"]) > 0
    assert reply.json()["type"].startswith("urn:erase:problem:")
    assert httpx.get(f"{running.url}/healthz", trust_env=False).is_success
    assert httpx.get(f"{running.url}/readyz", trust_env=False, timeout=REFUSED_AFTER_S).status_code == 503
    line.line = "open"
    until(lambda: httpx.get(f"{running.url}/readyz", trust_env=False, timeout=REFUSED_AFTER_S).is_success)
    assert running.ask(QUESTION).json()["answer"] == QUESTION.answer
    assert running.open_jobs() == 0


@cut_as("refused")
def test_who_waits_while_the_network_is_cut_gets_the_answer_afterwards(
    make_deployment: Callable[..., Deployment], network: Callable[[Deployment], Network], cut: Line
) -> None:
    running = make_deployment(**FAST_RESCUE)
    line = network(running)
    running.start_service(ERASE_REDIS_URL=line.url)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(running.ask, QUESTION)
        until(lambda: running.open_jobs() == 1, what="the accepted job")
        line.line = cut
        running.start_worker()
        until(lambda: running.open_jobs() == 0, what="the end of the job")
        time.sleep(1.0)
        assert not waiting.done()
        line.line = "open"
        reply = waiting.result(timeout=40)
    assert reply.status_code == 200, reply.text
    assert reply.json()["answer"] == QUESTION.answer


def test_a_line_that_breaks_again_and_again_costs_no_job(
    make_deployment: Callable[..., Deployment], network: Callable[[Deployment], Network]
) -> None:
    running = make_deployment(**FAST_RESCUE)
    line = network(running)
    running.start_service()
    worker = running.start_worker(ERASE_REDIS_URL=line.url)
    jobs = [(ask_async(running, question), question) for question in [QUESTION, NEIGHBOUR] * 4]
    for cut in CUTS * 2:
        line.line = cut
        time.sleep(0.3)
        line.line = "open"
        time.sleep(0.7)
    for job_id, question in jobs:
        assert_answered_once(running, job_id, question)
    assert worker.running, worker.last_lines(40)
