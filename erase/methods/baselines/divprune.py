"""DivPrune: the most different tokens, by farthest points."""

from __future__ import annotations

from torch import Tensor

from erase.methods.baselines.per_image import ImageView, PerImage
from erase.selection import farthest_points


class DivPrune(PerImage):
    """Starts with the token farthest from its nearest neighbour, then always the one farthest from all chosen."""

    name = "divprune"

    def choose_in(self, view: ImageView, keep: int) -> Tensor:
        return farthest_points(view.features, keep)
