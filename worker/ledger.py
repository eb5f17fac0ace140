"""The ledger: every change of a job's state, each one Lua script on Redis' own clock.

A transition is a plain value (`Transition`) built by one of the functions below; `execute` runs it on a blocking client
(worker) and `execute_async` on an asyncio client (service). The scripts in `worker/lua/` are the truth about jobs; a
Celery message is only a wake-up. They address keys that they compute, so Redis Cluster is not supported.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar, Generic, TypeVar, cast

import redis
import redis.asyncio
from redis.exceptions import NoScriptError

from worker.contract import (
    COUNTERS_KEY,
    EventType,
    JobRequest,
    JobState,
    Outcome,
    Plan,
    Priority,
    Problem,
    events_key,
    gone_key,
    job_key,
    needed_contract,
    owner_jobs_key,
    problem,
    queue_name,
)
from worker.wakeups import wakeup_message

T = TypeVar("T")

EXPIRED = Outcome(problem=problem("deadline", "The job was not finished before its deadline."))
DEAD = Outcome(problem=problem("dead-letter", "Every worker that tried the job stopped before finishing it."))
CANCELLED = Outcome(problem=problem("cancelled", "The job was cancelled before it was finished."))


@cache
def script_source(name: str) -> str:
    """Lua source of a transition, the shared prelude included."""
    folder = files("worker") / "lua"
    return (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()


@dataclass(frozen=True)
class Transition(Generic[T]):
    """One atomic step: the script's name, its arguments, and how to read its reply."""

    script: str
    arguments: tuple[str | float, ...]
    parse: Callable[[list[Any]], T]

    @property
    def sha1(self) -> str:
        """Name under which Redis caches the script."""
        return _sha1(self.script)


@cache
def _sha1(script: str) -> str:
    return hashlib.sha1(script_source(script).encode()).hexdigest()  # noqa: S324


def execute(client: redis.Redis, transition: Transition[T]) -> T:
    """Run a transition. Raises `redis.exceptions.RedisError` when Redis cannot answer."""
    try:
        reply = client.evalsha(transition.sha1, 0, *transition.arguments)
    except NoScriptError:
        reply = client.eval(script_source(transition.script), 0, *transition.arguments)
    return transition.parse(cast("list[Any]", reply))


async def execute_async(client: redis.asyncio.Redis, transition: Transition[T]) -> T:
    """`execute` on an asyncio client."""
    try:
        reply = await client.evalsha(transition.sha1, 0, *transition.arguments)
    except NoScriptError:
        reply = await client.eval(script_source(transition.script), 0, *transition.arguments)
    return transition.parse(cast("list[Any]", reply))


def execute_many(client: redis.Redis, transitions: Sequence[Transition[T]]) -> list[T]:
    """Run transitions in order in one round trip."""

    pipeline = client.pipeline(transaction=False)
    for step in transitions:
        pipeline.evalsha(step.sha1, 0, *step.arguments)
    replies = pipeline.execute(raise_on_error=False)
    if any(isinstance(reply, NoScriptError) for reply in replies):
        replies = [
            client.eval(script_source(step.script), 0, *step.arguments) if isinstance(reply, NoScriptError) else reply
            for step, reply in zip(transitions, replies, strict=True)
        ]
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return [step.parse(reply) for step, reply in zip(transitions, replies, strict=True)]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@dataclass(frozen=True)
class Job:
    """A job as the ledger holds it. Times are Unix milliseconds on Redis' clock.

    `queued_ms` is when it began to wait: when it was accepted, or as a dead letter asked again.
    """

    id: str
    state: JobState
    owner: str
    version: int
    priority: Priority
    request: JobRequest
    accepted_ms: int
    queued_ms: int
    deadline_ms: int
    leased_ms: int
    finished_ms: int
    attempt: int
    last_event: int
    detached: bool
    plan: Plan | None
    outcome: Outcome | None
    request_id: str
    trace: str

    @classmethod
    def from_fields(cls, fields: dict[str, str]) -> Job:
        """Read a job hash."""
        return cls(
            id=fields["id"],
            state=JobState(fields["state"]),
            owner=fields["owner"],
            version=int(fields["version"]),
            priority=Priority(fields["priority"]),
            request=JobRequest.model_validate_json(fields["request"]),
            accepted_ms=int(fields["accepted_ms"]),
            queued_ms=int(fields.get("queued_ms", fields["accepted_ms"])),
            deadline_ms=int(fields["deadline_ms"]),
            leased_ms=int(fields.get("leased_ms", 0)),
            finished_ms=int(fields.get("finished_ms", 0)),
            attempt=int(fields["attempt"]),
            last_event=int(fields["seq"]),
            detached=fields["detached"] == "1",
            plan=Plan.model_validate_json(fields["plan"]) if "plan" in fields else None,
            outcome=Outcome.model_validate_json(fields["outcome"]) if "outcome" in fields else None,
            request_id=fields.get("request_id", ""),
            trace=fields.get("trace", ""),
        )


