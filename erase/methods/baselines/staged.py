"""Methods that cut in stages inside the decoder, an equal fraction of what is left each time."""

from typing import ClassVar

from erase.methods.base import Architecture, Cut, Preselection
from erase.methods.baselines.per_image import Baseline, kept_of
from erase.methods.baselines.schedule import falling, layers_at


class Staged(Baseline):
    """Cuts after `stages`, shares of the depth."""

    stages: ClassVar[tuple[float, ...]]
    cuts_inside = True

    def cuts(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        if not self.prunes(preselection):
            return ()
        layers = layers_at(self.stages, architecture.depth)
        shares = falling(self.policy, layers, architecture.depth)
        return tuple(
            Cut(layer, kept_of(preselection.tokens, share), prune_cache=False)
            for layer, share in zip(layers, shares, strict=True)
        )
