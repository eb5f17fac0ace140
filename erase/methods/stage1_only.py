"""A method without its cuts inside the decoder: what it drops before, and nothing inside."""

from collections.abc import Sequence

from torch import Tensor

from erase.methods.base import Architecture, Cut, Method, Preselection, ScoreContext
from erase.pixels.images import VisionImage


class Stage1Only(Method):
    """What another method drops before the decoder. For prompts with so few vision tokens that stage 2 does not pay."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self.name = method.name
        self.requested = method.requested
        self.measure = method.measure
        self.sees_features = method.sees_features
        self.sees_encoder_attention = method.sees_encoder_attention

    def preselect(self, images: Sequence[VisionImage]) -> Preselection:
        return self._method.preselect(images)

    def postencode(self, features: Tensor, preselection: Preselection) -> Tensor:
        return self._method.postencode(features, preselection)

    def cuts(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        return tuple(cut for cut in self._method.cuts(preselection, architecture) if cut.after_layers == 0)

    def choose(self, context: ScoreContext) -> Tensor:
        return self._method.choose(context)

    def merge(self, context: ScoreContext, chosen: Tensor) -> Tensor:
        return self._method.merge(context, chosen)
