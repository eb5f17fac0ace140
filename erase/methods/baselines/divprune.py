"""DivPrune: the most different tokens, by farthest points."""

from __future__ import annotations

import torch
from torch import Tensor

from erase.methods.baselines.per_image import ImageView, PerImage, cosines


class DivPrune(PerImage):
    """Starts with the token farthest from its nearest neighbour, then always the one farthest from all chosen."""

    name = "divprune"

    def choose_in(self, view: ImageView, keep: int) -> Tensor:
        distance = 1 - cosines(view.features, view.features)
        alone = distance.clone().fill_diagonal_(float("inf")).amin(1)
        chosen = alone.argmax().view(1)
        nearest = distance[chosen[0]].clone()
        for _ in range(keep - 1):
            nearest[chosen] = -float("inf")
            best = nearest.argmax()
            chosen = torch.cat([chosen, best.view(1)])
            nearest = torch.minimum(nearest, distance[best])
        return chosen
