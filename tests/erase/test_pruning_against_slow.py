"""`pruning()` against an independent slow implementation: depths, scorings and layouts the golden cases lack."""

import pytest
import slow_erase
import torch
from erase_cases import cells_of, noise_image, prompt_ids, stock_inputs

import erase

COMPLEX = {"thresholds": (2.0, 1.0), "stage1_retention": (0.8, 0.7, 0.6), "final_retention": 0.3}
SIMPLE = {"thresholds": (5.5, 5.4), "stage1_retention": (0.8, 0.7, 0.6), "final_retention": 0.3}


def check(model, images, policy, *, before=3, after=9):
    inputs = stock_inputs(prompt_ids(images, before=before, after=after), images)
    expected = slow_erase.run(model, inputs, [cells_of(image) for image in images], policy, steps=3)
    with erase.pruning(model, policy, image_mean=0.5, image_std=0.5) as trace:
        output = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    prompt = trace.calls[0].prompts[0]
    assert prompt.stage1_kept.tolist() == expected.stage1
    assert [(cut.layer, cut.kept.tolist()) for cut in prompt.cuts] == [(expected.cut, expected.kept)]
    survivors = inputs["input_ids"].shape[1] - prompt.tokens + len(expected.kept)
    assert prompt.cache_lengths == (survivors,) * len(model.model.language_model.layers)
    torch.testing.assert_close(torch.cat(output.logits), expected.logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("depth", [2, 3, 8, 12])
@pytest.mark.parametrize("settings", [COMPLEX, SIMPLE], ids=["complex", "simple"])
def test_any_depth_is_cut_where_the_formula_says(random_model, depth, settings):
    check(random_model(depth), [noise_image(4, 5, seed=depth)], erase.BinnedPolicy(**settings))


@pytest.mark.parametrize("scoring", ["reference", "exact"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_both_scorings_with_several_images_and_own_layers(random_model, scoring, attention):
    images = [noise_image(3, 4, seed=1), noise_image(2, 5, seed=2), noise_image(4, 2, seed=3)]
    policy = erase.BinnedPolicy(**COMPLEX, layers=(3, 6), scoring=scoring)
    check(random_model(8, attention), images, policy)


def test_text_before_the_image_asks_nothing(random_model):
    check(random_model(8), [noise_image(4, 4, seed=4)], erase.BinnedPolicy(**COMPLEX), before=25, after=4)


def test_a_budget_below_one_token_leaves_text_alone(random_model):
    settings = COMPLEX | {"final_retention": 0.05}
    check(random_model(8), [noise_image(3, 4, seed=6)], erase.BinnedPolicy(**settings))


def test_flat_and_black_images_keep_their_first_cells(random_model):
    images = [torch.zeros(3, 84, 84, dtype=torch.uint8), torch.full((3, 56, 84), 200, dtype=torch.uint8)]
    check(random_model(8), images, erase.BinnedPolicy(**SIMPLE))
