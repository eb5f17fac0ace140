"""Revision 2 of ERASE: entropy and edges of the low-passed image, then an early and a late cut within one budget."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from erase.budget import BudgetCut, budget_cuts, importance, informative
from erase.errors import UnsupportedError
from erase.methods.base import Architecture, Cut, ImageSelection, Method, Preselection, QuerySource, ScoreContext
from erase.pixels.edges import edge_ratio, edge_threshold
from erase.pixels.entropy import level_entropy
from erase.pixels.images import VisionImage
from erase.pixels.lowpass import POOL, low_pass
from erase.policy import BudgetPolicy, DistinctPolicy
from erase.selection import top_indices

P = TypeVar("P", bound=BudgetPolicy | DistinctPolicy)


class LayerBudget(Method, Generic[P]):
    """Stage 1 keeps what stands out of its image or has edges; cuts bring the rest to a budget over all layers.

    An image's complexity is the mean entropy of its cells. The caches of layers before a cut stay as they ran.
    """

    def __init__(self, policy: P) -> None:
        self.policy = policy
        self.requested = policy.retention
        self.measure = policy.measure

    @abstractmethod
    def planned(self, preselection: Preselection, architecture: Architecture) -> Sequence[BudgetCut]:
        """The cuts that keep the budget."""

    def preselect(self, images: Sequence[VisionImage]) -> Preselection:
        whole = self.policy.retention == 1.0
        return Preselection(tuple(standing_out(image, self.policy.edge_tau, keep_all=whole) for image in images))

    def cuts(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        planned = self.planned(preselection, architecture)
        return tuple(Cut(cut.layer, cut.keep, prune_cache=False, role=cut.role) for cut in planned)

    def query_source(self, architecture: Architecture) -> QuerySource:
        return architecture.budget_queries if self.policy.scoring == "reference" else "normed_input"


class BudgetMethod(LayerBudget[BudgetPolicy]):
    """An early cut by attention and the pixels' cues, a late one by attention alone."""

    name = "erase-budget"

    def planned(self, preselection: Preselection, architecture: Architecture) -> Sequence[BudgetCut]:
        return budget_cuts(
            tokens=preselection.tokens,
            survivors=preselection.kept.numel(),
            retention=self.policy.retention,
            late_retention=self.policy.late_retention,
            depth=architecture.depth,
            layers=self.policy.layers or (architecture.early, architecture.late),
            may_drop_all=architecture.may_drop_all,
        )

    def score(self, context: ScoreContext) -> Tensor:
        attention = context.attention()
        if context.cut.role != "early":
            return attention
        images = context.preselection.images
        survivors = context.survivors.cpu()
        entropy = torch.cat([image.entropy for image in images])[survivors].to(attention.device)
        edges = [image.edge_ratio for image in images if image.edge_ratio is not None]
        return importance(attention, entropy, torch.cat(edges)[survivors].to(attention.device), self.policy.cue_weight)


def standing_out(image: VisionImage, edge_tau: float, *, keep_all: bool = False) -> ImageSelection:
    """The cells that stand out of their image or have edges, at least one.

    Args:
        image: what the model sees.
        edge_tau: see `BudgetPolicy`.
        keep_all: whether to keep the others, too, and only say what was seen.

    Raises:
        UnsupportedError: the model's cells cannot be pooled.
    """
    if image.cell % POOL:
        raise UnsupportedError(
            f"this policy pools pixels by {POOL}, which does not divide this model's cells of {image.cell} pixels"
        )
    parts = [_look_at(tiles, image, edge_tau) for tiles in image.groups]
    entropy, edges, keep = (torch.cat(group) for group in zip(*parts, strict=True))
    if keep_all:
        keep = torch.ones_like(keep)
    elif not bool(keep.any()):
        keep[top_indices(entropy, 1)] = True
    kept = keep.nonzero().squeeze(1)
    return ImageSelection(image.tokens, kept, entropy, float(entropy.mean()), None, image.grid, edges)


def _look_at(tiles: Tensor, image: VisionImage, edge_tau: float) -> tuple[Tensor, Tensor, Tensor]:
    blurred = low_pass(tiles, image.luma)
    side = image.cell // POOL
    entropy = level_entropy(blurred.round().to(torch.uint8), side).cpu()
    edges = edge_ratio(blurred, side, edge_threshold(blurred, edge_tau)).cpu()
    return entropy, edges, informative(entropy, edges)
