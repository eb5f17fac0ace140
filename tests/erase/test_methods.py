"""Revision 1's two stages on plain values."""

import math

import pytest
import torch
from erase_cases import cells_of, noise_image
from hypothesis import given
from hypothesis import strategies as st

import erase
from erase.methods import method_for
from erase.methods.base import Architecture, Cut, ImageSelection, Preselection
from erase.methods.binned import complexity_bin
from erase.trace import layer_average_retention

SEVEN_B = Architecture("qwen2_5_vl", depth=28, shallow=2, deep=17)
IMAGES = [cells_of(noise_image(4, 5, seed=1)), cells_of(noise_image(3, 3, seed=2))]


def policy(bins=(0.9, 0.8, 0.5, 0.4), thresholds=(1.6, 1.3, 1.1), final=0.25, **more):
    return erase.BinnedPolicy(thresholds, bins, final, **more)


def image_of_bin(index, tokens=20, kept=15):
    return ImageSelection(tokens, torch.arange(kept), torch.zeros(tokens), 0.0, index)


def test_the_bin_is_the_first_threshold_exceeded_and_equality_does_not_exceed():
    thresholds = (2.0, 1.0)
    assert [complexity_bin(value, thresholds) for value in (2.1, 2.0, 1.5, 1.0, 0.0)] == [0, 1, 1, 2, 2]
    assert complexity_bin(0.0, ()) == 0


@pytest.mark.parametrize(("bins", "complex_bins"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3)])
def test_the_complex_half_of_the_bins_is_cut_deep(bins, complex_bins):
    method = method_for(policy(bins=(0.8,) * bins, thresholds=tuple(range(bins - 1, 0, -1))))
    layers = [method.cuts(Preselection((image_of_bin(index),)), SEVEN_B)[0].after_layers for index in range(bins)]
    assert layers == [17] * complex_bins + [2] * (bins - complex_bins)


def test_several_images_are_cut_at_the_deepest_of_their_layers():
    images = Preselection((image_of_bin(3), image_of_bin(0), image_of_bin(3)))
    assert method_for(policy()).cuts(images, SEVEN_B) == (Cut(after_layers=17, keep=15, prune_cache=True),)


def test_own_layers_replace_the_architectures_and_stay_inside_the_model():
    simple, rich = Preselection((image_of_bin(3),)), Preselection((image_of_bin(0),))
    method = method_for(policy(layers=(5, 40)))
    assert [method.cuts(images, SEVEN_B)[0].after_layers for images in (simple, rich)] == [5, 27]


def test_stage_2_never_keeps_more_than_stage_1_left():
    # The rounded shares of two images add up to less than the rounded share of both: 2 + 2 < 5.
    method = method_for(policy(bins=(0.5,), thresholds=(), final=0.5))
    images = method.preselect([cells_of(noise_image(1, 5, seed=1)), cells_of(noise_image(1, 5, seed=2))])
    assert images.kept.numel() == 4
    assert method.cuts(images, SEVEN_B) == ()


@pytest.mark.parametrize("value", [0, 255])
def test_a_flat_image_keeps_its_first_cells_and_at_least_one(value):
    one = torch.full((1, 3, 28, 28), value, dtype=torch.uint8)
    method = method_for(policy())
    (alone,) = method.preselect([one]).images
    assert alone.kept.tolist() == [0]
    assert alone.complexity == 0.0
    (ten,) = method.preselect([one.expand(10, 3, 28, 28)]).images
    assert ten.kept.tolist() == [0, 1, 2, 3]


def test_the_one_cell_that_stage_1_leaves_is_the_most_entropic():
    cells = cells_of(noise_image(1, 3, seed=5))
    (image,) = method_for(policy(bins=(0.1,), thresholds=(), final=0.1)).preselect([cells]).images
    assert image.kept.tolist() == [int(image.entropy.argmax())]


def test_retention_1_keeps_everything_and_cuts_nothing():
    for method in (method_for(policy(final=1.0)), method_for(None)):
        selection = method.preselect(IMAGES)
        assert selection.kept.tolist() == list(range(29))
        assert method.cuts(selection, SEVEN_B) == ()
        features = torch.randn(29, 8)
        assert method.postencode(features, selection) is features


def test_without_a_policy_the_images_are_still_measured():
    plain, binned = method_for(None).preselect(IMAGES), method_for(policy()).preselect(IMAGES)
    for one, other in zip(plain.images, binned.images, strict=True):
        assert torch.equal(one.entropy, other.entropy)
        assert one.complexity == other.complexity
        assert one.bin is None


def test_a_prompt_without_images_has_nothing_to_keep_or_cut():
    method = method_for(policy())
    nothing = method.preselect([])
    assert nothing.tokens == 0
    assert nothing.kept.tolist() == []
    assert method.cuts(nothing, SEVEN_B) == ()


def test_the_features_that_enter_the_decoder_are_the_kept_rows():
    method = method_for(policy())
    selection = method.preselect(IMAGES)
    features = torch.randn(29, 8)
    assert torch.equal(method.postencode(features, selection), features[selection.kept])


@given(st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_a_lower_retention_never_keeps_more(a, b):
    low, high = (method_for(policy().with_retention(value)) for value in sorted((a, b)))
    fewer, more = low.preselect(IMAGES), high.preselect(IMAGES)
    assert set(fewer.kept.tolist()) <= set(more.kept.tolist())
    kept = [
        cuts[0].keep if (cuts := method.cuts(selection, SEVEN_B)) else selection.kept.numel()
        for method, selection in ((low, fewer), (high, more))
    ]
    assert kept[0] <= kept[1]


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 400), st.integers(1, 27))
def test_the_layer_average_is_the_mean_of_what_each_layer_runs_with(tokens, stage1, keep, after):
    stage1, keep = min(tokens, stage1), min(tokens, stage1, keep)
    cuts = (Cut(after, keep, prune_cache=True),)
    runs = [stage1 if layer < after else keep for layer in range(28)]
    assert math.isclose(layer_average_retention(tokens, stage1, cuts, 28), sum(runs) / 28 / tokens)


def test_the_layer_average_without_cuts_or_images():
    assert layer_average_retention(40, 30, (), 28) == 0.75
    assert layer_average_retention(0, 0, (), 28) == 1.0
    two = (Cut(2, 10, prune_cache=False), Cut(6, 5, prune_cache=False))
    assert layer_average_retention(20, 20, two, 8) == (20 * 2 + 10 * 4 + 5 * 2) / (20 * 8)
