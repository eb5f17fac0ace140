"""How much the engine does at once."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from erase.errors import InputError
from erase.models.loading import LoadedModel

_PREFILL_TOKENS = {"cpu": 1024, "cuda": 16_384}
"""Enough to keep the processor busy: more at once makes the first wait for the last and nobody faster."""
_MOST_THREADS = 1024
_GPU_SHARE = 0.6
_MEMORY_SHARE = 0.25
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class EngineLimits:
    """How much the engine does at once. None stands for a choice by device and model.

    Attributes:
        max_running: sequences in prefill and decode together.
        max_prefill_tokens: prompt tokens that enter the decoder, of prompts that are prefilled together.
        min_vision_tokens: vision tokens of an unpruned prompt below which stage 2 is left out: with so few it costs
            more than it saves.
        context_length: cap of prompt and answer, below the model's own.
        cache_tokens: tokens in all key/value caches together, averaged over layers. By default what `max_running` of
            the longest sequences need, at most 60% of the GPU's free memory or a quarter of the container's.
        feature_cache_bytes: vision features of images that may be asked about again.
        prefill_share: of the engine's time while some sequences prefill and others decode.
        interactive_share: of the prompt tokens while both priorities wait.
        deterministic: no sequence shares a matrix product with another, so that an answer is the same to the last bit
            whatever runs beside it. Slow.
        attention: `auto`, `sdpa` or `varlen`.
        cpu_threads: threads of the engine's matrix products on a CPU; None: as many as whoever starts it uses.

    Raises:
        InputError: a value with which nothing would ever run.
    """

    max_running: int = 8
    max_prefill_tokens: int | None = None
    min_vision_tokens: int = 0
    context_length: int | None = None
    cache_tokens: int | None = None
    feature_cache_bytes: int = 256 * 2**20
    prefill_share: float = 0.9
    interactive_share: float = 0.8
    deterministic: bool = False
    attention: str = "auto"
    cpu_threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_running", "max_prefill_tokens", "context_length", "cache_tokens", "cpu_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, or nothing ever runs, got {value}")
        if self.cpu_threads is not None and self.cpu_threads > _MOST_THREADS:
            raise InputError(f"cpu_threads must be at most {_MOST_THREADS}, got {self.cpu_threads}")
        for name in ("min_vision_tokens", "feature_cache_bytes"):
            if (value := getattr(self, name)) < 0:
                raise InputError(f"{name} must not be negative, got {value}")
        for name in ("prefill_share", "interactive_share"):
            if not 0.0 < (value := getattr(self, name)) < 1.0:
                raise InputError(f"{name} must lie between 0 and 1, got {value}")

    def prefill_tokens(self, device: torch.device) -> int:
        """Prompt tokens of one packed prefill on a device."""
        return self.max_prefill_tokens or _PREFILL_TOKENS.get(device.type, _PREFILL_TOKENS["cuda"])

    def pool_rows(self, loaded: LoadedModel, context_length: int) -> int:
        """Rows of the pool of caches, one per token and layer."""
        depth = loaded.adapter.depth
        if self.cache_tokens is not None:
            return self.cache_tokens * depth
        row = 2 * loaded.adapter.key_heads * loaded.adapter.head_dim * loaded.dtype.itemsize
        return min(self.max_running * context_length * depth, _spare_bytes(loaded.device) // row)


def _spare_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _GPU_SHARE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # the container's limit, if there is one ("max" is no number)
        memory = min(memory, int(_CONTAINER_LIMIT.read_text(encoding="ascii")))
    return int(memory * _MEMORY_SHARE)
