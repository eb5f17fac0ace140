"""An upgrade, and one that is taken back, while jobs are in flight: none is lost, none waits for the other version."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.starter import STARTER
from tests.system.deployment import FAST_RESCUE, Deployment, bundled_number, neighbour, until
from tests.system.test_kills import ask_async, assert_answered_once

QUESTION = bundled_number(STARTER / "samples")
NEIGHBOUR = neighbour(QUESTION)
OLDEST = {"ERASE_CONTRACT": "1", "ERASE_DRAIN_S": "0"}
OLD = {"ERASE_CONTRACT": "2", "ERASE_DRAIN_S": "0"}
NEW = {"ERASE_DRAIN_S": "0"}
TALK = {"model": "starter-model", "messages": [{"role": "user", "content": "what is it ?"}], "max_tokens": 2}


@pytest.fixture
def rescue(make_deployment: Callable[..., Deployment]) -> Deployment:
    running = make_deployment(**FAST_RESCUE)
    running.start_service()
    return running


def talk(running: Deployment) -> httpx.Response:
    with running.http() as client:
        return client.post("/v1/chat/completions", json=TALK)


@pytest.mark.parametrize(
    ("before", "after"),
    [(OLD, NEW), (NEW, OLD), (OLDEST, NEW), (NEW, OLDEST)],
    ids=["upgrade", "rollback", "long upgrade", "long rollback"],
)
def test_jobs_in_flight_move_to_the_workers_of_the_other_version(
    rescue: Deployment, before: dict[str, str], after: dict[str, str]
) -> None:
    leaving = rescue.start_worker(**before)
    jobs = [(ask_async(rescue, question), question) for question in [QUESTION, NEIGHBOUR] * 6]
    rescue.start_worker(**after)
    leaving.terminate()
    jobs += [(ask_async(rescue, question), question) for question in [QUESTION, NEIGHBOUR] * 2]
    until(lambda: not leaving.running, what="the exit of the worker that is replaced")
    assert leaving.exit_status == 0, leaving.last_lines(40)
    for job_id, question in jobs:
        assert_answered_once(rescue, job_id, question)


def test_what_only_a_newer_version_can_say_waits_for_its_workers_or_is_refused(rescue: Deployment) -> None:
    rescue.start_worker(**OLDEST)
    with rescue.http() as client:
        until(lambda: client.get("/v1/status").json()["workers"], what="the old worker")
    reply = talk(rescue)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
    assert "Retry-After" in reply.headers
    rescue.start_worker(**NEW)
    until(lambda: talk(rescue).status_code == 200, what="an answer by the new worker")


def test_a_service_that_is_put_back_still_tells_of_what_only_the_new_one_could_ask(rescue: Deployment) -> None:
    fastv = {"pruning": '{"method": "fastv", "retention": 0.5}'}
    job_id = ask_async(rescue, QUESTION, **fastv)
    leaving = next(child for child in rescue.children if child.name.startswith("service"))
    rescue.start_service(**OLD)
    leaving.terminate()
    with rescue.http() as client:
        assert client.get(f"/v1/jobs/{job_id}").json()["state"] == "accepted"
        rescue.start_worker(**NEW)
        assert client.get(f"/v1/jobs/{job_id}?wait=30").json()["state"] == "succeeded"
        refused = client.post("/v1/ask", files=QUESTION.files, data={"prompt": QUESTION.prompt, **fastv})
        assert refused.status_code == 503, refused.text
    assert rescue.ask(QUESTION).json()["answer"] == QUESTION.answer


def test_with_no_worker_at_all_a_conversation_waits(rescue: Deployment) -> None:
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(talk, rescue)
        until(lambda: rescue.open_jobs() == 1, what="the accepted conversation")
        rescue.start_worker(**NEW)
        assert waiting.result().status_code == 200
