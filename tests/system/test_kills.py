"""Whatever dies, an accepted request is answered once, and right."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.starter import STARTER
from tests.system.deployment import (
    FAST_RESCUE,
    Deployment,
    Question,
    bundled_number,
    bundled_questions,
    neighbour,
    stream_events,
    until,
)
from worker.contract import JobState, Priority, TokenPayload, queue_name

QUESTION = bundled_number(STARTER / "samples")
NEIGHBOUR = neighbour(QUESTION)
MakeDeployment = Callable[..., Deployment]


@pytest.fixture
def rescue(make_deployment: MakeDeployment) -> Deployment:
    """A service, no worker yet, and short leases."""
    running = make_deployment(**FAST_RESCUE)
    running.start_service()
    return running


def ask_async(running: Deployment, question: Question, **fields: str) -> str:
    with running.http() as client:
        reply = client.post(
            "/v1/ask",
            files=question.files,
            data={"prompt": question.prompt, **fields},
            headers={"Prefer": "respond-async"},
        )
    assert reply.status_code == 202, reply.text
    return str(reply.json()["id"])


def assert_answered_once(running: Deployment, job_id: str, question: Question) -> None:
    until(lambda: running.open_jobs() == 0, what="the end of all jobs")
    outcome = running.outcome(job_id)
    assert outcome.answer is not None, outcome.problem
    assert outcome.answer.answer == question.answer
    tokens = [TokenPayload.model_validate_json(e.data) for e in running.events(job_id) if e.type == "token"]
    assert "".join(token.text for token in tokens) == question.answer
    assert sum(len(token.ids) for token in tokens) == outcome.answer.usage.completion_tokens
    seqs = [event.seq for event in running.events(job_id)]
    assert seqs == list(range(1, len(seqs) + 1))


def test_a_stream_goes_on_with_the_next_worker_without_a_token_twice(rescue: Deployment) -> None:
    doomed = rescue.start_worker(ERASE_FAILPOINTS="after_emit=kill")
    with ThreadPoolExecutor(1) as pool:

        def read() -> list[tuple[str, dict[str, object]]]:
            data = {"prompt": QUESTION.prompt, "stream": "true"}
            with rescue.http() as client, client.stream("POST", "/v1/ask", files=QUESTION.files, data=data) as reply:
                return list(stream_events(reply.iter_lines()))

        waiting = pool.submit(read)
        until(lambda: not doomed.running, what="the death of the worker")
        rescue.start_worker()
        events = waiting.result()
    assert "".join(str(data["text"]) for kind, data in events if kind == "token") == QUESTION.answer
    assert [kind for kind, _ in events].count("result") == 1


def test_a_lost_wake_up_is_sent_again(rescue: Deployment) -> None:
    job_id = ask_async(rescue, QUESTION)
    until(
        lambda: rescue.client.rpop(queue_name(Priority.INTERACTIVE)),
        what="the wake-up, popped as by a worker that dies before it records it",
    )
    rescue.start_worker()
    assert_answered_once(rescue, job_id, QUESTION)


def test_neighbours_of_a_dying_worker_are_answered_too(rescue: Deployment) -> None:
    jobs = [(ask_async(rescue, question), question) for question in [QUESTION, NEIGHBOUR] * 3]
    doomed = rescue.start_worker(wait=False, ERASE_FAILPOINTS="in_decode=kill")
    until(lambda: not doomed.running, what="the death of the worker")
    rescue.start_worker()
    for job_id, question in jobs:
        assert_answered_once(rescue, job_id, question)


def kill_workers(rescue: Deployment, count: int, place: str) -> None:
    """Start so many workers, one after the other, that die when they come to a place."""
    for _ in range(count):
        doomed = rescue.start_worker(wait=False, ERASE_FAILPOINTS=f"{place}=kill")
        until(lambda doomed=doomed: not doomed.running, what="the death of the worker")


def test_a_job_that_waited_when_its_workers_died_is_answered(rescue: Deployment) -> None:
    job_id = ask_async(rescue, QUESTION)
    kill_workers(rescue, 4, "after_lease")
    rescue.start_worker()
    assert_answered_once(rescue, job_id, QUESTION)


def test_a_job_that_kills_every_worker_is_dead_lettered(rescue: Deployment) -> None:
    job_id = ask_async(rescue, QUESTION)
    kill_workers(rescue, 3, "after_preprocess")
    rescue.start_worker()
    until(lambda: rescue.open_jobs() == 0, what="the end of the job")
    outcome = rescue.outcome(job_id)
    assert outcome.problem is not None
    assert outcome.problem.type == "urn:erase:problem:dead-letter"
    reply = httpx.get(f"{rescue.url}/v1/jobs/{job_id}", trust_env=False)
    assert reply.json()["state"] == JobState.DEAD


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["loading model", "model ready"])
def test_a_worker_that_is_stopped_before_it_takes_jobs_exits_cleanly(
    rescue: Deployment, moment: str, number: signal.Signals
) -> None:
    worker = rescue.start_worker(wait=False)
    until(lambda: moment in worker.last_lines(40), what=f"'{moment}' in its log")
    worker.send(number)
    until(lambda: not worker.running, what="the worker's exit")
    assert worker.exit_status == 0, worker.last_lines(40)
    assert "Traceback" not in worker.last_lines(40)


def test_a_stopped_worker_hands_its_jobs_on_and_exits_cleanly(rescue: Deployment) -> None:
    worker = rescue.start_worker(ERASE_DRAIN_S="0")
    jobs = [(ask_async(rescue, question), question) for question in [QUESTION, NEIGHBOUR] * 6]
    worker.terminate()
    until(lambda: not worker.running, what="the worker's exit")
    assert worker.exit_status == 0, worker.last_lines(40)
    rescue.start_worker()
    for job_id, question in jobs:
        assert_answered_once(rescue, job_id, question)


def test_redis_killed_and_started_again_loses_no_accepted_job(rescue: Deployment) -> None:
    worker = rescue.start_worker()
    jobs = [(ask_async(rescue, question), question) for question in [QUESTION, NEIGHBOUR] * 4]
    rescue.redis.kill()
    rescue.redis.start()
    more = until(lambda: rescue.ask(QUESTION).is_success, what="an answer after the restart")
    assert more
    for job_id, question in jobs:
        assert_answered_once(rescue, job_id, question)
    assert worker.running


def test_a_worker_with_running_jobs_outlives_a_redis_that_is_away_for_a_while(make_deployment: MakeDeployment) -> None:
    rescue = make_deployment(ERASE_MODEL=str(STARTER), **FAST_RESCUE)
    question = next(question for question in bundled_questions(STARTER / "samples") if question.answer == "2389")
    rescue.start_service()
    worker = rescue.start_worker()
    endless = Question(question.image, "x" * 200, "")  # this model answers it with thirty digits
    jobs = [ask_async(rescue, endless, max_tokens="1500") for _ in range(4)]
    until(lambda: all(len(rescue.events(job_id)) > 5 for job_id in jobs), what="tokens of every job")
    rescue.redis.kill()
    until(lambda: "Connection to broker lost" in worker.log.read_text(), what="the worker's notice of the loss")
    rescue.redis.start()
    until(lambda: rescue.open_jobs() == 0, what="the end of all jobs")
    assert worker.running, worker.last_lines(40)
    answers = [rescue.outcome(job_id).answer for job_id in jobs]
    assert len({answer.answer for answer in answers if answer}) == 1
    for job_id in jobs:
        seqs = [event.seq for event in rescue.events(job_id)]
        assert seqs == list(range(1, len(seqs) + 1))
    reply = until(lambda: (r := rescue.ask(question)).is_success and r, what="an answer after the restart")
    assert reply.json()["answer"] == question.answer


def test_a_full_disk_refuses_requests_and_ends_nobody(rescue: Deployment) -> None:
    worker = rescue.start_worker()
    assert rescue.ask(QUESTION).is_success
    redis_pid = rescue.redis.pid
    assert redis_pid is not None
    written = max(file.stat().st_size for file in rescue.redis.data_dir.rglob("*.aof"))
    limits = resource.prlimit(redis_pid, resource.RLIMIT_FSIZE)
    resource.prlimit(redis_pid, resource.RLIMIT_FSIZE, (written, limits[1]))
    refused = until(lambda: (reply := rescue.ask(QUESTION)).status_code == 503 and reply, what="a refusal")
    assert int(refused.headers["retry-after"]) > 0
    with rescue.http() as client:
        ready = until(lambda: (reply := client.get("/readyz")).status_code == 503 and reply, what="the probe's notice")
    assert "disk" not in ready.text
    service = next(child for child in rescue.children if child.name.startswith("service"))
    assert "disk full" in service.log.read_text()
    until(lambda: "MISCONF" in worker.log.read_text(), what="the worker's notice")
    resource.prlimit(redis_pid, resource.RLIMIT_FSIZE, limits)
    reply = until(lambda: (r := rescue.ask(QUESTION)).is_success and r, what="an answer with room again")
    assert_answered_once(rescue, reply.json()["id"], QUESTION)
    assert worker.running, worker.last_lines(40)


def test_a_killed_service_process_loses_no_accepted_job(rescue: Deployment) -> None:
    job_id = ask_async(rescue, QUESTION)
    service = next(child for child in rescue.children if child.name == "service")
    service.stop(timeout_s=0)
    rescue.start_service()
    rescue.start_worker()
    assert_answered_once(rescue, job_id, QUESTION)
