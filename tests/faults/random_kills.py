"""Kill and stop processes at random under load, then hold every job against the ledger.

    python -m tests.faults.random_kills --kills 200

Two workers and a service are under load from clients that repeat a request with its Idempotency-Key until it is
answered. Every so often one process, Redis sometimes, gets SIGKILL and is started again, or SIGSTOP and later SIGCONT.
At the end each request must have one job, each job one outcome, and the outcome must be the right answer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import redis

from erase.bar import progress_bar
from service.processes import Child
from tests.system.deployment import Question, bundled_questions, free_port, until
from tests.system.forked import FastDeployment
from worker.contract import COUNTERS_KEY, OPEN_KEY, Outcome, job_key, owner_jobs_key
from worker.ledger import read_events

SETTINGS = {
    "ERASE_LEASE_S": "2",
    "ERASE_WAKE_AFTER_S": "0.5",
    "ERASE_SWEEP_EVERY_S": "0.2",
    # A process that is killed often must not use up the attempts of a job that did nothing wrong.
    "ERASE_MAX_ATTEMPTS": "50",
    "ERASE_TIMEOUT_S": "300",
}
PAUSE_S = (0.3, 1.5)
HANG_S = (0.5, 4.0)
REDIS_SHARE = 0.1
STOP_SHARE = 0.4
PATIENCE_S = 120.0


@dataclass
class Request:
    """One question of a client, and how it went."""

    key: str
    question: Question
    seconds: float = 0.0
    tries: int = 0
    job_id: str = ""
    answer: str = ""
    error: str = ""


@dataclass
class Report:
    """What happened. Times in seconds."""

    kills: Counter[str] = field(default_factory=Counter)
    requests: list[Request] = field(default_factory=list)
    rescues: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The figures."""
        times = sorted(self.rescues)
        share = (
            {name: times[min(len(times) - 1, int(q * len(times)))] for name, q in QUANTILES.items()} if times else {}
        )
        return {
            "kills": dict(self.kills),
            "requests": len(self.requests),
            "repeated": sum(request.tries > 1 for request in self.requests),
            "rescued": len(times),
            "rescue_s": {name: round(value, 2) for name, value in share.items()},
            "wrong": self.wrong,
        }


QUANTILES = {"p50": 0.5, "p99": 0.99, "max": 1.0}


