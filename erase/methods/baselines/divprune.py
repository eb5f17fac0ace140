"""DivPrune: the most different tokens, by farthest points."""

from __future__ import annotations

import torch
from torch import Tensor

from erase.methods.baselines.per_image import ImageView, PerImage

_AT_ONCE = 1024


class DivPrune(PerImage):
    """Starts with the token farthest from its nearest neighbour, then always the one farthest from all chosen."""

    name = "divprune"

    def choose_in(self, view: ImageView, keep: int) -> Tensor:
        directions = torch.nn.functional.normalize(view.features, dim=-1)
        chosen = torch.empty(keep, dtype=torch.int64, device=directions.device)
        chosen[0] = _loneliest(directions)
        nearest = 1 - directions @ directions[chosen[0]]
        for number in range(1, keep):
            nearest[chosen[:number]] = -float("inf")
            chosen[number] = nearest.argmax()
            nearest = torch.minimum(nearest, 1 - directions @ directions[chosen[number]])
        return chosen


def _loneliest(directions: Tensor) -> Tensor:
    """The token farthest from its nearest neighbour; [n, d] unit vectors, compared some at a time."""
    closest = []
    for start in range(0, len(directions), _AT_ONCE):
        likeness = directions[start : start + _AT_ONCE] @ directions.T
        likeness[torch.arange(len(likeness)), torch.arange(start, start + len(likeness))] = -float("inf")
        closest.append(likeness.amax(1))
    return torch.cat(closest).argmin()
