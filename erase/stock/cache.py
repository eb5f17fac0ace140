"""The key/value cache of pruned prompts: shorter than the prompts, while `generate` still counts the whole of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from erase.errors import UnsupportedError


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
        self._followed = 0  # tokens after the prompts

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
        self._followed = 0

    def extend(self, new: Tensor) -> list[Columns]:
        """Announces columns that the next step appends to every layer: bool [prompts, n], which of them are tokens.

        Returns:
            Per layer the columns with the new ones; layers of the same layout share one object.
        """
        padded = not bool(new.all())
        self._followed += new.shape[1]
        self._change_columns(
            lambda old: Columns(torch.cat([old.valid, new.to(old.valid.device)], dim=1), old.padded or padded)
        )
        return self._columns

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the last tokens away again, as many as the negative number says.

        Raises:
            UnsupportedError: those are not all tokens that followed the prompts.
        """
        if self.is_pruned and not 0 <= -tokens_to_remove <= self._followed:
            raise UnsupportedError(
                f"a pruned cache can lose the {self._followed} tokens after its prompts, given as a negative number, "
                f"got {tokens_to_remove}"
            )
        super().crop(tokens_to_remove)
        if self.is_pruned:
            self._followed += tokens_to_remove
            self._change_columns(lambda old: Columns(old.valid[:, : old.valid.shape[1] + tokens_to_remove], old.padded))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every prompt several times, one after the other."""
        super().batch_repeat_interleave(repeats)
        self._change_columns(lambda old: Columns(old.valid.repeat_interleave(repeats, dim=0), old.padded))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these prompts."""
        super().batch_select_indices(indices)
        self._change_columns(lambda old: Columns(old.valid[indices.to(old.valid.device)], old.padded))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The prompts in another order."""
        super().reorder_cache(beam_idx)
        self._change_columns(lambda old: Columns(old.valid[beam_idx.to(old.valid.device)], old.padded))

    def reset(self) -> None:
        """Empties the cache."""
        super().reset()
        self._dropped = [0] * len(self.layers)
        self._columns = []

    def _change_columns(self, change: Callable[[Columns], Columns]) -> None:
        """Layers of the same layout go on sharing one object."""
        changed = {id(old): change(old) for old in self._columns}
        self._columns = [changed[id(old)] for old in self._columns]
