"""Attention of packed rows, by whatever kernels the machine has. All back ends compute the same.

Rows of many sequences lie one behind the other, without padding; no sequence sees another's.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from erase.errors import UnsupportedError

_SMALL = 128 * 1024
"""Bytes of a sequence's keys up to which a copy costs less than another call."""


class Attention(ABC):
    """A way to compute the two kinds of attention that the engine needs."""

    name: ClassVar[str]

    @abstractmethod
    def prompts(self, query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
        """Causal attention of whole prompts.

        Args:
            query: [rows, heads, head_dim].
            key: [rows, key heads, head_dim].
            value: likewise.
            lengths: rows of each prompt.
            scale: factor of the products.

        Returns:
            [rows, heads, head_dim].
        """

    @abstractmethod
    def steps(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        lengths: Sequence[int],
        spans: Sequence[slice],
        scale: float,
    ) -> Tensor:
        """Causal attention of each sequence's last rows on all of its cached ones, themselves included.

        Args:
            query: [rows, heads, head_dim], the last rows of each sequence.
            keys: [pool rows, key heads, head_dim], the pool of caches.
            values: likewise.
            lengths: query rows of each sequence.
            spans: where each sequence's keys and values lie in the pool.
            scale: factor of the products.

        Returns:
            [rows, heads, head_dim].
        """


class SdpaAttention(Attention):
    """PyTorch's `scaled_dot_product_attention`, sequence by sequence; the choice on CPUs, and on GPUs in 32 bit.

    On a CPU, single rows with short caches are computed in one call, on a padded copy of the caches.
    """

    name = "sdpa"

    def prompts(self, query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
        queries, keys, values = (torch.split(part, list(lengths)) for part in (query, key, value))
        return torch.cat([_attend(*own, scale) for own in zip(queries, keys, values, strict=True)])

    def steps(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        lengths: Sequence[int],
        spans: Sequence[slice],
        scale: float,
    ) -> Tensor:
        queries = torch.split(query, list(lengths))
        together = _short_single_rows(keys, lengths, spans)
        seen: dict[int, Tensor] = {}
        if len(together) > 1:
            own_spans = [spans[number] for number in together]
            rows = _attend_together(torch.cat([queries[number] for number in together]), keys, values, own_spans, scale)
            seen = dict(zip(together, torch.split(rows, 1), strict=True))
        for number, span in enumerate(spans):
            if number not in seen:
                seen[number] = _attend(queries[number], keys[span], values[span], scale)
        return torch.cat([seen[number] for number in range(len(spans))])


class VarlenAttention(Attention):
    """Flash attention over all sequences in one call; the choice on CUDA in 16 bit.

    `kernel` is PyTorch's `varlen_attn`.
    """

    name = "varlen"

    def __init__(self, kernel: Callable[..., Any]) -> None:
        self._kernel = kernel

    def prompts(self, query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
        bounds = _bounds(lengths, query.device)
        longest = max(lengths)
        return self._attend(query, key, value, bounds, bounds, longest, longest, None, scale)

    def steps(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        lengths: Sequence[int],
        spans: Sequence[slice],
        scale: float,
    ) -> Tensor:
        # The kernel wants bounds that ascend and says by `used` how much of each stretch is valid; so the sequences go
        # in the order of their caches, and each stretch ends where the next begins.
        order = sorted(range(len(spans)), key=lambda number: spans[number].start)
        queries = torch.split(query, list(lengths))
        starts = [spans[number].start for number in order]
        used = [spans[number].stop - spans[number].start for number in order]
        device = query.device
        seen = self._attend(
            torch.cat([queries[number] for number in order]),
            keys,
            values,
            _bounds([lengths[number] for number in order], device),
            torch.tensor([*starts, spans[order[-1]].stop], dtype=torch.int32, device=device),
            max(lengths),
            max(used),
            torch.tensor(used, dtype=torch.int32, device=device),
            scale,
        )
        parts = torch.split(seen, [lengths[number] for number in order])
        back = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat([parts[place] for place in back])

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_bounds: Tensor,
        key_bounds: Tensor,
        longest_query: int,
        longest_key: int,
        used: Tensor | None,
        scale: float,
    ) -> Tensor:
        seen: Tensor = self._kernel(
            query,
            key,
            value,
            query_bounds,
            key_bounds,
            longest_query,
            longest_key,
            scale=scale,
            window_size=(-1, 0),  # causal, aligned at the end
            enable_gqa=True,
            seqused_k=used,
        )
        return seen


def choose_attention(device: torch.device, dtype: torch.dtype, name: str = "auto") -> Attention:
    """The back end for a device and type: `auto`, `sdpa` or `varlen`.

    Raises:
        UnsupportedError: there is no such back end, or not here.
    """
    if name not in ("auto", "sdpa", "varlen"):
        raise UnsupportedError(f"there is no attention {name!r}; expected auto, sdpa or varlen")
    fits = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    kernel = _varlen_kernel()
    if name == "varlen" and not fits:
        raise UnsupportedError("the attention 'varlen' needs a CUDA device and float16 or bfloat16; use 'sdpa'")
    if name == "varlen" and kernel is None:
        raise UnsupportedError("the attention 'varlen' needs PyTorch's varlen_attn with seqused_k; use 'sdpa'")
    return VarlenAttention(kernel) if name != "sdpa" and fits and kernel is not None else SdpaAttention()


def _varlen_kernel() -> Callable[..., Any] | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "seqused_k" in inspect.signature(varlen_attn).parameters else None


def _attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """One sequence: its last rows [rows, heads, head_dim] on all of its keys [keys, key heads, head_dim]."""
    rows, keys = len(query), len(key)
    if rows == 1:
        return _attend_single(query, key.unsqueeze(0), value.unsqueeze(0), None, scale)
    mask = None
    if 1 < rows < keys:
        mask = torch.ones(rows, keys, dtype=torch.bool, device=query.device).tril(keys - rows)
    query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in (query, key, value))
    seen = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=rows == keys, scale=scale, enable_gqa=True
    )
    return seen.squeeze(0).transpose(0, 1)


