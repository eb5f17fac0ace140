"""Smaller images: the model itself makes fewer vision tokens (arXiv 2510.07143: the sanity check to beat)."""

from erase.methods.base import Architecture, Cut, Preselection
from erase.methods.baselines.per_image import Baseline
from erase.policy import BaselinePolicy


class Downsample(Baseline):
    """Resizes images so that about the wanted share of vision tokens comes out; limits of the model may keep more."""

    name = "downsample"

    def __init__(self, policy: BaselinePolicy) -> None:
        super().__init__(policy)
        self.image_scale = policy.retention**0.5

    def cuts(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        return ()
