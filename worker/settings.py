"""All settings of a deployment: environment variables `ERASE_*`, the same names for service and worker.

One class for both, so that one `.env` file configures the whole stack and an unknown `ERASE_*` variable can be refused
by whichever process starts first.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal, get_args, get_origin
from urllib.parse import parse_qs, urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.contract import CONTRACT_VERSION, OLDEST_CONTRACT

PREFIX = "ERASE_"
ANONYMOUS = "anonymous"
"""Owner of all jobs where no keys are configured, and so of no key."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
_TLS_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
"""What redis-py and Celery understand alike."""


class SettingsError(Exception):
    """The environment is not a valid configuration; the message says which variable and why."""


class Scope(StrEnum):
    """What a key may do: ask questions and see its own jobs, see and end everybody's jobs, read metrics."""

    ASK = "ask"
    ADMIN = "admin"
    METRICS = "metrics"


@dataclass(frozen=True)
class ApiKey:
    """A key, known by the SHA-256 of its text (hex), with the owner that it stands for."""

    owner: str
    sha256: str
    scopes: frozenset[Scope] = frozenset({Scope.ASK})


class Settings(BaseSettings):
    """Defaults work on one machine. Sizes are bytes or pixels, durations seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, allow_inf_nan=False)

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis; `rediss://` uses TLS, `?ssl_ca_certs=FILE` names your own certificate authority",
    )
    durability: Literal["require", "off"] = Field(
        "require", description="accept nothing into a Redis that may lose it (no append-only file, eviction)"
    )

    host: str = Field(
        "127.0.0.1",
        description="address that the service listens on; others need ERASE_API_KEYS or ERASE_API_KEYS_FILE",
    )
    port: Annotated[int, Field(ge=1, le=65535)] = Field(8000, description="port of the service")
    api_keys: str = Field(
        "", description="NAME:SHA256 or NAME:SHA256:SCOPE+SCOPE, separated by commas; no keys at all: loopback only"
    )
    api_keys_file: str | None = Field(
        None, description="TOML file with more keys, scopes and limits per owner; read again when it changes"
    )
    key_requests_per_minute: Annotated[int | None, Field(ge=1)] = Field(
        None, description="questions per owner and minute before 429; empty: any number"
    )
    key_concurrent_requests: Annotated[int | None, Field(ge=1)] = Field(
        None, description="requests of an owner that one service process handles at once before 429"
    )
    key_open_jobs: Annotated[int | None, Field(ge=1)] = Field(
        None, description="accepted jobs of an owner that have not ended before 429"
    )
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(64 * 2**20, description="largest request body")
    max_images: Annotated[int, Field(ge=1, le=64)] = Field(8, description="most images per request")
    max_image_bytes: Annotated[int, Field(ge=1024)] = Field(20 * 2**20, description="largest image file")
    max_image_pixels: Annotated[int, Field(ge=784)] = Field(50_000_000, description="largest width x height")
    max_request_pixels: Annotated[int, Field(ge=784)] = Field(
        100_000_000, description="width x height of a request's images together"
    )
    min_image_side: Annotated[int, Field(ge=1)] = Field(28, description="smallest width or height in pixels")
    max_image_aspect: Annotated[float, Field(ge=1)] = Field(100.0, description="longest side : shortest side")
    max_prompt_chars: Annotated[int, Field(ge=1)] = Field(20_000, description="longest prompt in characters")
    timeout_s: Annotated[float, Field(gt=0)] = Field(60.0, description="deadline of a request that names none")
    max_timeout_s: Annotated[float, Field(gt=0)] = Field(600.0, description="longest deadline a request may ask for")
    result_ttl_s: Annotated[int, Field(ge=10)] = Field(3600, description="how long finished jobs stay readable")
    dead_ttl_s: Annotated[int, Field(ge=10)] = Field(
        86_400, description="how long a dead-lettered job and its images stay, to be asked again"
    )
    max_held_bytes: Annotated[int, Field(ge=1)] = Field(
        1_073_741_824,
        description="bodies and fetched images that a service process holds at once, before 503 unavailable",
    )
    max_open_jobs: Annotated[int, Field(ge=1)] = Field(10_000, description="open jobs before 503 queue-full")
    max_open_pixels: Annotated[int | None, Field(ge=784)] = Field(
        None, description="width x height of all images of open jobs before 503 queue-full; empty: any number"
    )
    redis_headroom: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="share of Redis' maxmemory that uploads leave free: below it new requests get 503"
    )
    image_hosts: str = Field(
        "", description="hosts (HOST, HOST:PORT or *.DOMAIN, separated by commas) whose http(s) image URLs are fetched"
    )
    image_networks: str = Field(
        "", description="private networks (CIDR, separated by commas) that those hosts may be in; others are refused"
    )
    image_fetch_s: Annotated[float, Field(gt=0, le=120)] = Field(
        10.0, description="time for all images of a request that are fetched"
    )

    model: str = Field("demo", description="`demo`, a local folder, or a hub id (needs ERASE_MODEL_REVISION)")
    model_revision: str | None = Field(None, description="commit hash of a hub model")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on CUDA, float32 on CPU"
    )
    policy: str = Field(
        "auto",
        description="default pruning: auto, none, the model's own (NAME, NAME-bins), a preset's name or a policy file",
    )
    retention: Annotated[float | None, Field(gt=0, le=1)] = Field(None, description="replaces the policy's dial")
    retention_floor: Annotated[float | None, Field(gt=0, le=1)] = Field(
        None, description="lowest retention under overload, for requests that name none; empty: never lowered"
    )
    retention_floor_wait_s: Annotated[float, Field(gt=0)] = Field(
        2.0, description="wait from which retention is lowered; at four times as much it is the floor"
    )
    interactive_slots: Annotated[int, Field(ge=1)] = Field(12, description="interactive jobs a worker holds at once")
    batch_slots: Annotated[int, Field(ge=1)] = Field(4, description="batch jobs a worker holds at once")
    max_running: Annotated[int, Field(ge=1)] = Field(8, description="sequences that the engine decodes together")
    max_prefill_tokens: Annotated[int | None, Field(ge=1)] = Field(
        None, description="pruned tokens prefilled together; by default 1,024 on CPU and 16,384 on CUDA"
    )
    min_vision_tokens: Annotated[int, Field(ge=0)] = Field(
        0, description="vision tokens of a prompt below which stage 2 is left out: it would cost more than it saves"
    )
    prefill_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.9, description="share of the engine's time for prefill while others decode"
    )
    interactive_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.8, description="share of interactive work in prefill while batch work waits, too"
    )
    cache_tokens: Annotated[int | None, Field(ge=64)] = Field(
        None, description="tokens in all key/value caches together; by default as memory allows"
    )
    feature_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        256 * 2**20, description="vision features of images that may be asked about again"
    )
    deterministic: bool = Field(False, description="answers equal to the last bit whatever runs beside them; slow")
    attention: Literal["auto", "sdpa", "varlen"] = Field("auto", description="attention kernels of the engine")
    max_context: Annotated[int | None, Field(ge=64)] = Field(None, description="cap below the model's own context")
    cpu_threads: Annotated[int | None, Field(ge=1, le=1024)] = Field(
        None, description="threads of the engine's matrix products on CPU; all else has one"
    )
    lease_s: Annotated[float, Field(ge=1)] = Field(10.0, description="a lease without renewal is lost after this")
    wake_after_s: Annotated[float, Field(ge=0.5)] = Field(5.0, description="first check for a lost wake-up")
    sweep_every_s: Annotated[float, Field(ge=0.1)] = Field(1.0, description="pause between two sweeps")
    max_attempts: Annotated[int, Field(ge=1)] = Field(3, description="attempts before a job is dead-lettered")
    stall_s: Annotated[float, Field(ge=1)] = Field(
        60.0, description="an engine step longer than this loses its leases; one twice as long ends the worker"
    )
    drain_s: Annotated[float, Field(ge=0)] = Field(30.0, description="time to finish running jobs after SIGTERM")
    worker_metrics_host: str = Field("127.0.0.1", description="address of the worker's /metrics")
    worker_metrics_port: Annotated[int, Field(ge=0, le=65535)] = Field(9101, description="its port; 0: any free one")

    contract: Annotated[int, Field(ge=OLDEST_CONTRACT, le=CONTRACT_VERSION)] = Field(
        CONTRACT_VERSION, description="newest job format used: an older one while an upgrade may have to be taken back"
    )
    failpoints: str = Field(
        "", description="for tests only: NAME=kill or NAME=stop places at which a process kills or stops itself"
    )
    log_format: Literal["text", "json"] = Field("text", description="log lines for people or for machines")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe log line shown")

    @property
    def keys_configured(self) -> bool:
        """Whether a request needs a key."""
        return bool(self.api_keys) or self.api_keys_file is not None

    @property
    def jobs_listed_s(self) -> int:
        """How long a job can be known at most, even one that was a dead letter and asked again."""
        return round(self.max_timeout_s) + 2 * max(self.result_ttl_s, self.dead_ttl_s)

    @field_validator("redis_url")
    @classmethod
    def _is_one_server(cls, value: str) -> str:
        # Celery would take much else for a broker, and connect to another server than the rest of us.
        try:
            parts = urlsplit(value)
            usable = value.startswith(("redis://", "rediss://")) and parts.port != 0
            options = set(parse_qs(parts.query, strict_parsing=bool(parts.query)))
        except ValueError:
            usable, options = False, set()
        if not usable or ";" in value or not re.fullmatch(r"/?\d*", parts.path):
            raise ValueError(
                "expected redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE], or rediss:// for TLS; "
                "in a password, write ; / ? # @ and : as %3B %2F %3F %23 %40 and %3A"
            )
        if options and (parts.scheme != "rediss" or options - _TLS_OPTIONS):
            raise ValueError(f"of options only {', '.join(sorted(_TLS_OPTIONS))} may follow, after rediss://")
        return value

    @field_validator("api_keys")
    @classmethod
    def _keys_are_pairs(cls, value: str) -> str:
        parse_api_keys(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.host not in LOOPBACK and not self.keys_configured:
            raise ValueError(f"ERASE_HOST={self.host} is reachable from outside: set ERASE_API_KEYS as well")
        if self.max_image_pixels > self.max_request_pixels:
            raise ValueError("ERASE_MAX_IMAGE_PIXELS is larger than ERASE_MAX_REQUEST_PIXELS")
        if self.max_open_pixels is not None and self.max_request_pixels > self.max_open_pixels:
            raise ValueError("ERASE_MAX_REQUEST_PIXELS is larger than ERASE_MAX_OPEN_PIXELS")
        if self.image_networks and not self.image_hosts:
            raise ValueError("ERASE_IMAGE_NETWORKS has no meaning without ERASE_IMAGE_HOSTS")
        if self.timeout_s > self.max_timeout_s:
            raise ValueError("ERASE_TIMEOUT_S is larger than ERASE_MAX_TIMEOUT_S")
        if self.policy == "none" and self.retention is not None:
            raise ValueError("ERASE_RETENTION has no meaning with ERASE_POLICY=none: leave one of them out")
        return self


def parse_api_keys(value: str) -> tuple[ApiKey, ...]:
    """The keys of `ERASE_API_KEYS`. An owner may have several. Raises ValueError on anything else."""
    keys: dict[str, ApiKey] = {}
    for entry in filter(None, (part.strip() for part in value.split(","))):
        owner, _, rest = entry.partition(":")
        digest, colon, scopes = rest.partition(":")
        if not is_owner(owner) or not is_sha256(digest):
            raise ValueError("expected NAME:SHA256 pairs separated by commas (make one with `erase-serve key NAME`)")
        key = ApiKey(owner, digest, parse_scopes(scopes.split("+")) if colon else frozenset({Scope.ASK}))
        if keys.setdefault(digest, key).owner != owner:
            raise ValueError(f"{owner} and {keys[digest].owner} have the same key: make one for each")
    return tuple(keys.values())


def parse_scopes(names: Iterable[str]) -> frozenset[Scope]:
    """The scopes of these names. Raises ValueError for an unknown one, or none at all."""
    try:
        scopes = frozenset(map(Scope, names))
    except ValueError:
        scopes = frozenset()
    if not scopes:
        raise ValueError(f"a key's scopes are one or more of {', '.join(Scope)}")
    return scopes


def is_owner(name: str) -> bool:
    """Whether this may name the owner of a key."""
    return bool(name) and name != ANONYMOUS and name.replace("-", "").replace("_", "").replace(".", "").isalnum()


def is_sha256(digest: str) -> bool:
    """Whether this is a SHA-256 in lower-case hex."""
    return len(digest) == 64 and not set(digest) - set("0123456789abcdef")


def load_settings() -> Settings:
    """Read the environment. Raises `SettingsError` on unknown, invalid or contradictory variables."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise SettingsError(f"unknown setting {', '.join(unknown)}: see docs/settings.md for the names")
    try:
        return Settings()
    except ValidationError as error:
        lines = []
        for item in error.errors():
            name = PREFIX + str(item["loc"][0]).upper() + ": " if item["loc"] else ""
            lines.append(name + item["msg"].removeprefix("Value error, "))
        raise SettingsError("; ".join(lines)) from None


def settings_page() -> str:
    """The text of docs/settings.md: one row for each setting."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "") else f"`{field.default}`"
        choices = f"; one of {', '.join(get_args(field.annotation))}" if get_origin(field.annotation) is Literal else ""
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {field.description}{choices} |")
    return "\n".join(
        (
            "# Settings",
            "",
            "Environment variables, the same for service and worker. Unknown, invalid or contradictory ones stop the",
            "start. Sizes are bytes or pixels, durations seconds; an empty value counts as not set.",
            "",
            "Written by `python -m worker.settings > docs/settings.md` (a test holds that it is current).",
            "",
            "| variable | default | meaning |",
            "|---|---|---|",
            *rows,
            "",
        )
    )


if __name__ == "__main__":
    sys.stdout.write(settings_page())
