"""All settings of a deployment: environment variables `ERASE_*`, the same names for service and worker.

One class for both, so that one `.env` file configures the whole stack and an unknown `ERASE_*` variable can be refused
by whichever process starts first.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Literal, get_args, get_origin

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "ERASE_"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class SettingsError(Exception):
    """The environment is not a valid configuration; the message says which variable and why."""


class Settings(BaseSettings):
    """Defaults work on one machine. Sizes are bytes or pixels, durations seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, allow_inf_nan=False)

    redis_url: str = Field("redis://127.0.0.1:6379/0", description="Redis with queue, ledger and images")
    durability: Literal["require", "off"] = Field(
        "require", description="accept nothing into a Redis that may lose it (no append-only file, eviction)"
    )

    host: str = Field("127.0.0.1", description="address that the service listens on; others need ERASE_API_KEYS")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(8000, description="port of the service")
    api_keys: str = Field("", description="NAME:SHA256 pairs separated by commas; empty: no keys, loopback only")
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(64 * 2**20, description="largest request body")
    max_images: Annotated[int, Field(ge=1, le=64)] = Field(8, description="most images per request")
    max_image_bytes: Annotated[int, Field(ge=1024)] = Field(20 * 2**20, description="largest image file")
    max_image_pixels: Annotated[int, Field(ge=784)] = Field(50_000_000, description="largest width x height")
    min_image_side: Annotated[int, Field(ge=1)] = Field(28, description="smallest width or height in pixels")
    max_image_aspect: Annotated[float, Field(ge=1)] = Field(100.0, description="longest side : shortest side")
    max_prompt_chars: Annotated[int, Field(ge=1)] = Field(20_000, description="longest prompt in characters")
    timeout_s: Annotated[float, Field(gt=0)] = Field(60.0, description="deadline of a request that names none")
    max_timeout_s: Annotated[float, Field(gt=0)] = Field(600.0, description="longest deadline a request may ask for")
    result_ttl_s: Annotated[int, Field(ge=10)] = Field(3600, description="how long finished jobs stay readable")
    max_open_jobs: Annotated[int, Field(ge=1)] = Field(10_000, description="open jobs before 503 queue-full")

    model: str = Field("demo", description="`demo`, a local folder, or a hub id (needs ERASE_MODEL_REVISION)")
    model_revision: str | None = Field(None, description="commit hash of a hub model")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on CUDA, float32 on CPU"
    )
    policy: str = Field("auto", description="default pruning: auto, none, a preset's name or a policy file")
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
    stall_s: Annotated[float, Field(ge=1)] = Field(60.0, description="an engine step longer than this loses its leases")
    drain_s: Annotated[float, Field(ge=0)] = Field(30.0, description="time to finish running jobs after SIGTERM")
    worker_metrics_host: str = Field("127.0.0.1", description="address of the worker's /metrics")
    worker_metrics_port: Annotated[int, Field(ge=0, le=65535)] = Field(9101, description="its port; 0: any free one")

    failpoints: str = Field("", description="for tests only: NAME=kill pairs at which a worker kills itself")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe log line shown")

    @property
    def key_owners(self) -> dict[str, str]:
        """SHA-256 of a key (hex) -> its owner."""
        return parse_api_keys(self.api_keys)

    @field_validator("api_keys")
    @classmethod
    def _keys_are_pairs(cls, value: str) -> str:
        parse_api_keys(value)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.host not in LOOPBACK and not self.api_keys:
            raise ValueError(f"ERASE_HOST={self.host} is reachable from outside: set ERASE_API_KEYS as well")
        if self.timeout_s > self.max_timeout_s:
            raise ValueError("ERASE_TIMEOUT_S is larger than ERASE_MAX_TIMEOUT_S")
        if self.policy == "none" and self.retention is not None:
            raise ValueError("ERASE_RETENTION has no meaning with ERASE_POLICY=none: leave one of them out")
        return self


def parse_api_keys(value: str) -> dict[str, str]:
    """SHA-256 of a key (hex) -> its owner. A name may stand for several keys. Raises ValueError on anything else."""
    keys: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in value.split(","))):
        name, _, digest = pair.partition(":")
        if not name or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ValueError("expected NAME:SHA256 pairs separated by commas (make one with `erase-serve key NAME`)")
        if keys.setdefault(digest, name) != name:
            raise ValueError(f"{name} and {keys[digest]} have the same key: make one for each")
    return keys


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
