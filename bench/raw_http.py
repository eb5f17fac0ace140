"""A lean HTTP client for load: prepared requests over keep-alive connections, so that the load costs little itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass

BOUNDARY = "bench-boundary"


@dataclass(frozen=True)
class RawReply:
    """Status, body, `retry_after` as sent (empty without one), and seconds until the last byte was there."""

    status: int
    body: bytes
    retry_after: str
    seconds: float


def json_request(path: str, body: object) -> bytes:
    """A POST of this as JSON, as bytes on the wire."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    return f"{head}\r\n\r\n".encode() + content


def multipart_request(path: str, image: bytes, prompt: str, headers: dict[str, str] | None = None) -> bytes:
    """A POST with one image and a prompt, as bytes on the wire."""
    body = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n{prompt}\r\n'
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
        "Content-Type: image/png\r\n\r\n"
    ).encode()
    body += image + f"\r\n--{BOUNDARY}--\r\n".encode()
    extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {len(body)}\r\n{extra}\r\n"
    )
    return head.encode() + body


class Connection:
    """One keep-alive connection; opened anew when the server closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> RawReply:
        """Send a prepared request and read the answer. Raises OSError or EOFError if the connection fails twice."""
        for last in (False, True):
            try:
                return await self._ask(request)
            except (OSError, EOFError):
                await self.close()
                if last:
                    raise
        raise AssertionError("unreachable")

    async def _ask(self, request: bytes) -> RawReply:
        if self._writer is None or self._reader is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        started = time.perf_counter()
        self._writer.write(request)
        await self._writer.drain()
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        body = await self._reader.readexactly(int(fields.get("content-length", "0")))
        if fields.get("connection", "").lower() == "close":
            await self.close()
        return RawReply(int(lines[0].split()[1]), body, fields.get("retry-after", ""), time.perf_counter() - started)

    async def close(self) -> None:
        """Close it; the next request opens another."""
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            with contextlib.suppress(OSError):
                writer.close()
                await writer.wait_closed()
