"""Pruning methods: code behind a policy."""

from erase.methods.base import Method
from erase.methods.binned import BinnedMethod
from erase.methods.budget import BudgetMethod
from erase.methods.none import NoPruning
from erase.policy import BinnedPolicy, Policy


def method_for(policy: Policy | Method | None) -> Method:
    """The method that carries out the policy; None prunes nothing, a method stands for itself."""
    if isinstance(policy, Method):
        return policy
    if policy is None:
        return NoPruning()
    return BinnedMethod(policy) if isinstance(policy, BinnedPolicy) else BudgetMethod(policy)
