"""PyramidDrop: cuts in stages, each by the attention of the last token."""

from torch import Tensor

from erase.methods.base import ScoreContext
from erase.methods.baselines.staged import Staged


class PyramidDrop(Staged):
    """After a quarter, a half and three quarters of the layers, keeps an equal fraction of what is left each time."""

    name = "pyramiddrop"
    stages = (1 / 4, 1 / 2, 3 / 4)

    def score(self, context: ScoreContext) -> Tensor:
        return context.attention("last")
