"""Limits of a connection where the application sees nothing: how large a head may be, and how long silence may last.

uvicorn and httptools have none: a head or a trailer that never ends would take all memory, and connections that say
nothing would stay for ever, without any key.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_UNPARSED_BYTES = 64 * 1024
"""What may come without a request line with its headers, or a part of a body, being complete."""
HEAD_S = 15.0
"""To the end of the head: of a new connection, and from the first byte after an answer."""
BODY_S = 120.0
"""To the end of a body, whether it is read or was refused."""

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol, which ends a connection whose head is too large or too late."""

    _unparsed = 0
    _in_body = False
    _timer: asyncio.TimerHandle | None = None
    _timer_in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The time of the first head begins."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and see what came of it."""
        self._unparsed += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._unparsed > MOST_UNPARSED_BYTES:
            if not self._answering:
                self.transport.write(_TOO_LARGE)
            self.transport.close()
            return
        self._watch()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._unparsed = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._unparsed, self._in_body = 0, True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body is there."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        self._unparsed, self._in_body = 0, False
        super().on_message_complete()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        """Between answers somebody must say something, in time; during one the application has its own times."""
        if self._answering:
            self._stop_timer()
        elif self._timer is None or self._timer_in_body != self._in_body:
            self._stop_timer()
            self._timer_in_body = self._in_body
            self._timer = self.loop.call_later(BODY_S if self._in_body else HEAD_S, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
