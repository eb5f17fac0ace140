"""Pruning methods: code behind a policy."""

from erase.methods.base import Method
from erase.methods.binned import BinnedMethod
from erase.methods.none import NoPruning
from erase.policy import Policy


def method_for(policy: Policy | None) -> Method:
    """The method that carries out the policy; None prunes nothing."""
    return NoPruning() if policy is None else BinnedMethod(policy)
