"""The stages of both revisions on plain values."""

import math

import pytest
import torch
from erase_cases import noise_image, vision_image
from hypothesis import given
from hypothesis import strategies as st

import erase
from erase.budget import distinct_cuts, importance
from erase.methods import method_for
from erase.methods.base import Architecture, Cut, EncodedPrompt, ImageSelection, Method, Preselection, ScoreContext
from erase.methods.binned import complexity_bin
from erase.methods.none import NoPruning
from erase.pixels.images import VisionImage
from erase.pixels.luma import BT601_UNIT, Luma
from erase.trace import layer_average_retention, vision_tokens_per_layer

SEVEN_B = Architecture("qwen2_5_vl", depth=28, shallow=2, deep=17, early=2, late=19, may_drop_all=True)
IMAGES = [vision_image(noise_image(4, 5, seed=1)), vision_image(noise_image(3, 3, seed=2))]

fractions = st.floats(0.01, 1.0)


def binned(bins=(0.9, 0.8, 0.5, 0.4), thresholds=(1.6, 1.3, 1.1), final=0.25, **more):
    return erase.BinnedPolicy(thresholds, bins, final, **more)


def image_of_bin(index, tokens=20, kept=15):
    return ImageSelection(tokens, torch.arange(kept), torch.zeros(tokens), 0.0, index, (1, 4, 5))


def flat(level, rows=1, columns=1):
    return VisionImage(torch.full((1, 3, 28 * rows, 28 * columns), level, dtype=torch.uint8), 28)


def paper(rows, columns, level=230):
    """Flat but for faint noise everywhere, which is entropy and no edge."""
    noise = torch.randint(0, 3, (3, rows * 28, columns * 28), generator=torch.Generator().manual_seed(0))
    return (level + noise).to(torch.uint8)


class TestBinned:
    def test_the_bin_is_the_first_threshold_exceeded_and_equality_does_not_exceed(self):
        thresholds = (2.0, 1.0)
        assert [complexity_bin(value, thresholds) for value in (2.1, 2.0, 1.5, 1.0, 0.0)] == [0, 1, 1, 2, 2]
        assert complexity_bin(0.0, ()) == 0

    @pytest.mark.parametrize(("bins", "complex_bins"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3)])
    def test_the_complex_half_of_the_bins_is_cut_deep(self, bins, complex_bins):
        method = method_for(binned(bins=(0.8,) * bins, thresholds=tuple(range(bins - 1, 0, -1))))
        layers = [method.cuts(Preselection((image_of_bin(index),)), SEVEN_B)[0].after_layers for index in range(bins)]
        assert layers == [17] * complex_bins + [2] * (bins - complex_bins)

    def test_several_images_are_cut_at_the_deepest_of_their_layers(self):
        images = Preselection((image_of_bin(3), image_of_bin(0), image_of_bin(3)))
        assert method_for(binned()).cuts(images, SEVEN_B) == (Cut(after_layers=17, keep=15, prune_cache=True),)

    def test_own_layers_replace_the_architectures_and_stay_inside_the_model(self):
        simple, rich = Preselection((image_of_bin(3),)), Preselection((image_of_bin(0),))
        method = method_for(binned(layers=(5, 40)))
        assert [method.cuts(images, SEVEN_B)[0].after_layers for images in (simple, rich)] == [5, 27]

    def test_stage_2_never_keeps_more_than_stage_1_left(self):
        # The rounded shares of two images add up to less than the rounded share of both: 2 + 2 < 5.
        method = method_for(binned(bins=(0.5,), thresholds=(), final=0.5))
        images = method.preselect([vision_image(noise_image(1, 5, seed=seed)) for seed in (1, 2)])
        assert images.kept.numel() == 4
        assert [cut.keep for cut in method.cuts(images, SEVEN_B)] == [4]

    @pytest.mark.parametrize("value", [0, 255])
    def test_a_flat_image_keeps_its_first_cells_and_at_least_one(self, value):
        method = method_for(binned())
        alone, ten = method.preselect([flat(value), flat(value, 2, 5)]).images
        assert alone.kept.tolist() == [0]
        assert alone.complexity == 0.0
        assert ten.kept.tolist() == [0, 1, 2, 3]

    def test_the_one_cell_that_stage_1_leaves_is_the_most_entropic(self):
        method = method_for(binned(bins=(0.1,), thresholds=(), final=0.1))
        (image,) = method.preselect([vision_image(noise_image(1, 3, seed=5))]).images
        assert image.kept.tolist() == [int(image.entropy.argmax())]

    def test_of_an_even_number_of_cells_the_lower_middle_one_is_the_complexity(self):
        (image,) = method_for(binned()).preselect([vision_image(noise_image(2, 2, seed=3))]).images
        assert len(set(image.entropy.tolist())) == 4
        assert image.complexity == image.entropy.sort().values[1]

    def test_tiles_are_one_image(self):
        parts = [noise_image(2, 2, seed=seed) for seed in (1, 2, 3)]
        image = VisionImage(torch.stack(parts), 28, thumbnail=True)
        (tiled,) = method_for(binned()).preselect([image]).images
        singly = method_for(binned()).preselect([vision_image(part) for part in parts]).images
        assert torch.equal(tiled.entropy, torch.cat([part.entropy for part in singly]))
        assert tiled.complexity == tiled.entropy.sort().values[5]

    @pytest.mark.parametrize(("scoring", "source"), [("reference", "output"), ("exact", "normed_input")])
    def test_the_scoring_picks_where_queries_come_from(self, scoring, source):
        architecture = Architecture("any", 8, 2, 5, 2, 5, binned_queries="output")
        assert method_for(binned(scoring=scoring)).query_source(architecture) == source


