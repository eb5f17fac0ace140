"""The arithmetic of budgets over layers: which cells are worth reading, what cuts keep, what pixels add to scores."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

LARGEST_ENTROPY = 5.541263545158426  # nats; the published constant, slightly below ln 256
ENTROPY_MARGIN = 1e-4  # nats above the mean, so that rounding noise does not decide over a flat image
SMALLEST_STD = 1e-6


class BudgetCut(NamedTuple):
    """Layers run before the cut, tokens that it keeps, and which of the two it is."""

    layer: int
    keep: int
    role: Literal["distinct", "early", "late"]


def informative(entropy: Tensor, edge_ratio: Tensor) -> Tensor:
    """Cells that stage 1 keeps: more entropy than the mean of their group, or any edge.

    Args:
        entropy: float32 [n], nats, of all cells that share their statistics.
        edge_ratio: float32 [n], 0..1.

    Returns:
        bool [n].
    """
    mean = entropy.to(torch.float64).mean()
    return (entropy > mean + ENTROPY_MARGIN) | (edge_ratio > 0)


def budget_cuts(
    *,
    tokens: int,
    survivors: int,
    retention: float,
    late_retention: float,
    depth: int,
    layers: Sequence[int],
    may_drop_all: bool,
) -> tuple[BudgetCut, ...]:
    """The cuts that bring a prompt's vision tokens to a budget averaged over layers, or as near as they can.

    Args:
        tokens: vision tokens of the unpruned prompt, N.
        survivors: those that stage 1 kept.
        retention: the budget R, a fraction of N.
        late_retention: share of the early cut's survivors that the late cut keeps, unless the budget leaves more.
        depth: decoder layers L.
        layers: layers run before the (early, late) cut; brought into 1..L-1, in order.
        may_drop_all: whether a budget that is spent before a cut leaves nothing; otherwise one token stays.

    Returns:
        Early first; a cut that would keep all by its share is left out.
    """
    if survivors <= max(1, int(tokens * retention)):
        return ()
    early = min(max(layers[0], 1), depth - 1)
    late = max(early + 1, min(layers[1], depth - 1))
    share = depth * retention * tokens / survivors  # T: the layers that all survivors could run through
    if late < depth:
        early_keep = (share - early) / ((late - early) + (depth - late) * late_retention)
        late_keep = late_retention
        if early_keep >= 1.0:
            early_keep, late_keep = 1.0, (share - late) / (depth - late)
    else:
        early_keep, late_keep = (share - early) / (depth - early), 1.0
    cuts = []
    left = survivors
    plan: tuple[tuple[int, float, Literal["early", "late"]], ...] = (
        (early, early_keep, "early"),
        (late, late_keep, "late"),
    )
    for layer, keep, role in plan:
        if keep >= 1.0:
            continue
        smallest = 0 if may_drop_all and keep <= 0.0 else 1
        left = min(left, max(smallest, int(left * max(keep, 0.0))))
        cuts.append(BudgetCut(layer, left, role))
    return tuple(cuts)


def distinct_cuts(
    *, tokens: int, survivors: int, retention: float, late_retention: float, depth: int, late: int
) -> tuple[BudgetCut, ...]:
    """What may enter the decoder, and what a late cut leaves of it, within a budget averaged over layers.

    Args:
        tokens: vision tokens of the unpruned prompt, N.
        survivors: those that stage 1 kept.
        retention: the budget R, a fraction of N.
        late_retention: share of the entering ones that the late cut keeps, unless the budget leaves more.
        depth: decoder layers L.
        late: layers run before the late cut; brought into 1..L-1 where there are several.

    Returns:
        At layer 0 first; a cut that would keep all by its share is left out.
    """
    if survivors <= max(1, int(tokens * retention)):
        return ()
    late = max(1, min(late, depth - 1))
    behind = max(0, depth - late)
    share = depth * retention * tokens / survivors  # T: the layers that all survivors could run through
    entering, left = share / (late + behind * late_retention), late_retention
    if entering >= 1.0:
        entering, left = 1.0, (share - late) / max(1, behind)
    cuts = []
    kept = survivors
    plan: tuple[tuple[int, float, Literal["distinct", "late"]], ...] = ((0, entering, "distinct"), (late, left, "late"))
    for layer, keep, role in plan:
        if keep < 1.0 and layer < depth:
            kept = max(1, int(kept * keep))
            cuts.append(BudgetCut(layer, kept, role))
    return tuple(cuts)


def importance(attention: Tensor, entropy: Tensor, edge_ratio: Tensor, weight: float) -> Tensor:
    """Score of the early cut: attention, and the pixels' cue scaled to its spread.

    Args:
        attention: float32 [n], of the current survivors.
        entropy: float32 [n], nats, of the same cells.
        edge_ratio: float32 [n].
        weight: of the cue.

    Returns:
        float32 [n].
    """
    cue = _in_stds(edge_ratio) + _in_stds((entropy / LARGEST_ENTROPY).clamp(0.0, 1.0))
    spread = _std(attention) / _std(cue).clamp(min=SMALLEST_STD)
    return attention + weight * spread * cue


def _in_stds(values: Tensor) -> Tensor:
    std = _std(values)
    return torch.where(std > SMALLEST_STD, values / std.clamp(min=SMALLEST_STD), torch.zeros_like(values))


def _std(values: Tensor) -> Tensor:
    """Population standard deviation."""
    return values.std(correction=0)
