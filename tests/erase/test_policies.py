"""Policies of both kinds: validation, files, presets."""

import dataclasses
import json
import math

import pytest

import erase
from erase.models import SUPPORTED
from erase.policy import policy_from_dict, policy_to_dict

GOOD = {"thresholds": (1.5, 0.5), "stage1_retention": (0.9, 0.6, 0.3), "final_retention": 0.25}
BINNED = erase.BinnedPolicy(**GOOD, layers=(3, 9), scoring="exact")
BUDGET = erase.BudgetPolicy(0.35, late_retention=0.4, cue_weight=0.1, edge_tau=0.5, layers=(3, 9), scoring="exact")
DISTINCT = erase.DistinctPolicy(0.35, late_retention=0.4, edge_tau=0.5, late_layer=9, scoring="reference")
KINDS = {"binned": BINNED, "budget": BUDGET, "distinct": DISTINCT}
NAMES = (
    "distinct",
    "internvl3-8b-budget",
    "qwen2.5-vl-7b",
    "qwen2.5-vl-7b-budget",
    "qwen3-vl-8b",
    "qwen3-vl-8b-budget",
)

by_kind = pytest.mark.parametrize(("kind", "policy"), KINDS.items(), ids=KINDS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thresholds": (0.5, 1.5)}, "descending"),
        ({"thresholds": (1.5, 1.5)}, "descending"),
        ({"thresholds": (math.nan, 0.5)}, "finite"),
        ({"thresholds": (1.5, "0.5")}, "finite number"),
        ({"thresholds": "1.5"}, "list of numbers"),
        ({"thresholds": (1.5,)}, "one value per bin, 2 for 1"),
        ({"stage1_retention": (0.9, 0.6, 0.0)}, "above 0"),
        ({"stage1_retention": (1.1, 0.6, 0.3)}, "at most 1"),
        ({"final_retention": 0.0}, "above 0"),
        ({"final_retention": 1.5}, "at most 1"),
        ({"final_retention": True}, "finite number"),
        ({"layers": (5, 2)}, "shallow <= deep"),
        ({"layers": (0, 2)}, "1 <= shallow"),
        ({"layers": (2,)}, "two whole numbers"),
        ({"layers": (2, 17.0)}, "two whole numbers"),
        ({"scoring": "fast"}, "reference, exact"),
    ],
)
def test_a_binned_policy_that_means_nothing_is_refused(change, message):
    with pytest.raises(erase.PolicyError, match=message):
        erase.BinnedPolicy(**GOOD | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"retention": 0.0}, "^retention must be above 0"),
        ({"retention": 1.01}, "^retention must be .* at most 1"),
        ({"retention": "0.5"}, "finite number"),
        ({"retention": math.nan}, "finite number"),
        ({"retention": 10**400}, "finite number"),
        ({"late_retention": 0}, "late_retention must be above 0"),
        ({"late_retention": 1.5}, "at most 1"),
        ({"cue_weight": -0.1}, "cue_weight must be at least 0"),
        ({"cue_weight": math.inf}, "finite number"),
        ({"edge_tau": -0.1}, "edge_tau must be at least 0 and below 1"),
        ({"edge_tau": 1.0}, "edge_tau must be at least 0 and below 1"),
        ({"layers": (5, 2)}, "early <= late"),
        ({"layers": (5, 5)}, "early < late"),
        ({"layers": (0, 2)}, "1 <= early"),
        ({"layers": (2,)}, r"two whole numbers \(early, late\)"),
        ({"layers": 2}, "two whole numbers"),
        ({"scoring": "fast"}, "reference, exact"),
    ],
)
def test_a_budget_policy_that_means_nothing_is_refused(change, message):
    with pytest.raises(erase.PolicyError, match=message):
        erase.BudgetPolicy(**{"retention": 0.25} | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"retention": 0.0}, "^retention must be above 0"),
        ({"retention": "0.5"}, "finite number"),
        ({"late_retention": 0}, "late_retention must be above 0"),
        ({"late_retention": 1.5}, "at most 1"),
        ({"edge_tau": 1.0}, "edge_tau must be at least 0 and below 1"),
        ({"late_layer": 0}, "late_layer must be a whole number of at least 1 or None, got 0"),
        ({"late_layer": 2.0}, "late_layer must be a whole number"),
        ({"late_layer": True}, "late_layer must be a whole number"),
        ({"scoring": "fast"}, "reference, exact"),
    ],
)
def test_a_distinct_policy_that_means_nothing_is_refused(change, message):
    with pytest.raises(erase.PolicyError, match=message):
        erase.DistinctPolicy(**{"retention": 0.25} | change)


def test_the_defaults_of_a_budget_policy_are_the_published_settings():
    assert erase.BudgetPolicy(0.25) == erase.BudgetPolicy(
        retention=0.25, late_retention=0.3, cue_weight=0.2, edge_tau=0.45, layers=None, scoring="reference"
    )


