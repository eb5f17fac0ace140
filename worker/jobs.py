"""One job from wake-up to outcome: lease, images, stage 1, engine, events, finish."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from dataclasses import dataclass, field

import redis
from redis.exceptions import RedisError

from erase.engine import (
    CancelledError,
    ContextLengthError,
    DeadlineError,
    Engine,
    EngineError,
    EngineStoppedError,
    Handle,
)
from erase.models.loading import LoadedModel
from worker import ledger
from worker.answer import JobTimes, build_answer
from worker.contract import JobState, Outcome, Plan, TokenPayload, kind_of, problem
from worker.emitter import Emitter, EventWriter
from worker.errors import (
    AbandonedError,
    EmitStalledError,
    FencedError,
    GiveBackError,
    JobError,
    ModelChangedError,
    TooLongError,
)
from worker.failpoints import Failpoints
from worker.isolation import Isolation
from worker.leases import LeaseKeeper
from worker.ledger import EXPIRED, Job, execute
from worker.logs import about
from worker.metrics import WorkerMetrics
from worker.policies import PolicyBook
from worker.preparing import prepare_sequence
from worker.settings import Settings

log = logging.getLogger(__name__)
_CLOCKS_APART_S = 5.0


@dataclass(eq=False)
class _Attempt:
    """One lease being worked on."""

    job: Job
    tries: int
    started: float = field(default_factory=time.monotonic)
    handle: Handle | None = None
    problem: str = ""
    lost: threading.Event = field(default_factory=threading.Event)

    def lose(self) -> None:
        """The lease is gone: stop the engine's work on it."""
        self.lost.set()
        if self.handle is not None:
            self.handle.cancel()

    @property
    def before_lease(self) -> float:
        """Seconds that the job has waited until this lease, on Redis' clock."""
        return max(0, self.job.leased_ms - self.job.queued_ms) / 1000

    @property
    def retried(self) -> bool:
        """Whether an earlier attempt may have ended because of this job."""
        return self.tries > 1

    @property
    def deadline(self) -> float:
        """The job's deadline on this process' monotonic clock."""
        return self.started + (self.job.deadline_ms - self.job.leased_ms) / 1000


