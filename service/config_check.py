"""`erase-serve config check`: would this configuration start, and can Redis keep what it promises?"""

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
from service.durability import Durability
from service.fetching import ImageFetcher
from service.problems import UnavailableError
from worker.settings import PREFIX, Settings

SECRET = frozenset({"api_keys", "redis_url"})
JOB_BYTES = 8 * 1024
"""What the ledger keeps of a job beside its images, measured with the demo model (docs/runbook.md)."""
OWN_SHARE = 1.25
"""Redis' own share of what it stores: structures, fragments, buffers."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Literal["ok", "warning", "error"]
    text: str


def check(settings: Settings) -> int:
    """Print what was found; 0 if everything can start, 1 if something cannot."""
    findings = [*_not_default(settings), *_parts(settings), *asyncio.run(_redis(settings))]
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
        yield Finding("warning", "ERASE_FAILPOINTS is for tests: workers will kill themselves")


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
    if os.sep in settings.model and settings.model.startswith((os.sep, ".")):
        return Finding("error", f"ERASE_MODEL: no model folder {folder}")
    if settings.model_revision is None:
        return Finding("error", f"ERASE_MODEL: {settings.model} is a hub id, which needs ERASE_MODEL_REVISION")
    return Finding("ok", f"model {settings.model} from the hub")


async def _redis(settings: Settings) -> list[Finding]:
    try:
        client = Redis.from_url(settings.redis_url, socket_connect_timeout=3, socket_timeout=3)
    except ValueError as error:
        return [Finding("error", f"ERASE_REDIS_URL: {error}")]
    async with client:
        try:
            how = await Durability(client, settings.durability).check()
            memory = await client.info("memory")
        except UnavailableError as error:
            return [Finding("error", error.detail)]
        except RedisError as error:
            return [Finding("error", f"Redis does not tell its memory: {type(error).__name__}")]
    found = [Finding("ok", f"Redis is reachable; accepted jobs are kept ({how.value})")]
    return [*found, _memory(settings, int(memory.get("maxmemory", 0)))]


def _memory(settings: Settings, most: int) -> Finding:
    if not most:
        return Finding("warning", "Redis has no maxmemory: uploads can take all memory of its machine")
    usable = most * (1 - settings.redis_headroom)
    mean = usable / OWN_SHARE / settings.max_open_jobs - JOB_BYTES
    text = f"Redis has {most / 2**20:.0f} MiB"
    if mean <= 0:
        return Finding("warning", f"{text}: too few for ERASE_MAX_OPEN_JOBS={settings.max_open_jobs}")
    return Finding("ok", f"{text}: {settings.max_open_jobs} open jobs fit with images of {mean / 1024:.0f} KiB each")
