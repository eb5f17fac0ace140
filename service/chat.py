"""`POST /v1/chat/completions` and `GET /v1/models`: the service for clients that speak OpenAI's API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.sse import format_sse_event

from service import openapi
from service.access import Asker, JobsCaller
from service.admission import Place
from service.ask import media_type, read_body, upload_time
from service.auth import Caller
from service.chat_answer import (
    ChatChunk,
    ChatCompletion,
    ChunkChoice,
    Delta,
    Model,
    ModelList,
    Savings,
    TokenCount,
    created,
)
from service.chat_request import Wanted, parse_chat
from service.delivery import Delivery, read_delivery
from service.events import KEEP_ALIVE_S, EventStream
from service.problems import (
    ServiceError,
    UnknownModelError,
    UnsupportedMediaTypeError,
    note_outcome,
    openai_error,
    openai_response,
)
from service.runtime import Process, Runtime
from service.submission import Submission, submit
from service.waiting import Watch, unless_client_leaves
from worker.contract import EventType, Outcome, Problem, TokenPayload, WorkerInfo

router = APIRouter(prefix="/v1", tags=["OpenAI"])


@router.get(
    "/models",
    summary="Models of the workers that are alive",
    response_model=ModelList,
    responses=openapi.MODEL_RESPONSES,
)
async def list_models(runtime: Process, caller: JobsCaller) -> ModelList:
    """OpenAI's list of models."""
    return ModelList(data=await _models(runtime))


@router.get("/models/{name:path}", summary="One of them", response_model=Model, responses=openapi.MODEL_RESPONSES)
async def get_model(name: str, runtime: Process, caller: JobsCaller) -> Model:
    """OpenAI's description of a model; 404 if no worker serves it."""
    models = await _models(runtime)
    for model in models:
        if model.id == name:
            return model
    raise _unknown_model([model.id for model in models])


@router.post(
    "/chat/completions",
    summary="Answer a conversation about images",
    response_model=ChatCompletion,
    responses=openapi.CHAT_RESPONSES,
    openapi_extra=openapi.CHAT_BODY,
)
async def complete_chat(request: Request, runtime: Process, caller: Asker) -> Response:
    """OpenAI's chat completion, or with `stream` its chunks; `erase` says what pruning saved."""
    delivery = read_delivery(request.headers).here_and_now()
    with await runtime.admission.question(caller, request.headers, delivery.record(caller.owner)) as place:
        submission, wanted = await _submit(runtime, request, caller, delivery, place)
    job_id = submission.job_id
    watch = await submission.watch()
    if wanted.stream:
        return EventStream(_chunks(watch, job_id, wanted), job_id)
    with watch:
        outcome = await unless_client_leaves(request.receive, watch.outcome())
    headers = {"Content-Location": f"/v1/jobs/{job_id}", "Cache-Control": "no-store"}
    if outcome.answer is None:
        note_outcome(request.scope, _problem(outcome))
        # The job has had its attempts: a client must not send it again by itself, as OpenAI's does at 409 and 5xx.
        return openai_response(_problem(outcome), headers | {"X-Should-Retry": "false"})
    return Response(ChatCompletion.of(outcome.answer).model_dump_json(), 200, headers, "application/json")


async def _submit(
    runtime: Runtime, request: Request, caller: Caller, delivery: Delivery, place: Place
) -> tuple[Submission, Wanted]:
    """In a function of its own, so that nothing holds the images while the request waits."""
    wanted, question = await asyncio.to_thread(parse_chat, await _read_json(request, place), runtime.settings)
    _check_model(wanted.model, await runtime.workers.alive())
    return await submit(runtime, request, caller, delivery, question, place), wanted


async def _models(runtime: Runtime) -> tuple[Model, ...]:
    started: dict[str, int] = {}
    for worker in await runtime.workers.alive():
        since = worker.started_ms // 1000
        started[worker.model] = min(since, started.get(worker.model, since))
    return tuple(Model(id=name, created=since, root=name) for name, since in sorted(started.items()))


async def _read_json(request: Request, place: Place) -> bytes:
    if media_type(request) != "application/json":
        raise UnsupportedMediaTypeError("Send application/json.")
    async with upload_time():
        return await read_body(request, place)


def _check_model(model: str, workers: Sequence[WorkerInfo]) -> None:
    known = sorted({worker.model for worker in workers})
    if known and model not in known:
        raise _unknown_model(known)


def _unknown_model(known: Sequence[str]) -> UnknownModelError:
    return UnknownModelError(f"model: the workers serve {', '.join(known) or 'none at the moment'}.")


def _problem(outcome: Outcome) -> Problem:
    assert outcome.problem is not None  # noqa: S101
    return outcome.problem


async def _chunks(watch: Watch, job_id: str, wanted: Wanted) -> AsyncGenerator[bytes]:
    """The chunks of the answer as server-sent events; none before the first token, `[DONE]` only after success."""

    def chunk(*choices: ChunkChoice, usage: TokenCount | None = None, erase: Savings | None = None) -> bytes:
        whole = ChatChunk(
            id=job_id, created=created(job_id), model=wanted.model, choices=choices, usage=usage, erase=erase
        )
        return format_sse_event(data_str=whole.body(with_usage=wanted.usage))

    role: Literal["assistant"] | None = "assistant"
    outcome = Outcome()
    with watch:
        try:
            async with aclosing(watch.events(KEEP_ALIVE_S)) as events:  # type: ignore[type-var]
                async for event in events:
                    if event is None:
                        yield format_sse_event(comment="keep-alive")
                    elif event.type is EventType.TOKEN:
                        text = TokenPayload.model_validate_json(event.data).text
                        if text or role:
                            yield chunk(ChunkChoice(delta=Delta(role=role, content=text)))
                            role = None
                    else:
                        outcome = Outcome.model_validate_json(event.data)
        except ServiceError as error:
            yield _error(error.problem())
            return
    if outcome.answer is None:
        yield _error(_problem(outcome))
        return
    answer = outcome.answer
    yield chunk(ChunkChoice(delta=Delta(role=role), finish_reason=answer.finish_reason), erase=Savings.of(answer))
    if wanted.usage:
        yield chunk(usage=TokenCount.of(answer))
    yield format_sse_event(data_str="[DONE]")


def _error(problem: Problem) -> bytes:
    return format_sse_event(data_str=json.dumps(openai_error(problem), ensure_ascii=False))
