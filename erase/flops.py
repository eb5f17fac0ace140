"""Floating-point operations of a decoder, counted from its configuration: what pruning can save at best.

Counted are matrix products, one multiply-add as two operations, for `r` rows that a layer runs in prefill:

    2 r d (2 q + 2 k + 3 m)  +  4 q r (r + 1) / 2

with hidden size d, q = query heads x head_dim, k = key heads x head_dim, m = width of the feed-forward network; that is
the linear layers, and attention's two products per pair of a query and a key that it may see. The vocabulary's
projection of the last row, 2 d x vocabulary, is added once. Left out are norms, activations, rotations, softmax and
pruning's own work; and what the engine saves, pruned or not, as it runs most of its last layer for one row of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


class PrefillFlops(NamedTuple):
    """Operations of the decoder in a prefill: as it ran, and as it would have run unpruned."""

    pruned: float
    unpruned: float


@dataclass(frozen=True)
class DecoderCosts:
    """Operations per row, per pair of query and key, and of the vocabulary's projection."""

    linear: float
    pair: float
    vocabulary: float

    def prefill(self, rows: Sequence[int]) -> float:
        """Of a prompt whose layers run these numbers of rows."""
        return sum(count * self.linear + self.pair * count * (count + 1) / 2 for count in rows) + self.vocabulary

    def decode(self, cache: Sequence[int], steps: int) -> float:
        """Of `steps` tokens behind caches that hold these numbers of rows."""
        seen = sum(steps * length + steps * (steps + 1) / 2 for length in cache)
        return steps * (len(cache) * self.linear + self.vocabulary) + self.pair * seen


def decoder_costs(text_config: Any) -> DecoderCosts:
    """The costs of a decoder with this `transformers` configuration."""
    size = text_config.hidden_size
    head_dim = getattr(text_config, "head_dim", None) or size // text_config.num_attention_heads
    heads, key_heads = text_config.num_attention_heads * head_dim, text_config.num_key_value_heads * head_dim
    linear = 2 * size * (2 * heads + 2 * key_heads + 3 * text_config.intermediate_size)
    return DecoderCosts(linear=linear, pair=4 * heads, vocabulary=2 * size * text_config.vocab_size)
