"""The least that a FastAPI service with a Redis queue does: what ours is measured against, in two processes.

    python -m bench.bare service PORT   |   python -m bench.bare worker

The service reads the same form, stores the image in Redis, pushes a job id onto a list and waits for the reply; the
worker pops ids and pushes replies. No validation, no ledger, no durability, no Celery, no metrics.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
from typing import Any

import redis
import redis.asyncio
import uvicorn
from fastapi import FastAPI, File, Form, UploadFile

QUEUE = "bare:queue"


def make_service(redis_url: str) -> FastAPI:
    """One route: store, push, wait, answer."""
    app = FastAPI()
    pool: Any = redis.asyncio.BlockingConnectionPool.from_url(redis_url, max_connections=200, socket_timeout=None)
    client = redis.asyncio.Redis.from_pool(pool)
    numbers = itertools.count()

    @app.post("/v1/ask")
    async def ask(image: UploadFile = File(), prompt: str = Form()) -> dict[str, str]:  # noqa: B008
        data = await image.read()
        job = f"{os.getpid()}:{next(numbers)}"
        pipeline = client.pipeline(transaction=False)
        pipeline.set(f"bare:image:{hashlib.sha256(data).hexdigest()}", data, ex=600)
        pipeline.lpush(QUEUE, f"{job} {prompt}")
        await pipeline.execute()
        reply: Any = await client.brpop([f"bare:reply:{job}"], timeout=60)
        return {"id": job, "answer": reply[1].decode()}

    @app.get("/readyz")
    async def readyz() -> None:
        await client.ping()

    return app


def work(redis_url: str) -> None:
    """Answer jobs until the process ends."""
    client = redis.Redis.from_url(redis_url, socket_timeout=None)
    while True:
        popped: Any = client.brpop([QUEUE])
        job = popped[1].decode().split()[0]
        client.lpush(f"bare:reply:{job}", "42")


if __name__ == "__main__":
    url = os.environ["ERASE_REDIS_URL"]
    if sys.argv[1] == "worker":
        work(url)
    else:
        uvicorn.run(make_service(url), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
