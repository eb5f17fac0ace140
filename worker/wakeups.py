"""A wake-up as Celery reads it: a task message, protocol 2, in the envelope of kombu's Redis transport.

`accept` pushes it in the same step in which the job comes into being. Through Celery's own producer each request
would pay a thread and a second round trip for it, and a crash between the two would cost the job a rescue. The sweeper
sends it again, for jobs that have been worked on to the head of the queue, which Celery's producer cannot do.
"""

from __future__ import annotations

import base64
import json
import uuid

import redis

from worker.contract import queue_task


def send_wakeup(client: redis.Redis, job_id: str, queue: str, first: bool) -> None:
    """Put a wake-up for a job into a queue; `first`: to be fetched next. Raises `RedisError`."""
    push = client.rpush if first else client.lpush
    push(queue, wakeup_message(job_id, queue))


def wakeup_message(job_id: str, queue: str) -> str:
    """The message that wakes a worker for a job, as it lies in the queue's Redis list."""
    message_id = str(uuid.uuid4())
    embedded = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    body = json.dumps([[job_id], {}, embedded])
    return json.dumps(
        {
            "body": base64.b64encode(body.encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": queue_task(queue),
                "id": message_id,
                "root_id": message_id,
                "parent_id": None,
                "group": None,
                "group_index": None,
                "shadow": None,
                "eta": None,
                "expires": None,
                "retries": 0,
                "timelimit": [None, None],
                "argsrepr": "",
                "kwargsrepr": "",
                "origin": "erase-service",
                "ignore_result": True,
                "replaced_task_nesting": 0,
                "stamped_headers": None,
                "stamps": {},
            },
            "properties": {
                "correlation_id": message_id,
                "reply_to": "",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    )
