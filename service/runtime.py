"""What one service process holds while it runs: Redis connections, background loops, tasks that outlive requests."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from service.admission import Admission
from service.durability import Durability
from service.fetching import ImageFetcher
from service.metrics import ServiceMetrics
from service.nudge import Nudge
from service.overdue import end_overdue_jobs
from service.problems import UnavailableError
from service.replies import BLOCK_MS, Replies
from service.workers import Workers
from worker.failpoints import Failpoints

if TYPE_CHECKING:
    from worker.settings import Settings

logger = logging.getLogger("erase.service")

MOST_CONNECTIONS = 16
"""Connections to Redis for all requests together; one more reads replies, and one nudges."""
_FAREWELL_S = 5.0


@dataclass
class Runtime:
    """The parts of a running service process."""

    settings: Settings
    metrics: ServiceMetrics
    service_id: str
    redis: Redis
    admission: Admission
    fetcher: ImageFetcher
    durability: Durability
    nudge: Nudge
    replies: Replies
    workers: Workers
    failpoints: Failpoints
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something that must happen even if its request goes away. Errors are logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.warning("a background task failed: %s", type(error).__name__)

    async def finish_tasks(self) -> None:
        """Give what was spawned a moment to end."""
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=_FAREWELL_S)
            for task in late:
                task.cancel()


def _client(url: str, connections: int, answer_s: float) -> Redis:
    # No automatic retries: a repeated `unwatch` would count twice. What is safe to repeat is repeated by its caller.
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=5,
        socket_timeout=answer_s,
        socket_connect_timeout=2,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
    )
    return Redis.from_pool(pool)


@asynccontextmanager
async def open_runtime(settings: Settings, metrics: ServiceMetrics, fetcher: ImageFetcher) -> AsyncIterator[Runtime]:
    """Connect, start the loops, and take everything down again. Redis may be unreachable: then `/readyz` says so."""
    service_id = secrets.token_hex(8)
    failpoints = Failpoints(settings.failpoints)
    client = _client(settings.redis_url, MOST_CONNECTIONS, answer_s=5)
    reader = _client(settings.redis_url, 1, answer_s=BLOCK_MS / 1000 + 5)
    nudger = _client(settings.redis_url, 1, answer_s=5)
    runtime = Runtime(
        settings=settings,
        metrics=metrics,
        service_id=service_id,
        redis=client,
        admission=Admission(client, settings),
        fetcher=fetcher,
        durability=Durability(client, settings.durability, others=(reader, nudger)),
        nudge=Nudge(nudger),
        replies=Replies(reader, client, service_id),
        failpoints=failpoints,
        workers=Workers(client),
    )
    work = (
        runtime.replies.read(),
        runtime.replies.recheck(),
        end_overdue_jobs(client, runtime.workers, service_id),
    )
    loops = [asyncio.create_task(one) for one in work]
    try:
        await runtime.durability.ensure()
    except UnavailableError as error:
        logger.error("not ready: %s", error.detail)
    try:
        yield runtime
    finally:
        await runtime.finish_tasks()
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await runtime.nudge.close()
        await runtime.fetcher.close()
        for connected in (reader, nudger, client):
            await connected.aclose(close_connection_pool=True)


async def get_runtime(request: Request) -> Runtime:
    """Dependency: the runtime of this process."""
    runtime: Runtime = request.app.state.runtime
    return runtime


Process = Annotated[Runtime, Depends(get_runtime)]
