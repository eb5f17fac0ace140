"""CDPruner (arXiv 2506.10967): unlike tokens that have to do with the question, by a determinantal point process."""

from __future__ import annotations

import torch
from torch import Tensor

from erase.methods.baselines.per_image import ImageView, PerImage, cosines

_SMALLEST = 1e-6


class CDPruner(PerImage):
    """Greedy search for the most probable set; relevance is the cosine to the mean of the question's embeddings.

    Where the paper's search has nothing left to tell the rest apart, ours begins anew with it.
    """

    name = "cdpruner"

    def choose_in(self, view: ImageView, keep: int) -> Tensor:
        relevance = cosines(view.features, view.question.mean(0, keepdim=True)).squeeze(1)
        relevance = relevance - relevance.min()
        relevance = (relevance + _SMALLEST) / relevance.max().clamp(min=_SMALLEST)
        scaled = relevance[:, None] * torch.nn.functional.normalize(view.features, dim=-1)
        return most_probable(scaled, keep)


def most_probable(factor: Tensor, keep: int) -> Tensor:
    """int64 [keep], in the order of choice: each time the token that enlarges the chosen set's determinant most.

    Where nothing enlarges it, as after as many tokens as there are dimensions, the search begins anew with the rest.

    Args:
        factor: [n, d], whose products are the process' kernel [n, n]; that is never there as a whole.
        keep: how many, at most n.
    """
    alone = (factor**2).sum(1)
    nothing = _SMALLEST * alone.max()
    gains = alone
    rows = torch.zeros(keep, len(factor), dtype=factor.dtype, device=factor.device)
    chosen = torch.empty(keep, dtype=torch.int64, device=factor.device)
    begun = 0
    for number in range(keep):
        if gains.max() <= nothing:
            begun = number
            gains = alone.index_fill(0, chosen[:number], -float("inf"))
        best = gains.argmax()
        chosen[number] = best
        row = factor @ factor[best] - rows[begun:number, best] @ rows[begun:number]
        rows[number] = row / gains[best].clamp(min=torch.finfo(gains.dtype).tiny).sqrt()
        gains = (gains - rows[number] ** 2).index_fill(0, chosen[: number + 1], -float("inf"))
    return chosen
