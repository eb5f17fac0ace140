"""The loads of the benchmark without a model, against a small server that answers as it is told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from bench import front
from bench.raw_http import json_request

REPLY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REQUEST = json_request("/v1/ask", {})


@asynccontextmanager
async def serving(before_each: Callable[[], Awaitable[bool]]) -> AsyncIterator[int]:
    """The port of a server; a request is answered when `before_each` returns true, else its connection is closed."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readexactly(len(REQUEST)) and await before_each():
                writer.write(REPLY)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def test_a_closed_load_is_not_faster_than_the_server_can_be():
    async def run() -> int:
        slots = asyncio.Semaphore(4)

        async def one_of_four() -> bool:
            async with slots:
                await asyncio.sleep(0.1)
            return True

        async with serving(one_of_four) as port:
            return len(await front.closed_load(port, REQUEST, 16, 1.0))

    assert 20 < asyncio.run(run()) <= 40


def test_requests_whose_connection_breaks_are_counted():
    async def run():
        count = 0

        async def the_first_twenty() -> bool:
            nonlocal count
            count += 1
            return count <= 20

        async with serving(the_first_twenty) as port:
            return await front.open_load(port, REQUEST, 50, 1.0)

    replies, unsent = asyncio.run(run())
    assert len(replies) == 20
    assert unsent["connection failed"] > 5
    assert all(reply.status == 200 and 0 < reply.ended < 1.5 for reply in replies)
