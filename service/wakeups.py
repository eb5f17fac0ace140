"""Wake-ups: Celery messages that carry only a job id. The ledger is the truth, so losing one costs time, not a job."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from worker.contract import BROKER_TRANSPORT_OPTIONS, queue_task
from worker.failpoints import nowhere

logger = logging.getLogger("erase.service")

_THREADS = 4


class Wakeups:
    """A producer-only Celery application whose blocking calls run in a few threads of their own."""

    def __init__(self, broker_url: str, on_failure: Callable[[], None], reach: Callable[[str], None] = nowhere) -> None:
        # Imported here: Celery's class costs more to import than the rest of this package.
        from celery import Celery

        self._on_failure = on_failure
        self._reach = reach
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="wakeup")
        self._celery: Any = Celery("erase-service", broker=broker_url, set_as_current=False)
        self._celery.conf.update(
            task_serializer="json",
            accept_content=["json"],
            result_backend=None,
            task_ignore_result=True,
            task_create_missing_queues=True,
            broker_transport_options=BROKER_TRANSPORT_OPTIONS,
            broker_connection_timeout=3,
            broker_pool_limit=_THREADS,
        )

    async def send(self, job_id: str, queue: str) -> None:
        """Wake a worker for an accepted job. A failure is logged and counted; the sweeper sends it again."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, self._publish, job_id, queue)
        except Exception as error:
            # The job is accepted, so whatever went wrong here must not reach the client.
            logger.warning("wake-up for %s was not sent (%s); the sweeper will", job_id, type(error).__name__)
            self._on_failure()

    def _publish(self, job_id: str, queue: str) -> None:
        self._reach("before_wakeup")
        self._celery.send_task(
            queue_task(queue),
            args=[job_id],
            queue=queue,
            ignore_result=True,
            retry=True,
            retry_policy={"max_retries": 1, "interval_start": 0.05, "interval_max": 0.2},
        )
        self._reach("after_wakeup")

    def close(self) -> None:
        """Drop what is still to be sent and close the connections."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._celery.close()
