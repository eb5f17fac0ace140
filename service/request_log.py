"""Every request has an id, its own or a new one: it is in the answer's `X-Request-ID` and in all its log lines."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import CLIENT_LEFT
from worker.logs import about

logger = logging.getLogger("erase.requests")

HEADER = "X-Request-ID"
_USABLE = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})


class RequestLog:
    """Middleware: the request's id, and one line when it is answered."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request_id = given if _USABLE.fullmatch(given) else secrets.token_hex(16)
        scope["erase.request_id"] = request_id
        started = time.perf_counter()
        status = CLIENT_LEFT

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        with about(request_id=request_id):
            try:
                await self.app(scope, receive, named)
            except Exception:
                status = 500
                logger.exception("a request failed unexpectedly")
                raise
            finally:
                self._log(scope, status, time.perf_counter() - started)

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        route = str(getattr(scope.get("route"), "path", "unmatched"))
        fields = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(1000 * seconds, 1),
            "job_id": scope.get("erase.job_id"),
            "owner": scope.get("erase.owner"),
            "problem": scope.get("erase.problem", scope.get("erase.job_problem")),
        }
        level = logging.DEBUG if route in _QUIET else logging.INFO
        known = {name: value for name, value in fields.items() if value is not None}
        logger.log(level, "%s %s %d", scope["method"][:10], route, status, extra=known)
