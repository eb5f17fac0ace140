"""The key/value cache of a pruned prompt: shorter than the prompt, while `generate` still counts the whole of it."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from transformers import DynamicCache


class PrunedCache(DynamicCache):  # type: ignore[misc]
    """A dynamic cache with a logical length (all tokens of the text so far) and physical lengths (those it holds).

    `get_seq_length` is logical: positions, slices of `input_ids` and attention masks of callers stay those of the
    unpruned text. `get_mask_sizes` and the tensors are physical, layer by layer.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self._dropped = [0] * len(self.layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Logical length: tokens seen, dropped ones included."""
        return self.physical_length(layer_idx) + (self._dropped[layer_idx] if layer_idx < len(self._dropped) else 0)

    def physical_length(self, layer_idx: int) -> int:
        """Tokens whose keys and values the layer holds."""
        return int(self.layers[layer_idx].get_seq_length()) if layer_idx < len(self.layers) else 0

    def cache_lengths(self) -> tuple[int, ...]:
        """Physical length of every layer."""
        return tuple(self.physical_length(index) for index in range(len(self.layers)))

    @property
    def is_pruned(self) -> bool:
        """Whether any layer holds fewer tokens than it saw."""
        return any(self._dropped)

    def keep_rows(self, rows: Tensor, layers: Iterable[int]) -> None:
        """Keeps only these rows (int64, sorted, physical) of the given layers."""
        for index in layers:
            layer = self.layers[index]
            local = rows.to(layer.keys.device)
            layer.keys = layer.keys.index_select(2, local)
            layer.values = layer.values.index_select(2, local)

    def declare_length(self, tokens: int) -> None:
        """Sets the logical length: what the layers do not hold of it was dropped."""
        self._dropped = [tokens - length for length in self.cache_lengths()]

    def reset(self) -> None:
        """Empties the cache."""
        super().reset()
        self._dropped = [0] * len(self.layers)
