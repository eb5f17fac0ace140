"""Waiting for a job: its events as they come, its deadline, and what happens when the client leaves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from redis.exceptions import RedisError
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.problems import JobLostError, UnavailableError
from service.runtime import Runtime
from service.workers import redis_now_ms
from worker.contract import EventType, Outcome
from worker.ledger import Event, Job, execute_async, expire, read_events_async, read_last_event_async, unwatch

T = TypeVar("T")

GRACE_S = 10.0
"""How long past a job's deadline an unreachable Redis is given to come back with its outcome."""
_SOON_S = 0.05
_LATE_S = 1.0
"""Between two looks after the deadline, which take ever longer."""
_REDIS_PAUSE_S = 0.25
_AGAIN_S = 1.0


class Watch:
    """One request's interest in a job, from event number `after` on; `remaining_s` seconds are left to its deadline.

    With `only_final` nobody cares for tokens: their events are neither waited for nor given.

    The ledger must already count this process as a watcher (`accept` or `watch`). Leaving the block gives that up; if
    the job has not ended and `settle` was not called, the client has left, which may cancel the job.
    """

    def __init__(
        self, runtime: Runtime, job_id: str, *, after: int, remaining_s: float, only_final: bool = False
    ) -> None:
        self._runtime = runtime
        self._job_id = job_id
        self._after = after
        self._only_final = only_final
        self._deadline = time.monotonic() + remaining_s
        self._stack = ExitStack()
        self._finished = False
        self._settled = False

    def __enter__(self) -> Self:
        waiter = self._runtime.replies.waiter(self._job_id, self._after, only_final=self._only_final)
        self._waiter = self._stack.enter_context(waiter)
        self._stack.enter_context(self._runtime.metrics.waiting.track_inprogress())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if not self._finished:
            self._runtime.spawn(self._leave())

    async def _leave(self) -> None:
        step = unwatch(self._job_id, self._runtime.service_id, client_left=not self._settled)
        await execute_async(self._runtime.redis, step)

    def settle(self) -> None:
        """The client has what it wanted, even if the job goes on."""
        self._settled = True

    async def events(self, idle_s: float | None = None) -> AsyncIterator[Event | None]:
        """Events up to the final one; None after `idle_s` seconds without any.

        Raises `JobLostError` if Redis lost the job, `UnavailableError` if it stays unreachable past the deadline, or
        its clock was set back, so that it still waits for it.
        """
        waiter = self._waiter
        soon = _SOON_S
        while True:
            waiter.changed.clear()
            try:
                events = await self._read()
                if not events and (waiter.behind or time.monotonic() >= self._deadline):
                    events = await self._last_resort()
            except (RedisError, OSError):
                if time.monotonic() > self._deadline + GRACE_S:
                    raise UnavailableError("The store of jobs cannot be reached.") from None
                await asyncio.sleep(_REDIS_PAUSE_S)
                continue
            for event in events:
                waiter.seen = event.seq
                self._finished = event.type is not EventType.TOKEN
                yield event
                if self._finished:
                    return
            left = self._deadline - time.monotonic()
            if left < -GRACE_S and not events:
                raise UnavailableError("The deadline has passed, and the job has not ended.")
            if left < soon:
                soon = min(2 * soon, _LATE_S)
            pause = max(left, soon)
            try:
                async with asyncio.timeout(pause if idle_s is None else min(pause, idle_s)):
                    await waiter.changed.wait()
            except TimeoutError:
                if idle_s is not None:
                    yield None

    async def _read(self) -> list[Event]:
        client, seen = self._runtime.redis, self._waiter.seen
        if not self._only_final:
            return await read_events_async(client, self._job_id, seen)
        last = await read_last_event_async(client, self._job_id)
        if last is None or last.seq <= seen or last.type is EventType.TOKEN:
            return []
        return [last]

    async def _last_resort(self) -> list[Event]:
        """The final event, whatever its number: a Redis that crashed may have forgotten the newest events."""
        state = await execute_async(self._runtime.redis, expire(self._job_id))
        if state is None:
            raise JobLostError("The job was lost with the store of jobs; send it again.")
        events = await read_events_async(self._runtime.redis, self._job_id) if state.final else []
        return events[-1:]

    async def outcome(self) -> Outcome:
        """The job's outcome, once it is there. Raises what `events` raises."""
        async for event in self.events():
            if event is not None and event.type is not EventType.TOKEN:
                return Outcome.model_validate_json(event.data)
        raise AssertionError("unreachable")


def resume_after(job: Job, last_event: int) -> int:
    """Number to read after: a job that has ended always gives its final event (again)."""
    return min(last_event, job.last_event - 1) if job.state.final else last_event


async def remaining_s(runtime: Runtime, job: Job) -> float:
    """Seconds to a job's deadline by Redis' clock, never negative. Raises `RedisError`."""
    return max(0.0, (job.deadline_ms - await redis_now_ms(runtime.redis)) / 1000)


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Result of `work`, cancelled with `ClientDisconnect` when the connection closes. The body must have been read."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        left: set[asyncio.Task[Any]] = {task, gone}
        while left:  # a cancellation can get lost in a library's `asyncio.wait_for` (Python 3.11)
            for one in left:
                one.cancel()
            done, left = await asyncio.wait(left, timeout=_AGAIN_S)
            for one in done:
                _ = one.cancelled() or one.exception()  # seen: nobody else asks


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
