"""Limit of the request body, kept while it streams in, on every route and content type.

FastAPI's own `max_body_size` answers an announced size that is too large in plain text; every error of ours is
problem+json, so the limit is a middleware of ours.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import TooLargeError


def announced_size(headers: Headers) -> int:
    """Bytes of the body that the request's head announces, 0 if it does not."""
    length = headers.get("content-length", "")
    return int(length) if length.isdigit() else 0


def body_too_large(most: int) -> TooLargeError:
    """For a body of more than `most` bytes."""
    return TooLargeError(f"The request body is larger than {most} bytes.")


class BodyLimit:
    """Raises `TooLargeError` where the application reads the body: at once if the announced size is over the limit."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        too_large = announced_size(Headers(scope=scope)) > self.max_bytes
        received = 0

        async def limited() -> Message:
            nonlocal received
            if too_large:
                raise body_too_large(self.max_bytes)
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise body_too_large(self.max_bytes)
            return message

        await self.app(scope, limited, send)