@dataclass(frozen=True)
class NewJob:
    """What `accept` needs to know. Durations in milliseconds; `service` is the process that waits, or empty.

    `wake` puts a wake-up into the queue at once; without one the sweeper sends it. A bound of 0 is none. `listed_ms` is
    how long a job may live at most, so how long its owner's list knows it.
    """

    id: str
    owner: str
    priority: Priority
    request: JobRequest
    timeout_ms: int
    result_ttl_ms: int
    max_open: int
    max_open_pixels: int = 0
    max_owner_open: int = 0
    dead_ttl_ms: int = 86_400_000
    listed_ms: int = 7_200_000
    detached: bool = False
    idempotency_key: str = ""
    body_hash: str = ""
    service: str = ""
    request_id: str = ""
    trace: str = ""
    wake: bool = False
    wake_after_ms: int = 5_000
    image_ttl_slack_ms: int = 600_000


@dataclass(frozen=True)
class Accepted:
    """Reply of `accept`: `status` is accepted, attached, mismatch, full or missing.

    `subject` is the job's id, the image that is missing, or what is full: jobs, pixels or owner.
    """

    status: str
    subject: str


def new_job_id() -> str:
    """`job_` and 32 hex digits that sort by time: 48 bits of milliseconds, 80 random bits."""
    return job_id_at(time.time()) + secrets.token_hex(10)


def job_id_at(seconds: float) -> str:
    """How the ids of this moment (Unix time) begin."""
    return f"job_{int(seconds * 1000):012x}"


def pixels_of(request: JobRequest) -> int:
    """Announced pixels of all images of a request, as `open_pixels` counts them."""
    return sum(image.width * image.height for image in request.images)


def accept(job: NewJob) -> Transition[Accepted]:
    """Create a job, or attach to the one that its idempotency key already stands for."""
    version = needed_contract(job.request)
    queue = queue_name(job.priority, version)
    arguments = {
        "id": job.id,
        "owner": job.owner,
        "version": version,
        "priority": job.priority.value,
        "queue": queue,
        "wakeup": wakeup_message(job.id, queue) if job.wake else "",
        "request": job.request.model_dump_json(exclude_defaults=True),  # readable for those who know fewer options
        "images": [image.sha256 for image in job.request.images],
        "timeout_ms": job.timeout_ms,
        "result_ttl_ms": job.result_ttl_ms,
        "image_ttl_ms": job.timeout_ms + job.image_ttl_slack_ms,
        "dead_ttl_ms": job.dead_ttl_ms,
        "listed_ms": job.listed_ms,
        "forget_before": job_id_at(time.time() - job.listed_ms / 1000),
        "max_open": job.max_open,
        "max_open_pixels": job.max_open_pixels,
        "max_owner_open": job.max_owner_open,
        "pixels": pixels_of(job.request),
        "detached": "1" if job.detached else "0",
        "idem": job.idempotency_key,
        "body": job.body_hash,
        "service": job.service,
        "request_id": job.request_id,
        "trace": job.trace,
        "wake_after_ms": job.wake_after_ms,
    }

    def parse(reply: list[Any]) -> Accepted:
        return Accepted(_text(reply[0]), _text(reply[1]) if len(reply) > 1 else "")

    return Transition("accept", (json.dumps(arguments),), parse)


