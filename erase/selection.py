"""Deterministic choice of tokens from their scores."""

import torch
from torch import Tensor


def top_indices(scores: Tensor, k: int) -> Tensor:
    """Indices of the `k` highest scores, in ascending order; equal scores go to the lowest index.

    Args:
        scores: [n], any floating type.
        k: how many to take; more than n takes all, less than 1 takes none.

    Returns:
        int64 [min(max(k, 0), n)] on the device of `scores`.
    """
    k = min(max(k, 0), scores.numel())
    # `topk` leaves the order of equal scores open; a stable sort keeps the lower index first on every device.
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:k].sort().values


def lower_median(values: Tensor) -> float:
    """The median of [n >= 1] values; of the two middle ones of an even count, the lower."""
    return float(values.median())
