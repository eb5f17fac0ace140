"""The slow second implementation itself: every golden case, the stock models unpruned, and the spec's small rules."""

from types import SimpleNamespace
from typing import Any

import pytest
import slow_erase
import slow_stage1
import torch
from erase_cases import MANIFEST, GoldenCase, load_case
from slow_cases import (
    GOLDEN_CLASSES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    QWEN_MEAN,
    QWEN_STD,
    clear_image,
    golden_policy,
    inputs_for,
    load_golden,
    prompt_for,
    tiles_for,
    tiny_internvl,
    tiny_qwen2_5_vl,
    tiny_qwen3_vl,
)
from transformers import PreTrainedModel

BINNED = {
    "thresholds": (2.0, 1.0),
    "stage1_retention": (0.8, 0.7, 0.6),
    "final_retention": 0.3,
    "layers": None,
    "scoring": "reference",
}
BUDGET = {
    "retention": 0.3,
    "late_retention": 0.3,
    "cue_weight": 0.2,
    "edge_tau": 0.45,
    "layers": None,
    "scoring": "reference",
}
BUILDERS = [tiny_qwen2_5_vl, tiny_qwen3_vl, tiny_internvl]


@pytest.fixture(scope="module")
def golden_models() -> dict[str, PreTrainedModel]:
    return {name: load_golden(name) for name in GOLDEN_CLASSES}


def expected_cuts(case: GoldenCase) -> list[tuple[int, list[int]]]:
    if case.entry["revision"] == 1:
        return [(case.entry["prune_layer"] + 1, case.tensors["stage2_kept"].tolist())]
    return [(cut["layer"], case.tensors[f"cut{j}_kept"].tolist()) for j, cut in enumerate(case.entry["plan"])]


@pytest.mark.parametrize("entry", MANIFEST, ids=[entry["name"] for entry in MANIFEST])
def test_the_golden_cases_are_reproduced(golden_models: dict[str, PreTrainedModel], entry: dict[str, Any]) -> None:
    golden_case = load_case(entry)
    model, tensors = golden_models[entry["model"]], golden_case.tensors
    images = [image.unsqueeze(0) for image in golden_case.images]
    inputs = inputs_for(model, tensors["input_ids"], images, QWEN_MEAN, QWEN_STD)
    result = slow_erase.run(model, inputs, images, golden_policy(entry), steps=3)
    assert result.stage1 == tensors["stage1_kept"].tolist()
    assert result.cuts == expected_cuts(golden_case)
    assert result.cache_lengths == entry["cache_lengths"]
    for index, entropies in enumerate(result.entropies):
        torch.testing.assert_close(torch.tensor(entropies), tensors[f"entropy_{index}"], rtol=0, atol=1e-5)
    for index, edges in enumerate(result.edge_ratios):
        torch.testing.assert_close(torch.tensor(edges), tensors[f"edge_ratio_{index}"], rtol=0, atol=1e-6)
    torch.testing.assert_close(result.logits, tensors["logits"][:3], rtol=0, atol=1e-4)
    assert result.generated == tensors["generated"][:3].tolist()


def test_all_cases_are_covered() -> None:
    assert len(MANIFEST) == 38


def random_case(model: PreTrainedModel, seed: int = 1) -> tuple[dict[str, Any], list[torch.Tensor]]:
    if slow_erase.kind_of(model) == "internvl":
        images, mean, std = [tiles_for(model, 3, seed), tiles_for(model, 1, seed + 1)], IMAGENET_MEAN, IMAGENET_STD
    else:
        images, mean, std = [clear_image(model, 3, 4, seed), clear_image(model, 4, 2, seed + 1)], QWEN_MEAN, QWEN_STD
    return inputs_for(model, prompt_for(model, images, between=4), images, mean, std), images


@pytest.mark.parametrize("depth", [8, 12])
@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize(
    "settings", [BINNED | {"final_retention": 1.0}, BUDGET | {"retention": 1.0}], ids=["binned", "budget"]
)
def test_retention_one_is_the_stock_model(build, depth, settings) -> None:
    model = build(depth)
    inputs, images = random_case(model)
    result = slow_erase.run(model, inputs, images, SimpleNamespace(**settings), steps=3)
    stock = model.generate(
        **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    torch.testing.assert_close(result.logits, torch.cat(stock.logits), rtol=0, atol=1e-4)
    assert result.cache_lengths == [inputs["input_ids"].shape[1]] * depth
    assert result.cuts == []


@pytest.mark.parametrize("scoring", ["reference", "exact"])
@pytest.mark.parametrize("build", BUILDERS)
@pytest.mark.parametrize("depth", [2, 3, 8, 48])
def test_every_depth_runs_and_later_layers_hold_no_more(build, depth, scoring) -> None:
    model = build(depth)
    inputs, images = random_case(model)
    for settings in (BINNED, BUDGET):
        policy = SimpleNamespace(**settings | {"scoring": scoring})
        result = slow_erase.run(model, inputs, images, policy, steps=1)
        assert all(0 < layer < depth for layer, _ in result.cuts)
        assert result.cache_lengths == sorted(result.cache_lengths, reverse=True)
        alive = result.stage1
        for _, kept in result.cuts:
            assert set(kept) <= set(alive)
            alive = kept
        assert all(gap > 1e-6 for gap in result.gaps)


@pytest.mark.parametrize("build", BUILDERS)
def test_the_two_scorings_differ_where_queries_may_skip_the_norm(build) -> None:
    model = build(8)
    inputs, images = random_case(model)
    settings = BUDGET | {"retention": 0.5}
    policies = [SimpleNamespace(**settings | {"scoring": scoring}) for scoring in ("reference", "exact")]
    first, second = (slow_erase.run(model, inputs, images, policy, steps=1) for policy in policies)
    same = first.gaps == second.gaps
    assert same == (slow_erase.kind_of(model) == "internvl")


def test_the_lower_median_is_taken() -> None:
    assert slow_stage1.lower_median([4.0, 1.0, 3.0, 2.0]) == 2.0


def test_flat_images_keep_their_first_cell() -> None:
    images = [torch.full((1, 3, 56, 84), level, dtype=torch.uint8) for level in (0, 77)]
    for settings in (BINNED | {"stage1_retention": (0.1, 0.1, 0.1), "final_retention": 0.1}, BUDGET):
        assert slow_stage1.stage_1(images, SimpleNamespace(**settings), 28).kept == [0, 6]


def test_the_thumbnail_has_its_own_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    weak, strong = (torch.randint(0, levels, (1, 3, 56, 56), generator=generator) for levels in (20, 200))
    weak[..., :28], strong[..., :28] = 90, 90
    image = torch.cat([strong, weak]).to(torch.uint8)
    policy = SimpleNamespace(**BUDGET | {"edge_tau": -9.0})
    assert slow_stage1.stage_1([image], policy, 28, internvl=True).kept == [1, 3, 5, 7]


def test_a_budget_that_stage_1_already_meets_needs_no_cut() -> None:
    policy = SimpleNamespace(**BUDGET)
    assert slow_erase.plan_budget(policy, depth=28, total=100, survivors=30) == []
    assert len(slow_erase.plan_budget(policy, depth=28, total=100, survivors=31)) == 1
    assert len(slow_erase.plan_budget(policy, depth=28, total=100, survivors=60)) == 2


def test_only_qwen2_5_may_keep_nothing() -> None:
    assert slow_erase.keep_count(9, 0.0, "qwen2_5_vl") == 0
    assert slow_erase.keep_count(9, 0.0, "qwen3_vl") == 1
    assert slow_erase.keep_count(9, 0.01, "qwen2_5_vl") == 1