@dataclass(frozen=True)
class Lease:
    """Reply of `lease`: the job when granted, else why not (gone, finished, taken, unreadable).

    An unreadable job was granted as attempt number `attempt`, but this version cannot read it; `unreadable` says why.
    """

    status: str
    job: Job | None = None
    tries: int = 0
    """How many attempts count so far, this one included; from the second on the job runs alone, and `begin`s."""
    attempt: int = 0
    unreadable: str = ""


def lease(job_id: str, holder: str, lease_ms: int, max_attempts: int) -> Transition[Lease]:
    """Take a job for `lease_ms`; the job's `attempt` is then the fencing number of all writes.

    `holder` is a name that no other call uses: then a call whose reply was lost can be repeated.
    """

    def parse(reply: list[Any]) -> Lease:
        status = _text(reply[0])
        if status != "granted":
            return Lease(status)
        flat = [_text(value) for value in reply[2]]
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        try:
            job = Job.from_fields(fields)
        except (ValueError, KeyError) as error:
            return Lease("unreadable", None, int(reply[1]), int(fields["attempt"]), type(error).__name__)
        return Lease(status, job, int(reply[1]), job.attempt)

    return Transition("lease", (job_id, holder, lease_ms, max_attempts, _json(EXPIRED), _json(DEAD)), parse)


GAP = "gap"
"""`Written.state` of an event that came before its predecessor."""


@dataclass(frozen=True)
class Written:
    """Reply of a fenced write: whether it took effect; if not, the state that holds now, or `GAP`."""

    ok: bool
    state: str = ""


def _written(reply: list[Any]) -> Written:
    status = _text(reply[0])
    return Written(status == "ok", _text(reply[1]) if status != "ok" and len(reply) > 1 else "")


def begin(job_id: str, attempt: int) -> Transition[Written]:
    """Count a later try from now on: until then it has only waited for its turn in its worker."""
    return Transition("begin", (job_id, attempt), _written)


def freeze(job_id: str, attempt: int, plan: Plan, *, replace: bool = False) -> Transition[Plan | None]:
    """Store the plan unless one is frozen; returns the plan that holds, or None for a stale attempt."""

    def parse(reply: list[Any]) -> Plan | None:
        return Plan.model_validate_json(_text(reply[1])) if _text(reply[0]) == "ok" else None

    return Transition("freeze", (job_id, attempt, _json(plan), int(replace)), parse)


def renew(job_id: str, attempt: int, lease_ms: int) -> Transition[Written]:
    """Lengthen the lease of the attempt that holds the job."""
    return Transition("renew", (job_id, attempt, lease_ms), _written)


def emit(job_id: str, attempt: int, number: int, event: EventType, data: str) -> Transition[Written]:
    """Append event `number` of the job; refused for a stale attempt or a gap before it, harmless when repeated."""
    return Transition("emit", (job_id, attempt, number, event.value, data), _written)


def finish(job_id: str, attempt: int, outcome: Outcome) -> Transition[Written]:
    """End the job with its outcome; the first to finish wins, and may repeat itself."""
    succeeded = outcome.answer is not None
    state = JobState.SUCCEEDED if succeeded else JobState.FAILED
    event = EventType.RESULT if succeeded else EventType.ERROR
    return Transition("finish", (job_id, attempt, state.value, event.value, _json(outcome)), _written)


def release(job_id: str, attempt: int) -> Transition[Written]:
    """Give a job back unfinished without counting the attempt (a worker that drains)."""
    return Transition("release", (job_id, attempt), _written)


def _state(reply: list[Any]) -> JobState | None:
    return JobState(_text(reply[1])) if _text(reply[0]) == "ok" else None


def cancel(job_id: str) -> Transition[JobState | None]:
    """End an open job as cancelled; returns the state that holds, None for an unknown job."""
    return Transition("cancel", (job_id, _json(CANCELLED)), _state)


