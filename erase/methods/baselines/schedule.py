"""How much cuts inside the decoder keep, so that the final or the layer-averaged retention comes out as asked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from erase.errors import PolicyError
from erase.policy import BaselinePolicy

_STEPS = 60


def layers_at(shares: Sequence[float], depth: int) -> tuple[int, ...]:
    """Decoder layers run before cuts at these shares of the depth: ascending, at least 1, at most depth - 1."""
    layers = sorted({min(max(1, round(share * depth)), depth - 1) for share in shares})
    return tuple(layers)


def average(shares: Sequence[float], layers: Sequence[int], depth: int) -> float:
    """Layer-averaged retention of cuts that keep `shares` of all tokens after `layers`."""
    spans = pairwise([0, *layers, depth])
    return sum(share * (end - start) for share, (start, end) in zip([1.0, *shares], spans, strict=True)) / depth


def falling(policy: BaselinePolicy, layers: Sequence[int], depth: int) -> tuple[float, ...]:
    """Shares of all tokens that cuts after `layers` keep: each the same fraction of what is left.

    Raises:
        PolicyError: even dropping everything leaves a higher average.
    """

    def shares(fraction: float) -> tuple[float, ...]:
        return tuple(fraction ** (number + 1) for number in range(len(layers)))

    if policy.measure == "final":
        return shares(policy.retention ** (1 / len(layers)))
    require_reachable(policy, layers[0], depth)
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if average(shares(middle), layers, depth) <= policy.retention else (low, middle)
    return shares(low)


def left_after(policy: BaselinePolicy, entering: float, layer: int, depth: int) -> float:
    """Share of all tokens that one cut after `layer` keeps of the share that enters; may come out below 0."""
    if policy.measure == "final":
        return policy.retention
    return (policy.retention * depth - entering * layer) / (depth - layer)


def require_reachable(policy: BaselinePolicy, layer: int, depth: int) -> None:
    """Refuses a layer average that the layers before the first cut alone exceed.

    Raises:
        PolicyError: so it is.
    """
    if policy.measure == "layer_average" and policy.retention * depth <= layer:
        raise PolicyError(
            f"{policy.method} first cuts after {layer} of {depth} layers, so its layer-averaged retention is above "
            f"{layer / depth:.3f}; {policy.retention:g} cannot be reached"
        )
