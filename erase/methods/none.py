"""The method that prunes nothing and still reports what the images look like."""

from collections.abc import Sequence

import torch
from torch import Tensor

from erase.entropy import cell_entropy
from erase.methods.base import Architecture, Cut, ImageSelection, Method, Preselection
from erase.policy import Scoring
from erase.selection import lower_median


class NoPruning(Method):
    """Keeps every vision token: the stock model, with entropies in the trace."""

    name = "none"
    scoring: Scoring = "reference"

    def preselect(self, images: Sequence[Tensor]) -> Preselection:
        return Preselection(tuple(_all_of(cells) for cells in images))

    def cuts(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        return ()


def _all_of(cells: Tensor) -> ImageSelection:
    entropy = cell_entropy(cells)
    return ImageSelection(
        tokens=cells.shape[0],
        kept=torch.arange(cells.shape[0]),
        entropy=entropy,
        complexity=lower_median(entropy),
        bin=None,
    )
