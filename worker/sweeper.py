"""The rescue of open jobs: lost wake-ups are sent again, dead workers' jobs handed on, overdue jobs ended."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import redis
from redis.exceptions import RedisError, ResponseError

from worker import ledger
from worker.contract import OPEN_KEY, SWEEPER_LOCK_KEY, WORKERS_KEY
from worker.emitter import PASSING_REFUSALS
from worker.failpoints import nowhere

log = logging.getLogger(__name__)
JOBS_AT_ONCE = 200
FORGET_WORKER_AFTER_MS = 600_000
_LOCK = 0.9
"""Share of the time between two sweeps for which a worker keeps the others from sweeping."""
_SHARE = 0.8
"""Share of it after which a sweep takes no more jobs."""


class Sweeper:
    """Runs in every worker; a short lock lets one of them sweep at a time.

    `wake(job_id, queue, first)` sends a wake-up, to the head of the queue if `first`.
    """

    def __init__(
        self,
        client: redis.Redis,
        wake: Callable[[str, str, bool], None],
        *,
        name: str,
        every_s: float,
        wake_after_s: float,
        max_attempts: int,
        reach: Callable[[str], None] = nowhere,
    ) -> None:
        self._client = client
        self._reach = reach
        self._wake = wake
        self._name = name
        self._every = every_s
        self._wake_after_ms = int(wake_after_s * 1000)
        self._max_attempts = max_attempts
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="sweeper", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _loop(self) -> None:
        while not self._stop.wait(self._every):
            try:
                if self._client.set(SWEEPER_LOCK_KEY, self._name, nx=True, px=max(1, int(self._every * 1000 * _LOCK))):
                    self.sweep()
            except RedisError as error:
                log.warning("cannot sweep: %s", error)
            except Exception:
                log.exception("the sweep failed")

    def sweep(self) -> int:
        """Check the jobs that are due, as many as the time of the lock allows; returns how many wake-ups were sent."""
        now_ms = redis_now_ms(self._client)
        self._reach("before_sweep")
        until = time.monotonic() + self._every * _SHARE
        woken = unreadable = 0
        while True:
            # What was checked is due later, so only those that cannot be read stay in front.
            page = self._client.zrangebyscore(OPEN_KEY, "-inf", now_ms, start=unreadable, num=JOBS_AT_ONCE)
            due = [raw.decode() for raw in cast("list[Any]", page)]
            for job_id in due:
                try:
                    swept = self._check(job_id, now_ms)
                except PASSING_REFUSALS:
                    raise
                except ResponseError:
                    log.exception("job %s cannot be checked; the sweep goes on", job_id)
                    unreadable += 1
                    continue
                woken += self._act(job_id, swept)
            if len(due) < JOBS_AT_ONCE or time.monotonic() > until or self._stop.is_set():
                break
        self._forget_dead_workers(now_ms)
        return woken

    def _check(self, job_id: str, now_ms: int) -> ledger.Swept:
        return ledger.execute(self._client, ledger.sweep(job_id, self._wake_after_ms, self._max_attempts, now_ms))

    def _act(self, job_id: str, swept: ledger.Swept) -> bool:
        """Say what became of a job, and wake a worker if it needs one; whether that was so."""
        if swept.action == "ended":
            log.warning("job %s ended as %s", job_id, swept.subject)
        if swept.action != "wake":
            return False
        self._reach("before_wake")
        self._wake(job_id, swept.subject, swept.first)
        log.info("job %s was without a worker: woken again", job_id)
        return True

    def _forget_dead_workers(self, now_ms: int) -> None:
        workers = cast("dict[bytes, bytes]", self._client.hgetall(WORKERS_KEY))
        for worker, info in workers.items():
            try:
                forgotten = json.loads(info)["heartbeat_ms"] < now_ms - FORGET_WORKER_AFTER_MS
            except (ValueError, KeyError, TypeError):
                forgotten = True
            if forgotten:
                self._client.hdel(WORKERS_KEY, worker)


def redis_now_ms(client: redis.Redis) -> int:
    """Redis' clock in Unix milliseconds, the only clock that jobs know."""
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000