class TestBudget:
    def test_stage_1_keeps_what_stands_out_of_its_image_whatever_the_budget(self):
        image = paper(3, 4)
        image[:, 28:56, 28:56] = noise_image(1, 1, seed=1)
        selections = [method_for(erase.BudgetPolicy(r)).preselect([vision_image(image)]) for r in (0.05, 0.5, 0.99)]
        assert all(5 in selection.kept for selection in selections)
        assert len({tuple(selection.kept.tolist()) for selection in selections}) == 1

    def test_cells_above_the_mean_or_with_an_edge_are_kept_and_no_others(self):
        selection = method_for(erase.BudgetPolicy(0.25)).preselect(IMAGES)
        for image in selection.images:
            wanted = (image.entropy > image.entropy.mean() + 1e-4) | (image.edge_ratio > 0)
            assert image.kept.tolist() == wanted.nonzero().squeeze(1).tolist()
            assert image.complexity == pytest.approx(float(image.entropy.mean()))
            assert image.bin is None

    @pytest.mark.parametrize("value", [0, 60, 255])
    def test_a_flat_image_keeps_its_first_cell_alone(self, value):
        images = method_for(erase.BudgetPolicy(0.25)).preselect([flat(value), flat(value, 2, 5)]).images
        assert [image.kept.tolist() for image in images] == [[0], [0]]

    def test_a_thumbnail_is_compared_with_itself(self):
        busy, calm = noise_image(2, 2, seed=4), paper(2, 2)
        calm[:, :28, :28] += torch.arange(28, dtype=torch.uint8) // 6
        tiles = torch.stack([busy, busy.flip(2), calm])

        def kept(own, thumbnail=False):
            return method_for(erase.BudgetPolicy(0.25)).preselect([VisionImage(own, 28, thumbnail=thumbnail)]).kept

        apart = torch.cat([kept(tiles[:2]), 8 + kept(tiles[2:])])
        assert torch.equal(kept(tiles, thumbnail=True), apart)
        assert 8 in apart
        assert 8 not in kept(tiles)

    def test_the_image_says_how_its_colours_become_grey(self):
        image = noise_image(2, 2, seed=2).unsqueeze(0)
        image[:, 0] = 90
        red, all_of_it = (
            method_for(erase.BudgetPolicy(0.25))
            .preselect([VisionImage(image, 28, luma) for luma in (Luma(1.0, 0.0, 0.0, False), BT601_UNIT)])
            .images
        )
        assert red.entropy.tolist() == [0.0] * 4
        assert float(all_of_it.entropy.min()) > 1

    def test_cells_that_pooling_does_not_divide_are_refused(self):
        image = VisionImage(torch.zeros(1, 3, 60, 60, dtype=torch.uint8), 30)
        with pytest.raises(erase.UnsupportedError, match="cells of 30 pixels"):
            method_for(erase.BudgetPolicy(0.25)).preselect([image])

    def test_cuts_leave_the_older_caches_alone(self):
        method = method_for(erase.BudgetPolicy(0.25))
        cuts = method.cuts(Preselection((image_of_bin(None, 100, 60),)), SEVEN_B)
        assert cuts == (Cut(2, 29, prune_cache=False, role="early"), Cut(19, 8, prune_cache=False, role="late"))

    def test_own_layers_replace_the_architectures_and_stay_inside_the_model(self):
        method = method_for(erase.BudgetPolicy(0.5, layers=(4, 99)))
        cuts = method.cuts(Preselection((image_of_bin(None, 100, 90),)), SEVEN_B)
        assert [cut.after_layers for cut in cuts] == [4, 27]

    def test_pixels_speak_at_the_early_cut_only(self):
        method = method_for(erase.BudgetPolicy(0.25))
        selection = method.preselect(IMAGES)
        survivors = selection.kept[::2]
        attention = torch.rand(len(survivors), generator=torch.Generator().manual_seed(0))

        def score(role):
            return method.score(ScoreContext(Cut(2, 3, False, role), survivors, selection, lambda: attention))

        entropy, edges = (
            torch.cat([getattr(image, name) for image in selection.images])[survivors]
            for name in ("entropy", "edge_ratio")
        )
        assert torch.equal(score("early"), importance(attention, entropy, edges, 0.2))
        assert torch.equal(score("late"), attention)

    @pytest.mark.parametrize(("scoring", "source"), [("reference", "input"), ("exact", "normed_input")])
    def test_the_scoring_picks_where_queries_come_from(self, scoring, source):
        architecture = Architecture("any", 8, 2, 5, 2, 5, binned_queries="output", budget_queries="input")
        assert method_for(erase.BudgetPolicy(0.25, scoring=scoring)).query_source(architecture) == source


