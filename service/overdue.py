"""Overdue jobs are ended also while no worker is alive: open for ever, they would keep new ones out.

Workers' sweepers do it otherwise (`worker/sweeper.py`), and whoever waits for a job or asks for it ends that one.
"""

from __future__ import annotations

import asyncio
import logging
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.workers import Workers, redis_now_ms
from worker.contract import OPEN_KEY, SWEEPER_LOCK_KEY, job_key
from worker.ledger import execute_async, expire

logger = logging.getLogger("erase.service")

EVERY_S = 5.0
_AT_ONCE = 200


async def end_overdue_jobs(client: Redis, workers: Workers, name: str) -> None:
    """Look every five seconds, in one service process at a time; never returns."""
    while True:
        await asyncio.sleep(EVERY_S)
        try:
            if await workers.alive() or not await client.set(SWEEPER_LOCK_KEY, name, nx=True, px=int(EVERY_S * 900)):
                continue
            if ended := await end_overdue(client):
                logger.warning("no worker is alive: %d jobs passed their deadline", ended)
        except (RedisError, OSError) as error:
            logger.warning("overdue jobs cannot be looked for (%s); trying again", type(error).__name__)


async def end_overdue(client: Redis) -> int:
    """End every open job whose deadline has passed; returns how many. Raises `RedisError`."""
    now_ms = await redis_now_ms(client)
    # A job is checked at its deadline at the latest, so whatever is overdue is due.
    due = cast("list[bytes]", await client.zrangebyscore(OPEN_KEY, "-inf", now_ms))
    ended = 0
    for start in range(0, len(due), _AT_ONCE):
        ids = [job_id.decode() for job_id in due[start : start + _AT_ONCE]]
        pipeline = client.pipeline(transaction=False)
        for job_id in ids:
            pipeline.hget(job_key(job_id), "deadline_ms")
        deadlines = await pipeline.execute(raise_on_error=False)
        for job_id, deadline in zip(ids, deadlines, strict=True):
            if isinstance(deadline, bytes) and int(deadline) <= now_ms:
                state = await execute_async(client, expire(job_id))
                ended += state is not None and state.final
    return ended
