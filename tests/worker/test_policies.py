"""Which pruning a request gets, and that the frozen plan says everything needed to do it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from erase import (
    BaselinePolicy,
    BinnedPolicy,
    BudgetPolicy,
    PolicyError,
    load_policy,
    preset,
    preset_names,
    save_policy,
)
from erase.methods import BudgetMethod
from erase.methods.none import NoPruning
from erase.models import SUPPORTED, VisionLanguageAdapter
from erase.models.loading import LoadedModel, load_model
from erase.policy import policy_from_dict
from tests.starter import STARTER
from worker.contract import BASELINES, Baseline, GenerationOptions, JobRequest, Plan, PruningOptions
from worker.errors import ModelChangedError, UnknownPolicyError
from worker.policies import PolicyBook, method_of, policy_book
from worker.settings import Settings

PRESET = "qwen2.5-vl-7b"
BUDGET = "qwen2.5-vl-7b-budget"
KNOWN = ", ".join(sorted(["starter-model", *preset_names()]))
OWN = load_policy(STARTER / "erase_policy.json")
MINE = BinnedPolicy(thresholds=(1.0,), stage1_retention=(0.9, 0.8), final_retention=0.3)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(str(STARTER))


def request(seed: int | None = None, **pruning: Any) -> JobRequest:
    options = GenerationOptions(seed=seed)
    return JobRequest(prompt="what is it ?", images=(), pruning=PruningOptions(**pruning), generation=options)


def book(loaded: LoadedModel, **settings: Any) -> PolicyBook:
    return policy_book(Settings(**settings), loaded)


class TestBook:
    def test_auto_is_the_models_own_policy(self, loaded: LoadedModel) -> None:
        assert book(loaded).default == "starter-model"
        assert book(loaded).policies["starter-model"] == OWN

    def test_bins_beside_another_policy_can_be_asked_for(self, loaded: LoadedModel) -> None:
        made = book(replace(loaded, bins_file=loaded.policy_file))
        assert made.default == "starter-model"
        assert made.plan(request(policy="starter-model-bins"), loaded).policy == "starter-model-bins"

    def test_auto_without_an_own_policy_is_the_architectures_preset(self, loaded: LoadedModel) -> None:
        made = book(replace(loaded, policy_file=None, name="some-model"))
        assert made.default == PRESET == loaded.adapter.default_preset
        assert made.names == preset_names()

    @pytest.mark.parametrize("architecture", list(SUPPORTED.values()), ids=list(SUPPORTED))
    def test_every_architecture_brings_its_own_preset(
        self, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, architecture: type[VisionLanguageAdapter]
    ) -> None:
        monkeypatch.setattr(loaded.adapter, "default_preset", architecture.default_preset)
        made = book(replace(loaded, policy_file=None, name="some-model"))
        assert made.default == architecture.default_preset
        assert made.policies[made.default] == preset(architecture.default_preset)

    @pytest.mark.parametrize("name", preset_names())
    def test_a_preset_is_taken_by_name(self, loaded: LoadedModel, name: str) -> None:
        made = book(loaded, policy=name)
        assert made.default == name
        assert made.policies[name] == preset(name)

    def test_none_prunes_nothing_by_default_but_keeps_the_names(self, loaded: LoadedModel) -> None:
        made = book(loaded, policy="none")
        assert made.plan(request(), loaded).policy_settings is None
        assert made.plan(request(policy="starter-model"), loaded).policy == "starter-model"

    def test_a_file_is_known_by_its_name_without_the_ending(self, loaded: LoadedModel, tmp_path: Path) -> None:
        save_policy(MINE, tmp_path / "mine.json")
        made = book(loaded, policy=str(tmp_path / "mine.json"))
        assert made.default == "mine"
        assert made.policies["mine"] == MINE
        assert made.names == tuple(sorted(["starter-model", "mine", *preset_names()]))

    @pytest.mark.parametrize("name", ["none", "starter-model", PRESET, BUDGET])
    def test_a_file_may_not_take_another_policys_name(self, loaded: LoadedModel, tmp_path: Path, name: str) -> None:
        save_policy(MINE, tmp_path / f"{name}.json")
        with pytest.raises(PolicyError, match=r"ERASE_POLICY=.*rename the file"):
            book(loaded, policy=str(tmp_path / f"{name}.json"))

    def test_what_is_unknown_is_refused_with_what_is_known(self, loaded: LoadedModel) -> None:
        with pytest.raises(PolicyError, match=f"ERASE_POLICY=nowhere.*auto, none, {KNOWN} or the path"):
            book(loaded, policy="nowhere")

    def test_a_file_that_is_no_policy_is_refused(self, loaded: LoadedModel, tmp_path: Path) -> None:
        (tmp_path / "broken.json").write_text("{")
        with pytest.raises(PolicyError, match="not JSON"):
            book(loaded, policy=str(tmp_path / "broken.json"))

    def test_a_deployments_retention_turns_the_default_only(self, loaded: LoadedModel) -> None:
        made = book(loaded, retention=0.1)
        assert made.policies["starter-model"].final_retention == 0.1
        assert made.policies[PRESET] == preset(PRESET)

    def test_a_deployments_retention_turns_a_budget_too(self, loaded: LoadedModel) -> None:
        assert book(loaded, policy=BUDGET, retention=0.35).policies[BUDGET] == BudgetPolicy(0.35)


class TestPlan:
    def test_without_a_wish_the_default_holds(self, loaded: LoadedModel) -> None:
        plan = book(loaded).plan(request(), loaded)
        assert (plan.policy, plan.retention) == ("starter-model", OWN.final_retention)
        assert (plan.model, plan.model_revision) == (loaded.name, loaded.revision)
        assert plan.policy_settings is not None
        assert policy_from_dict(plan.policy_settings) == OWN

    @pytest.mark.parametrize(
        "wish", [{"method": "none"}, {"policy": "none"}, {"method": "none", "policy": "starter-model"}]
    )
    def test_none_is_no_pruning_however_it_is_said(self, loaded: LoadedModel, wish: dict[str, Any]) -> None:
        plan = book(loaded).plan(request(**wish), loaded)
        assert (plan.policy, plan.policy_settings, plan.retention) == ("none", None, None)
        assert isinstance(method_of(plan), NoPruning)

    def test_a_requests_retention_replaces_the_policys_and_the_deployments(self, loaded: LoadedModel) -> None:
        plan = book(loaded, retention=0.1).plan(request(retention=0.55), loaded)
        assert plan.retention == 0.55
        assert plan.policy_settings is not None
        assert policy_from_dict(plan.policy_settings) == OWN.with_retention(0.55)

    def test_a_named_policy_can_be_turned_too(self, loaded: LoadedModel) -> None:
        plan = book(loaded).plan(request(policy=PRESET, retention=0.5), loaded)
        assert (plan.policy, plan.retention) == (PRESET, 0.5)

    def test_a_budget_is_a_retention_averaged_over_layers(self, loaded: LoadedModel) -> None:
        plan = book(loaded).plan(request(policy=BUDGET, retention=0.45), loaded)
        assert (plan.policy, plan.retention) == (BUDGET, 0.45)
        assert plan.policy_settings is not None
        assert plan.policy_settings["kind"] == "budget"
        method = method_of(plan)
        assert isinstance(method, BudgetMethod)
        assert (method.requested, method.measure) == (0.45, "layer_average")

    @pytest.mark.parametrize("name", BASELINES)
    def test_another_method_keeps_what_was_asked_or_what_the_deployment_keeps(
        self, loaded: LoadedModel, name: Baseline
    ) -> None:
        plan = book(loaded).plan(request(method=name, retention=0.15), loaded)
        assert (plan.policy, plan.retention) == (name, 0.15)
        assert plan.policy_settings == {
            "kind": "baseline",
            "method": name,
            "retention": 0.15,
            "measure": "final",
            "seed": 0,
        }
        assert method_of(plan).name == name
        usual = book(loaded, retention=0.3).plan(request(method=name), loaded)
        assert usual.retention == 0.3
        with pytest.raises(UnknownPolicyError, match="needs a retention"):
            book(loaded, policy="none").plan(request(method=name), loaded)

    def test_a_method_that_the_model_has_nothing_for_is_refused(
        self, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(type(loaded.adapter), "shows_encoder_attention", False)
        with pytest.raises(UnknownPolicyError, match="attention inside the vision encoder"):
            book(loaded).plan(request(method="visionzip"), loaded)

    def test_another_method_cannot_be_the_default(self, loaded: LoadedModel, tmp_path: Path) -> None:
        file = tmp_path / "theirs.json"
        save_policy(BaselinePolicy("fastv", 0.5), file)
        with pytest.raises(PolicyError, match="not be the default"):
            book(loaded, policy=str(file))

    def test_an_unknown_name_is_refused_with_those_that_are_known(self, loaded: LoadedModel) -> None:
        with pytest.raises(UnknownPolicyError) as refusal:
            book(loaded).plan(request(policy="nowhere"), loaded)
        assert str(refusal.value) == f"there is no pruning policy 'nowhere'; known: {KNOWN}"

    def test_a_given_seed_is_kept_and_a_missing_one_drawn(self, loaded: LoadedModel) -> None:
        made = book(loaded)
        assert made.plan(request(seed=0), loaded).seed == 0
        drawn = {made.plan(request(), loaded).seed for _ in range(20)}
        assert len(drawn) == 20
        assert all(0 <= seed < 2**63 for seed in drawn)

    @pytest.mark.parametrize(
        "wish",
        [{}, {"policy": PRESET}, {"policy": BUDGET}, {"retention": 0.2}, {"method": "none"}, {"method": "vscan"}],
    )
    def test_a_plan_that_travelled_stands_for_the_same_method(self, loaded: LoadedModel, wish: dict[str, Any]) -> None:
        plan = book(loaded).plan(request(**wish), loaded)
        back = Plan.model_validate_json(plan.model_dump_json())
        assert back.model_dump_json() == plan.model_dump_json()
        before, after = method_of(plan), method_of(back)
        assert type(before) is type(after)
        assert vars(before) == vars(after)


def test_a_plan_with_a_policy_of_a_newer_version_ends_as_such(loaded: LoadedModel) -> None:
    plan = book(loaded).plan(request(), loaded)
    newer = plan.model_copy(update={"policy_settings": {"kind": "of tomorrow", "retention": 0.5}})
    with pytest.raises(ModelChangedError, match="more kinds of pruning"):
        method_of(newer)