def test_errors_of_values_are_value_errors_too():
    assert issubclass(erase.PolicyError, ValueError)
    assert issubclass(erase.InputError, ValueError)
    assert all(issubclass(error, erase.EraseError) for error in (erase.InputError, erase.UnsupportedError))


@by_kind
@pytest.mark.parametrize("architectures_layers", [False, True])
def test_a_policy_survives_its_file(tmp_path, kind, policy, architectures_layers):
    if architectures_layers:
        policy = dataclasses.replace(policy, **{"late_layer" if kind == "distinct" else "layers": None})
    erase.save_policy(policy, tmp_path / "policy.json")
    assert erase.load_policy(tmp_path / "policy.json") == policy
    assert json.loads((tmp_path / "policy.json").read_text())["kind"] == kind


@by_kind
def test_every_setting_of_a_policy_stands_in_its_file(kind, policy):
    assert policy_to_dict(policy) == {"kind": kind} | vars(policy)


def test_lists_are_as_good_as_tuples():
    assert erase.BinnedPolicy([1.5, 0.5], [0.9, 0.6, 0.3], 0.25, [2, 5]) == erase.BinnedPolicy(**GOOD, layers=(2, 5))


@by_kind
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "unheard of"}, "kind must be one of binned, budget, distinct, baseline, got 'unheard of'"),
        ({"kind": None}, "kind must be one of binned, budget, distinct, baseline, got None"),
        ({"kind": ["binned"]}, "kind must be one of binned, budget"),
        ({"threshold": 1.0}, "unknown keys in a {kind} policy: threshold; known: .*scoring"),
    ],
)
def test_unknown_content_of_a_policy_is_named(kind, policy, change, message):
    with pytest.raises(erase.PolicyError, match=message.format(kind=kind)):
        policy_from_dict(policy_to_dict(policy) | change)


def test_missing_content_of_a_policy_is_named():
    with pytest.raises(erase.PolicyError, match="stage1_retention"):
        policy_from_dict({"kind": "binned", "thresholds": [], "final_retention": 0.5})
    with pytest.raises(erase.PolicyError, match=r"incomplete budget policy: .*retention"):
        policy_from_dict({"kind": "budget"})
    with pytest.raises(erase.PolicyError, match="kind must be one of binned, budget, distinct, baseline, got None"):
        policy_from_dict({"retention": 0.5})
    with pytest.raises(erase.PolicyError, match="JSON object"):
        policy_from_dict([1, 2])


def test_unreadable_files_are_policy_errors(tmp_path):
    with pytest.raises(erase.PolicyError, match="cannot read"):
        erase.load_policy(tmp_path / "missing.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(erase.PolicyError, match="not JSON"):
        erase.load_policy(tmp_path / "broken.json")


def test_the_presets_are_these():
    assert erase.preset_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_a_policy_at_its_published_dial_that_survives_its_file(tmp_path, name):
    policy = erase.preset(name)
    assert isinstance(policy, erase.BudgetPolicy) == name.endswith("-budget")
    assert isinstance(policy, erase.DistinctPolicy) == (name == "distinct")
    assert policy.retention == 0.25
    assert (policy.late_layer if name == "distinct" else policy.layers) is None
    assert policy.measure == ("final" if isinstance(policy, erase.BinnedPolicy) else "layer_average")
    erase.save_policy(policy, tmp_path / "policy.json")
    assert erase.load_policy(tmp_path / "policy.json") == policy


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_has_one_dial(name):
    published, turned = erase.preset(name), erase.preset(name, retention=0.15)
    dial = "final_retention" if isinstance(published, erase.BinnedPolicy) else "retention"
    assert turned == dataclasses.replace(published, **{dial: 0.15}) == published.with_retention(0.15)
    assert turned.retention == 0.15
    assert erase.preset(name, retention=1).retention == 1.0
    with pytest.raises(erase.PolicyError, match="retention must be above 0 and at most 1, got 2"):
        erase.preset(name, retention=2)


def test_revision_2_is_tuned_to_no_model():
    assert erase.preset("qwen2.5-vl-7b-budget") == erase.preset("qwen3-vl-8b-budget") == erase.BudgetPolicy(0.25)
    # The authors scored InternVL with the layers' true queries.
    assert erase.preset("internvl3-8b-budget") == erase.BudgetPolicy(0.25, scoring="exact")


@pytest.mark.parametrize("name", [cls.default_preset for cls in SUPPORTED.values()])
def test_every_architecture_has_a_preset(name):
    assert name in NAMES


def test_an_unknown_preset_is_refused_with_those_that_are_known():
    with pytest.raises(
        erase.PolicyError, match=r"unknown preset 'qwen9'; known: distinct, internvl3-8b-budget, qwen2\.5-vl-7b,"
    ):
        erase.preset("qwen9")
