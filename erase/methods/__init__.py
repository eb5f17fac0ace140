"""Pruning methods: code behind a policy."""

from erase.errors import PolicyError
from erase.methods.base import Method
from erase.methods.baselines import baseline
from erase.methods.binned import BinnedMethod
from erase.methods.budget import BudgetMethod
from erase.methods.distinct import DistinctMethod
from erase.methods.none import NoPruning
from erase.policy import BaselinePolicy, BinnedPolicy, BudgetPolicy, DistinctPolicy, Policy


def method_for(policy: Policy | Method | None) -> Method:
    """The method that carries out the policy; None prunes nothing, a method stands for itself.

    Raises:
        PolicyError: it is none of these.
    """
    if isinstance(policy, Method):
        return policy
    if policy is None:
        return NoPruning()
    if isinstance(policy, BinnedPolicy):
        return BinnedMethod(policy)
    if isinstance(policy, BudgetPolicy):
        return BudgetMethod(policy)
    if isinstance(policy, DistinctPolicy):
        return DistinctMethod(policy)
    if isinstance(policy, BaselinePolicy):
        return baseline(policy)
    raise PolicyError(
        f"expected a policy, a method or None, got {policy!r}; erase.preset(name) gives a published policy"
    )
