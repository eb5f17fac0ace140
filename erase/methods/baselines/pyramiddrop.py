"""PyramidDrop: cuts in stages, each by the attention of the last token."""

from torch import Tensor

from erase.methods.base import Architecture, Cut, Preselection, ScoreContext
from erase.methods.baselines.per_image import Baseline, kept_of
from erase.methods.baselines.schedule import falling, layers_at

_STAGES = (1 / 4, 1 / 2, 3 / 4)


class PyramidDrop(Baseline):
    """After a quarter, a half and three quarters of the layers, keeps an equal fraction of what is left each time."""

    name = "pyramiddrop"

    def cuts(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        if not self.prunes(preselection):
            return ()
        layers = layers_at(_STAGES, architecture.depth)
        shares = falling(self.policy, layers, architecture.depth)
        return tuple(
            Cut(layer, kept_of(preselection.tokens, share), prune_cache=False)
            for layer, share in zip(layers, shares, strict=True)
        )

    def score(self, context: ScoreContext) -> Tensor:
        return context.attention("last")