def requeue(job_id: str, timeout_ms: int, image_ttl_ms: int, listed_ms: int) -> Transition[tuple[str, JobState | None]]:
    """Open a dead-lettered job again, with a new deadline; its id, and what it already answered, stay.

    Returns (status, state that holds): `ok`, `not-dead`, `gone` for an unknown job, `missing` if an image has expired.
    """

    def parse(reply: list[Any]) -> tuple[str, JobState | None]:
        return _text(reply[0]), JobState(_text(reply[1])) if len(reply) > 1 else None

    return Transition("requeue", (job_id, timeout_ms, image_ttl_ms, listed_ms), parse)


def recount(owner: str) -> Transition[tuple[int, int]]:
    """Count an owner's open jobs and the pixels of all open jobs anew; returns both."""
    return Transition("recount", (owner,), lambda reply: (int(reply[1]), int(reply[2])))


def drop(job_id: str) -> Transition[JobState | None]:
    """Forget a job that has ended, within a minute; returns the state of one that has not, else None."""
    return Transition("drop", (job_id,), _state)


def expire(job_id: str) -> Transition[JobState | None]:
    """End an open job whose deadline has passed; returns the state that holds, None for an unknown job."""
    return Transition("expire", (job_id, _json(EXPIRED)), _state)


@dataclass(frozen=True)
class Swept:
    """Reply of `sweep`: `action` is none, ended or wake; `subject` the final state or the queue to wake.

    `first`: the job was worked on since it began to wait, so its wake-up goes to the head of the queue.
    """

    action: str
    subject: str = ""
    first: bool = False


def sweep(job_id: str, wake_after_ms: int, max_attempts: int, due_by_ms: float = math.inf) -> Transition[Swept]:
    """Check one open job: expire it, bury it, or ask for another wake-up.

    Nothing happens to a job that is due after `due_by_ms` (Unix milliseconds): another sweeper checked it meanwhile.
    """

    def parse(reply: list[Any]) -> Swept:
        action, subject, place = [*map(_text, reply), "", ""][:3]
        return Swept(action, subject, place == "first")

    return Transition("sweep", (job_id, wake_after_ms, max_attempts, _json(EXPIRED), _json(DEAD), due_by_ms), parse)


def watch(job_id: str, service: str) -> Transition[JobState | None]:
    """Send notices of the job's events to a service process, too; None for an unknown job."""
    return Transition("watch", (job_id, service), _state)


def unwatch(job_id: str, service: str, *, client_left: bool) -> Transition[JobState | None]:
    """Stop watching; a job that nobody else wants any more is cancelled if its client left."""
    return Transition("unwatch", (job_id, service, int(client_left), _json(CANCELLED)), _state)


@dataclass(frozen=True)
class Event:
    """One entry of a job's stream."""

    seq: int
    type: EventType
    data: str

    @classmethod
    def from_entry(cls, entry: tuple[Any, dict[Any, Any]]) -> Event:
        """Read a stream entry `(id, fields)`."""
        fields = {_text(name): _text(value) for name, value in entry[1].items()}
        return cls(int(_text(entry[0]).partition("-")[0]), EventType(fields["type"]), fields["data"])


def read_events(client: redis.Redis, job_id: str, after: int = 0) -> list[Event]:
    """All events after number `after`, in order."""
    entries = cast("list[Any]", client.xrange(events_key(job_id), min=f"({after}-0"))
    return [Event.from_entry(entry) for entry in entries]


async def read_events_async(client: redis.asyncio.Redis, job_id: str, after: int = 0) -> list[Event]:
    """`read_events` on an asyncio client."""
    entries = cast("list[Any]", await client.xrange(events_key(job_id), min=f"({after}-0"))
    return [Event.from_entry(entry) for entry in entries]


async def read_last_event_async(client: redis.asyncio.Redis, job_id: str) -> Event | None:
    """The newest event, None if there is none."""
    entries = cast("list[Any]", await client.xrevrange(events_key(job_id), count=1))
    return Event.from_entry(entries[0]) if entries else None


async def read_job_async(client: redis.asyncio.Redis, job_id: str) -> Job | None:
    """The job, or None when it is unknown or has expired."""
    fields = await client.hgetall(job_key(job_id))
    if not fields:
        return None
    return Job.from_fields({_text(name): _text(value) for name, value in fields.items()})