class JobRunner:
    """Runs jobs, each in the thread that calls `run`, on one shared engine."""

    def __init__(
        self,
        *,
        settings: Settings,
        client: redis.Redis,
        loaded: LoadedModel,
        engine: Engine,
        book: PolicyBook,
        keeper: LeaseKeeper,
        emitter: Emitter,
        metrics: WorkerMetrics,
        failpoints: Failpoints,
        name: str,
    ) -> None:
        self._settings = settings
        self._client = client
        self._loaded = loaded
        self._engine = engine
        self._book = book
        self._keeper = keeper
        self._emitter = emitter
        self._metrics = metrics
        self._failpoints = failpoints
        self._name = name
        self._isolation = Isolation()
        self._draining = threading.Event()
        self._ending = threading.Event()
        self._attempts: set[_Attempt] = set()
        self._lock = threading.Lock()

    def drain(self) -> None:
        """Stop: running jobs are given back, their tasks raise `GiveBackError`."""
        self._draining.set()
        with self._lock:
            attempts = list(self._attempts)
        for attempt in attempts:
            if attempt.handle is not None:
                attempt.handle.cancel()

    def give_back(self, within_s: float) -> None:
        """Take no more jobs, drain, and wait until all have ended but those past their deadline, whose threads hang."""
        self._ending.set()
        self.drain()
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            with self._lock:
                if all(attempt.deadline < time.monotonic() for attempt in self._attempts):
                    return
            time.sleep(0.05)

    @property
    def stalled(self) -> bool:
        """Whether the engine has died or makes no progress: then leases are not renewed, and no more jobs are taken."""
        return not self._engine.alive or self._engine.stalled_for > self._settings.stall_s

    @property
    def draining(self) -> bool:
        """Whether jobs are given back."""
        return self._draining.is_set()

    @property
    def overdue(self) -> float:
        """Seconds by which a job that is worked on is past its deadline, at most; 0 if none is."""
        with self._lock:
            deadlines = [attempt.deadline for attempt in self._attempts]
        return max(0.0, time.monotonic() - min(deadlines)) if deadlines else 0.0

    def run(self, job_id: str) -> None:
        """Answer a job, unless its wake-up is stale. Raises `GiveBackError` when the worker drains."""
        self._failpoints.reach("before_lease")
        settings = self._settings
        if self.stalled or self._ending.is_set():
            self._metrics.wakeups_dropped.labels("stalled").inc()  # the sweeper sends another one
            return
        holder = f"{self._name}/{secrets.token_hex(4)}"
        lease = execute(self._client, ledger.lease(job_id, holder, int(settings.lease_s * 1000), settings.max_attempts))
        if lease.job is None:
            if lease.unreadable:
                log.error("job %s cannot be read: %s", job_id, lease.unreadable)
                execute(self._client, ledger.begin(job_id, lease.attempt))  # a try; another version may do better
            self._metrics.wakeups_dropped.labels(lease.status).inc()
            return
        self._failpoints.reach("after_lease")
        attempt = _Attempt(lease.job, lease.tries)
        if attempt.retried:
            self._metrics.redeliveries.inc()
        with about(request_id=lease.job.request_id, job_id=job_id, trace=lease.job.trace):
            self._run(attempt)

    def _run(self, attempt: _Attempt) -> None:
        job = attempt.job
        with self._lock:
            self._attempts.add(attempt)
        try:
            with self._keeper.hold(job.id, job.attempt, attempt.lose):
                result = self._work(attempt)
        except (RedisError, EmitStalledError) as error:
            log.warning("Redis failed (%s); the sweeper will hand the job on", type(error).__name__)
            result = "abandoned"
        finally:
            with self._lock:
                self._attempts.discard(attempt)
        self._failpoints.reach("before_acknowledge")
        self._metrics.jobs.labels(result, job.priority.value).inc()
        fields = {"attempt": job.attempt, "result": result, "ms": round(1000 * (time.monotonic() - attempt.started), 1)}
        log.info("job %s", result, extra=fields | ({"problem": attempt.problem} if attempt.problem else {}))
        if result == "released":
            raise GiveBackError

    def _work(self, attempt: _Attempt) -> str:
        """Do the work; returns what became of it."""
        job = attempt.job
        try:
            outcome = self._outcome(attempt)
        except FencedError:
            return "fenced"
        except GiveBackError:
            self._failpoints.reach("before_release")
            execute(self._client, ledger.release(job.id, job.attempt))
            return "released"
        except DeadlineError:
            return self._expire(job)
        except AbandonedError:
            return "abandoned"
        if outcome.problem is not None:
            attempt.problem = kind_of(outcome.problem)
        self._failpoints.reach("before_finish")
        if not execute(self._client, ledger.finish(job.id, job.attempt, outcome)).ok:
            return "fenced"
        self._failpoints.reach("after_finish")
        if outcome.answer is not None:
            self._metrics.observe(outcome.answer)
        return "succeeded" if outcome.answer is not None else "failed"

    def _expire(self, job: Job) -> str:
        # Redis' clock decides; ours may be a few milliseconds ahead. By more only if Redis' was set back.
        given_up, pause = time.monotonic() + _CLOCKS_APART_S, 0.01
        while (state := execute(self._client, ledger.expire(job.id))) == JobState.RUNNING:
            if time.monotonic() > given_up:
                log.warning("Redis' clock was set back: the job ends by this worker's")
                return "expired" if execute(self._client, ledger.finish(job.id, job.attempt, EXPIRED)).ok else "fenced"
            time.sleep(pause)
            pause = min(2 * pause, 0.5)
        return "expired" if state == JobState.EXPIRED else "fenced"

    def _outcome(self, attempt: _Attempt) -> Outcome:
        try:
            return self._answer(attempt)
        except JobError as error:
            return error.outcome
        except CancelledError:
            if self._draining.is_set() and not attempt.lost.is_set():
                raise GiveBackError from None
            raise FencedError from None
        except EngineStoppedError:
            if self._draining.is_set():
                raise GiveBackError from None
            raise AbandonedError from None
        except (FencedError, AbandonedError, GiveBackError, DeadlineError, RedisError, EmitStalledError):
            raise
        except EngineError as error:
            return Outcome(problem=problem("internal", str(error)))
        except Exception:
            log.exception("the job failed unexpectedly")
            return Outcome(problem=problem("internal", "The worker failed on this request; it is logged there."))

    def _answer(self, attempt: _Attempt) -> Outcome:
        with self._isolation.turn(lambda: self._require_wanted(attempt), alone=attempt.retried):
            if attempt.retried:
                if not execute(self._client, ledger.begin(attempt.job.id, attempt.job.attempt)).ok:
                    raise FencedError
                self._failpoints.reach("after_begin")
            return self._answer_now(attempt, begun=time.monotonic())

    def _require_wanted(self, attempt: _Attempt) -> None:
        if attempt.lost.is_set():
            raise FencedError
        if self._draining.is_set():
            raise GiveBackError
        if time.monotonic() >= attempt.deadline:
            raise DeadlineError("the deadline passed before the job's turn came")

    def _answer_now(self, attempt: _Attempt, begun: float) -> Outcome:
        job = attempt.job
        waited = attempt.before_lease + begun - attempt.started
        plan = self._frozen_plan(job, waited)
        sequence = prepare_sequence(
            self._client, self._loaded, job, plan, deadline=attempt.deadline, tries=attempt.tries
        )
        prepared = time.monotonic()
        self._failpoints.reach("after_preprocess")
        self._require_wanted(attempt)
        try:
            handle = self._engine.submit(sequence)
        except ContextLengthError as error:
            raise TooLongError(str(error)) from None
        except EngineStoppedError:
            raise GiveBackError from None  # it never ran, so the try does not count
        attempt.handle = handle
        self._failpoints.reach("after_submit")
        if attempt.lost.is_set() or self._draining.is_set():
            handle.cancel()
        writer = EventWriter(job.id, job.attempt, job.last_event, on_fenced=attempt.lose)
        for event in handle.events():
            self._emitter.emit(writer, TokenPayload(text=event.text, ids=event.ids))
            if "after_emit" in self._failpoints.armed:
                self._emitter.flush(writer, self._settings.stall_s)
                self._failpoints.reach("after_emit")
        result = handle.result()
        self._failpoints.reach("before_flush")
        self._emitter.flush(writer, self._settings.stall_s)
        if writer.fenced:
            raise FencedError
        times = JobTimes(
            queue=waited,
            preprocess=prepared - begun,
            total=attempt.before_lease + time.monotonic() - attempt.started,
        )
        answer = build_answer(
            job.id,
            plan,
            sequence,
            result,
            times,
            self._loaded.adapter.depth,
            with_map="pruning_map" in job.request.include,
        )
        return Outcome(answer=answer)

    def _frozen_plan(self, job: Job, waited: float) -> Plan:
        """The plan that the first attempt froze, or a new one, frozen now."""
        if job.plan is not None and job.plan.model_revision == self._loaded.revision:
            return job.plan
        if job.plan is not None and job.last_event > 0:
            raise ModelChangedError("The answer had begun on another model revision and cannot be continued.")
        longest = max(self._engine.waits_for(job.priority.value), waited)
        plan = self._book.plan(job.request, self._loaded, longest)
        if plan.usual_retention is not None:
            self._metrics.retention_lowered.inc()
        self._failpoints.reach("before_freeze")
        frozen = execute(self._client, ledger.freeze(job.id, job.attempt, plan, replace=job.plan is not None))
        self._failpoints.reach("after_freeze")
        if frozen is None:
            raise FencedError
        return frozen
