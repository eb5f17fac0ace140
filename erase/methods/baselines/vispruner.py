"""VisPruner (arXiv 2412.01818): half by the encoder's attention, half by leaving out what repeats."""

from __future__ import annotations

import torch
from torch import Tensor

from erase.methods.baselines.per_image import ImageView, PerImage, cosines, ranked

_IMPORTANT = 0.5
_AT_ONCE = 8
"""Tokens dropped before neighbours are compared anew; a sixteenth of what is left where that is more."""


class VisPruner(PerImage):
    """From the less looked-at ones, every other token that is most like one of the others goes, a few at a time."""

    name = "vispruner"
    sees_encoder_attention = True

    def choose_in(self, view: ImageView, keep: int) -> Tensor:
        order = ranked(view.received)
        important = round(keep * _IMPORTANT)
        rest, wanted = order[important:], keep - important
        while len(rest) > max(wanted, 1):
            evens, odds = rest[::2], rest[1::2]
            alike = cosines(view.features[evens], view.features[odds]).amax(1)
            dropped = ranked(alike)[: min(len(rest) - wanted, max(_AT_ONCE, len(rest) // 16))]
            stays = torch.ones(len(rest), dtype=torch.bool, device=rest.device)
            stays[2 * dropped] = False
            rest = rest[stays]
        return torch.cat([order[:important], rest[:wanted]])
