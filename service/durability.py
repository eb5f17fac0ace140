"""May this Redis be trusted with accepted jobs? Checked before accepting, and again whenever the answer grows old."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from enum import Enum
from typing import Literal

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from service.problems import UnavailableError

logger = logging.getLogger("erase.service")

FIRST_WITH_WAITAOF = (7, 2)
CHECK_TIMEOUT_S = 3.0
GOOD_FOR_S = 5.0


class Confirmation(Enum):
    """How an accepted job is known to be on disk."""

    WAITAOF = "waitaof"
    """ask after each accept (Redis 7.2 and newer, any appendfsync)"""
    ALWAYS = "always"
    """appendfsync always: the reply comes after the write"""
    NONE = "none"
    """durability is switched off"""


class NotDurableError(UnavailableError):
    """This Redis may lose accepted jobs. `reason` names its setting, for operators; clients do not learn it."""

    def __init__(self, reason: str) -> None:
        super().__init__("Accepted requests would not be safe now.")
        self.reason = reason


def judge(version: str, config: dict[str, str], last_write: str = "ok", role: str = "master") -> Confirmation:
    """Decide from Redis' version, configuration, how its last write to the append-only file went, and its role.

    Raises:
        NotDurableError: it may lose accepted jobs.
    """
    if role != "master":
        raise NotDurableError(f"Redis is a {role}, which takes no writes: ERASE_REDIS_URL must lead to the primary.")
    policy = config.get("maxmemory-policy", "unknown")
    if policy != "noeviction":
        raise NotDurableError(f"Redis may evict accepted jobs: maxmemory-policy is {policy}, set noeviction.")
    if config.get("appendonly") != "yes":
        raise NotDurableError("Redis may lose accepted jobs: set appendonly yes.")
    if last_write != "ok":
        raise NotDurableError("Redis cannot write its append-only file: is its disk full?")
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and (int(match[1]), int(match[2])) >= FIRST_WITH_WAITAOF:
        return Confirmation.WAITAOF
    if config.get("appendfsync") != "always":
        raise NotDurableError(f"Redis {version} may lose a second of jobs: set appendfsync always, or use 7.2.")
    return Confirmation.ALWAYS


class Durability:
    """The current answer for one Redis."""

    def __init__(self, client: Redis, switch: Literal["require", "off"], others: Sequence[Redis] = ()) -> None:
        """`others` are clients of the same Redis, whose connections end when it must not be trusted any more."""
        self._client = client
        self._others = others
        self._switch = switch
        self._lock = asyncio.Lock()
        self._known: Confirmation | None = None
        self._checked_at = 0.0

    async def ensure(self) -> Confirmation:
        """How to confirm an accept. Raises `UnavailableError` if Redis is unreachable or may lose jobs."""
        if self._known and time.monotonic() - self._checked_at < GOOD_FOR_S:
            return self._known
        async with self._lock:
            if self._known and time.monotonic() - self._checked_at < GOOD_FOR_S:
                return self._known
            self._known = None
            self._known = await self.check()
            self._checked_at = time.monotonic()
            return self._known

    async def check(self) -> Confirmation:
        """Ask Redis now. Raises `UnavailableError`."""
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                return await self._ask()
        except (RedisError, OSError, TimeoutError):
            self._known = None
            raise UnavailableError("Redis cannot be reached.") from None
        except NotDurableError as error:
            self._known = None
            logger.error("%s", error.reason)
            # After a failover another one may have the name; connections would stay with this one for ever.
            await self._client.connection_pool.disconnect(inuse_connections=False)
            for other in self._others:
                await other.connection_pool.disconnect()
            raise

    async def _ask(self) -> Confirmation:
        if self._switch == "off":
            await self._client.ping()
            return Confirmation.NONE
        server = await self._client.info("server")
        persistence = await self._client.info("persistence")
        replication = await self._client.info("replication")
        try:
            config = await self._client.config_get("appendonly", "appendfsync", "maxmemory-policy")
        except ResponseError:
            raise NotDurableError(
                "Redis does not tell whether it keeps accepted jobs: allow CONFIG GET, or set ERASE_DURABILITY=off."
            ) from None
        return judge(
            _text(server["redis_version"]),
            {_text(name): _text(value) for name, value in config.items()},
            _text(persistence.get("aof_last_write_status", "ok")),
            _text(replication.get("role", "master")),
        )


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
