"""A random choice of vision tokens: what any method must beat."""

from random import Random

import torch
from torch import Tensor

from erase.methods.baselines.per_image import ImageView, PerImage


class RandomTokens(PerImage):
    """Keeps a random sample of each image, the same every time for one seed and grid."""

    name = "random"

    def choose_in(self, view: ImageView, keep: int) -> Tensor:
        drawn = Random(f"{self.policy.seed}/{view.grid}").sample(range(view.tokens), keep)
        return torch.tensor(drawn, device=view.features.device)
