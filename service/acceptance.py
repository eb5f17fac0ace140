"""Making a question a job that cannot get lost: images under their claim check, `accept`, proof that it is on disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any

from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.admission import JOBS_FULL, PIXELS_FULL
from service.durability import Confirmation
from service.problems import (
    IdempotencyMismatchError,
    OpenJobsLimitError,
    QueueFullError,
    ServiceError,
    StorageFullError,
    UnavailableError,
)
from service.runtime import Runtime
from worker.contract import image_key
from worker.ledger import Accepted, NewJob, accept, cancel, execute_async, pixels_of, script_source

logger = logging.getLogger("erase.service")

UPLOAD_TTL_S = 600
"""How long an image waits for its job; `accept` extends it."""
CONFIRM_MS = 2_000
_ATTEMPTS = 2
NO_FILES: Mapping[str, bytes] = MappingProxyType({})
_TAKE_BACK_AFTER_S = (0.0, 0.2, 1.0, 3.0, 10.0)


async def attach_job(runtime: Runtime, job: NewJob) -> Accepted | None:
    """Attach to the job that the Idempotency-Key stands for, before anything is fetched or stored.

    A new question whose images are stored already is accepted; None if they are not. Raises what `accept_job` raises.
    """
    return await _accepted(runtime, job, await runtime.durability.ensure())


async def accept_job(runtime: Runtime, job: NewJob, files: Mapping[str, bytes]) -> Accepted:
    """Accept a job durably; the reply's status is accepted or attached.

    Raises `IdempotencyMismatchError`, `OpenJobsLimitError`, `QueueFullError`, `StorageFullError` or
    `UnavailableError`. Then there is no job, or, if Redis did not confirm it in time, one that is taken back. With an
    Idempotency-Key it stays: whoever asks again with the key attaches to it.
    """
    confirmation = await runtime.durability.ensure()
    await runtime.admission.check_pixels(job.owner, pixels_of(job.request))
    await runtime.admission.take_memory(sum(map(len, files.values())))
    for _ in range(_ATTEMPTS):
        runtime.failpoints.reach("before_store")
        # An image can expire between storing and accepting: store it once more.
        if (accepted := await _accepted(runtime, job, confirmation, files)) is not None:
            runtime.metrics.image_bytes.inc(sum(map(len, files.values())))
            return accepted
    raise UnavailableError("An image vanished before the job was accepted.")


async def _accepted(
    runtime: Runtime, job: NewJob, confirmation: Confirmation, files: Mapping[str, bytes] = NO_FILES
) -> Accepted | None:
    """The reply of `accept`, None if an image is missing. Raises what `accept_job` raises."""
    accepted, confirmed = await _accept_surely(runtime, job, confirmation, files)
    if accepted.status == "full" and accepted.subject != "jobs" and await runtime.admission.recount(job.owner):
        accepted, confirmed = await _accept_surely(runtime, job, confirmation, files)
    match accepted.status:
        case "mismatch":
            raise IdempotencyMismatchError("The Idempotency-Key was already used with another body.")
        case "full":
            raise _full(accepted.subject)
        case "missing":
            return None
    runtime.failpoints.reach("after_accept")
    if not confirmed and (accepted.status == "accepted" or job.detached):
        logger.error("an accepted job was not confirmed on disk")
        await _take_back(runtime, job)
        raise UnavailableError("The job could not be stored safely.")
    return accepted


def _refused(error: RedisError) -> ServiceError:
    if isinstance(error, OutOfMemoryError):
        return StorageFullError()
    return UnavailableError("The request could not be stored at the moment.")


def _full(what: str) -> ServiceError:
    if what == "owner":
        return OpenJobsLimitError("As many jobs of this key are open as it may have.")
    return QueueFullError(PIXELS_FULL if what == "pixels" else JOBS_FULL)


def _store_images(pipeline: Pipeline, files: Mapping[str, bytes]) -> None:
    for sha256, data in files.items():
        pipeline.set(image_key(sha256), data, ex=UPLOAD_TTL_S, nx=True)
        pipeline.expire(image_key(sha256), UPLOAD_TTL_S, gt=True)


async def _accept_surely(
    runtime: Runtime, job: NewJob, confirmation: Confirmation, files: Mapping[str, bytes]
) -> tuple[Accepted, bool]:
    """Accept, again if the connection broke: the script recognises its own job."""
    for last in (False, True):
        try:
            return await _accept_once(runtime, job, confirmation, files)
        except (RedisConnectionError, RedisTimeoutError, OSError):
            if last:
                # Nobody knows whether it was accepted, and the client is told that it was not.
                runtime.spawn(_take_back(runtime, job))
                raise UnavailableError("The job could not be stored.") from None
        except RedisError as error:
            logger.error("accept failed: %s", type(error).__name__)
            raise _refused(error) from None
    raise AssertionError("unreachable")


async def _accept_once(
    runtime: Runtime, job: NewJob, confirmation: Confirmation, files: Mapping[str, bytes]
) -> tuple[Accepted, bool]:
    """Store the images and accept the job, in one round trip."""
    transition = accept(job)
    refusals: list[Exception] = []
    for source in (None, script_source(transition.script)):
        # WAITAOF speaks of the connection's own writes, so both travel in one pipeline.
        pipeline = runtime.redis.pipeline(transaction=False)
        _store_images(pipeline, files)
        if source is None:
            pipeline.evalsha(transition.sha1, 0, *transition.arguments)
        else:
            pipeline.eval(source, 0, *transition.arguments)
        if confirmation is Confirmation.WAITAOF:
            pipeline.execute_command("WAITAOF", 1, 0, CONFIRM_MS)
        with runtime.nudge.hurrying():
            replies = await pipeline.execute(raise_on_error=False)
        stored = 2 * len(files)
        reply, *synced = replies[stored:]
        if isinstance(reply, NoScriptError) and source is None:
            refusals = [one for one in replies[:stored] if isinstance(one, Exception)]
            files = NO_FILES
            continue
        if isinstance(reply, Exception):
            raise reply
        accepted = transition.parse(reply)
        refusals += [one for one in replies[:stored] if isinstance(one, Exception)]
        if accepted.status == "missing" and refusals:
            raise refusals[0]
        return accepted, _is_confirmed(synced, confirmation)
    raise AssertionError("unreachable")


def _is_confirmed(synced: list[Any], confirmation: Confirmation) -> bool:
    if confirmation is not Confirmation.WAITAOF:
        return True
    return isinstance(synced[0], list) and int(synced[0][0]) >= 1


async def _take_back(runtime: Runtime, job: NewJob) -> None:
    """Cancel a job whose client was refused. With a key it stays: who asks again has attached to it, or will."""
    if job.idempotency_key:
        return
    for pause in _TAKE_BACK_AFTER_S:
        await asyncio.sleep(pause)
        with suppress(RedisError, OSError):
            if await execute_async(runtime.redis, cancel(job.id)) is not None:
                return
