"""The key/value cache of pruned prompts: shorter than the prompts, while `generate` still counts the whole of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


@dataclass(frozen=True, eq=False)
class Columns:
    """Which columns of a layer's cache are tokens (bool [prompts, columns]), and whether any is padding."""

    valid: Tensor
    padded: bool


class PrunedCache(DynamicCache):  # type: ignore[misc]
    """A dynamic cache with a logical length (all tokens of the text so far) and physical lengths (those it holds).

    `get_seq_length` is logical: positions, slices of `input_ids` and attention masks of callers stay those of the
    unpruned text. `get_mask_sizes` and the tensors are physical, layer by layer. A layer holds each prompt's tokens
    behind padding on the left.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self._dropped = [0] * len(self.layers)
        self._columns: list[Columns] = []

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Logical length: tokens seen, dropped ones included."""
        return self.physical_length(layer_idx) + (self._dropped[layer_idx] if layer_idx < len(self._dropped) else 0)

    def physical_length(self, layer_idx: int) -> int:
        """Columns whose keys and values the layer holds."""
        return int(self.layers[layer_idx].get_seq_length()) if layer_idx < len(self.layers) else 0

    @property
    def is_pruned(self) -> bool:
        """Whether `declare` was called: the cache is no longer laid out as the stock model's."""
        return bool(self._columns)

    def cache_lengths(self) -> tuple[int, ...]:
        """Columns of every layer."""
        return tuple(self.physical_length(index) for index in range(len(self.layers)))

    def keys(self, layer: int, prompt: int, rows: int) -> Tensor:
        """The last `rows` keys [key heads, rows, head_dim] of a prompt."""
        held: Tensor = self.layers[layer].keys[prompt]
        return held[:, held.shape[1] - rows :]

    def keep_columns(self, layer: int, columns: Tensor) -> None:
        """Keeps only these columns of a layer: int64 [prompts, columns]."""
        held = self.layers[layer]
        local = columns.to(held.keys.device)
        if len(local) == 1:
            held.keys, held.values = (states.index_select(2, local[0]) for states in (held.keys, held.values))
            return
        index = local[:, None, :, None].expand(-1, held.keys.shape[1], -1, held.keys.shape[3])
        held.keys, held.values = held.keys.gather(2, index), held.values.gather(2, index)

    def declare(self, tokens: int, columns: Sequence[Columns]) -> None:
        """Sets the logical length, and per layer which columns are tokens."""
        self._dropped = [tokens - length for length in self.cache_lengths()]
        self._columns = list(columns)

    def extend(self, new: Tensor) -> list[Columns]:
        """Announces columns that the next step appends to every layer: bool [prompts, n], which of them are tokens.

        Returns:
            Per layer the columns with the new ones; layers of the same layout share one object.
        """
        padded = not bool(new.all())
        shared = {
            id(old): Columns(torch.cat([old.valid, new.to(old.valid.device)], dim=1), old.padded or padded)
            for old in self._columns
        }
        self._columns = [shared[id(old)] for old in self._columns]
        return self._columns

    def reset(self) -> None:
        """Empties the cache."""
        super().reset()
        self._dropped = [0] * len(self.layers)
        self._columns = []
