"""Beyond both revisions: stage 1 of revision 2, then what differs most, and late what the question looks at."""

from collections.abc import Sequence

from torch import Tensor

from erase.budget import BudgetCut, distinct_cuts
from erase.errors import InputError
from erase.methods.base import Architecture, Preselection, ScoreContext
from erase.methods.budget import LayerBudget
from erase.policy import DistinctPolicy
from erase.selection import farthest_points


class DistinctMethod(LayerBudget[DistinctPolicy]):
    """An early cut by attention loses evidence that only deeper layers look for; what repeats is known before.

    So of what the pixels leave, the vision encoder's most different tokens enter the decoder, and the question decides
    once, late. Tokens of all images of a prompt are compared together.
    """

    name = "erase-distinct"
    sees_features = True

    def planned(self, preselection: Preselection, architecture: Architecture) -> Sequence[BudgetCut]:
        return distinct_cuts(
            tokens=preselection.tokens,
            survivors=preselection.kept.numel(),
            retention=self.policy.retention,
            late_retention=self.policy.late_retention,
            depth=architecture.depth,
            late=architecture.late if self.policy.late_layer is None else self.policy.late_layer,
        )

    def choose(self, context: ScoreContext) -> Tensor:
        if context.cut.after_layers > 0:
            return super().choose(context)
        if context.encoded is None:
            raise InputError(f"the method {self.name!r} looks at the encoder's output, which is not there")
        features = context.encoded.features
        survivors = context.survivors.to(features.device)
        return farthest_points(features[survivors].float(), context.cut.keep).sort().values
