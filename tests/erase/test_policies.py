"""Policies: validation, files, presets."""

import dataclasses
import json
import math

import pytest

import erase
from erase.policy import policy_from_dict, policy_to_dict

GOOD = {"thresholds": (1.5, 0.5), "stage1_retention": (0.9, 0.6, 0.3), "final_retention": 0.25}


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
def test_a_policy_that_means_nothing_is_refused(change, message):
    with pytest.raises(erase.PolicyError, match=message):
        erase.BinnedPolicy(**GOOD | change)


def test_errors_of_values_are_value_errors_too():
    assert issubclass(erase.PolicyError, ValueError)
    assert issubclass(erase.InputError, ValueError)
    assert all(issubclass(error, erase.EraseError) for error in (erase.InputError, erase.UnsupportedError))


@pytest.mark.parametrize("layers", [None, (3, 9)])
def test_a_policy_survives_its_file(tmp_path, layers):
    policy = erase.BinnedPolicy(**GOOD, layers=layers, scoring="exact")
    erase.save_policy(policy, tmp_path / "policy.json")
    assert erase.load_policy(tmp_path / "policy.json") == policy
    assert json.loads((tmp_path / "policy.json").read_text())["kind"] == "binned"


def test_lists_are_as_good_as_tuples():
    assert erase.BinnedPolicy([1.5, 0.5], [0.9, 0.6, 0.3], 0.25, [2, 5]) == erase.BinnedPolicy(**GOOD, layers=(2, 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "unheard of"}, "must be one of binned"),
        ({"kind": None}, "must be one of binned"),
        ({"threshold": 1.0}, "unknown keys in a binned policy: threshold; known: final_retention"),
    ],
)
def test_unknown_content_of_a_policy_is_named(change, message):
    with pytest.raises(erase.PolicyError, match=message):
        policy_from_dict(policy_to_dict(erase.BinnedPolicy(**GOOD)) | change)


def test_missing_content_of_a_policy_is_named():
    with pytest.raises(erase.PolicyError, match="stage1_retention"):
        policy_from_dict({"kind": "binned", "thresholds": [], "final_retention": 0.5})
    with pytest.raises(erase.PolicyError, match="JSON object"):
        policy_from_dict([1, 2])


def test_unreadable_files_are_policy_errors(tmp_path):
    with pytest.raises(erase.PolicyError, match="cannot read"):
        erase.load_policy(tmp_path / "missing.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(erase.PolicyError, match="not JSON"):
        erase.load_policy(tmp_path / "broken.json")


def test_a_preset_has_one_dial():
    published = erase.preset("qwen2.5-vl-7b")
    assert published.final_retention == 0.25
    assert erase.preset("qwen2.5-vl-7b", retention=0.15) == dataclasses.replace(published, final_retention=0.15)
    assert erase.preset_names() == ("qwen2.5-vl-7b",)
    with pytest.raises(erase.PolicyError, match=r"known: qwen2\.5-vl-7b"):
        erase.preset("qwen9")
    with pytest.raises(erase.PolicyError, match="final_retention"):
        erase.preset("qwen2.5-vl-7b", retention=2)
