"""Keys and values of all running sequences: one pool of rows, out of which each sequence has one block."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from erase.methods.base import Cut


def planned_lengths(text: int, vision: int, cuts: Sequence[Cut], depth: int) -> tuple[int, ...]:
    """Rows that each layer will hold after prefill: known before it, since stage 1 is done and cuts have sizes.

    Args:
        text: text tokens of the prompt.
        vision: vision tokens after stage 1.
        cuts: the method's plan.
        depth: decoder layers.
    """
    lengths = [text + vision] * depth
    for cut in cuts:
        first = 0 if cut.prune_cache else cut.after_layers
        lengths[first:] = [text + cut.keep] * (depth - first)
    return tuple(lengths)


class CachePool:
    """Room for `rows` keys and values [rows, key heads, head_dim], given out in contiguous blocks.

    One row is one token in one layer. Blocks may move when the room that is left lies scattered: ask a block where it
    is each time.
    """

    def __init__(self, rows: int, key_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows = rows
        self.keys = torch.empty(rows, key_heads, head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self._blocks: list[Block] = []  # ascending by start

    @property
    def used(self) -> int:
        """Rows given out."""
        return sum(block.rows for block in self._blocks)

    @property
    def free(self) -> int:
        """Rows that can still be given out, in one piece if need be."""
        return self.rows - self.used

    def allocate(self, rows: int) -> Block | None:
        """A block of so many rows, or None if there are not enough."""
        if rows > self.free:
            return None
        at = self._gap(rows)
        if at is None:
            self._close_gaps()
            at = len(self._blocks)
        start = self._blocks[at - 1].end if at else 0
        block = Block(start, rows)
        self._blocks.insert(at, block)
        return block

    def release(self, block: Block) -> None:
        """Take a block back."""
        self._blocks.remove(block)

    def write(self, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put keys and values [rows, key heads, head_dim] into the rows of the pool that `places` [rows] names."""
        self.keys.index_copy_(0, places, keys)
        self.values.index_copy_(0, places, values)

    def _gap(self, rows: int) -> int | None:
        """The first place in the list of blocks where so many rows are free."""
        ends = [0, *(block.end for block in self._blocks)]
        starts = [*(block.start for block in self._blocks), self.rows]
        return next((at for at, (end, start) in enumerate(zip(ends, starts, strict=True)) if start - end >= rows), None)

    def _close_gaps(self) -> None:
        end = 0
        for block in self._blocks:
            if block.start != end:
                # Copies, since the two places may overlap; both before either is written, should memory run out.
                copies = [slab[block.start : block.end].clone() for slab in (self.keys, self.values)]
                block.start = end
                for slab, copy in zip((self.keys, self.values), copies, strict=True):
                    slab[block.start : block.end] = copy
            end = block.end


class Block:
    """Rows `start` to `end` of a pool."""

    def __init__(self, start: int, rows: int) -> None:
        self.start = start
        self.rows = rows

    @property
    def end(self) -> int:
        """One past the last row."""
        return self.start + self.rows


class SequenceCache:
    """One sequence's rows, survivors only: per layer its own number of them, and `room` for the answer's.

    Prefill writes each layer's rows once they are final (`store`); a step writes its rows behind them (`spans_with`),
    which count only after `commit`: a step that failed half-way leaves nothing behind.
    """

    def __init__(self, pool: CachePool, block: Block, planned: Sequence[int], room: int) -> None:
        self._pool = pool
        self._block: Block | None = block
        self._planned = tuple(planned)
        self._room = room
        self._offsets = self._offsets_for(room)
        self._stored = [False] * len(planned)
        self._answer = 0

    @classmethod
    def create(cls, pool: CachePool, planned: Sequence[int], room: int) -> SequenceCache | None:
        """A cache for `planned` rows per layer and `room` more in each; None if the pool has no space for it."""
        block = pool.allocate(sum(planned) + room * len(planned))
        return None if block is None else cls(pool, block, planned, room)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Valid rows per layer."""
        return tuple(
            (length if stored else 0) + self._answer for length, stored in zip(self._planned, self._stored, strict=True)
        )

    @property
    def room(self) -> int:
        """Rows per layer that can still be added."""
        return self._room - self._answer

    def store(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Take the prompt's final rows [rows, key heads, head_dim] of a layer."""
        if len(key) != self._planned[layer]:
            raise ValueError(f"layer {layer} was planned for {self._planned[layer]} rows, got {len(key)}")
        self._write(layer, key, value)
        self._stored[layer] = True

    def span(self, layer: int) -> slice:
        """Where a layer's valid rows lie in the pool."""
        return self._span(layer, self.lengths[layer])

    def spans_with(self, rows: int) -> list[slice]:
        """Where each layer's rows will lie when `rows` more have been written behind the valid ones."""
        if rows > self.room:
            raise ValueError(f"there is room for {self.room} more rows, got {rows}")
        return [self._span(layer, planned + self._answer + rows) for layer, planned in enumerate(self._planned)]

    def commit(self, rows: int) -> None:
        """The next `rows` rows of every layer have been written and are valid now."""
        self._answer += rows

    def grow(self, room: int) -> bool:
        """Make room for `room` more rows per layer; False if the pool has no space: nothing has changed then."""
        if room <= self.room:
            return True
        wanted = self._answer + room
        if sum(self._planned) + wanted * len(self._planned) > self._pool.free + self._held.rows:
            return False
        spans = [self.span(layer) for layer in range(len(self._planned))]
        rows = [(self._pool.keys[span].clone(), self._pool.values[span].clone()) for span in spans]
        self.free()  # first, so that its own rows count as free
        self._block = self._pool.allocate(sum(self._planned) + wanted * len(self._planned))
        self._room, self._offsets = wanted, self._offsets_for(wanted)
        for layer, (key, value) in enumerate(rows):
            self._write(layer, key, value)
        return True

    def free(self) -> None:
        """Give the rows back; may be called again."""
        if self._block is not None:
            self._pool.release(self._block)
            self._block = None

    @property
    def _held(self) -> Block:
        if self._block is None:
            raise ValueError("the cache was given back")
        return self._block

    def _span(self, layer: int, rows: int) -> slice:
        first = self._held.start + self._offsets[layer]
        return slice(first, first + rows)

    def _offsets_for(self, room: int) -> tuple[int, ...]:
        return tuple(accumulate((length + room for length in self._planned[:-1]), initial=0))

    def _write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """A layer's first rows."""
        span = self._span(layer, len(key))
        self._pool.keys[span] = key
        self._pool.values[span] = value
