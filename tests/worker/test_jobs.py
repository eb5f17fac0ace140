"""One job from wake-up to outcome, with the real engine, the starter model and a real Redis, but without Celery."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from PIL import Image
from prometheus_client import CollectorRegistry
from redis.exceptions import ConnectionError as RedisConnectionError

from erase.engine import Engine, EngineLimits, EngineObserver
from erase.engine.stage import PrefillStage
from erase.models.loading import LoadedModel, load_model
from tests.starter import STARTER
from tests.worker.helpers import (
    accept,
    encoded,
    field,
    lease,
    lose_lease,
    outcome,
    reference,
    sample,
    state,
    until,
)
from worker import jobs, ledger, preparing
from worker.contract import (
    Answer,
    EventType,
    JobState,
    Message,
    Plan,
    PruningOptions,
    TokenPayload,
    events_key,
    image_key,
    job_key,
)
from worker.emitter import Emitter
from worker.errors import GiveBackError
from worker.failpoints import Failpoints
from worker.jobs import JobRunner
from worker.leases import LeaseKeeper
from worker.ledger import execute
from worker.metrics import WorkerMetrics
from worker.policies import policy_book
from worker.settings import Settings

SAMPLE = sample(0, 1)
OTHER = sample(1, 2)


class Steps(EngineObserver):
    """Hears of the engine's steps; `during` runs in the engine's thread, so it can hold the engine up."""

    def __init__(self) -> None:
        self.during: Callable[[str], None] | None = None
        self.seen: list[str] = []
        self.load = (0, 0)

    def stepped(self, phase: str, batch: int) -> None:
        self.seen.append(phase)
        if self.during is not None:
            self.during(phase)

    def load_changed(self, running: int, waiting: int, cache_tokens: float) -> None:
        self.load = (running, waiting)


@dataclass
class Worker:
    """A worker process without Celery, sweeper and heartbeat."""

    client: redis.Redis
    loaded: LoadedModel
    settings: Settings
    name: str = "w1"

    def __post_init__(self) -> None:
        self.steps = Steps()
        self.metrics = WorkerMetrics(CollectorRegistry())
        self.engine = Engine(self.loaded, EngineLimits(), self.steps)
        self.keeper = LeaseKeeper(self.client, self.settings.lease_s, lambda: False)
        self.emitter = Emitter(self.client)
        self.threads = ThreadPoolExecutor(4)
        self.runner = JobRunner(
            settings=self.settings,
            client=self.client,
            loaded=self.loaded,
            engine=self.engine,
            book=policy_book(self.settings, self.loaded),
            keeper=self.keeper,
            emitter=self.emitter,
            metrics=self.metrics,
            failpoints=Failpoints(),
            name=self.name,
        )
        for part in (self.engine, self.keeper, self.emitter):
            part.start()

    def stop(self) -> None:
        self.engine.stop()
        self.threads.shutdown()
        self.keeper.stop()
        self.emitter.stop()

    def run(self, job_id: str = "job_1") -> None:
        self.runner.run(job_id)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def became(self, result: str, priority: str = "interactive") -> float:
        """How many jobs this became of."""
        return self.metric("erase_jobs_total", outcome=result, priority=priority)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(str(STARTER))


@pytest.fixture
def make_worker(redis_client: redis.Redis, redis_url: str, loaded: LoadedModel) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def make(**changes: Any) -> Worker:
        settings = Settings(redis_url=redis_url, lease_s=1, stall_s=5, **changes)
        workers.append(Worker(redis_client, loaded, settings, f"w{len(workers) + 1}"))
        return workers[-1]

    yield make
    for worker in workers:
        worker.stop()


@pytest.fixture
def worker(make_worker: Callable[..., Worker]) -> Worker:
    return make_worker()


@pytest.fixture
def endless(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers run up to `max_tokens`."""
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", None)


def ask(client: redis.Redis, job_id: str = "job_1", **options: Any) -> None:
    accept(client, job_id, **{"prompt": SAMPLE.question, "images": (SAMPLE.data,)} | options)


def answered(client: redis.Redis, job_id: str = "job_1") -> Answer:
    answer = outcome(client, job_id).answer
    assert answer is not None, outcome(client, job_id).problem
    return answer


def problem_type(client: redis.Redis, job_id: str = "job_1") -> str:
    problem = outcome(client, job_id).problem
    assert problem is not None
    return problem.type.removeprefix("urn:erase:problem:")


