"""SparseVLM (arXiv 2410.04417): words that have to do with the image rate it; the best of the rest come back merged."""

from __future__ import annotations

import torch
from torch import Tensor

from erase.errors import InputError
from erase.methods.base import ScoreContext
from erase.methods.baselines.per_image import ranked, sums_of
from erase.methods.baselines.staged import Staged

_RECYCLED = 0.3
_PER_CLUSTER = 10
_NEIGHBOURS = 5


class SparseVLM(Staged):
    """In three stages keeps what the raters look at, and merges the top 30% of what that drops into a few tokens.

    Raters are the question's tokens that vision tokens are more like than they are like the average one. The merged
    tokens count: a cut keeps as many in all as it says.
    """

    name = "sparsevlm"
    stages = (2 / 32, 6 / 32, 15 / 32)
    sees_features = True

    def score(self, context: ScoreContext) -> Tensor:
        if context.encoded is None:
            raise InputError("sparsevlm looks at the encoder's output, which is not there")
        return context.attention(raters(context.encoded.features.float(), context.encoded.question().float()))

    def choose(self, context: ScoreContext) -> Tensor:
        scores = self.score(context)
        direct, recycled = self._shares(scores, context.cut.keep)
        states = _states(context)[recycled]
        centres = recycled[density_peaks(states, context.cut.keep - len(direct))]
        return torch.cat([direct, centres]).sort().values

    def merge(self, context: ScoreContext, chosen: Tensor) -> Tensor:
        scores, states = self.score(context), _states(context)
        direct, recycled = self._shares(scores, context.cut.keep)
        by_score = ranked(scores[chosen])
        centres = by_score[len(direct) :]  # places among the chosen: what came back scores below all that never left
        if len(centres) == 0:
            return states[chosen]
        nearest = torch.cdist(states[recycled], states[chosen[centres]]).argmin(1)
        sums, counts = sums_of(states[recycled], nearest, len(centres))
        merged = states[chosen].clone()
        merged[centres] = torch.where(counts > 0, sums / counts.clamp(min=1), merged[centres])
        return merged

    @staticmethod
    def _shares(scores: Tensor, keep: int) -> tuple[Tensor, Tensor]:
        """Tokens kept as they are, and those that are merged; the clusters of the latter fill up to `keep`."""
        order = ranked(scores)
        direct = max(keep - 1, 1)
        while direct > 1 and direct + clusters_of(len(order) - direct) > keep:
            direct -= 1
        if direct + clusters_of(len(order) - direct) > keep:
            direct = keep
        dropped = order[direct:]
        recycled = dropped[: max(int(_RECYCLED * len(dropped)), keep - direct)]
        return order[:direct], recycled if direct < keep else recycled[:0]


def clusters_of(dropped: int) -> int:
    """How many merged tokens come back for so many that are dropped."""
    return int(_RECYCLED * dropped) // _PER_CLUSTER + 1


def raters(features: Tensor, question: Tensor) -> Tensor:
    """int64: places of the question's tokens whose mean share of the vision tokens' interest is above average.

    Args:
        features: [vision tokens, d].
        question: [Q, d], embeddings.
    """
    interest = (features @ question.T).softmax(dim=1).mean(0)
    above = (interest > interest.mean()).nonzero().squeeze(1)
    return above if len(above) else torch.arange(len(question), device=question.device)


def density_peaks(points: Tensor, count: int) -> Tensor:
    """int64 [count]: cluster centres of points [n, d], dense and far from all that is denser (k nearest neighbours).

    Density is exp of minus the mean squared distance to the 5 nearest; ties go to the earlier point.
    """
    if count <= 0:
        return torch.empty(0, dtype=torch.int64, device=points.device)
    distance = torch.cdist(points, points) / points.shape[1] ** 0.5
    nearest = distance.topk(min(_NEIGHBOURS + 1, len(points)), largest=False).values
    density = (-(nearest**2).sum(1) / max(1, nearest.shape[1] - 1)).exp()
    number = torch.arange(len(points), device=points.device)
    earlier = (density[None] == density[:, None]) & (number[None] < number[:, None])
    denser = (density[None] > density[:, None]) | earlier
    apart = torch.where(denser, distance, float("inf")).amin(1)
    apart = torch.where(apart.isinf(), distance.max(), apart)
    return ranked(apart * density)[:count]


def _states(context: ScoreContext) -> Tensor:
    if context.states is None:
        raise InputError("sparsevlm merges states, which are not there")
    return context.states().float()
