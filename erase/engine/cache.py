"""Keys and values of one running sequence: survivors only, one contiguous slab per layer."""

from __future__ import annotations

import torch
from torch import Tensor


class SequenceCache:
    """Per layer, keys and values [key heads, capacity, head_dim] with their own number of valid rows.

    Prefill hands over each layer's rows (`store`), a cut may drop some (`keep_rows`), `reserve` makes room for the
    answer, and each step writes one more row per layer (`append`) that only counts after `commit`: a step that
    failed half-way leaves nothing behind.
    """

    def __init__(self, depth: int) -> None:
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._lengths = [0] * depth

    @property
    def lengths(self) -> tuple[int, ...]:
        """Valid rows per layer."""
        return tuple(self._lengths)

    def length(self, layer: int) -> int:
        """Valid rows of one layer."""
        return self._lengths[layer]

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Take the prefill's rows [key heads, rows, head_dim] of a layer."""
        self._keys[layer], self._values[layer] = key, value
        self._lengths[layer] = key.shape[1]

    def keys(self, layer: int) -> Tensor:
        """Valid keys [key heads, rows, head_dim] of a layer."""
        return self._keys[layer][:, : self._lengths[layer]]

    def keep_rows(self, layer: int, rows: Tensor) -> None:
        """Keep only `rows` (int64, ascending) of a layer."""
        self.store(layer, self._keys[layer].index_select(1, rows), self._values[layer].index_select(1, rows))

    def reserve(self, extra: int) -> None:
        """Move every layer into a slab with room for `extra` more rows."""
        for layer, length in enumerate(self._lengths):
            for slabs in (self._keys, self._values):
                rows = slabs[layer]
                slab = rows.new_empty(rows.shape[0], length + extra, rows.shape[2])
                slab[:, :length] = rows
                slabs[layer] = slab

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write new rows behind the valid ones; returns all keys and values that they may attend to."""
        start = self._lengths[layer]
        end = start + key.shape[1]
        keys, values = self._keys[layer], self._values[layer]
        keys[:, start:end] = key
        values[:, start:end] = value
        return keys[:, :end], values[:, :end]

    def commit(self, rows: int) -> None:
        """The last `rows` appended rows of every layer are valid now."""
        self._lengths = [length + rows for length in self._lengths]


def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention of the last rows of a sequence over all its rows.

    `query` [heads, R, head_dim] are the last R of the K rows of `key` and `value` [key heads, K, head_dim];
    returns [heads, R, head_dim].
    """
    rows, keys = query.shape[1], key.shape[1]
    mask = None
    if 1 < rows < keys:
        mask = torch.ones(rows, keys, dtype=torch.bool, device=query.device).tril(keys - rows)
    return torch.nn.functional.scaled_dot_product_attention(
        query.unsqueeze(0),
        key.unsqueeze(0),
        value.unsqueeze(0),
        attn_mask=mask,
        is_causal=rows == keys and rows > 1,
        scale=scale,
        enable_gqa=True,
    ).squeeze(0)
