"""`/v1/jobs`: an owner's jobs; state and answer of one, its events, and its cancellation.

A key with the scope `admin` sees and ends everybody's jobs.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from redis.exceptions import RedisError
from starlette.requests import ClientDisconnect

from service import openapi
from service.access import JobsCaller, Watcher
from service.auth import Caller
from service.delivery import LONGEST_WAIT_S, read_last_event
from service.events import EventStream, event_stream
from service.problems import ForbiddenError, GoneError, InvalidRequestError, NotFoundError
from service.runtime import Process, Runtime
from service.waiting import Watch, remaining_s, resume_after, unless_client_leaves
from worker.contract import Answer, Frozen, JobState, Priority, Problem
from worker.ledger import (
    Job,
    JobSummary,
    cancel,
    execute_async,
    expire,
    list_jobs_async,
    read_gone_owner_async,
    read_job_async,
    watch,
)
from worker.logs import now_about
from worker.settings import Scope

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=openapi.JOB_RESPONSES)

MOST_LISTED = 200
_JOB_ID = re.compile(r"job_[0-9a-f]{32}")


class JobFacts(Frozen):
    """What is always told of a job. Times are RFC 3339 in UTC."""

    id: str
    state: JobState
    priority: Priority
    attempt: int
    accepted_at: datetime
    deadline_at: datetime
    finished_at: datetime | None = None


class JobReport(JobFacts):
    """A job as its owner sees it."""

    started_at: datetime | None = None
    answer: Answer | None = None
    problem: Problem | None = None


class JobStatus(Frozen):
    """A job's id and state."""

    id: str
    state: JobState


class JobEntry(JobFacts):
    """A job in a list; `problem` is the type of what went wrong."""

    problem: str | None = None


class JobList(Frozen):
    """Jobs, newest first; `next_cursor` is there if there may be more."""

    jobs: tuple[JobEntry, ...]
    next_cursor: str | None = None


@router.get("", summary="Jobs of the key's owner, newest first")
async def list_jobs(
    runtime: Process,
    caller: JobsCaller,
    state: Annotated[JobState | None, Query(description="only jobs in this state")] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_LISTED)] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before")] = None,
    owner: Annotated[str | None, Query(max_length=100, description="somebody else's; needs the scope admin")] = None,
) -> JobList:
    """As long as their results are kept. A page with a `state` may be short, or empty, and still have a next one."""
    if owner is not None and not _may_see(caller, owner):
        raise ForbiddenError("owner: another owner's jobs need a key with the scope admin.")
    if cursor is not None and not _JOB_ID.fullmatch(cursor):
        raise InvalidRequestError("cursor: expected the next_cursor of a page")
    page = await list_jobs_async(runtime.redis, owner or caller.owner, before=cursor, limit=limit)
    entries = tuple(_entry(job) for job in page.jobs if state in (None, job.state))
    return JobList(jobs=entries, next_cursor=page.cursor)


@router.get("/{job_id}", summary="State and answer of a job", response_model=JobReport)
async def get_job(
    request: Request,
    job_id: str,
    runtime: Process,
    caller: JobsCaller,
    wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S, description="seconds to wait for the end")] = 0,
) -> Response:
    """Always 200 for a known job; `answer` or `problem` is there once it has ended."""
    job = await find_job(runtime, caller, job_id)
    if wait and not job.state.final:
        with runtime.admission.request(caller):
            await _wait_for_end(request, runtime, job, wait)
        job = await find_job(runtime, caller, job_id)
    body = report(job).model_dump_json(exclude_none=True)
    return Response(body, 200, {"Cache-Control": "no-store"}, "application/json")


@router.get("/{job_id}/events", summary="Events of a job", responses=openapi.EVENTS_RESPONSES)
async def get_events(request: Request, job_id: str, runtime: Process, caller: Watcher) -> Response:
    """Server-sent events from the first on, or after the one named in `Last-Event-ID`."""
    after = read_last_event(request.headers)
    job = await find_job(runtime, caller, job_id)
    remaining = await remaining_s(runtime, job)
    if await execute_async(runtime.redis, watch(job_id, runtime.service_id)) is None:
        raise GoneError("The job's result has expired.")
    waiting = Watch(runtime, job_id, after=resume_after(job, after), remaining_s=remaining)
    return EventStream(event_stream(waiting, job_id), job_id)


@router.delete("/{job_id}", summary="Cancel a job", response_model=JobStatus)
async def cancel_job(job_id: str, runtime: Process, caller: JobsCaller) -> JobStatus:
    """End the job unless it has ended; returns the state that holds. Safe to repeat."""
    await find_job(runtime, caller, job_id)
    state = await execute_async(runtime.redis, cancel(job_id))
    if state is None:
        raise GoneError("The job's result has expired.")
    return JobStatus(id=job_id, state=state)


async def find_job(runtime: Runtime, caller: Caller, job_id: str) -> Job:
    """A job that the caller may see. Raises `NotFoundError`, also for another owner's, or `GoneError`."""
    if _JOB_ID.fullmatch(job_id):
        job = await read_job_async(runtime.redis, job_id)
        if job is not None and _may_see(caller, job.owner):
            now_about(job_id=job_id)
            return await _ended_if_overdue(runtime, job)
        if job is None and _may_see(caller, await read_gone_owner_async(runtime.redis, job_id)):
            raise GoneError("The job's result has expired.")
    raise NotFoundError("There is no such job.")


def _may_see(caller: Caller, owner: str | None) -> bool:
    return owner is not None and (owner == caller.owner or Scope.ADMIN in caller.scopes)


async def _ended_if_overdue(runtime: Runtime, job: Job) -> Job:
    """The job, expired if it is late: where no worker is alive, nobody else does that."""
    if job.state.final or job.deadline_ms >= time.time() * 1000:
        return job
    with suppress(RedisError):  # a Redis that is full can still tell
        await execute_async(runtime.redis, expire(job.id))
    return await read_job_async(runtime.redis, job.id) or job


def _entry(job: JobSummary) -> JobEntry:
    return JobEntry(**_facts(job), problem=job.problem)


def report(job: Job) -> JobReport:
    """A job of the ledger as its owner sees it."""
    outcome = job.outcome
    return JobReport(
        **_facts(job),
        started_at=_time(job.leased_ms) if job.leased_ms else None,
        answer=outcome.answer if outcome else None,
        problem=outcome.problem if outcome else None,
    )


def _facts(job: Job | JobSummary) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state,
        "priority": job.priority,
        "attempt": job.attempt,
        "accepted_at": _time(job.accepted_ms),
        "deadline_at": _time(job.deadline_ms),
        "finished_at": _time(job.finished_ms) if job.finished_ms else None,
    }


async def _wait_for_end(request: Request, runtime: Runtime, job: Job, wait_s: float) -> None:
    if await execute_async(runtime.redis, watch(job.id, runtime.service_id)) is None:
        return
    with Watch(runtime, job.id, after=job.last_event, remaining_s=await remaining_s(runtime, job)) as waiting:
        # Somebody who only looks never decides about the job.
        waiting.settle()
        try:
            async with asyncio.timeout(wait_s):
                await unless_client_leaves(request.receive, waiting.outcome())
        except (TimeoutError, ClientDisconnect):
            return


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