def payloads(client: redis.Redis, job_id: str = "job_1") -> list[TokenPayload]:
    """The job's token events, after a look at the numbers and the end of its stream."""
    events = ledger.read_events(client, job_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert all(event.type is EventType.TOKEN for event in events[:-1])
    return [TokenPayload.model_validate_json(event.data) for event in events if event.type is EventType.TOKEN]


def assert_told_once(client: redis.Redis, job_id: str = "job_1") -> None:
    """The stream holds each token of the answer once, in order, and its text."""
    answer, told = answered(client, job_id), payloads(client, job_id)
    assert "".join(payload.text for payload in told) == answer.answer
    assert sum(len(payload.ids) for payload in told) == answer.usage.completion_tokens


def frozen(loaded: LoadedModel, **changes: Any) -> Plan:
    unpruned = Plan(
        model=loaded.name,
        model_revision=loaded.revision,
        policy="none",
        policy_settings=None,
        retention=None,
        seed=7,
    )
    return unpruned.model_copy(update=changes)


def first_tokens(worker: Worker, count: int) -> list[TokenPayload]:
    """The first tokens of the sample's answer, told in a job of their own."""
    ask(worker.client, "job_rehearsal")
    worker.run("job_rehearsal")
    return payloads(worker.client, "job_rehearsal")[:count]


def tell(client: redis.Redis, job: ledger.Job, tokens: list[TokenPayload]) -> None:
    """Emit tokens by hand."""
    for number, payload in enumerate(tokens, start=job.last_event + 1):
        step = ledger.emit(job.id, job.attempt, number, EventType.TOKEN, payload.model_dump_json())
        assert execute(client, step).ok


class TestAnswers:
    @pytest.mark.parametrize("pruning", [PruningOptions(), PruningOptions(method="none")], ids=["pruned", "unpruned"])
    def test_a_question_gets_its_right_answer(self, worker: Worker, pruning: PruningOptions) -> None:
        ask(worker.client, pruning=pruning)
        worker.run()
        assert state(worker.client) is JobState.SUCCEEDED
        answer = answered(worker.client)
        assert answer.answer == SAMPLE.answer
        assert (answer.id, answer.finish_reason, answer.model) == ("job_1", "stop", "starter-model")
        assert_told_once(worker.client)
        assert worker.became("succeeded") == 1

    def test_pruning_is_reported_and_mapped(self, worker: Worker) -> None:
        ask(worker.client, include=("pruning_map",))
        worker.run()
        answer = answered(worker.client)
        vision = answer.usage.vision_tokens
        assert 0 < vision.kept < vision.after_stage1 < vision.input
        assert answer.usage.token_reduction > 0.3
        assert answer.pruning_map is not None
        cells = [cell for row in answer.pruning_map[0].rows for cell in row]
        assert [cells.count(fate) for fate in (2, 1, 0)] == [
            vision.kept,
            vision.after_stage1 - vision.kept,
            vision.input - vision.after_stage1,
        ]

    def test_many_jobs_at_once_get_their_own_answers(self, worker: Worker) -> None:
        asked = {}
        for number in range(8):
            one = (SAMPLE, OTHER, sample(2, 0), sample(3, 0))[number % 4]
            ask(worker.client, f"job_{number}", prompt=one.question, images=(one.data,))
            asked[f"job_{number}"] = one.answer
        list(worker.threads.map(worker.run, asked))
        assert {job_id: answered(worker.client, job_id).answer for job_id in asked} == asked
        for job_id in asked:
            assert_told_once(worker.client, job_id)

    def test_a_question_without_an_image_is_answered(self, worker: Worker) -> None:
        ask(worker.client, images=())
        worker.run()
        answer = answered(worker.client)
        assert (answer.images, answer.usage.vision_tokens.input) == ((), 0)

    def test_two_images_count_together(self, worker: Worker) -> None:
        ask(worker.client, images=(SAMPLE.data, OTHER.data))
        worker.run()
        answer = answered(worker.client)
        assert sum(image.tokens for image in answer.images) == answer.usage.vision_tokens.input
        assert len(answer.images) == 2

    def test_sampling_with_a_seed_repeats_itself(self, worker: Worker, endless: None) -> None:
        for job_id in ("job_1", "job_2"):
            ask(worker.client, job_id, temperature=2.0, seed=11, max_tokens=12)
            worker.run(job_id)
        assert answered(worker.client, "job_1").answer == answered(worker.client, "job_2").answer

    def test_a_long_answer_ends_at_its_limit(self, worker: Worker, endless: None) -> None:
        ask(worker.client, max_tokens=9)
        worker.run()
        answer = answered(worker.client)
        assert (answer.finish_reason, answer.usage.completion_tokens) == ("length", 9)
        assert_told_once(worker.client)


class TestProblems:
    def test_an_unknown_policy_fails_the_job_with_the_names_that_exist(self, worker: Worker) -> None:
        ask(worker.client, pruning=PruningOptions(policy="nowhere"))
        worker.run()
        assert state(worker.client) is JobState.FAILED
        assert problem_type(worker.client) == "unknown-policy"
        problem = outcome(worker.client).problem
        assert problem is not None
        assert "starter-model" in problem.detail
        assert worker.became("failed") == 1

    def test_a_lost_image_fails_the_job_and_the_log_says_so(
        self, worker: Worker, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "worker.jobs")
        ask(worker.client)
        worker.client.delete(image_key(reference(SAMPLE.data).sha256))
        worker.run()
        assert (state(worker.client), problem_type(worker.client)) == (JobState.FAILED, "image-lost")
        assert [getattr(line, "problem", None) for line in caplog.records] == ["image-lost"]

    def test_a_truncated_image_fails_the_job_without_decoder_text(self, worker: Worker) -> None:
        ask(worker.client)
        worker.client.set(image_key(reference(SAMPLE.data).sha256), SAMPLE.data[: len(SAMPLE.data) // 2])
        worker.run()
        assert (state(worker.client), problem_type(worker.client)) == (JobState.FAILED, "invalid-image")
        problem = outcome(worker.client).problem
        assert problem is not None
        assert "damaged or incomplete" in problem.detail
        assert "truncated" not in problem.detail

    def test_a_conversation_is_answered_like_the_question_it_ends_with(self, worker: Worker) -> None:
        ask(worker.client, messages=(Message(role="user", content=(0, SAMPLE.question)),))
        worker.run()
        assert answered(worker.client).answer == SAMPLE.answer

    @pytest.mark.parametrize("template", ["{{ raise_exception('roles must alternate') }}", "hello"])
    def test_a_conversation_that_the_model_does_not_take_fails_the_job(
        self, worker: Worker, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, template: str
    ) -> None:
        monkeypatch.setattr(loaded.tokenizer, "chat_template", template)
        ask(worker.client, messages=(Message(role="user", content=("?", 0)),))
        worker.run()
        assert problem_type(worker.client) == "invalid-request"

    def test_too_long_an_answer_is_refused_with_advice(self, worker: Worker) -> None:
        ask(worker.client, max_tokens=4096)
        worker.run()
        assert problem_type(worker.client) == "context-length"

    def test_an_image_with_wild_proportions_fails_the_job_and_no_other(self, worker: Worker) -> None:
        thin = Image.new("RGB", (2000, 5), "red")
        ask(worker.client, images=(encoded(thin),))
        ask(worker.client, "job_2")
        worker.run()
        worker.run("job_2")
        assert problem_type(worker.client) == "invalid-image"
        assert answered(worker.client, "job_2").answer == SAMPLE.answer

    def test_what_nobody_foresaw_fails_the_job_and_says_nothing_of_the_inside(
        self, worker: Worker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def burst(*_: Any) -> None:
            raise RuntimeError("secret at 0x7f")

        monkeypatch.setattr(preparing, "prepare_chat", burst)
        ask(worker.client)
        worker.run()
        assert problem_type(worker.client) == "internal"
        assert "secret" not in (field(worker.client, "outcome") or "")

    def test_a_failure_in_the_engine_ends_only_its_job(self, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
        ask(worker.client)
        ask(worker.client, "job_2")

        def burst(stage: PrefillStage, seconds: float | None) -> bool:
            raise RuntimeError("broken step")

        with monkeypatch.context() as patch:
            patch.setattr(PrefillStage, "run", burst)
            worker.run()
        worker.run("job_2")
        assert problem_type(worker.client) == "internal"
        assert answered(worker.client, "job_2").answer == SAMPLE.answer

    def test_no_log_line_ever_tells_what_was_asked(
        self, worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def burst(*_: Any) -> None:
            raise RuntimeError("broken")

        caplog.set_level("DEBUG")
        secret = "is hunter2 it ?"
        ask(worker.client, "answered", prompt=secret)
        ask(worker.client, "damaged", prompt=secret)
        worker.run("answered")
        worker.client.set(image_key(reference(SAMPLE.data).sha256), SAMPLE.data[: len(SAMPLE.data) // 2])
        worker.run("damaged")
        for place, name in ((preparing, "prepare_chat"), (PrefillStage, "run")):
            with monkeypatch.context() as patch:
                patch.setattr(place, name, burst)
                ask(worker.client, name, prompt=secret)
                worker.run(name)
                assert problem_type(worker.client, name) == "internal"
        text = caplog.text
        assert "broken" in text
        assert text.count("INFO     worker.jobs") == 4
        assert "hunter2" not in text


class TestEndsFromOutside:
    def test_a_deadline_that_passed_before_the_lease_expires_the_job(self, worker: Worker) -> None:
        ask(worker.client)
        worker.client.hset(job_key("job_1"), "deadline_ms", 1)
        worker.run()
        assert (state(worker.client), problem_type(worker.client)) == (JobState.EXPIRED, "deadline")
        assert worker.metric("erase_wakeups_dropped_total", reason="finished") == 1
        assert worker.steps.seen == []

    def test_a_deadline_that_passes_in_the_engine_expires_the_job_and_frees_the_engine(
        self, worker: Worker, endless: None
    ) -> None:
        ask(worker.client, timeout_ms=300, max_tokens=2000)
        begun = time.monotonic()
        worker.steps.during = slowly
        worker.run()
        assert (state(worker.client), problem_type(worker.client)) == (JobState.EXPIRED, "deadline")
        assert time.monotonic() - begun < 3
        assert worker.became("expired") == 1
        assert_free(worker)

    def test_a_job_cancelled_while_it_runs_is_fenced_and_the_engine_is_free_again(
        self, worker: Worker, endless: None
    ) -> None:
        ask(worker.client, max_tokens=2000)
        worker.steps.during = slowly
        running = worker.threads.submit(worker.run)
        until(lambda: len(ledger.read_events(worker.client, "job_1")) >= 2, "two tokens")
        assert execute(worker.client, ledger.cancel("job_1")) is JobState.CANCELLED
        running.result(timeout=10)
        assert worker.became("fenced") == 1
        assert worker.steps.seen.count("decode") < 1500
        assert (state(worker.client), problem_type(worker.client)) == (JobState.CANCELLED, "cancelled")
        assert ledger.read_events(worker.client, "job_1")[-1].type is EventType.ERROR
        assert_free(worker)

    def test_a_job_cancelled_during_preprocessing_never_reaches_the_engine(
        self, worker: Worker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ask(worker.client)
        original: Any = preparing.prepare_images  # type: ignore[attr-defined]

        def slow(*arguments: Any) -> Any:
            execute(worker.client, ledger.cancel("job_1"))
            held = next(iter(worker.keeper._held))
            until(lambda: held.lost, "the keeper's look at the lease")
            return original(*arguments)

        monkeypatch.setattr(preparing, "prepare_images", slow)
        worker.run()
        assert worker.became("fenced") == 1
        assert worker.steps.seen == []

    def test_another_attempts_takeover_fences_the_first(self, worker: Worker, endless: None) -> None:
        ask(worker.client, max_tokens=2000)
        worker.steps.during = slowly
        running = worker.threads.submit(worker.run)
        until(lambda: ledger.read_events(worker.client, "job_1"), "a token")
        # The keeper renews in between, so lose the lease and take it in one step.
        until(lambda: steal(worker.client), "the theft")
        running.result(timeout=10)
        assert worker.became("fenced") == 1
        assert state(worker.client) is JobState.RUNNING
        assert field(worker.client, "attempt") == "2"

    @pytest.mark.parametrize("job", ["unknown", "finished", "running"])
    def test_a_stale_wake_up_is_dropped(self, worker: Worker, job: str) -> None:
        reason = {"unknown": "gone", "finished": "finished", "running": "taken"}[job]
        if job != "unknown":
            ask(worker.client)
        if job == "finished":
            execute(worker.client, ledger.cancel("job_1"))
        if job == "running":
            lease(worker.client)
        before = worker.client.hgetall(job_key("job_1"))
        worker.run()
        assert worker.client.hgetall(job_key("job_1")) == before
        assert worker.metric("erase_wakeups_dropped_total", reason=reason) == 1
        assert worker.steps.seen == []

    def test_a_worker_whose_engine_has_stalled_takes_no_job(
        self, worker: Worker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ask(worker.client)
        with monkeypatch.context() as stalling:
            stalling.setattr(Engine, "stalled_for", worker.settings.stall_s + 1)
            worker.run()
        assert state(worker.client) is JobState.ACCEPTED
        assert worker.metric("erase_wakeups_dropped_total", reason="stalled") == 1
        worker.run()
        assert answered(worker.client).answer == SAMPLE.answer

    def test_a_worker_that_gives_its_jobs_back_takes_no_new_one(self, worker: Worker) -> None:
        ask(worker.client)
        worker.runner.give_back(within_s=1)
        worker.run()
        assert state(worker.client) is JobState.ACCEPTED
        assert field(worker.client, "attempt") == "0"

    def test_a_job_that_cannot_be_read_is_given_up_after_its_attempts(self, worker: Worker) -> None:
        ask(worker.client)
        worker.client.hset(job_key("job_1"), "request", '{"prompt": 5, "images": []}')
        for _ in range(3):
            worker.run()
            lose_lease(worker.client)
        assert worker.metric("erase_wakeups_dropped_total", reason="unreadable") == 3
        assert execute(worker.client, ledger.sweep("job_1", 1_000, 3)) == ledger.Swept("ended", "dead")

    def test_a_job_whose_thread_does_not_come_back_is_overdue(
        self, worker: Worker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        back = threading.Event()
        monkeypatch.setattr(preparing, "decode_image", lambda *_: back.wait(20))
        ask(worker.client, timeout_ms=200)
        assert worker.runner.overdue == 0
        running = worker.threads.submit(worker.run)
        until(lambda: worker.runner.overdue > 0.3, "the time past the deadline")
        back.set()
        with suppress(Exception):
            running.result(timeout=10)
        assert worker.runner.overdue == 0

    def test_jobs_beside_one_whose_thread_hangs_are_given_back(
        self, worker: Worker, endless: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        back = threading.Event()
        worker.steps.during = slowly
        ask(worker.client, "job_2", max_tokens=2000)
        healthy = worker.threads.submit(worker.run, "job_2")
        until(lambda: ledger.read_events(worker.client, "job_2"), "a token")
        monkeypatch.setattr(preparing, "decode_image", lambda *_: back.wait(20))
        ask(worker.client, timeout_ms=200)
        hanging = worker.threads.submit(worker.run)
        until(lambda: worker.runner.overdue > 0.1, "the time past the deadline")
        worker.runner.give_back(within_s=10)
        assert worker.runner.draining
        assert state(worker.client, "job_2") is JobState.ACCEPTED
        with pytest.raises(GiveBackError):
            healthy.result(timeout=1)
        assert not hanging.done()
        back.set()
        with suppress(Exception):
            hanging.result(timeout=10)

    def test_a_deadline_holds_even_where_the_clock_of_redis_was_set_back(
        self, worker: Worker, endless: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jobs, "_CLOCKS_APART_S", 0.3)
        worker.steps.during = slowly
        ask(worker.client, max_tokens=2000, timeout_ms=300)
        running = worker.threads.submit(worker.run)
        until(lambda: ledger.read_events(worker.client, "job_1"), "a token")
        worker.client.hincrby(job_key("job_1"), "deadline_ms", 3_600_000)  # an hour to go, on a clock an hour behind
        running.result(timeout=10)
        assert worker.became("expired") == 1
        assert (state(worker.client), problem_type(worker.client)) == (JobState.FAILED, "deadline")

    def test_a_second_run_of_a_finished_job_writes_nothing(self, worker: Worker) -> None:
        ask(worker.client)
        worker.run()
        before = worker.client.hgetall(job_key("job_1")), worker.client.xrange(events_key("job_1"))
        steps = list(worker.steps.seen)
        worker.run()
        assert (worker.client.hgetall(job_key("job_1")), worker.client.xrange(events_key("job_1"))) == before
        assert worker.steps.seen == steps
        assert worker.became("succeeded") == 1


def slowly(_: str) -> None:
    """Holds the engine up for a moment at each step, as a large model would."""
    time.sleep(0.002)


def steal(client: redis.Redis) -> bool:
    """Take the job over as another worker, in one step."""
    with client.pipeline(transaction=True) as together:
        together.hset(job_key("job_1"), "lease_until_ms", 1)
        step = ledger.lease("job_1", "thief", 60_000, 3)
        together.eval(ledger.script_source("lease"), 0, *step.arguments)
        return bool(together.execute()[1][0] == b"granted")


def assert_free(worker: Worker) -> None:
    """The engine holds nothing and answers the next question."""
    worker.steps.during = None
    until(lambda: not worker.engine._busy(), "an idle engine")
    steps = len(worker.steps.seen)
    ask(worker.client, "job_next", max_tokens=3)
    worker.run("job_next")
    assert state(worker.client, "job_next") is JobState.SUCCEEDED
    assert len(worker.steps.seen) > steps
    assert worker.keeper.held == 0


@dataclass
class Line:
    """A long first try that runs, and behind it a later try and a first one that wait for their turns."""

    worker: Worker
    retried: Any
    behind: Any

    def go_on(self) -> None:
        """End the first one."""
        execute(self.worker.client, ledger.cancel("job_1"))


@pytest.fixture
def line(worker: Worker, endless: None, request: pytest.FixtureRequest) -> Line:
    ask(worker.client, max_tokens=3000)
    worker.steps.during = slowly
    worker.threads.submit(worker.run)
    until(lambda: ledger.read_events(worker.client, "job_1"), "a token")
    futures = []
    timeouts = {"job_retried": getattr(request, "param", 60_000), "job_behind": 60_000}
    for number, (job_id, timeout_ms) in enumerate(timeouts.items(), start=1):
        ask(worker.client, job_id, max_tokens=4, timeout_ms=timeout_ms)
        if number == 1:
            lease(worker.client, job_id)
            lose_lease(worker.client, job_id)
        futures.append(worker.threads.submit(worker.run, job_id))
        until(lambda: len(worker.runner._isolation._line) == number, "a place in line")  # noqa: B023
    return Line(worker, *futures)


class TestTurns:
    """A later try works alone, in preprocessing as in the engine, and counts only when it begins."""

    def test_a_later_try_waits_for_the_others_and_they_for_it(self, line: Line) -> None:
        client = line.worker.client
        assert [state(client, job) for job in ("job_retried", "job_behind")] == [JobState.RUNNING] * 2
        assert (field(client, "released", "job_retried"), field(client, "plan", "job_retried")) == ("1", None)
        line.go_on()
        line.retried.result(timeout=10)
        line.behind.result(timeout=10)
        assert field(client, "released", "job_retried") == "0"
        ended = [int(field(client, "finished_ms", job) or 0) for job in ("job_1", "job_retried", "job_behind")]
        assert ended == sorted(ended)
        for job, before in (("job_retried", ended[0]), ("job_behind", ended[1])):  # who waits is queued until its turn
            turn = int(field(client, "queued_ms", job) or 0) + answered(client, job).timings_ms.queue
            assert turn >= before - 20

    @pytest.mark.parametrize("line", [1_500], indirect=True)
    def test_one_that_waits_past_its_deadline_expires_and_nobody_waits_for_it(self, line: Line) -> None:
        line.retried.result(timeout=10)
        assert state(line.worker.client, "job_retried") is JobState.EXPIRED
        line.behind.result(timeout=10)
        assert state(line.worker.client, "job_behind") is JobState.SUCCEEDED

    def test_one_that_is_cancelled_while_it_waits_leaves_the_line(self, line: Line) -> None:
        execute(line.worker.client, ledger.cancel("job_retried"))
        line.retried.result(timeout=10)
        line.behind.result(timeout=10)
        assert state(line.worker.client, "job_behind") is JobState.SUCCEEDED

    def test_a_draining_worker_gives_back_what_waits(self, line: Line) -> None:
        line.worker.runner.drain()
        for waiting in (line.retried, line.behind):
            with pytest.raises(GiveBackError):
                waiting.result(timeout=10)
        assert state(line.worker.client, "job_retried") is JobState.ACCEPTED
        tries = execute(line.worker.client, ledger.lease("job_retried", "next", 60_000, 3)).tries
        assert tries == 2

    def test_a_later_try_that_lost_its_lease_before_its_turn_does_nothing(
        self, worker: Worker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stolen(client: redis.Redis, transition: ledger.Transition[Any]) -> Any:
            if transition.script == "begin":
                steal(client)
            return execute(client, transition)

        ask(worker.client)
        lease(worker.client)
        lose_lease(worker.client)
        monkeypatch.setattr(jobs, "execute", stolen)
        worker.run()
        assert worker.became("fenced") == 1
        assert worker.steps.seen == []


class TestSecondAttempts:
    @pytest.mark.parametrize("told", [1, 2])
    def test_a_second_attempt_goes_on_behind_the_tokens_of_the_first(self, worker: Worker, told: int) -> None:
        tokens = first_tokens(worker, told)
        ask(worker.client)
        job = lease(worker.client)
        tell(worker.client, job, tokens)
        lose_lease(worker.client)
        worker.run()
        assert answered(worker.client).answer == SAMPLE.answer
        assert payloads(worker.client)[:told] == tokens
        assert_told_once(worker.client)
        assert worker.metric("erase_redeliveries_total") == 1

    def test_a_first_attempt_that_told_everything_but_the_end_is_only_finished(self, worker: Worker) -> None:
        tokens = first_tokens(worker, 1000)
        ask(worker.client)
        tell(worker.client, lease(worker.client), tokens)
        lose_lease(worker.client)
        worker.run()
        assert answered(worker.client).answer == SAMPLE.answer
        assert payloads(worker.client) == tokens

    def test_a_forced_token_stays_even_where_the_model_would_say_something_else(self, worker: Worker) -> None:
        other = payloads_of(worker, OTHER)
        ask(worker.client)
        tell(worker.client, lease(worker.client), other[:1])
        lose_lease(worker.client)
        worker.run()
        assert answered(worker.client).answer.startswith(other[0].text)
        assert_told_once(worker.client)

    def test_sampled_answers_go_on_with_the_frozen_seed(
        self, make_worker: Callable[..., Worker], endless: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = make_worker(), make_worker()
        options: dict[str, Any] = {"temperature": 1.5, "max_tokens": 40}
        ask(first.client, **options)
        first.steps.during = slowly
        running = first.threads.submit(first.run)
        until(lambda: len(ledger.read_events(first.client, "job_1")) >= 3, "three tokens")
        first.engine.stop()
        running.result(timeout=10)
        assert first.became("abandoned") == 1
        assert state(first.client) is JobState.RUNNING
        told = payloads(first.client)
        assert len(told) < 40
        lose_lease(first.client)
        second.run()
        assert payloads(second.client)[: len(told)] == told
        assert_told_once(second.client)
        seed = Plan.model_validate_json(field(second.client, "plan") or "").seed
        ask(second.client, "job_2", seed=seed, **options)
        second.run("job_2")
        assert answered(second.client, "job_2").answer == answered(second.client).answer

    def test_the_frozen_plan_wins_over_changed_options(self, worker: Worker, loaded: LoadedModel) -> None:
        ask(worker.client, seed=3)
        job = lease(worker.client)
        execute(worker.client, ledger.freeze(job.id, job.attempt, frozen(loaded)))
        lose_lease(worker.client)
        worker.run()
        answer = answered(worker.client)
        assert (answer.pruning.policy, answer.usage.token_reduction) == ("none", 0)
        assert Plan.model_validate_json(field(worker.client, "plan") or "").seed == 7

    def test_an_answer_that_began_on_another_model_cannot_go_on(self, worker: Worker, loaded: LoadedModel) -> None:
        tokens = first_tokens(worker, 1)
        ask(worker.client)
        job = lease(worker.client)
        execute(worker.client, ledger.freeze(job.id, job.attempt, frozen(loaded, model_revision="older")))
        tell(worker.client, job, tokens)
        lose_lease(worker.client)
        worker.run()
        assert (state(worker.client), problem_type(worker.client)) == (JobState.FAILED, "model-changed")

    def test_an_answer_that_had_not_begun_is_planned_anew_on_the_new_model(
        self, worker: Worker, loaded: LoadedModel
    ) -> None:
        ask(worker.client)
        job = lease(worker.client)
        execute(worker.client, ledger.freeze(job.id, job.attempt, frozen(loaded, model_revision="older")))
        lose_lease(worker.client)
        worker.run()
        assert answered(worker.client).answer == SAMPLE.answer
        assert Plan.model_validate_json(field(worker.client, "plan") or "").model_revision == loaded.revision

    def test_a_worker_whose_engine_has_died_takes_no_job(self, make_worker: Callable[..., Worker]) -> None:
        first, second = make_worker(), make_worker()
        first.engine.stop()
        ask(first.client)
        first.run()
        assert state(first.client) is JobState.ACCEPTED
        assert first.metric("erase_wakeups_dropped_total", reason="stalled") == 1
        second.run()
        assert answered(second.client).answer == SAMPLE.answer
        assert_told_once(second.client)

    def test_a_job_that_a_dying_engine_refuses_is_given_back_and_loses_no_try(
        self, make_worker: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = make_worker(), make_worker()

        def dying(*arguments: Any, **options: Any) -> Any:
            first.engine.stop()
            return preparing.prepare_sequence(*arguments, **options)

        ask(first.client)
        with monkeypatch.context() as patched:
            patched.setattr(jobs, "prepare_sequence", dying)
            with pytest.raises(GiveBackError):
                first.run()
        assert first.became("released") == 1
        assert state(first.client) is JobState.ACCEPTED
        assert first.keeper.held == 0
        second.run()
        assert second.metric("erase_redeliveries_total") == 0, "its first try"
        assert answered(second.client).answer == SAMPLE.answer
        assert_told_once(second.client)

    @pytest.mark.parametrize("step", ["freeze", "finish"])
    def test_a_write_that_redis_refuses_abandons_the_job_to_the_sweeper(
        self, worker: Worker, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        def refusing(client: redis.Redis, transition: ledger.Transition[Any]) -> Any:
            if transition.script == step:
                raise RedisConnectionError("away")
            return execute(client, transition)

        ask(worker.client)
        monkeypatch.setattr(jobs, "execute", refusing)
        worker.run()
        assert worker.became("abandoned") == 1
        assert state(worker.client) is JobState.RUNNING
        monkeypatch.undo()
        lose_lease(worker.client)
        worker.run()
        assert answered(worker.client).answer == SAMPLE.answer
        assert_told_once(worker.client)


def payloads_of(worker: Worker, one: Any) -> list[TokenPayload]:
    ask(worker.client, "job_other", prompt=one.question, images=(one.data,))
    worker.run("job_other")
    return payloads(worker.client, "job_other")


class TestDraining:
    def test_a_draining_worker_gives_its_job_back_and_the_attempt_does_not_count(
        self, make_worker: Callable[..., Worker], endless: None
    ) -> None:
        first, second = make_worker(), make_worker()
        ask(first.client, max_tokens=200)
        first.steps.during = slowly
        running = first.threads.submit(first.run)
        until(lambda: ledger.read_events(first.client, "job_1"), "a token")
        first.runner.drain()
        with pytest.raises(GiveBackError):
            running.result(timeout=10)
        assert first.became("released") == 1
        assert state(first.client) is JobState.ACCEPTED
        told = payloads(first.client)
        second.run()
        assert second.metric("erase_redeliveries_total") == 0
        assert payloads(second.client)[: len(told)] == told
        assert_told_once(second.client)
        assert (field(second.client, "attempt"), field(second.client, "released")) == ("2", "1")

    def test_a_wake_up_during_the_drain_is_given_back_before_the_engine_sees_it(self, worker: Worker) -> None:
        ask(worker.client)
        worker.runner.drain()
        with pytest.raises(GiveBackError):
            worker.run()
        assert state(worker.client) is JobState.ACCEPTED
        assert worker.steps.seen == []

    def test_a_job_that_was_cancelled_before_the_drain_stays_cancelled(self, worker: Worker, endless: None) -> None:
        ask(worker.client, max_tokens=2000)
        worker.steps.during = slowly
        running = worker.threads.submit(worker.run)
        until(lambda: ledger.read_events(worker.client, "job_1"), "a token")
        execute(worker.client, ledger.cancel("job_1"))
        worker.runner.drain()
        with suppress(GiveBackError):
            running.result(timeout=10)
        assert state(worker.client) is JobState.CANCELLED

    def test_an_engine_that_stops_during_the_drain_gives_back_too(self, worker: Worker, endless: None) -> None:
        ask(worker.client, max_tokens=2000)
        worker.steps.during = slowly
        running = worker.threads.submit(worker.run)
        until(lambda: ledger.read_events(worker.client, "job_1"), "a token")
        worker.runner._draining.set()
        worker.engine.stop()
        with pytest.raises(GiveBackError):
            running.result(timeout=10)
        assert state(worker.client) is JobState.ACCEPTED


class TestMetrics:
    def test_they_move_by_exactly_what_the_answers_said(self, worker: Worker) -> None:
        asked = {"job_1": (SAMPLE.data,), "job_2": (SAMPLE.data, OTHER.data), "job_3": ()}
        for job_id, images in asked.items():
            ask(worker.client, job_id, images=images)
            worker.run(job_id)
        answers = [answered(worker.client, job_id) for job_id in asked]
        assert worker.became("succeeded") == 3
        assert worker.metric("erase_prompt_tokens_total") == sum(a.usage.prompt_tokens for a in answers)
        assert worker.metric("erase_generation_tokens_total") == sum(a.usage.completion_tokens for a in answers)
        for stage in ("input", "after_stage1", "kept", "layer_average"):
            counted = worker.metric("erase_vision_tokens_total", stage=stage)
            assert counted == pytest.approx(sum(getattr(a.usage.vision_tokens, stage) for a in answers))
        for kind in ("final", "layer_average"):
            assert worker.metric("erase_retention_ratio_count", kind=kind) == 2
            total = sum(getattr(a.pruning, kind) for a in answers[:2])
            assert worker.metric("erase_retention_ratio_sum", kind=kind) == pytest.approx(total)
        seen = [image for a in answers for image in a.images]
        assert worker.metric("erase_image_complexity_nats_count") == len(seen)
        complexity = worker.metric("erase_image_complexity_nats_sum")
        assert complexity == pytest.approx(sum(image.complexity for image in seen))
        for phase in ("queue", "preprocess", "encode", "prefill", "decode"):
            measured = worker.metric("erase_phase_duration_seconds_sum", phase=phase)
            assert measured == pytest.approx(sum(getattr(a.timings_ms, phase) for a in answers) / 1000)
            assert worker.metric("erase_phase_duration_seconds_count", phase=phase) == 3
        first = sum(a.timings_ms.first_token for a in answers) / 1000
        assert worker.metric("erase_time_to_first_token_seconds_sum") == pytest.approx(first)
        total = sum(a.timings_ms.total for a in answers) / 1000
        assert worker.metric("erase_e2e_request_latency_seconds_sum") == pytest.approx(total)

    def test_a_failed_job_adds_no_tokens(self, worker: Worker) -> None:
        ask(worker.client, pruning=PruningOptions(policy="nowhere"))
        worker.run()
        assert worker.metric("erase_prompt_tokens_total") == 0
        assert worker.metric("erase_e2e_request_latency_seconds_count") == 0

    def test_the_times_of_an_answer_fit_into_each_other(self, worker: Worker) -> None:
        ask(worker.client)
        worker.run()
        times = answered(worker.client).timings_ms
        parts = times.queue + times.preprocess + times.encode + times.prefill
        assert parts <= times.first_token + 0.1
        assert times.first_token + times.decode <= times.total + 0.1
