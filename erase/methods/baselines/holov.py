"""HoloV (arXiv 2510.02912): every slice of the image keeps a share, by how much is to be seen in it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from erase.methods.baselines.per_image import ImageView, PerImage, cosines, parts_of, ranked, shared_out

_SLICES = 1.8
_ATTENTION = 1e3
_VARIANCE = 0.09
_SMALLEST = 1e-12


class HoloV(PerImage):
    """Contiguous slices get quotas by their mean score; inside, the encoder's attention decides.

    A token's score is its received attention, and the variance of its likeness to the others in its slice.
    """

    name = "holov"
    sees_encoder_attention = True

    def choose_in(self, view: ImageView, keep: int) -> Tensor:
        count = min(view.tokens, math.ceil(_SLICES * view.tokens / keep))
        slices = [torch.tensor(own, device=view.features.device) for own in parts_of(view.tokens, count)]
        attention = _ATTENTION * view.received
        variance = torch.cat([_varying(view.features[own]) for own in slices])
        score = attention + _VARIANCE * variance * attention.mean() / variance.mean().clamp(min=_SMALLEST)
        quotas = shared_out(keep, [float(score[own].mean()) for own in slices], [len(own) for own in slices])
        return torch.cat([own[ranked(view.received[own])[:quota]] for own, quota in zip(slices, quotas, strict=True)])


def _varying(features: Tensor) -> Tensor:
    """[n] variance of each token's cosines to the others; 0 for one that is alone or has a single other."""
    others = max(1, len(features) - 1)
    likeness = cosines(features, features).fill_diagonal_(0.0)
    mean = likeness.sum(1, keepdim=True) / others
    return ((likeness - mean) ** 2).fill_diagonal_(0.0).sum(1) / others