class TestDistinct:
    def test_stage_1_is_that_of_revision_2(self):
        own, theirs = (method_for(kind(0.3)).preselect(IMAGES) for kind in (erase.DistinctPolicy, erase.BudgetPolicy))
        assert own.kept.tolist() == theirs.kept.tolist()
        assert 0 < len(own.kept) < own.tokens

    def test_what_differs_most_enters_and_the_question_decides_late(self):
        # 28 layers at 0.25 are 7 whole ones: 19 with what enters and 9 with half of it are 23.5 of these.
        cuts = method_for(erase.DistinctPolicy(0.25)).cuts(Preselection((image_of_bin(None, 100, 60),)), SEVEN_B)
        assert cuts == (Cut(0, 29, prune_cache=False, role="distinct"), Cut(19, 14, prune_cache=False, role="late"))

    def test_what_the_pixels_leave_goes_through_whole_where_the_budget_allows(self):
        method = method_for(erase.DistinctPolicy(0.25))
        # 26 tokens could run through 26.9 layers: 19 with all, the rest shared out over 9.
        assert method.cuts(Preselection((image_of_bin(None, 100, 26),)), SEVEN_B) == (
            Cut(19, 22, prune_cache=False, role="late"),
        )
        assert method.cuts(Preselection((image_of_bin(None, 100, 25),)), SEVEN_B) == ()

    def test_an_own_layer_replaces_the_architectures_and_stays_inside_the_model(self):
        method = method_for(erase.DistinctPolicy(0.25, late_layer=99))
        cuts = method.cuts(Preselection((image_of_bin(None, 100, 60),)), SEVEN_B)
        assert [cut.after_layers for cut in cuts] == [0, 27]

    def test_before_the_decoder_features_are_compared_and_later_attention(self):
        method = method_for(erase.DistinctPolicy(0.25))
        survivors = torch.tensor([0, 2, 3, 5])
        features = torch.tensor([[1.0, 0.0], [0.0, 9.0], [2.0, 0.1], [0.0, 1.0], [5.0, 5.0], [3.0, 0.0]])
        encoded = EncodedPrompt(features, lambda: torch.zeros(1, 2))
        first = ScoreContext(Cut(0, 2, False, "distinct"), survivors, Preselection(()), lambda: None, None, encoded)
        # Of survivors 0, 2, 3 and 5 only 3 points elsewhere; then 0 and 5 are equally far from it, a right angle.
        assert method.choose(first).tolist() == [0, 2]
        attention = torch.tensor([0.1, 0.4, 0.2, 0.3])
        late = ScoreContext(Cut(19, 2, False, "late"), survivors, Preselection(()), lambda: attention, None, encoded)
        assert method.choose(late).tolist() == [1, 3]

    def test_features_that_nobody_gave_are_missed(self):
        context = ScoreContext(Cut(0, 1, False), torch.arange(3), Preselection(()), lambda: None)
        with pytest.raises(erase.InputError, match="erase-distinct"):
            method_for(erase.DistinctPolicy(0.25)).choose(context)

    @pytest.mark.parametrize(("scoring", "source"), [("reference", "input"), ("exact", "normed_input")])
    def test_the_scoring_picks_where_queries_come_from(self, scoring, source):
        architecture = Architecture("any", 8, 2, 5, 2, 5, binned_queries="output", budget_queries="input")
        assert method_for(erase.DistinctPolicy(0.25, scoring=scoring)).query_source(architecture) == source

    @given(st.integers(1, 400), st.integers(1, 400), fractions, fractions, st.integers(1, 40), st.integers(1, 50))
    def test_the_budget_is_kept_and_used_up_to_rounding(self, tokens, survivors, retention, late, depth, layer):
        survivors = min(tokens, survivors)
        cuts = distinct_cuts(
            tokens=tokens, survivors=survivors, retention=retention, late_retention=late, depth=depth, late=layer
        )
        average = layer_average_retention(tokens, survivors, [Cut(cut.layer, cut.keep, False) for cut in cuts], depth)
        assert average <= retention + 1 / tokens + 1e-9
        if survivors >= tokens * retention:
            assert average >= retention - 2 / tokens - 1e-9


