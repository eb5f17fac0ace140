"""One meaning of a policy's name for the service, the command line, evaluation and benchmarks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import erase
from erase import BudgetPolicy, PolicyError
from erase.models.loading import LoadedModel, load_model
from erase.models.policies import find_policy, known_policies
from tests.starter import STARTER


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(str(STARTER), device="cpu", dtype="float32", weights=False)


def test_presets_and_the_models_own(loaded: LoadedModel) -> None:
    known = known_policies(loaded)
    assert set(erase.preset_names()) | set(loaded.own_policies) == set(known)
    assert find_policy("qwen2.5-vl-7b", loaded) == known["qwen2.5-vl-7b"] == erase.preset("qwen2.5-vl-7b")


def test_of_two_with_one_name_it_is_the_models(loaded: LoadedModel, tmp_path: Path) -> None:
    erase.save_policy(BudgetPolicy(0.6), tmp_path / "own.json")
    named_like_a_preset = replace(loaded, name="qwen2.5-vl-7b", policy_file=tmp_path / "own.json")
    assert find_policy("qwen2.5-vl-7b", named_like_a_preset) == BudgetPolicy(0.6)
    assert named_like_a_preset.default_policy == "qwen2.5-vl-7b"


def test_a_file_and_what_is_neither(loaded: LoadedModel, tmp_path: Path) -> None:
    erase.save_policy(BudgetPolicy(0.7), tmp_path / "mine.json")
    assert find_policy(str(tmp_path / "mine.json"), loaded) == BudgetPolicy(0.7)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(PolicyError, match=r"broken\.json"):
        find_policy(str(tmp_path / "broken.json"), loaded)
    with pytest.raises(PolicyError, match=r"no policy 'magic': expected auto, starter-model, distinct, .* or the path"):
        find_policy("magic", loaded, also=("auto",))
