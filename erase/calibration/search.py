"""The search itself: points, what they mean as a policy, what they are worth, and which one comes next. No model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from erase.errors import EraseError, InputError
from erase.methods.binned import complexity_bin
from erase.policy import BinnedPolicy

KAPPA = 2.5
HIGHEST_ENTROPY = math.log(256)
FIRST_RETENTION = (0.6, 0.9)
OTHER_RETENTION = (0.1, 0.85)

Point = tuple[float, ...]
"""bins - 1 thresholds in nats, then one stage-1 retention per bin; neither need be sorted."""


@dataclass(frozen=True)
class Search:
    """How to search; the defaults are the paper's.

    Args:
        iterations: points to try; more than before continue an earlier search.
        initial: how many of them are random, before the search learns from what it has seen.
        bins: complexity bins.
        weight: of accuracy, 0..1; the rest is that of tokens saved.
        seed: fixes every draw.

    Raises:
        InputError: a value is out of its range.
    """

    iterations: int = 100
    initial: int = 20
    bins: int = 4
    weight: float = 0.65
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "initial", "bins"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.weight <= 1.0:
            raise InputError(f"weight must be between 0 and 1, got {self.weight}")
        if self.seed < 0:
            raise InputError(f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True)
class ImageStats:
    """What stage 1 knows of an image before it decides: its vision tokens, and its complexity in nats."""

    tokens: int
    complexity: float


def stage1_policy(point: Point) -> BinnedPolicy:
    """Thresholds and retentions of a point, both sorted; its final retention never raises what stage 1 keeps."""
    bins = (len(point) + 1) // 2
    retention = tuple(sorted(point[bins - 1 :], reverse=True))
    return BinnedPolicy(_strictly_descending(point[: bins - 1]), retention, final_retention=retention[-1])


def point_of(policy: BinnedPolicy) -> Point:
    """The point that stands for a policy's bins."""
    return policy.thresholds + policy.stage1_retention


def deployed_policy(point: Point, final_retention: float) -> BinnedPolicy:
    """The policy to save: the point's bins, with stage 2 down to `final_retention`."""
    return replace(stage1_policy(point), final_retention=final_retention)


def kept_counts(images: Sequence[ImageStats], policy: BinnedPolicy) -> tuple[int, ...]:
    """Vision tokens that stage 1 keeps of each image. The image then says which, so these numbers name a pruning."""
    return tuple(max(1, int(image.tokens * policy.stage1_retention[_bin(image, policy)])) for image in images)


def bin_shares(images: Sequence[ImageStats], policy: BinnedPolicy) -> tuple[float, ...]:
    """Fraction of the images in each bin, most complex first."""
    found = [_bin(image, policy) for image in images]
    return tuple(found.count(index) / len(images) for index in range(len(policy.stage1_retention)))


def objective(accuracy: float, shares: Sequence[float], retention: Sequence[float], weight: float) -> float:
    """What a point is worth, 0..100: a x accuracy% + (1 - a) x sum over bins of share% x (1 - retention).

    Args:
        accuracy: fraction of the questions answered right with stage 1 alone.
        shares: fraction of the images in each bin.
        retention: what stage 1 keeps in each bin.
        weight: a.
    """
    saved = sum(share * (1.0 - kept) for share, kept in zip(shares, retention, strict=True))
    return 100.0 * (weight * accuracy + (1.0 - weight) * saved)


def suggest(search: Search, points: Sequence[Point], values: Sequence[float]) -> Point:
    """The next point, from the seed and the points before it with their objectives: the same in every process.

    Raises:
        EraseError: the package bayesian-optimization is missing.
    """
    bayes_opt = optimizer_package()
    seed = np.random.SeedSequence([search.seed, len(points)]).generate_state(1)
    optimizer = bayes_opt.BayesianOptimization(
        None,
        _bounds(search.bins),
        acquisition_function=bayes_opt.acquisition.UpperConfidenceBound(kappa=KAPPA),
        random_state=np.random.RandomState(seed),
        verbose=0,
    )
    if len(points) < search.initial:
        (chosen,) = optimizer.random_sample(1)
    else:
        for point, value in dict(zip(points, values, strict=True)).items():  # the package refuses a point twice
            optimizer.register(list(point), value)
        with _one_thread():
            chosen = optimizer.suggest()
    return tuple(float(value) for value in chosen.values())


def optimizer_package() -> Any:
    """The package bayesian-optimization. Raises `EraseError` where it is missing."""
    try:
        import bayes_opt
    except ImportError:
        raise EraseError("calibration needs one more package: pip install 'bayesian-optimization>=3.4'") from None
    return bayes_opt


def _one_thread() -> Any:
    """Keeps matrix products on one thread: these are tiny, and three times as fast without company (2 cores)."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with the optimiser

    return threadpool_limits(1, user_api="blas")


def _bounds(bins: int) -> dict[str, tuple[float, float]]:
    thresholds = {f"threshold {number}": (0.0, HIGHEST_ENTROPY) for number in range(1, bins)}
    others = {f"retention {number}": OTHER_RETENTION for number in range(2, bins + 1)}
    return thresholds | {"retention 1": FIRST_RETENTION} | others


def _bin(image: ImageStats, policy: BinnedPolicy) -> int:
    return complexity_bin(image.complexity, policy.thresholds)


def _strictly_descending(thresholds: Sequence[float]) -> tuple[float, ...]:
    """Sorted; equal ones, common at the bounds, are set apart by so little that no image falls between."""
    raised: list[float] = []
    for threshold in sorted(thresholds):
        raised.append(max(threshold, math.nextafter(raised[-1], math.inf)) if raised else threshold)
    return tuple(reversed(raised))