@pytest.mark.parametrize(
    "policy",
    [binned(final=1.0), erase.BudgetPolicy(1.0), erase.DistinctPolicy(1.0), None],
    ids=["revision 1", "revision 2", "distinct", "none"],
)
def test_retention_1_keeps_everything_and_cuts_nothing(policy):
    method = method_for(policy)
    selection = method.preselect([*IMAGES, flat(0, 2, 2)])
    assert selection.kept.tolist() == list(range(33))
    assert method.cuts(selection, SEVEN_B) == ()
    features = torch.randn(33, 8)
    assert method.postencode(features, selection) is features


def test_without_a_policy_the_images_are_still_measured():
    plain, other = method_for(None).preselect(IMAGES), method_for(binned()).preselect(IMAGES)
    for image, expected in zip(plain.images, other.images, strict=True):
        assert torch.equal(image.entropy, expected.entropy)
        assert (image.complexity, image.grid) == (expected.complexity, expected.grid)
        assert (image.bin, image.edge_ratio) == (None, None)


def test_a_method_stands_for_itself():
    method = method_for(binned())
    assert method_for(method) is method


@pytest.mark.parametrize("policy", [binned(), erase.BudgetPolicy(0.25), erase.DistinctPolicy(0.25), None])
def test_a_prompt_without_images_has_nothing_to_keep_or_cut(policy):
    method = method_for(policy)
    nothing = method.preselect([])
    assert nothing.tokens == 0
    assert nothing.kept.tolist() == []
    assert method.cuts(nothing, SEVEN_B) == ()


