"""CDPruner (arXiv 2506.10967): unlike tokens that have to do with the question, by a determinantal point process."""

from __future__ import annotations

import torch
from torch import Tensor

from erase.methods.baselines.per_image import ImageView, PerImage, cosines

_SMALLEST = 1e-6


class CDPruner(PerImage):
    """Greedy search for the most probable set; relevance is the cosine to the mean of the question's embeddings."""

    name = "cdpruner"

    def choose_in(self, view: ImageView, keep: int) -> Tensor:
        relevance = cosines(view.features, view.question.mean(0, keepdim=True)).squeeze(1)
        relevance = relevance - relevance.min()
        relevance = (relevance + _SMALLEST) / relevance.max().clamp(min=_SMALLEST)
        kernel = relevance[:, None] * cosines(view.features, view.features) * relevance[None, :]
        return most_probable(kernel, keep)


def most_probable(kernel: Tensor, keep: int) -> Tensor:
    """int64 [keep], in the order of choice: each time the token that enlarges the chosen set's determinant most.

    Args:
        kernel: [n, n], symmetric.
        keep: how many, at most n.
    """
    gains = kernel.diagonal().clone()
    rows = torch.zeros(keep, len(kernel), device=kernel.device)
    chosen = torch.empty(keep, dtype=torch.int64, device=kernel.device)
    for number in range(keep):
        best = gains.argmax()
        chosen[number] = best
        row = kernel[best] - rows[:number, best] @ rows[:number]
        rows[number] = row / gains[best].clamp(min=_SMALLEST).sqrt()
        gains = gains - rows[number] ** 2
        gains[chosen[: number + 1]] = -float("inf")
    return chosen
