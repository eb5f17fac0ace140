"""`POST /v1/ask`: read the body, accept a job, and deliver its answer as the client wishes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from service import openapi
from service.acceptance import accept_job, new_job_id
from service.access import Owner
from service.delivery import Delivery, read_delivery
from service.events import EventStream, answer_body
from service.intake import Ask, Prepared, parse_form, parse_json, prepare
from service.problems import JobLostError, MalformedBodyError, UnsupportedMediaTypeError, problem_response
from service.runtime import Process, Runtime
from service.waiting import Watch, remaining_s, resume_after, unless_client_leaves
from worker.contract import Answer, JobState, Outcome, idempotency_key
from worker.ledger import NewJob, execute_async, read_job_async, unwatch

if TYPE_CHECKING:
    from worker.settings import Settings

router = APIRouter(tags=["ask"])

UPLOAD_TIMEOUT_S = 120.0
_SPARE_FILES = 8
_MOST_FIELDS = 64


@router.post(
    "/v1/ask",
    summary="Ask a question about images",
    response_model=Answer,
    responses=openapi.ASK_RESPONSES,
    openapi_extra=openapi.ASK_BODY,
)
async def ask(request: Request, runtime: Process, owner: Owner) -> Response:
    """Answer in the response, in a stream of events, or later under `/v1/jobs/{id}`."""
    delivery = read_delivery(request.headers)
    question = await read_question(request, runtime.settings)
    workers = await runtime.workers.alive()
    prepared = await asyncio.to_thread(prepare, question, runtime.settings, workers)
    job = _new_job(runtime, owner, delivery, prepared)
    accepted = await accept_job(runtime, job, prepared.files)
    attached, job_id = accepted.status == "attached", accepted.subject
    if not attached:
        runtime.spawn(runtime.wakeups.send(job_id, prepared.priority))
    if delivery.respond_async and not delivery.wait_s:
        return await _accepted(runtime, job_id, delivery)
    if attached:
        watch = await _watch_attached(runtime, job_id, delivery.last_event)
    else:
        watch = Watch(runtime, job_id, after=0, remaining_s=prepared.timeout_s)
    if delivery.respond_async:
        return await _answer_or_accepted(request, runtime, watch, job_id, delivery)
    if prepared.stream or delivery.events:
        return EventStream(watch, job_id)
    return await _answer(request, watch, job_id)


async def read_question(request: Request, settings: Settings) -> Ask:
    """Read and parse the body within a time limit. Raises a client error of `service.problems`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT_S):
            if kind == "application/json":
                body = await request.body()
                return await asyncio.to_thread(parse_json, body)
            if kind == "multipart/form-data":
                return await _read_form(request, settings)
    except TimeoutError:
        raise MalformedBodyError(f"The body did not arrive within {UPLOAD_TIMEOUT_S:g} seconds.") from None
    raise UnsupportedMediaTypeError("Send multipart/form-data or application/json.")


async def _read_form(request: Request, settings: Settings) -> Ask:
    try:
        form = request.form(
            max_files=settings.max_images + _SPARE_FILES,
            max_fields=_MOST_FIELDS,
            max_part_size=4 * settings.max_prompt_chars + 64 * 1024,
        )
        async with form as parts:
            fields, images = [], []
            for name, value in parts.multi_items():
                if not isinstance(value, UploadFile):
                    fields.append((name, value))
                elif name == "image":
                    images.append(await value.read())
                else:
                    fields.append((name, ""))
            return parse_form(fields, images)
    except HTTPException as error:
        raise MalformedBodyError(f"The multipart body cannot be used: {error.detail}") from None


def _new_job(runtime: Runtime, owner: str, delivery: Delivery, prepared: Prepared) -> NewJob:
    settings = runtime.settings
    waits = not delivery.respond_async or delivery.wait_s > 0
    return NewJob(
        id=new_job_id(),
        owner=owner,
        priority=prepared.priority,
        request=prepared.request,
        timeout_ms=max(1, round(prepared.timeout_s * 1000)),
        result_ttl_ms=settings.result_ttl_s * 1000,
        max_open=settings.max_open_jobs,
        detached=delivery.respond_async,
        idempotency_key=idempotency_key(owner, delivery.idempotency_key) if delivery.idempotency_key else "",
        body_hash=prepared.body_hash,
        service=runtime.service_id if waits else "",
        trace=delivery.trace,
        wake_after_ms=round(settings.wake_after_s * 1000),
    )


async def _watch_attached(runtime: Runtime, job_id: str, last_event: int) -> Watch:
    try:
        job = await read_job_async(runtime.redis, job_id)
        if job is None:
            raise JobLostError("The job's result has just expired; send it again.")
        after = resume_after(job, last_event)
        return Watch(runtime, job_id, after=after, remaining_s=await remaining_s(runtime, job))
    except BaseException:
        runtime.spawn(execute_async(runtime.redis, unwatch(job_id, runtime.service_id, client_left=True)))
        raise


async def _answer(request: Request, watch: Watch, job_id: str) -> Response:
    with watch:
        try:
            outcome = await unless_client_leaves(request.receive, watch.outcome())
        except JobLostError as error:
            return problem_response(error.problem())
    return outcome_response(outcome, job_id)


async def _answer_or_accepted(
    request: Request, runtime: Runtime, watch: Watch, job_id: str, delivery: Delivery
) -> Response:
    headers = {"Preference-Applied": delivery.preference_applied}
    with watch:
        watch.settle()
        try:
            async with asyncio.timeout(delivery.wait_s):
                outcome = await unless_client_leaves(request.receive, watch.outcome())
        except TimeoutError:
            return await _accepted(runtime, job_id, delivery)
    return outcome_response(outcome, job_id, headers)


async def _accepted(runtime: Runtime, job_id: str, delivery: Delivery) -> Response:
    """202 with the address of the job (RFC 7240, section 4.1)."""
    job = await read_job_async(runtime.redis, job_id)
    state = JobState.ACCEPTED if job is None else job.state
    headers = {"Location": f"/v1/jobs/{job_id}", "Preference-Applied": delivery.preference_applied}
    return Response(json.dumps({"id": job_id, "state": state.value}), 202, headers, "application/json")


def outcome_response(outcome: Outcome, job_id: str, headers: Mapping[str, str] | None = None) -> Response:
    """A job's outcome with its HTTP status: the answer, or the problem."""
    address = f"/v1/jobs/{job_id}"
    headers = {"Content-Location": address, "Cache-Control": "no-store", **(headers or {})}
    if outcome.answer is not None:
        return Response(answer_body(outcome.answer), 200, headers, "application/json")
    assert outcome.problem is not None  # noqa: S101
    return problem_response(outcome.problem.model_copy(update={"instance": address}), headers)
