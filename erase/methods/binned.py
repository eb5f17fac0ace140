"""Revision 1 of ERASE (arXiv 2605.09982): complexity bins, one cut, one cache length for all layers."""

from collections.abc import Sequence

from torch import Tensor

from erase.entropy import cell_entropy
from erase.methods.base import Architecture, Cut, ImageSelection, Method, Preselection
from erase.policy import BinnedPolicy
from erase.selection import lower_median, top_indices


class BinnedMethod(Method):
    """Stage 1 keeps each image's most entropic cells, as many as its bin says; stage 2 keeps what the question sees."""

    name = "erase-binned"

    def __init__(self, policy: BinnedPolicy) -> None:
        self.policy = policy
        self.scoring = policy.scoring

    def preselect(self, images: Sequence[Tensor]) -> Preselection:
        return Preselection(tuple(self._select(cells) for cells in images))

    def cuts(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        survivors = preselection.kept.numel()
        keep = min(int(preselection.tokens * self.policy.final_retention), survivors)
        if keep == survivors:
            return ()
        return (Cut(after_layers=self._cut_layer(preselection, architecture), keep=keep, prune_cache=True),)

    def _select(self, cells: Tensor) -> ImageSelection:
        entropy = cell_entropy(cells)
        complexity = lower_median(entropy)
        bin_index = complexity_bin(complexity, self.policy.thresholds)
        retention = max(self.policy.stage1_retention[bin_index], self.policy.final_retention)
        tokens = cells.shape[0]
        kept = top_indices(entropy, max(1, int(tokens * retention)))
        return ImageSelection(tokens=tokens, kept=kept, entropy=entropy, complexity=complexity, bin=bin_index)

    def _cut_layer(self, preselection: Preselection, architecture: Architecture) -> int:
        shallow, deep = self.policy.layers or (architecture.shallow, architecture.deep)
        complex_bins = -(-len(self.policy.stage1_retention) // 2)
        any_complex = any(image.bin is not None and image.bin < complex_bins for image in preselection.images)
        return min(deep if any_complex else shallow, architecture.depth - 1)


def complexity_bin(complexity: float, thresholds: Sequence[float]) -> int:
    """The first bin whose threshold the complexity exceeds (nats), else the last; 0 is the most complex."""
    for index, threshold in enumerate(thresholds):
        if complexity > threshold:
            return index
    return len(thresholds)
