"""Who takes part: methods with their dials turned so that all keep equally much."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from erase.errors import PolicyError, UnsupportedError
from erase.methods import method_for
from erase.methods.base import Architecture
from erase.methods.baselines import METHODS
from erase.models.loading import LoadedModel
from erase.models.policies import find_policy
from erase.pixels.images import VisionImage
from erase.policy import (
    BASELINES,
    BaselinePolicy,
    BinnedPolicy,
    BudgetPolicy,
    Measure,
    Policy,
    Scoring,
    load_policy,
    policy_to_dict,
)
from erase.presets import preset
from erase.trace import layer_average_retention

MEASURES: tuple[Measure, ...] = ("final", "layer_average")
ERASE = ("erase-1", "erase-1-exact", "erase-2", "erase-2-exact", "erase-distinct")
_SEEDS = 3
_TURNS = 14
_SMALLEST = 1e-3
_NEAR = 0.04
"""How far, as a share of the target, an average over images may lie above it."""


@dataclass(frozen=True)
class Contestant:
    """A policy under the name that tables show; several with one name are averaged (seeds)."""

    name: str
    policy: Policy | None

    @cached_property
    def key(self) -> str:
        """Names the policy by what it is, so that equal ones are asked once."""
        if self.policy is None:
            return "none"
        return hashlib.sha256(json.dumps(policy_to_dict(self.policy), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Contest:
    """All that keep `target` of the vision tokens, as `measure` counts; `absent` says why others are not there."""

    measure: Measure
    target: float
    contestants: tuple[Contestant, ...]
    absent: dict[str, str]


def contest(
    names: Sequence[str], measure: Measure, target: float, loaded: LoadedModel, images: Sequence[Sequence[VisionImage]]
) -> Contest:
    """The named methods with their dials turned.

    Args:
        names: of `ERASE`, `BASELINES`, the model's own policies, presets, or policy files.
        measure: what to hold equal.
        target: the share of vision tokens to keep, on average over `images`.
        loaded: the model.
        images: of some prompts. They decide the dial of methods whose retention depends on the images.

    Raises:
        PolicyError: an unknown name.
    """
    contestants: list[Contestant] = []
    absent: dict[str, str] = {}
    for name in names:
        try:
            contestants += [Contestant(name, own) for own in _policies(name, measure, target, loaded, images)]
        except _OutOfReachError as error:
            absent[name] = str(error)
    return Contest(measure, target, tuple(contestants), absent)


class _OutOfReachError(PolicyError):
    """The method cannot keep that share."""


def _policies(
    name: str, measure: Measure, target: float, loaded: LoadedModel, images: Sequence[Sequence[VisionImage]]
) -> list[Policy]:
    architecture = loaded.adapter.architecture
    if name in BASELINES:
        seeds = range(_SEEDS) if name == "random" else range(1)
        return [_baseline(name, measure, target, seed, loaded, images) for seed in seeds]
    policy = named_policy(name, loaded)
    if isinstance(policy, BaselinePolicy):
        return [_baseline(policy.method, measure, target, policy.seed, loaded, images)]
    return [turned(policy, measure, target, architecture, images)]


def _baseline(
    name: str, measure: Measure, target: float, seed: int, loaded: LoadedModel, images: Sequence[Sequence[VisionImage]]
) -> Policy:
    # Where both measures are the same, one name for it, so that nobody is asked twice.
    policy = BaselinePolicy(name, target, measure if METHODS[name].cuts_inside else "final", seed)
    method = method_for(policy)
    try:
        loaded.adapter.require_support(method)
        for prompt in images[:1]:
            method.plan(method.preselect(prompt), loaded.adapter.architecture)
    except (PolicyError, UnsupportedError) as error:
        raise _OutOfReachError(str(error)) from None
    return policy


def named_policy(name: str, loaded: LoadedModel) -> Policy:
    """ERASE's revisions (1: with the model's bins if it has some) and beyond, the model's policies, a preset, a file.

    Raises:
        PolicyError: an unknown name.
    """
    if name == "erase-distinct":
        return preset("distinct")
    if name in ERASE:
        scoring: Scoring = "exact" if name.endswith("-exact") else "reference"
        if name.startswith("erase-1"):
            return replace(_bins(loaded), scoring=scoring)
        return BudgetPolicy(0.25, scoring=scoring)
    return find_policy(name, loaded, also=(*ERASE, *BASELINES))


def _bins(loaded: LoadedModel) -> BinnedPolicy:
    own = (load_policy(file) for file in (loaded.bins_file, loaded.policy_file) if file is not None)
    for policy in (*own, preset(loaded.adapter.default_preset)):
        if isinstance(policy, BinnedPolicy):
            return policy
    raise _OutOfReachError(f"there are no published bins for models of type {loaded.adapter.model_type}")


def turned(
    policy: Policy, measure: Measure, target: float, architecture: Architecture, images: Sequence[Sequence[VisionImage]]
) -> Policy:
    """The policy with its dial where the mean retention over the images is the target, or as near below as it comes.

    Raises:
        PolicyError: every dial keeps more.
    """
    reached = partial(mean_retention, measure=measure, architecture=architecture, images=images)
    if policy.measure == measure:
        found = policy.with_retention(target)
        if images and reached(found) > (1 + _NEAR) * target:
            raise _OutOfReachError(f"with its dial at {target:g} it keeps {reached(found):.3f}")
        return found
    low, high = _SMALLEST, 1.0
    for _ in range(_TURNS):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(policy.with_retention(middle)) <= target else (low, middle)
    found = policy.with_retention(low)
    if reached(found) > (1 + _NEAR) * target:
        raise _OutOfReachError(f"the least that its dial reaches is {reached(found):.3f}")
    return found


def mean_retention(
    policy: Policy, measure: Measure, architecture: Architecture, images: Sequence[Sequence[VisionImage]]
) -> float:
    """What the policy keeps of prompts' vision tokens, averaged over the prompts; known from pixels alone."""
    method, found = method_for(policy), []
    for prompt in images:
        selection = method.preselect(prompt)
        cuts = method.plan(selection, architecture)
        kept = len(selection.kept)
        if measure == "layer_average":
            found.append(layer_average_retention(selection.tokens, kept, cuts, architecture.depth))
        else:
            found.append((cuts[-1].keep if cuts else kept) / selection.tokens)
    return sum(found) / len(found)
