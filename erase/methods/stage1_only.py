"""A method without its cuts: what it drops before the decoder, and nothing inside."""

from collections.abc import Sequence

from torch import Tensor

from erase.methods.base import Architecture, Cut, Method, Preselection
from erase.pixels.images import VisionImage


class Stage1Only(Method):
    """Stage 1 of another method. For prompts with so few vision tokens that stage 2 costs more than it saves."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self.name = method.name
        self.requested = method.requested
        self.measure = method.measure

    def preselect(self, images: Sequence[VisionImage]) -> Preselection:
        return self._method.preselect(images)

    def postencode(self, features: Tensor, preselection: Preselection) -> Tensor:
        return self._method.postencode(features, preselection)

    def cuts(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        return ()
