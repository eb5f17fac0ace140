"""Who asks: an API key stands for an owner; without configured keys everybody is `anonymous`.

Keys come from `ERASE_API_KEYS` and from the file `ERASE_API_KEYS_FILE`, which is read again when it changes, so that
keys can be rotated without a restart. Limits are an owner's, however many keys it has.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.problems import ForbiddenError, UnauthorizedError
from worker.settings import ANONYMOUS, ApiKey, Scope, Settings, is_owner, is_sha256, parse_api_keys, parse_scopes

logger = logging.getLogger("erase.service")

LOOK_EVERY_S = 1.0
_LIMITS = ("requests_per_minute", "concurrent_requests", "open_jobs")


@dataclass(frozen=True)
class OwnerLimits:
    """What an owner may do at once; None is no limit. `concurrent_requests` counts in one service process."""

    requests_per_minute: int | None = None
    concurrent_requests: int | None = None
    open_jobs: int | None = None


@dataclass(frozen=True)
class Caller:
    """Who sent a request, and what it may do."""

    owner: str
    scopes: frozenset[Scope]
    limits: OwnerLimits = OwnerLimits()

    def need(self, scopes: frozenset[Scope]) -> None:
        """Raises `ForbiddenError` unless the caller has one of these scopes."""
        if not scopes & self.scopes:
            raise ForbiddenError(f"This key may not do that; it needs the scope {' or '.join(sorted(scopes))}.")


class ApiKeys:
    """All keys of a deployment, known by their SHA-256 only."""

    def __init__(self, keys: Iterable[ApiKey], limits: Mapping[str, OwnerLimits], default: OwnerLimits) -> None:
        """`limits` of single owners, `default` for all others. Raises ValueError if two owners share a key."""
        self._callers: dict[str, Caller] = {}
        for key in keys:
            caller = Caller(key.owner, key.scopes, limits.get(key.owner, default))
            if self._callers.setdefault(key.sha256, caller).owner != key.owner:
                raise ValueError(f"{key.owner} and {self._callers[key.sha256].owner} have the same key")

    def caller(self, key: str | None) -> Caller:
        """Whom the key stands for. Raises `UnauthorizedError`. Takes the same time whichever key it is."""
        digest = hashlib.sha256((key or "").encode()).hexdigest()
        found = None
        for known, caller in self._callers.items():
            if hmac.compare_digest(digest, known):
                found = caller
        if found is None or not key:
            raise UnauthorizedError("Send a valid API key: Authorization: Bearer KEY.")
        return found


class KeyRing:
    """The keys that hold now. Raises ValueError or OSError for a file that cannot be used, but only at the start."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._default = OwnerLimits(
            settings.key_requests_per_minute, settings.key_concurrent_requests, settings.key_open_jobs
        )
        self._anonymous = Caller(ANONYMOUS, frozenset(Scope), self._default)
        self._inline = parse_api_keys(settings.api_keys)
        self._path = Path(settings.api_keys_file) if settings.api_keys_file is not None else None
        self._looked_at = time.monotonic()
        self._state = self._file_state()
        self._failed: tuple[int, int, int] | None = None
        self._keys = self._read()

    def caller(self, key: str | None) -> Caller:
        """Whom the key stands for. Raises `UnauthorizedError`."""
        if not self._settings.keys_configured:
            return self._anonymous
        self._look()
        return self._keys.caller(key)

    def _look(self) -> None:
        """Read the file again if it changed; one that cannot be used changes nothing and is logged."""
        if self._path is None or time.monotonic() - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        state = self._file_state()
        if state == self._state:
            return
        try:
            self._keys = self._read()
        except (OSError, ValueError) as error:
            if state != self._failed:
                logger.error("the keys stay as they were: %s", error)
            self._failed = state
        else:
            self._state, self._failed = state, None
            logger.info("the keys were read again")

    def _file_state(self) -> tuple[int, int, int] | None:
        if self._path is None:
            return None
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _read(self) -> ApiKeys:
        if self._path is None:
            return ApiKeys(self._inline, {}, self._default)
        keys, limits = read_keys_file(self._path, self._default)
        return ApiKeys([*self._inline, *keys], limits, self._default)


def read_keys_file(path: Path, default: OwnerLimits) -> tuple[list[ApiKey], dict[str, OwnerLimits]]:
    """Keys and limits of a TOML file: one table for each owner. Raises ValueError or OSError."""
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
        if not tables:
            raise ValueError("it names no owner")  # perhaps it is just being written
        keys: list[ApiKey] = []
        limits = {}
        for owner, table in tables.items():
            keys += _owner_keys(owner, table)
            limits[owner] = _owner_limits(owner, table, default)
    except ValueError as error:
        raise ValueError(f"ERASE_API_KEYS_FILE: {path.name}: {error}") from None
    return keys, limits


def _owner_keys(owner: str, table: Any) -> list[ApiKey]:
    if not is_owner(owner):
        raise ValueError(f"{owner!r} cannot be an owner: letters, digits, and - _ . only")
    if not isinstance(table, dict):
        raise ValueError(f"{owner}: expected a table, [{owner}]")
    unknown = sorted(set(table) - {"keys", "scopes", *_LIMITS})
    if unknown:
        raise ValueError(f"{owner}: unknown {', '.join(unknown)}; known are keys, scopes, {', '.join(_LIMITS)}")
    digests, scopes = table.get("keys"), table.get("scopes", [Scope.ASK])
    if not isinstance(digests, list) or not all(isinstance(digest, str) and is_sha256(digest) for digest in digests):
        raise ValueError(f"{owner}: keys must be a list of SHA-256 (make one with `erase-serve key {owner}`)")
    if not isinstance(scopes, list):
        raise ValueError(f"{owner}: scopes must be a list of {', '.join(Scope)}")
    return [ApiKey(owner, digest, parse_scopes(scopes)) for digest in digests]


def _owner_limits(owner: str, table: dict[str, Any], default: OwnerLimits) -> OwnerLimits:
    values = {name: table.get(name, getattr(default, name)) for name in _LIMITS}
    for name, value in values.items():
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{owner}: {name} must be a whole number from 1")
    return OwnerLimits(**values)