def _short_single_rows(keys: Tensor, lengths: Sequence[int], spans: Sequence[slice]) -> list[int]:
    """Which sequences have a single row and a cache short enough to be copied; none on a GPU, where that waits."""
    if keys.device.type != "cpu":
        return []
    most = _SMALL // keys[0].nbytes
    return [
        number
        for number, (rows, span) in enumerate(zip(lengths, spans, strict=True))
        if rows == 1 and span.stop - span.start <= most
    ]


def _attend_together(query: Tensor, keys: Tensor, values: Tensor, spans: Sequence[slice], scale: float) -> Tensor:
    """One row per sequence [sequences, heads, head_dim], each on its own span of the pool."""
    longest = max(span.stop - span.start for span in spans)
    starts = torch.tensor([span.start for span in spans], device=query.device)
    stops = torch.tensor([span.stop for span in spans], device=query.device)
    places = starts.unsqueeze(1) + torch.arange(longest, device=query.device)
    inside = places < stops.unsqueeze(1)
    places = places.where(inside, starts.unsqueeze(1))  # hidden, but a number: what lies elsewhere may be none
    keys, values = (
        part.index_select(0, places.flatten()).view(len(spans), longest, *part.shape[1:]) for part in (keys, values)
    )
    return _attend_single(query, keys, values, inside[:, None, None], scale)


def _attend_single(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """One row per sequence [sequences, heads, head_dim] on its keys [sequences, keys, key heads, head_dim]."""
    # The heads that share keys go as rows of one head, which reads those keys once: up to three times as fast.
    shared = query.reshape(len(query), keys.shape[2], -1, query.shape[2])
    seen = functional.scaled_dot_product_attention(
        shared, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=mask, scale=scale
    )
    return seen.flatten(1, 2)


def _bounds(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
