"""Which pruning a request gets: names that requests may use, the deployment's default, and the frozen plan."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from erase import PolicyError, UnsupportedError, load_policy
from erase.methods import method_for
from erase.methods.base import Method
from erase.models.loading import LoadedModel
from erase.models.policies import known_policies
from erase.policy import BaselinePolicy, Policy, policy_from_dict, policy_to_dict
from worker.contract import BASELINES, JobRequest, Plan, PruningOptions
from worker.errors import ModelChangedError, UnknownPolicyError
from worker.overload import LoadAdaptation
from worker.settings import Settings

NONE = "none"


@dataclass(frozen=True)
class PolicyBook:
    """The policies of a deployment by name. `default` is the name of one of them, or `none`."""

    policies: dict[str, Policy]
    default: str
    adaptation: LoadAdaptation = field(default_factory=lambda: LoadAdaptation(floor=None, wait_s=1.0))

    @property
    def names(self) -> tuple[str, ...]:
        """Names that a request may use."""
        return tuple(sorted(self.policies))

    def plan(self, request: JobRequest, loaded: LoadedModel, waited_s: float = 0.0) -> Plan:
        """Decide what a job gets that waited so long; drawn seeds are frozen with it.

        Raises:
            UnknownPolicyError: a name that is not in the book, or a retention that the policy cannot have.
        """
        options = request.pruning
        name = NONE if options.method == "none" else options.policy or self.default
        policy: Policy | None = None
        usual = None
        if options.method in BASELINES:
            name, policy = options.method, self._baseline(options, loaded)
        elif name != NONE:
            if name not in self.policies:
                raise UnknownPolicyError(f"there is no pruning policy {name!r}; known: {', '.join(self.names)}")
            policy = self.policies[name]
            if options.retention is not None:
                try:
                    policy = policy.with_retention(options.retention)
                except PolicyError as error:
                    raise UnknownPolicyError(str(error)) from None
            else:
                lowered = self.adaptation.retention(policy.retention, waited_s)
                if lowered < policy.retention:
                    usual, policy = policy.retention, policy.with_retention(lowered)
        seed = request.generation.seed
        return Plan(
            model=loaded.name,
            model_revision=loaded.revision,
            policy=name,
            policy_settings=None if policy is None else policy_to_dict(policy),
            retention=None if policy is None else policy.retention,
            seed=secrets.randbits(62) if seed is None else seed,
            usual_retention=usual,
        )

    def _baseline(self, options: PruningOptions, loaded: LoadedModel) -> BaselinePolicy:
        """The method's policy, by default with the retention of the deployment's default policy."""
        retention = options.retention
        if retention is None:
            if self.default == NONE:
                raise UnknownPolicyError(f"the method {options.method!r} needs a retention: nothing is pruned here")
            retention = self.policies[self.default].retention
        policy = BaselinePolicy(options.method, retention)
        try:
            loaded.adapter.require_support(method_for(policy))
        except UnsupportedError as error:
            raise UnknownPolicyError(str(error)) from None
        return policy


def method_of(plan: Plan) -> Method:
    """The pruning method that a frozen plan stands for.

    Raises:
        ModelChangedError: another version's policy, of a kind that this one does not know.
    """
    try:
        return method_for(None if plan.policy_settings is None else policy_from_dict(plan.policy_settings))
    except PolicyError:
        raise ModelChangedError("The request had begun on a worker that knows more kinds of pruning.") from None


def policy_book(settings: Settings, loaded: LoadedModel) -> PolicyBook:
    """Presets, the model's own policies and the deployment's, with `ERASE_RETENTION` applied to the default.

    Raises:
        PolicyError: `ERASE_POLICY` names nothing known and no readable policy file.
    """
    policies = known_policies(loaded)
    default = settings.policy
    if default == "auto":
        default = loaded.default_policy
    elif default != NONE and default not in policies:
        file = Path(default)
        if not file.is_file():
            known = ", ".join(["auto", NONE, *sorted(policies)])
            raise PolicyError(f"ERASE_POLICY={default}: expected {known} or the path of a policy file")
        if file.stem in (NONE, *policies):
            raise PolicyError(f"ERASE_POLICY={default}: the name {file.stem!r} means another policy, rename the file")
        policies[file.stem] = load_policy(file)
        if isinstance(policies[file.stem], BaselinePolicy):
            raise PolicyError(
                f"ERASE_POLICY={default}: another method than ERASE can be asked for, but not be the default"
            )
        default = file.stem
    if settings.retention is not None and default != NONE:
        policies[default] = policies[default].with_retention(settings.retention)
    return PolicyBook(policies, default, LoadAdaptation(settings.retention_floor, settings.retention_floor_wait_s))
