"""A job's events as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress

from fastapi.sse import format_sse_event
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.problems import ServiceError
from service.waiting import Watch, unless_client_leaves
from worker.contract import Answer, EventType, Outcome, TokenPayload
from worker.ledger import Event

KEEP_ALIVE_S = 15.0


def answer_body(answer: Answer) -> str:
    """The answer object in JSON; without `pruning_map` unless it was asked for."""
    return answer.model_dump_json(exclude={"pruning_map"} if answer.pruning_map is None else None)


def format_event(event: Event, job_id: str) -> bytes:
    """One event as the client reads it; its number is the id to resume after."""
    if event.type is EventType.TOKEN:
        text = TokenPayload.model_validate_json(event.data).text
        data = json.dumps({"seq": event.seq, "text": text}, ensure_ascii=False)
        return format_sse_event(data_str=data, event="token", id=str(event.seq))
    outcome = Outcome.model_validate_json(event.data)
    if outcome.answer is not None:
        return format_sse_event(data_str=answer_body(outcome.answer), event="result", id=str(event.seq))
    assert outcome.problem is not None  # noqa: S101
    problem = outcome.problem.model_copy(update={"instance": f"/v1/jobs/{job_id}"})
    return format_sse_event(data_str=problem.model_dump_json(exclude_none=True), event="error", id=str(event.seq))


async def event_stream(watch: Watch, job_id: str) -> AsyncGenerator[bytes]:
    """Bytes of the stream until the final event; a comment keeps an idle connection open."""
    with watch:
        try:
            async with aclosing(watch.events(KEEP_ALIVE_S)) as events:  # type: ignore[type-var]
                async for event in events:
                    yield format_sse_event(comment="keep-alive") if event is None else format_event(event, job_id)
        except ServiceError as error:
            data = error.problem().model_dump_json(exclude_none=True)
            yield format_sse_event(data_str=data, event="error")


class EventStream(StreamingResponse):
    """A job's events, already formatted, as a response that ends at once, and leaves its job, when the client does."""

    def __init__(self, events: AsyncGenerator[bytes], job_id: str, more: Mapping[str, str] | None = None) -> None:
        headers = {
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "Content-Location": f"/v1/jobs/{job_id}",
            **(more or {}),
        }
        self._events = events
        super().__init__(self._events, 200, headers, "text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            with suppress(ClientDisconnect):
                await unless_client_leaves(receive, self.stream_response(send))
