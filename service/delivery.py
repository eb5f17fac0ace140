"""How a client wants its answer, read from the request's headers."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from starlette.datastructures import Headers

from service.problems import InvalidRequestError
from worker.contract import idempotency_key

LONGEST_WAIT_S = 60.0
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True)
class Delivery:
    """The wishes of one request. `wait_s` is how long an asynchronous client waits before it gets 202."""

    respond_async: bool
    wait_s: float
    events: bool
    idempotency_key: str
    last_event: int
    trace: str

    def here_and_now(self) -> Delivery:
        """The same wishes for a route that knows neither jobs that are fetched later nor streams that are resumed."""
        return replace(self, respond_async=False, wait_s=0.0, last_event=0)

    def record(self, owner: str) -> str:
        """Redis key of what the owner's Idempotency-Key stands for; empty without one."""
        return idempotency_key(owner, self.idempotency_key) if self.idempotency_key else ""

    @property
    def preference_applied(self) -> str:
        """Value of the `Preference-Applied` header (RFC 7240)."""
        return "respond-async" + (f", wait={self.wait_s:g}" if self.wait_s else "")


def read_delivery(headers: Headers) -> Delivery:
    """Read the headers. Raises `InvalidRequestError` for a key or an event id that cannot be used."""
    preferences = [part.strip().lower() for part in re.split("[,;]", ",".join(headers.getlist("prefer")))]
    waits = [int(part[5:]) for part in preferences if re.fullmatch(r"wait=\d{1,6}", part)]
    key = headers.get("idempotency-key", "")
    if "idempotency-key" in headers and not _KEY.fullmatch(key):
        raise InvalidRequestError("Idempotency-Key: expected 1 to 255 printable ASCII characters without spaces")
    trace = headers.get("traceparent", "")
    return Delivery(
        respond_async="respond-async" in preferences,
        wait_s=min(waits[0], LONGEST_WAIT_S) if waits else 0.0,
        events=_accepts_events(headers.get("accept", "")),
        idempotency_key=key,
        last_event=read_last_event(headers),
        trace=trace if _TRACEPARENT.fullmatch(trace) else "",
    )


def read_last_event(headers: Headers) -> int:
    """Number in `Last-Event-ID`, 0 without one. Raises `InvalidRequestError`."""
    value = headers.get("last-event-id", "").strip() or "0"
    if not re.fullmatch(r"\d{1,15}", value):
        raise InvalidRequestError("Last-Event-ID: expected the number of an event")
    return int(value)


def _accepts_events(accept: str) -> bool:
    for media_range in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in media_range.split(";"))
        if kind == "text/event-stream":
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False
