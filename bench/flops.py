"""Floating-point operations of a request, counted from the model's configuration: what pruning can save at best.

Counted are matrix products, one multiply-add as two operations: the decoder as `erase.flops` does, and of the vision
encoder linear layers per patch and attention per pair of patches (windows: the square of each).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from erase.flops import decoder_costs


@dataclass(frozen=True)
class Flops:
    """Operations of one request by phase."""

    encode: float
    prefill: float
    decode: float

    @property
    def first_token(self) -> float:
        """Until the first token."""
        return self.encode + self.prefill

    @property
    def total(self) -> float:
        """All phases."""
        return self.encode + self.prefill + self.decode


def request_flops(
    config: Any, grids: Sequence[tuple[int, int]], rows: Sequence[int], cache: Sequence[int], answer: int
) -> Flops:
    """Count one request.

    Args:
        config: the model's Qwen2_5_VLConfig.
        grids: vision tokens of each image along height and width.
        rows: per decoder layer, rows that the prefill runs.
        cache: per decoder layer, valid cache rows after prefill.
        answer: tokens of the answer; the first comes out of the prefill.
    """
    costs = decoder_costs(config.get_text_config())
    encode = sum(_encoder(config.vision_config, *grid) for grid in grids)
    return Flops(encode, costs.prefill(rows), costs.decode(cache, answer - 1))


def _encoder(vision: Any, height: int, width: int) -> float:
    merge = vision.spatial_merge_size**2
    patches = height * width * merge
    size = vision.hidden_size
    embed = 2 * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2 * size
    block = 2 * size * (4 * size + 3 * vision.intermediate_size)
    merger = 2 * (merge * size) * (merge * size + vision.out_hidden_size)
    window = vision.window_size // vision.spatial_merge_size // vision.patch_size
    windowed = sum((high * wide * merge) ** 2 for high in _split(height, window) for wide in _split(width, window))
    full = len(vision.fullatt_block_indexes)
    pairs = full * patches**2 + (vision.depth - full) * windowed
    return float(patches * (embed + vision.depth * block) + height * width * merger + 4 * size * pairs)


def _split(length: int, part: int) -> list[int]:
    return [min(part, length - start) for start in range(0, length, part)]
