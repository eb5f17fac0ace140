"""`POST /v1/ask`: read the body, accept a job, and deliver its answer as the client wishes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from python_multipart.multipart import parse_options_header
from redis.exceptions import RedisError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.types import Message

from service import openapi
from service.access import Asker
from service.admission import Place
from service.connections import BODY_S
from service.delivery import Delivery, read_delivery
from service.events import EventStream, answer_body, event_stream
from service.intake import Ask, AskOptions, parse_form, parse_json
from service.problems import (
    InvalidRequestError,
    JobLostError,
    MalformedBodyError,
    UnavailableError,
    UnsupportedMediaTypeError,
    note_outcome,
    problem_response,
)
from service.runtime import Process, Runtime
from service.submission import submit
from service.waiting import Watch, unless_client_leaves
from worker.contract import Answer, JobState, Outcome
from worker.ledger import read_job_async

if TYPE_CHECKING:
    from worker.settings import Settings

router = APIRouter(tags=["ask"])

UPLOAD_TIMEOUT_S = BODY_S
_SPARE_FILES = 8
_MOST_FIELDS = 64


@router.post(
    "/v1/ask",
    summary="Ask a question about images",
    response_model=Answer,
    responses=openapi.ASK_RESPONSES,
    openapi_extra=openapi.ASK_BODY,
)
async def ask(request: Request, runtime: Process, caller: Asker) -> Response:
    """Answer in the response, in a stream of events, or later under `/v1/jobs/{id}`."""
    delivery = read_delivery(request.headers)
    with await runtime.admission.question(caller, request.headers, delivery.record(caller.owner)) as place:
        # No name here for the question: its images would stay in memory as long as the request waits.
        submission = await submit(
            runtime, request, caller, delivery, await read_question(request, runtime.settings, place), place
        )
    job_id = submission.job_id
    if delivery.respond_async and not delivery.wait_s:
        return await _accepted(runtime, job_id, delivery)
    try:
        watch = await submission.watch()
    except (RedisError, OSError):
        if delivery.respond_async:
            return await _accepted(runtime, job_id, delivery)
        raise
    if delivery.respond_async:
        return await _answer_or_accepted(request, runtime, watch, job_id, delivery)
    if submission.streams:
        return EventStream(event_stream(watch, job_id), job_id)
    return await _answer(request, runtime, watch, job_id)


async def read_question(request: Request, settings: Settings, place: Place) -> Ask:
    """Read and parse the body within a time limit. Raises an error of `service.problems`."""
    kind = media_type(request)
    async with upload_time():
        if kind == "application/json":
            return await asyncio.to_thread(parse_json, await read_body(request, place), settings)
        if kind == "multipart/form-data":
            return await _read_form(request, settings, place)
    raise UnsupportedMediaTypeError("Send multipart/form-data or application/json.")


async def read_body(request: Request, place: Place) -> bytes:
    """The whole body; unlike that of `request.body()` it is not kept as long as the request is."""
    chunks = []
    async for chunk in request.stream():
        place.take(len(chunk))
        chunks.append(chunk)
    return b"".join(chunks)


def media_type(request: Request) -> str:
    """Of the body, in lower case and without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@asynccontextmanager
async def upload_time() -> AsyncIterator[None]:
    """The time in which a body must have been read. Raises `MalformedBodyError` when it is over."""
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT_S):
            yield
    except TimeoutError:
        raise MalformedBodyError(f"The body did not arrive within {UPLOAD_TIMEOUT_S:g} seconds.") from None


async def _read_form(request: Request, settings: Settings, place: Place) -> Ask:
    request = Request(request.scope, _Whole(request, place).receive)
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
                elif name in AskOptions.model_fields:
                    raise InvalidRequestError(f"{name}: send it as a text field, not as a file")
                else:
                    fields.append((name, ""))
    except HTTPException as error:
        raise MalformedBodyError(f"The multipart body cannot be used: {error.detail}") from None
    except UnicodeError:
        raise MalformedBodyError(
            "The multipart body cannot be used: its text is not in the charset it names."
        ) from None
    return parse_form(fields, images)


class _Whole:
    """Refuses a body that was cut off, which the parser takes for a whole one: it must end with the last boundary."""

    _REMEMBERED = 1024

    def __init__(self, request: Request, place: Place) -> None:
        self._receive = request.receive
        self._place = place
        _, options = parse_options_header(request.headers["content-type"])
        self._end = b"--" + options.get(b"boundary", b"") + b"--"
        self._last = b""

    async def receive(self) -> Message:
        """The next message. Raises `MultiPartException`, as the parser does, so that it closes what it opened."""
        message = await self._receive()
        self._place.take(len(message.get("body", b"")))
        self._last = (self._last + message.get("body", b""))[-self._REMEMBERED :]
        if message["type"] == "http.request" and not message.get("more_body") and self._end not in self._last:
            raise MultiPartException("its end is missing")
        return message


async def _answer(request: Request, runtime: Runtime, watch: Watch, job_id: str) -> Response:
    with watch:
        try:
            outcome = await unless_client_leaves(request.receive, watch.outcome())
        except JobLostError as error:
            return problem_response(error.problem())
    runtime.failpoints.reach("before_answer")
    return outcome_response(request, outcome, job_id)


async def _answer_or_accepted(
    request: Request, runtime: Runtime, watch: Watch, job_id: str, delivery: Delivery
) -> Response:
    headers = {"Preference-Applied": delivery.preference_applied}
    with watch:
        watch.settle()
        try:
            async with asyncio.timeout(delivery.wait_s):
                outcome = await unless_client_leaves(request.receive, watch.outcome())
        except JobLostError:
            raise
        except (TimeoutError, UnavailableError):
            return await _accepted(runtime, job_id, delivery)
    return outcome_response(request, outcome, job_id, headers)


async def _accepted(runtime: Runtime, job_id: str, delivery: Delivery) -> Response:
    """202 with the address of the job (RFC 7240, section 4.1)."""
    state = JobState.ACCEPTED
    with suppress(RedisError, OSError):  # it is accepted, whether or not its state can be read now
        if (job := await read_job_async(runtime.redis, job_id)) is not None:
            state = job.state
    headers = {"Location": f"/v1/jobs/{job_id}", "Preference-Applied": delivery.preference_applied}
    return Response(json.dumps({"id": job_id, "state": state.value}), 202, headers, "application/json")


def outcome_response(
    request: Request, outcome: Outcome, job_id: str, headers: Mapping[str, str] | None = None
) -> Response:
    """A job's outcome with its HTTP status: the answer, or the problem."""
    address = f"/v1/jobs/{job_id}"
    headers = {"Content-Location": address, "Cache-Control": "no-store", **(headers or {})}
    if outcome.answer is not None:
        return Response(answer_body(outcome.answer), 200, headers, "application/json")
    assert outcome.problem is not None  # noqa: S101
    note_outcome(request.scope, outcome.problem)
    return problem_response(outcome.problem.model_copy(update={"instance": address}), headers)
