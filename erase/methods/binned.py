"""Revision 1 of ERASE (arXiv 2605.09982): complexity bins, one cut, one cache length for all layers."""

from collections.abc import Sequence

from torch import Tensor

from erase.methods.base import Architecture, Cut, ImageSelection, Method, Preselection, QuerySource
from erase.pixels.entropy import cell_entropy
from erase.pixels.images import VisionImage
from erase.policy import BinnedPolicy
from erase.selection import lower_median, top_indices


class BinnedMethod(Method):
    """Stage 1 keeps each image's most entropic cells, as many as its bin says; stage 2 keeps what the question sees."""

    name = "erase-binned"

    def __init__(self, policy: BinnedPolicy) -> None:
        self.policy = policy
        self.requested = policy.retention
        self.measure = policy.measure

    def preselect(self, images: Sequence[VisionImage]) -> Preselection:
        return Preselection(tuple(self._select(image) for image in images))

    def cuts(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        if self.policy.final_retention == 1.0 or preselection.tokens == 0:
            return ()
        keep = min(int(preselection.tokens * self.policy.final_retention), preselection.kept.numel())
        return (Cut(after_layers=self._cut_layer(preselection, architecture), keep=keep, prune_cache=True),)

    def query_source(self, architecture: Architecture) -> QuerySource:
        return architecture.binned_queries if self.policy.scoring == "reference" else "normed_input"

    def _select(self, image: VisionImage) -> ImageSelection:
        entropy = image_entropy(image)
        complexity = lower_median(entropy)
        bin_index = complexity_bin(complexity, self.policy.thresholds)
        retention = max(self.policy.stage1_retention[bin_index], self.policy.final_retention)
        kept = top_indices(entropy, max(1, int(image.tokens * retention)))
        return ImageSelection(image.tokens, kept, entropy, complexity, bin_index, image.grid)

    def _cut_layer(self, preselection: Preselection, architecture: Architecture) -> int:
        shallow, deep = self.policy.layers or (architecture.shallow, architecture.deep)
        complex_bins = -(-len(self.policy.stage1_retention) // 2)
        any_complex = any(image.bin is not None and image.bin < complex_bins for image in preselection.images)
        return min(deep if any_complex else shallow, architecture.depth - 1)


def image_entropy(image: VisionImage) -> Tensor:
    """float32 [tokens] in nats, on the CPU; revision 1 has one grey for all architectures."""
    return cell_entropy(image.tiles, image.cell).cpu()


def complexity_bin(complexity: float, thresholds: Sequence[float]) -> int:
    """The first bin whose threshold the complexity exceeds (nats), else the last; 0 is the most complex."""
    for index, threshold in enumerate(thresholds):
        if complexity > threshold:
            return index
    return len(thresholds)