@dataclass(frozen=True)
class JobSummary:
    """What a list tells of a job. Times are Unix milliseconds on Redis' clock; `problem` is its type's URN."""

    id: str
    owner: str
    state: JobState
    priority: Priority
    attempt: int
    accepted_ms: int
    deadline_ms: int
    finished_ms: int
    problem: str | None

    FIELDS: ClassVar = ("id", "owner", "state", "priority", "attempt", "accepted_ms", "deadline_ms", "finished_ms")

    @classmethod
    def from_values(cls, values: Sequence[Any]) -> JobSummary | None:
        """Read `FIELDS` and the outcome of a job hash; None when the job has expired."""
        if values[0] is None:
            return None
        texts = ["" if value is None else _text(value) for value in values]
        fields = dict(zip(cls.FIELDS, texts, strict=False))
        outcome = Outcome.model_validate_json(texts[-1]) if texts[-1] else Outcome()
        return cls(
            id=fields["id"],
            owner=fields["owner"],
            state=JobState(fields["state"]),
            priority=Priority(fields["priority"]),
            attempt=int(fields["attempt"]),
            accepted_ms=int(fields["accepted_ms"]),
            deadline_ms=int(fields["deadline_ms"]),
            finished_ms=int(fields["finished_ms"] or 0),
            problem=outcome.problem.type if outcome.problem else None,
        )


@dataclass(frozen=True)
class JobPage:
    """Jobs, newest first, and where the next page begins; None at the end."""

    jobs: tuple[JobSummary, ...]
    cursor: str | None


async def list_jobs_async(client: redis.asyncio.Redis, owner: str, *, before: str | None, limit: int) -> JobPage:
    """An owner's jobs that are older than the job `before`. Two round trips."""
    newest = "+" if before is None else f"({before}"
    found = await client.zrevrangebylex(owner_jobs_key(owner), newest, "-", start=0, num=limit)
    ids = [_text(job_id) for job_id in found]
    pipeline = client.pipeline(transaction=False)
    _ask_summaries(pipeline, ids)
    jobs = _summaries(await pipeline.execute() if ids else [])
    return JobPage(jobs, ids[-1] if len(ids) == limit else None)


def summarize(client: redis.Redis, job_ids: Sequence[str]) -> tuple[JobSummary, ...]:
    """Those of these jobs that are still known, in order, in one round trip."""
    pipeline = client.pipeline(transaction=False)
    _ask_summaries(pipeline, job_ids)
    return _summaries(pipeline.execute() if job_ids else [])


def _ask_summaries(pipeline: Any, job_ids: Sequence[str]) -> None:
    for job_id in job_ids:
        pipeline.hmget(job_key(job_id), [*JobSummary.FIELDS, "outcome"])


def _summaries(replies: Sequence[Any]) -> tuple[JobSummary, ...]:
    return tuple(job for values in replies if (job := JobSummary.from_values(values)) is not None)


async def last_events_async(client: redis.asyncio.Redis, job_ids: Sequence[str]) -> list[int | None]:
    """Number of each job's newest event in one round trip; None for a job that is unknown or has expired."""
    pipeline = client.pipeline(transaction=False)
    for job_id in job_ids:
        pipeline.hget(job_key(job_id), "seq")
    return [None if seq is None else int(seq) for seq in await pipeline.execute()]


async def read_gone_owner_async(client: redis.asyncio.Redis, job_id: str) -> str | None:
    """Owner of a job whose result has expired."""
    owner = await client.get(gone_key(job_id))
    return None if owner is None else _text(owner)


async def read_counters_async(client: redis.asyncio.Redis) -> dict[str, int]:
    """Counts that the scripts keep over all processes: accepted, finished:STATE, wakeups_resent, and so on."""
    counters = await client.hgetall(COUNTERS_KEY)
    return {_text(name): int(value) for name, value in counters.items()}


def _json(value: Outcome | Plan | Problem) -> str:
    return value.model_dump_json()
