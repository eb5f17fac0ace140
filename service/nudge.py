"""Redis answers WAITAOF only when its event loop turns: at the next command, or at its timer (100 ms by default).

So an accept on an idle Redis would take 100 ms although the write is on disk after one. While confirmations are
pending, a PING every millisecond keeps the loop turning, one for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from redis.asyncio import Redis
from redis.exceptions import RedisError

PAUSE_S = 0.001
PAUSE_AFTER_ERROR_S = 0.1


class Nudge:
    """Pings through a connection of its own for as long as somebody is inside `hurrying`."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._pending = 0
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def hurrying(self) -> Iterator[None]:
        """Keep Redis' event loop turning while the block runs."""
        self._pending += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._ping())
        try:
            yield
        finally:
            self._pending -= 1

    async def _ping(self) -> None:
        while self._pending:
            await asyncio.sleep(PAUSE_S)
            try:
                await self._client.ping()
            except (RedisError, OSError):
                await asyncio.sleep(PAUSE_AFTER_ERROR_S)

    async def close(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
