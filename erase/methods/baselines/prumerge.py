"""PruMerge: tokens whose received attention stands out, each with something of those like it."""

from __future__ import annotations

import torch
from torch import Tensor

from erase.methods.baselines.per_image import ImageView, PerImage, cosines, others, ranked

_NEIGHBOURS = 32


class PruMerge(PerImage):
    """For a fixed budget: outliers of the received attention first, evenly spaced ones, and one for all the rest.

    A survivor adds the attention-weighted sum of the 32 tokens whose keys are nearest to its own; the one for the rest
    becomes the weighted mean of what nobody kept.
    """

    name = "prumerge"
    sees_encoder_attention = True

    def choose_in(self, view: ImageView, keep: int) -> Tensor:
        named = self._named(view, keep - 1)
        rest = others(named, view.tokens)
        return torch.cat([named, rest[view.received[rest].argmax()].view(1)])

    def merge_in(self, view: ImageView, chosen: Tensor) -> Tensor:
        features, weights = view.features, view.received / view.received.sum()
        near = cosines(view.seen.keys[chosen], view.seen.keys)
        near[torch.arange(len(chosen), device=near.device), chosen] = -float("inf")
        neighbours = near.topk(min(_NEIGHBOURS, view.tokens - 1), dim=1).indices
        merged = features[chosen].clone()
        for own in neighbours.unbind(1):  # one after the other: all at once would be many times the features
            merged += weights[own, None] * features[own]
        named = self._named(view, len(chosen) - 1)
        left = others(named, view.tokens)
        for_the_rest = (~torch.isin(chosen, named)).nonzero().squeeze(1)
        merged[for_the_rest] = (weights[left, None] * features[left]).sum(0) / weights[left].sum()
        return merged

    @staticmethod
    def _named(view: ImageView, count: int) -> Tensor:
        """int64 [count]: tokens above the third quartile by 1.5 interquartile ranges, then evenly spaced others."""
        received = view.received
        low, high = torch.quantile(received, torch.tensor([0.25, 0.75], device=received.device))
        outliers = ranked(received)[: int((received > high + 1.5 * (high - low)).sum())][:count]
        rest, missing = others(outliers, view.tokens), count - len(outliers)
        spaced = rest[torch.arange(missing, device=rest.device) * len(rest) // max(1, missing)]
        return torch.cat([outliers, spaced])
