"""Deterministic choice of tokens: by their scores, or by how different they are."""

import torch
from torch import Tensor
from torch.nn import functional

_AT_ONCE = 1024
_WHOLE = 8192
"""Rows whose likenesses to each other are all kept: 256 MiB at most."""


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


def farthest_points(features: Tensor, k: int) -> Tensor:
    """The most different rows: first the one farthest from its nearest neighbour, then always the one farthest from all
    that were taken; equal ones go to the lowest index. A distance is 1 less the cosine.

    Args:
        features: [n >= 1, d], float32.
        k: how many to take, in 1..n.

    Returns:
        int64 [k], in the order in which they were taken, on the device of `features`.
    """
    directions = functional.normalize(features, dim=-1)
    n = len(directions)
    whole = directions @ directions.T if n <= _WHOLE else None
    taken = torch.empty(k, dtype=torch.int64, device=directions.device)
    taken[0] = _loneliest(directions, whole)
    nearest = torch.full((n,), float("inf"), device=directions.device)
    for number in range(1, k):
        last = taken[number - 1 : number]  # not a number, which would wait for the device
        likeness = whole.index_select(0, last) if whole is not None else directions.index_select(0, last) @ directions.T
        nearest = torch.minimum(nearest, 1 - likeness[0])
        nearest[taken[:number]] = -float("inf")
        taken[number] = nearest.argmax()
    return taken


def _loneliest(directions: Tensor, whole: Tensor | None) -> Tensor:
    """The row farthest from its nearest neighbour; [n, d] unit vectors, and how alike all are if that is known."""
    closest = []
    for start in range(0, len(directions), _AT_ONCE):
        part = directions[start : start + _AT_ONCE]
        likeness = part @ directions.T if whole is None else whole[start : start + _AT_ONCE].clone()
        own = torch.arange(len(likeness), device=likeness.device)
        likeness[own, start + own] = -float("inf")
        closest.append(likeness.amax(1))
    return torch.cat(closest).argmin()
