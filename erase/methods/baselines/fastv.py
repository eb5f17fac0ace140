"""FastV (arXiv 2403.06764): one early cut by the attention of the last token."""

from torch import Tensor

from erase.methods.base import Architecture, Cut, Preselection, ScoreContext
from erase.methods.baselines.per_image import Baseline, kept_of
from erase.methods.baselines.schedule import left_after, require_reachable

_AFTER_LAYERS = 2


class FastV(Baseline):
    """After two layers, keeps what the last token looks at in the second."""

    name = "fastv"
    cuts_inside = True

    def cuts(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        if not self.prunes(preselection):
            return ()
        depth, layer = architecture.depth, min(_AFTER_LAYERS, architecture.depth - 1)
        require_reachable(self.policy, layer, depth)
        share = left_after(self.policy, 1.0, layer, depth)
        return (Cut(layer, kept_of(preselection.tokens, share), prune_cache=False),)

    def score(self, context: ScoreContext) -> Tensor:
        return context.attention("last")
