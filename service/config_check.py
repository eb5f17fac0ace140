"""`erase-serve config check`: what of this configuration cannot start, and can Redis keep what it promises?

It runs where only the service is installed, too, so what takes the model (policy, device) is not looked at.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.auth import KeyRing
from service.durability import Durability, NotDurableError
from service.fetching import ImageFetcher
from service.problems import UnavailableError
from worker.failpoints import Failpoints
from worker.ledger import NewJob
from worker.settings import PREFIX, Settings

SECRET = frozenset({"api_keys", "redis_url"})
JOB_BYTES = 8 * 1024
"""What the ledger keeps of a job beside its images (docs/runbook.md says how it was measured)."""
TRACE_BYTES = 256
"""What it keeps when the result has expired: the place in its owner's list, and that there was a job."""
IMAGE_SLACK_S = NewJob.image_ttl_slack_ms / 1000
USUAL_IMAGE_BYTES = 500_000
OWN_SHARE = 1.25
"""Redis' own share of what it stores: structures, fragments, buffers."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Literal["ok", "warning", "error"]
    text: str


def check(settings: Settings, redis_url: str | None) -> int:
    """Print what was found; 0 if nothing stands against a start, 1 if something does.

    `redis_url` None: there is no Redis yet, `erase-serve up` would start its own.
    """
    if redis_url is None:
        redis = [Finding("warning", "ERASE_REDIS_URL is not set: `erase-serve up` starts a Redis of its own")]
    else:
        redis = asyncio.run(_redis(settings, redis_url))
    findings = [*_not_default(settings), *_parts(settings), *redis]
    for finding in findings:
        print(f"{finding.level:<8} {finding.text}", file=sys.stderr if finding.level == "error" else sys.stdout)
    return int(any(finding.level == "error" for finding in findings))


def _not_default(settings: Settings) -> Iterator[Finding]:
    for name in sorted(settings.model_fields_set):
        value = "(set)" if name in SECRET else getattr(settings, name)
        yield Finding("ok", f"{PREFIX}{name.upper()} = {value}")


def _parts(settings: Settings) -> Iterator[Finding]:
    yield from _try("keys", lambda: KeyRing(settings))
    if not settings.keys_configured:
        yield Finding("warning", "no API keys: everybody who reaches this machine's loopback may ask")
    yield from _try("image hosts", lambda: ImageFetcher(settings))
    if not settings.image_hosts:
        yield Finding("ok", "image URLs are not fetched")
    yield _model(settings)
    if settings.failpoints:
        yield from _try("failpoints", lambda: Failpoints(settings.failpoints))
        yield Finding("warning", "ERASE_FAILPOINTS is for tests: processes will kill or stop themselves")


def _try(what: str, make: Callable[[], object]) -> Iterator[Finding]:
    try:
        make()
    except (OSError, ValueError) as error:
        yield Finding("error", str(error))
    else:
        yield Finding("ok", f"{what} can be used")


def _model(settings: Settings) -> Finding:
    """Without loading it, and so without torch: this runs where only the service is installed, too."""
    if settings.model == "demo":
        found = importlib.util.find_spec("erase") is not None
        return Finding("ok", "the bundled demo model") if found else Finding("warning", "no model is installed here")
    folder = Path(settings.model)
    if folder.is_dir():
        if not any(folder.glob("*.safetensors")):
            return Finding("error", f"ERASE_MODEL: {folder} has no safetensors files")
        return Finding("ok", f"model folder {folder}")
    if settings.model.startswith((os.sep, ".")):
        # The service knows the setting, too, but only a worker needs the folder.
        here = importlib.util.find_spec("torch") is not None
        return Finding("error" if here else "warning", f"ERASE_MODEL: no model folder {folder} here")
    if settings.model_revision is None:
        return Finding("error", f"ERASE_MODEL: {settings.model} is a hub id, which needs ERASE_MODEL_REVISION")
    return Finding("ok", f"model {settings.model} from the hub")


async def _redis(settings: Settings, url: str) -> list[Finding]:
    try:
        client = Redis.from_url(url, socket_connect_timeout=3, socket_timeout=3)
    except ValueError:  # whose text may hold a part of the password
        return [Finding("error", "ERASE_REDIS_URL cannot be read as a URL")]
    async with client:
        try:
            how = await Durability(client, settings.durability).check()
            memory = await client.info("memory")
        except NotDurableError as error:
            return [Finding("error", error.reason)]
        except UnavailableError as error:
            return [Finding("error", error.detail)]
        except RedisError as error:
            return [Finding("error", f"Redis does not tell its memory: {type(error).__name__}")]
    found = [Finding("ok", f"Redis is reachable; accepted jobs are kept ({how.value})")]
    return [*found, _memory(settings, int(memory.get("maxmemory", 0)))]


def _memory(settings: Settings, most: int) -> Finding:
    if not most:
        return Finding("warning", "Redis has no maxmemory: uploads can take all memory of its machine")
    per_job = occupied(settings, USUAL_IMAGE_BYTES)
    rate = most * (1 - settings.redis_headroom) / OWN_SHARE / per_job
    text = f"Redis has {most / 2**20:.0f} MiB: enough for {rate:.2g} jobs a second with one image of 500 kB each"
    return Finding("ok", text)


def occupied(settings: Settings, image_bytes: int) -> float:
    """Byte-seconds that a job occupies in Redis: its image, its record until the result is forgotten, and a trace."""
    image_s = settings.timeout_s + IMAGE_SLACK_S
    record = JOB_BYTES * (settings.timeout_s + settings.result_ttl_s)
    return image_bytes * image_s + record + TRACE_BYTES * settings.jobs_listed_s
