"""A worker whose engine answers at once: everything of a real one but images, model and decoding.

    python -m bench.instant_worker

It takes the same Celery wake-ups, leases, emits and finishes jobs by the same transitions, and sends a heartbeat, so
what is measured with it is the way of a request and nothing else. `BENCH_ENGINE_S` makes each job take so many seconds.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
import time

import redis

from worker import ledger
from worker.app import consume, make_app
from worker.contract import (
    WORKERS_KEY,
    Answer,
    EventType,
    ImageReport,
    Outcome,
    Plan,
    PruningReport,
    Timings,
    TokenPayload,
    Usage,
    VisionTokens,
    WorkerInfo,
)
from worker.ledger import Job, execute
from worker.settings import Settings, load_settings
from worker.sweeper import redis_now_ms

NAME = f"instant-{os.getpid()}"
ANSWER = "42"
_PLAN = Plan(model="instant", model_revision="0", policy="none", policy_settings=None, retention=None, seed=0)


class InstantWorker:
    """Runs jobs in Celery's threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.app = make_app(settings, self.run)
        self.seconds = float(os.environ.get("BENCH_ENGINE_S", "0"))
        self._client = redis.Redis.from_url(settings.redis_url)
        threading.Thread(target=self._beat, daemon=True).start()

    def run(self, job_id: str) -> None:
        """Lease, freeze, one token, finish."""
        settings = self.settings
        holder = f"{NAME}/{secrets.token_hex(4)}"
        job = execute(
            self._client, ledger.lease(job_id, holder, int(settings.lease_s * 1000), settings.max_attempts)
        ).job
        if job is None:
            return
        execute(self._client, ledger.freeze(job_id, job.attempt, _PLAN))
        if self.seconds:
            time.sleep(self.seconds)
        token = TokenPayload(text=ANSWER, ids=(42,)).model_dump_json()
        execute(self._client, ledger.emit(job_id, job.attempt, job.last_event + 1, EventType.TOKEN, token))
        execute(self._client, ledger.finish(job_id, job.attempt, Outcome(answer=_answer(job))))

    def _beat(self) -> None:
        while True:
            now = redis_now_ms(self._client)
            info = WorkerInfo(
                worker=NAME,
                contract=self.settings.contract,
                model="instant",
                model_revision="0",
                device="none",
                dtype="none",
                context_length=4096,
                cell=28,
                max_image_pixels=self.settings.max_image_pixels,
                policies=(),
                default_policy="none",
                slots=self.settings.interactive_slots + self.settings.batch_slots,
                running=0,
                started_ms=now,
                heartbeat_ms=now,
            )
            self._client.hset(WORKERS_KEY, NAME, info.model_dump_json())
            time.sleep(5)


def _answer(job: Job) -> Answer:
    return Answer(
        id=job.id,
        answer=ANSWER,
        finish_reason="stop",
        model="instant",
        usage=Usage(
            prompt_tokens=20,
            completion_tokens=1,
            vision_tokens=VisionTokens(input=64, after_stage1=64, kept=64, layer_average=64.0),
            token_reduction=0.0,
        ),
        pruning=PruningReport(policy="none", requested=None, final=1.0, layer_average=1.0),
        images=tuple(
            ImageReport(width=i.width, height=i.height, tokens=64, complexity=0.0) for i in job.request.images
        ),
        timings_ms=Timings(queue=0, preprocess=0, encode=0, prefill=0, decode=0, first_token=0, total=0),
    )


def main() -> int:
    """Serve until SIGTERM."""
    settings = load_settings()
    return consume(InstantWorker(settings).app, settings, NAME, "warning")


if __name__ == "__main__":
    sys.exit(main())
