"""A question becomes a job, and its request a watcher of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from fastapi import Request

from service.acceptance import accept_job, attach_job
from service.admission import Place
from service.auth import Caller
from service.delivery import Delivery
from service.intake import Ask, Prepared, prepare
from service.problems import JobLostError
from service.runtime import Runtime
from service.waiting import Watch, remaining_s, resume_after
from worker.ledger import NewJob, execute_async, new_job_id, read_job_async, unwatch
from worker.logs import now_about


@dataclass(frozen=True)
class Submission:
    """A job that a request made, or that it attached to by its Idempotency-Key."""

    runtime: Runtime
    job_id: str
    attached: bool
    streams: bool
    last_event: int
    timeout_s: float

    async def watch(self) -> Watch:
        """The request's interest in the job, in its tokens only if it streams. Raises `JobLostError`."""
        if self.attached:
            return await self._watch_attached()
        only_final = not self.streams
        return Watch(self.runtime, self.job_id, after=0, remaining_s=self.timeout_s, only_final=only_final)

    async def _watch_attached(self) -> Watch:
        runtime, job_id = self.runtime, self.job_id
        try:
            job = await read_job_async(runtime.redis, job_id)
            if job is None:
                raise JobLostError("The job's result has just expired; send it again.")
            after = resume_after(job, self.last_event)
            return Watch(runtime, job_id, after=after, remaining_s=await remaining_s(runtime, job))
        except BaseException:
            runtime.spawn(execute_async(runtime.redis, unwatch(job_id, runtime.service_id, client_left=True)))
            raise


async def submit(
    runtime: Runtime, request: Request, caller: Caller, delivery: Delivery, ask: Ask, place: Place
) -> Submission:
    """Check the question, fetch its images, and accept it durably as a job, which wakes a worker.

    It leaves its `place` before the ledger counts it: counted twice it would keep another one out.
    Raises what `prepare`, `ImageFetcher.fetch` and `accept_job` raise.
    """
    workers = await runtime.workers.alive()
    prepared = await asyncio.to_thread(prepare, ask, runtime.settings, workers)
    job = _new_job(runtime, request.scope["erase.request_id"], caller, delivery, prepared)
    accepted = None
    if job.idempotency_key:
        place.leave()
        accepted = await attach_job(runtime, job)
    if accepted is None:
        if ask.remote:
            fetched = await runtime.fetcher.fetch(ask, place.take)
            prepared = await asyncio.to_thread(prepare, fetched, runtime.settings, workers)
            job = replace(job, request=prepared.request)
        place.leave()
        accepted = await accept_job(runtime, job, prepared.files)
    attached, job_id = accepted.status == "attached", accepted.subject
    request.scope["erase.job_id"] = job_id
    now_about(job_id=job_id)
    streams = prepared.stream or delivery.events
    return Submission(runtime, job_id, attached, streams, delivery.last_event, prepared.timeout_s)


def _new_job(runtime: Runtime, request_id: str, caller: Caller, delivery: Delivery, prepared: Prepared) -> NewJob:
    settings = runtime.settings
    waits = not delivery.respond_async or delivery.wait_s > 0
    record = delivery.record(caller.owner)
    return NewJob(
        id=new_job_id(),
        owner=caller.owner,
        priority=prepared.priority,
        request=prepared.request,
        timeout_ms=max(1, round(prepared.timeout_s * 1000)),
        result_ttl_ms=settings.result_ttl_s * 1000,
        dead_ttl_ms=settings.dead_ttl_s * 1000,
        listed_ms=settings.jobs_listed_s * 1000,
        max_open=settings.max_open_jobs,
        max_open_pixels=settings.max_open_pixels or 0,
        max_owner_open=caller.limits.open_jobs or 0,
        detached=delivery.respond_async,
        idempotency_key=record,
        body_hash=prepared.body_hash if record else "",
        service=runtime.service_id if waits else "",
        request_id=request_id,
        wake=True,
        trace=delivery.trace,
        wake_after_ms=round(settings.wake_after_s * 1000),
    )