class Storm:
    """A deployment under load whose processes do not live long."""

    def __init__(self, folder: Path, seed: int, clients: int) -> None:
        self.random = random.Random(seed)
        self.stack = FastDeployment(folder, **SETTINGS)
        self.report = Report()
        self.port = free_port()
        self.stack.url = f"http://127.0.0.1:{self.port}"
        self._questions = bundled_questions()
        self._ending = threading.Event()
        self._clients = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]
        self._lock = threading.Lock()
        self._numbers = iter(range(10**9))

    def run(self, kills: int) -> Report:
        """Kill so many processes; the figures and what was wrong."""
        parts = {"worker 1": self._worker(), "worker 2": self._worker(), "service": self._service()}
        until(self._ready, what="the start")
        for client in self._clients:
            client.start()
        for _ in progress_bar(range(kills), desc="kills", unit="kill"):
            time.sleep(self.random.uniform(*PAUSE_S))
            name = "redis" if self.random.random() < REDIS_SHARE else self.random.choice(sorted(parts))
            if name == "redis":
                self._kill_redis()
            elif self.random.random() < STOP_SHARE:
                self._hang(name, parts[name])
            else:
                self._kill(name, parts)
        self._ending.set()
        for client in self._clients:
            client.join()
        until(lambda: not self.stack.client.zcard(OPEN_KEY), PATIENCE_S, what="the end of all jobs")
        self._judge()
        return self.report

    def _worker(self) -> Child:
        return self.stack.start_worker(wait=False)

    def _service(self) -> Child:
        return self.stack._start("service", {"ERASE_PORT": str(self.port)})

    def _ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return bool(httpx.get(f"{self.stack.url}/v1/status", trust_env=False, timeout=5).json()["workers"])
        return False

    def _kill(self, name: str, parts: dict[str, Child]) -> None:
        child = parts[name]
        self.report.kills[f"{name.split()[0]} kill"] += 1
        if child.pid is not None:
            os.kill(child.pid, signal.SIGKILL)
            until(lambda: not child.running, what="a death")
        parts[name] = self._service() if name == "service" else self._worker()

    def _hang(self, name: str, child: Child) -> None:
        self.report.kills[f"{name.split()[0]} stop"] += 1
        if child.pid is None:
            return
        os.kill(child.pid, signal.SIGSTOP)
        time.sleep(self.random.uniform(*HANG_S))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGCONT)

    def _kill_redis(self) -> None:
        self.report.kills["redis kill"] += 1
        self.stack.redis.kill()
        self.stack.redis.start()

    def _ask(self, number: int) -> None:
        """A client: one question after the other, each repeated with its key until it is answered."""
        chance = random.Random(number)
        while not self._ending.is_set():
            with self._lock:
                request = Request(f"request-{next(self._numbers)}", chance.choice(self._questions))
                self.report.requests.append(request)
            started = time.monotonic()
            while time.monotonic() - started < PATIENCE_S and not request.answer:
                request.tries += 1
                try:
                    self._try(request)
                except (httpx.TransportError, OSError):
                    time.sleep(0.1)
            request.seconds = time.monotonic() - started

    def _try(self, request: Request) -> None:
        question = request.question
        with httpx.Client(base_url=self.stack.url, trust_env=False, timeout=httpx.Timeout(30, connect=2)) as client:
            reply = client.post(
                "/v1/ask",
                files=question.files,
                data={"prompt": question.prompt},
                headers={"Idempotency-Key": request.key},
            )
        if reply.status_code == 200:
            request.job_id, request.answer = reply.json()["id"], reply.json()["answer"]
        elif reply.status_code == 503:
            time.sleep(0.2)
        else:
            request.error = reply.text
            time.sleep(0.5)

    def _judge(self) -> None:
        """Hold every request against the ledger."""
        client, wrong = self.stack.client, self.report.wrong
        for request in self.report.requests:
            if request.answer != request.question.answer:
                wrong.append(f"{request.key}: {request.answer!r} for {request.question.answer!r} {request.error}")
        answered = [request.job_id for request in self.report.requests if request.job_id]
        wrong += [f"{job_id} answered several requests" for job_id, n in Counter(answered).items() if n > 1]
        for raw in client.zrange(owner_jobs_key("anonymous"), 0, -1):  # type: ignore[union-attr]
            self._judge_job(client, raw.decode())

    def _judge_job(self, client: redis.Redis, job_id: str) -> None:
        final = [event for event in read_events(client, job_id) if event.type != "token"]
        state: Any = client.hmget(job_key(job_id), "state", "attempt", "accepted_ms", "finished_ms")
        if len(final) != 1:
            self.report.wrong.append(f"{job_id}: {len(final)} final events, state {state[0]}")
        elif Outcome.model_validate_json(final[0].data).answer is None and state[0] != b"cancelled":
            self.report.wrong.append(f"{job_id}: {state[0]} {final[0].data[:200]}")
        if int(state[1] or 0) > 1:
            self.report.rescues.append((int(state[3]) - int(state[2])) / 1000)

    def close(self) -> None:
        """End everything."""
        self._ending.set()
        self.stack.close()


def main() -> int:
    """Run the storm and print its report as JSON; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.random_kills", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storm = Storm(Path(folder), options.seed, options.clients)
        try:
            report = storm.run(options.kills)
            counters = {name.decode(): int(value) for name, value in storm.stack.client.hgetall(COUNTERS_KEY).items()}  # type: ignore[union-attr]
        finally:
            storm.close()
    print(json.dumps({**report.as_dict(), "counters": counters}, indent=2))
    return int(bool(report.wrong))


if __name__ == "__main__":
    sys.exit(main())
