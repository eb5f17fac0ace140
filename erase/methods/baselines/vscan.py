"""VScan (arXiv 2505.22654): what the encoder looks at, all over and window by window, then what the text looks at."""

from __future__ import annotations

import torch
from torch import Tensor

from erase.methods.base import Architecture, Cut, Preselection, ScoreContext
from erase.methods.baselines.per_image import (
    ImageView,
    PerImage,
    cosines,
    kept_of,
    others,
    ranked,
    shared_out,
    sums_of,
)
from erase.methods.baselines.schedule import left_after

_GLOBAL = 0.5
_SECOND = 1 / 3
_WINDOW = 4
_NUDGE = 1e-6


class VScan(PerImage):
    """Before the decoder half by the last block's attention, half by the first's with equal shares per 4 x 4 window.

    What is dropped is averaged into the nearest survivor. Halfway through the decoder a third of these stay, by the
    last token's attention.
    """

    name = "vscan"
    cuts_inside = True
    sees_encoder_attention = True

    def cuts(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        if not self.prunes(preselection):
            return ()
        depth = architecture.depth
        layer = max(1, depth // 2)
        left = left_after(self.policy, self._entering, layer, depth)
        return (
            Cut(0, sum(self.keeps(preselection)), prune_cache=False),
            Cut(layer, kept_of(preselection.tokens, left), prune_cache=False),
        )

    def keep_of(self, grid: tuple[int, int]) -> int:
        return kept_of(grid[0] * grid[1], self._entering)

    def choose(self, context: ScoreContext) -> Tensor:
        if context.cut.after_layers == 0:
            return super().choose(context)
        return ranked(context.attention("last"))[: context.cut.keep].sort().values

    def merge(self, context: ScoreContext, chosen: Tensor) -> Tensor:
        if context.cut.after_layers == 0 or context.states is None:
            return super().merge(context, chosen)
        return context.states()[chosen]

    def choose_in(self, view: ImageView, keep: int) -> Tensor:
        everywhere = ranked(view.received)[: round(keep * _GLOBAL)]
        free = torch.ones(view.tokens, dtype=torch.bool, device=everywhere.device)
        free[everywhere] = False
        windows = [own[free[own]] for own in _windows(view.grid, everywhere.device)]
        sizes = [len(own) for own in windows]
        first = view.seen.received[0]
        # Equal shares; what is left over goes where the first block looks most.
        most = [float(first[own].max()) if len(own) else 0.0 for own in windows]
        weights = [1.0 + _NUDGE * one / max(max(most), _NUDGE) for one in most]
        quotas = shared_out(keep - len(everywhere), weights, sizes)
        local = [own[ranked(first[own])[:quota]] for own, quota in zip(windows, quotas, strict=True)]
        return torch.cat([everywhere, *local])

    def merge_in(self, view: ImageView, chosen: Tensor) -> Tensor:
        dropped = others(chosen, view.tokens)
        nearest = cosines(view.features[dropped], view.features[chosen]).argmax(1)
        sums, counts = sums_of(view.features[dropped], nearest, len(chosen))
        return (view.features[chosen] + sums) / (counts + 1)

    @property
    def _entering(self) -> float:
        """Share that enters the decoder: what halfway loses two thirds and then is what was asked for."""
        factor = 1 / _SECOND if self.policy.measure == "final" else 2 / (1 + _SECOND)
        return min(1.0, factor * self.policy.retention)


def _windows(grid: tuple[int, int], device: torch.device) -> list[Tensor]:
    """Places of the tokens of each window, row by row; windows at the right and lower border may be smaller."""
    height, width = grid
    numbers = torch.arange(height * width, device=device).view(height, width)
    return [
        numbers[top : top + _WINDOW, left : left + _WINDOW].flatten()
        for top in range(0, height, _WINDOW)
        for left in range(0, width, _WINDOW)
    ]