@pytest.mark.parametrize("policy", [binned(), erase.BudgetPolicy(0.25)])
def test_the_features_that_enter_the_decoder_are_the_kept_rows(policy):
    method = method_for(policy)
    selection = method.preselect(IMAGES)
    features = torch.randn(29, 8)
    assert torch.equal(method.postencode(features, selection), features[selection.kept])


def test_the_entropies_of_an_image_can_be_drawn_as_a_map():
    image = VisionImage(torch.stack([noise_image(2, 3, seed=seed) for seed in (1, 2)]), 28)
    (seen,) = method_for(None).preselect([image]).images
    assert seen.entropy_map.shape == (4, 3)
    assert torch.equal(seen.entropy_map[2:].flatten(), seen.entropy[6:])


@given(fractions, fractions, st.sampled_from([binned(), erase.BudgetPolicy(0.5), erase.DistinctPolicy(0.5)]))
def test_a_lower_retention_never_keeps_more_in_any_layer(a, b, policy):
    counts, kept = [], []
    for retention in sorted((a, b)):
        method = method_for(policy.with_retention(retention))
        selection = method.preselect(IMAGES)
        cuts = [(cut.after_layers, cut.keep) for cut in method.cuts(selection, SEVEN_B)]
        counts.append(vision_tokens_per_layer(selection.kept.numel(), cuts, SEVEN_B.depth))
        kept.append(set(selection.kept.tolist()))
    assert kept[0] <= kept[1]
    assert all(fewer <= more for fewer, more in zip(*counts, strict=True))


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 400), st.integers(1, 27))
def test_the_layer_average_is_the_mean_of_what_each_layer_runs_with(tokens, stage1, keep, after):
    stage1, keep = min(tokens, stage1), min(tokens, stage1, keep)
    cuts = (Cut(after, keep, prune_cache=True),)
    runs = [stage1 if layer < after else keep for layer in range(28)]
    assert vision_tokens_per_layer(stage1, [(after, keep)], 28) == runs
    assert math.isclose(layer_average_retention(tokens, stage1, cuts, 28), sum(runs) / 28 / tokens)


def test_the_layer_average_without_cuts_or_images():
    assert layer_average_retention(40, 30, (), 28) == 0.75
    assert layer_average_retention(0, 0, (), 28) == 1.0
    two = (Cut(2, 10, prune_cache=False), Cut(6, 5, prune_cache=False))
    assert layer_average_retention(20, 20, two, 8) == (20 * 2 + 10 * 4 + 5 * 2) / (20 * 8)


def test_a_method_needs_a_stage_1_and_cuts_and_nothing_else():
    class Least(Method):
        name = "least"

        def preselect(self, images):
            return method_for(None).preselect(images)

        def cuts(self, preselection, architecture):
            return (Cut(1, 3, prune_cache=False),)

    method = Least()
    attention = torch.rand(4)
    context = ScoreContext(method.cuts(None, SEVEN_B)[0], torch.arange(4), Preselection(()), lambda: attention)
    assert method.score(context) is attention
    assert method.query_source(SEVEN_B) == "normed_input"
    assert (method.requested, method.measure) == (None, "final")


class Planned(NoPruning):
    """Plans whatever cuts it is given."""

    def __init__(self, *cuts):
        self.planned = tuple(Cut(layer, keep, prune_cache=False) for layer, keep in cuts)

    def cuts(self, preselection, architecture):
        return self.planned


@pytest.mark.parametrize("layers", [(-1,), (28,), (40,), (5, 5), (7, 3), (-1, 4)], ids=str)
def test_cuts_that_would_never_be_made_are_refused(layers):
    method = Planned(*((layer, 3) for layer in layers))
    with pytest.raises(erase.InputError, match=r"must ascend between 0 and 27"):
        method.plan(Preselection((image_of_bin(None, 9, 9),)), SEVEN_B)


def test_a_planned_cut_keeps_at_most_what_is_left():
    plan = Planned((2, 50), (5, 4), (9, 6)).plan(Preselection((image_of_bin(None, 12, 9),)), SEVEN_B)
    assert [(cut.after_layers, cut.keep) for cut in plan] == [(2, 9), (5, 4), (9, 4)]
