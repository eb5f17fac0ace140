"""VisionZip (arXiv 2412.04467): tokens that the encoder looks at, and a few that stand for the rest."""

from __future__ import annotations

import torch
from torch import Tensor

from erase.methods.baselines.per_image import ImageView, PerImage, cosines, others, ranked, sums_of

_DOMINANT = 5.4 / 6.4


class VisionZip(PerImage):
    """5.4 dominant tokens to one contextual: evenly spaced among the rest, plus the mean of those most like it."""

    name = "visionzip"
    sees_encoder_attention = True

    def choose_in(self, view: ImageView, keep: int) -> Tensor:
        dominant = ranked(view.received)[: round(keep * _DOMINANT)]
        rest = others(dominant, view.tokens)
        contextual = keep - len(dominant)
        targets = rest[:: max(1, len(rest) // max(1, contextual))][:contextual]
        return torch.cat([dominant, targets])

    def merge_in(self, view: ImageView, chosen: Tensor) -> Tensor:
        contextual = ranked(view.received[chosen])[round(len(chosen) * _DOMINANT) :]  # places among the chosen
        dropped = others(chosen, view.tokens)
        merged = view.features[chosen].clone()
        if len(contextual) == 0 or len(dropped) == 0:
            return merged
        keys = view.seen.keys
        nearest = cosines(keys[dropped], keys[chosen[contextual]]).argmax(1)
        sums, counts = sums_of(view.features[dropped], nearest, len(contextual))
        merged[contextual] += sums / counts.clamp(min=1)
        return merged
