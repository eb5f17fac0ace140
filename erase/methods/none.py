"""The method that prunes nothing and still reports what the images look like."""

from collections.abc import Sequence

import torch

from erase.methods.base import Architecture, Cut, ImageSelection, Method, Preselection
from erase.methods.binned import image_entropy
from erase.pixels.images import VisionImage
from erase.selection import lower_median


class NoPruning(Method):
    """Keeps every vision token: the stock model, with entropies in the trace."""

    name = "none"

    def preselect(self, images: Sequence[VisionImage]) -> Preselection:
        return Preselection(tuple(_all_of(image) for image in images))

    def cuts(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        return ()


def _all_of(image: VisionImage) -> ImageSelection:
    entropy = image_entropy(image)
    return ImageSelection(image.tokens, torch.arange(image.tokens), entropy, lower_median(entropy), None, image.grid)
