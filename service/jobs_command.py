"""`erase-serve jobs`: look at jobs in the ledger, ask dead letters again, forget what has ended."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import redis

from worker.contract import DEAD_KEY, OPEN_KEY, job_key, owner_jobs_key
from worker.ledger import Job, JobSummary, cancel, drop, execute, requeue, summarize
from worker.settings import Settings

_SHOWN = ("id", "owner", "state", "priority", "attempt", "accepted", "age", "problem")
_JOBS_PER_READ = 500


def run(options: Namespace, settings: Settings, client: redis.Redis) -> int:
    """Run a subcommand; 0 on success, 1 if a job was not found or could not be changed. Raises `RedisError`."""
    match options.action:
        case "list":
            return _list(options, client)
        case "show":
            return _show(options, client)
        case "requeue":
            return _requeue(options, settings, client)
        case _:
            return _drop(options, client)


def _list(options: Namespace, client: redis.Redis) -> int:
    if options.owner is None and options.state not in (None, "open", "dead"):
        print("erase-serve: --state needs --owner, unless it is open or dead", file=sys.stderr)
        return 2
    jobs = _wanted(options, client)[: max(0, options.limit)]
    if options.json:
        for job in jobs:
            print(json.dumps(job.__dict__))
        return 0
    rows = [_SHOWN, *map(_row, jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_SHOWN))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if not jobs:
        print("no jobs")
    return 0


def _wanted(options: Namespace, client: redis.Redis) -> list[JobSummary]:
    if options.owner is not None:
        found = client.zrevrangebylex(owner_jobs_key(options.owner), "+", "-")
    else:
        found = cast("list[Any]", client.zrange(OPEN_KEY, 0, -1)) if options.state != "dead" else []
    ids = [job_id.decode() for job_id in cast("list[bytes]", found)]
    if options.owner is None and options.state != "open":
        ids = [*_dead(client), *ids]
    jobs = [
        job
        for start in range(0, len(ids), _JOBS_PER_READ)
        for job in summarize(client, ids[start : start + _JOBS_PER_READ])
    ]
    return [job for job in jobs if _has_state(job, options.state)]


def _dead(client: redis.Redis) -> list[str]:
    """Dead letters whose result has not expired."""
    return [
        job_id.decode() for job_id in cast("list[bytes]", client.zrangebyscore(DEAD_KEY, time.time() * 1000, "+inf"))
    ]


def _has_state(job: JobSummary, state: str | None) -> bool:
    return state is None or job.state == state or (state == "open" and not job.state.final)


def _row(job: JobSummary) -> tuple[str, ...]:
    accepted = datetime.fromtimestamp(job.accepted_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    age = f"{max(0.0, time.time() - job.accepted_ms / 1000):.0f} s"
    problem = (job.problem or "").rpartition(":")[2]
    return job.id, job.owner, job.state.value, job.priority.value, str(job.attempt), accepted, age, problem


def _show(options: Namespace, client: redis.Redis) -> int:
    fields = cast("dict[bytes, bytes]", client.hgetall(job_key(options.job)))
    if not fields:
        return _unknown(options.job)
    job = Job.from_fields({name.decode(): value.decode() for name, value in fields.items()})
    hidden: Any = None if options.text else {"prompt": True, "messages": True, "generation": {"stop"}}
    value = {
        "id": job.id,
        "owner": job.owner,
        "state": job.state.value,
        "priority": job.priority.value,
        "contract": int(fields[b"version"]),
        "attempt": job.attempt,
        "request_id": job.request_id,
        "trace": job.trace,
        "accepted_ms": job.accepted_ms,
        "deadline_ms": job.deadline_ms,
        "leased_ms": job.leased_ms,
        "finished_ms": job.finished_ms,
        "events": job.last_event,
        "request": job.request.model_dump(mode="json", exclude_defaults=True, exclude=hidden),
        "plan": job.plan and job.plan.model_dump(mode="json"),
        "problem": job.outcome and job.outcome.problem and job.outcome.problem.model_dump(exclude_none=True),
        "answer": job.outcome
        and job.outcome.answer
        and job.outcome.answer.model_dump(mode="json", exclude=None if options.text else {"answer"}),
    }
    print(json.dumps({name: entry for name, entry in value.items() if entry not in (None, "")}, indent=2))
    return 0


def _requeue(options: Namespace, settings: Settings, client: redis.Redis) -> int:
    if bool(options.job) == options.all:
        print("erase-serve: name jobs, or --all for every dead letter", file=sys.stderr)
        return 2
    timeout_s = settings.max_timeout_s if options.timeout_s is None else options.timeout_s
    if not 0 < timeout_s <= settings.max_timeout_s:
        print(f"erase-serve: --timeout-s: above 0, at most {settings.max_timeout_s:g}", file=sys.stderr)
        return 2
    if options.all:
        ids: Sequence[str] = _dead(client)
    else:
        ids = options.job
    failed = 0
    for job_id in ids:
        image_ttl_s = timeout_s + settings.dead_ttl_s  # should it die again
        step = requeue(job_id, round(timeout_s * 1000), round(image_ttl_s * 1000), settings.jobs_listed_s * 1000)
        status, state = execute(client, step)
        if status == "gone":
            failed |= _unknown(job_id)
        elif status == "missing":
            failed |= _say(f"{job_id}: an image of it has expired; it cannot be asked again")
        elif status == "not-dead":
            failed |= _say(f"{job_id}: is {state}, not dead")
        else:
            print(f"{job_id}: waits again, for {timeout_s:g} s")
    return failed


def _drop(options: Namespace, client: redis.Redis) -> int:
    failed = 0
    for job_id in options.job:
        if execute(client, cancel(job_id)) is None:
            failed |= _unknown(job_id)
            continue
        if execute(client, drop(job_id)) is not None:
            failed |= _say(f"{job_id}: was asked again meanwhile")
            continue
        print(f"{job_id}: forgotten")
    return failed


def _unknown(job_id: str) -> int:
    return _say(f"{job_id}: no such job; its result may have expired")


def _say(text: str) -> int:
    print(f"erase-serve: {text}", file=sys.stderr)
    return 1
