"""Every baseline against its definition, on input that can be worked out by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import erase
from erase.methods import method_for
from erase.methods.base import (
    Architecture,
    Cut,
    EncodedPrompt,
    EncoderAttention,
    ImageSelection,
    Preselection,
    ScoreContext,
)
from erase.methods.baselines import METHODS
from erase.methods.baselines.cdpruner import most_probable
from erase.methods.baselines.holov import _varying
from erase.methods.baselines.per_image import ImageView, others, shared_out
from erase.methods.baselines.pooling import coarser
from erase.methods.baselines.schedule import average, falling, layers_at
from erase.methods.baselines.sparsevlm import clusters_of, density_peaks, raters
from erase.policy import BASELINES, BaselinePolicy, policy_from_dict, policy_to_dict
from erase.trace import layer_average_retention

DEPTH = 28
SEVEN_B = Architecture("qwen2_5_vl", DEPTH, shallow=2, deep=17, early=2, late=19)
BEFORE_DECODER = ("cdpruner", "divprune", "holov", "pooling", "prumerge", "random", "visionzip", "vispruner")
INSIDE = ("fastv", "pyramiddrop", "sparsevlm")


def selection(*grids: tuple[int, int]) -> Preselection:
    return Preselection(
        tuple(
            ImageSelection(rows * columns, torch.arange(rows * columns), torch.zeros(rows * columns), 0.0, None, grid)
            for grid in ((1, rows, columns) for rows, columns in grids)
            for rows, columns in [grid[1:]]
        )
    )


def view(
    features: Tensor,
    grid: tuple[int, int],
    received: Tensor | None = None,
    first: Tensor | None = None,
    keys: Tensor | None = None,
    question: Tensor | None = None,
) -> ImageView:
    """One image; what is not given is alike for all tokens."""
    seen = torch.ones(len(features)) if received is None else received
    attention = EncoderAttention((seen if first is None else first, seen), features if keys is None else keys)
    return ImageView(features, grid, torch.ones(1, features.shape[1]) if question is None else question, attention)


def made(name: str, retention: float, **settings) -> erase.methods.base.Method:
    return method_for(BaselinePolicy(name, retention, **settings))


def context(
    scores: Tensor, keep: int, states: Tensor | None = None, encoded: EncodedPrompt | None = None
) -> ScoreContext:
    """A cut inside the decoder over one row of tokens where every text token looks at them as `scores` say."""
    tokens = len(scores)
    return ScoreContext(
        cut=Cut(2, keep, prune_cache=False),
        survivors=torch.arange(tokens),
        preselection=selection((1, tokens)),
        attention=lambda queries="question": scores,
        states=(lambda: states) if states is not None else None,
        encoded=encoded,
    )


def random_context(method, grids, seed: int = 0) -> ScoreContext:
    """The cut before the decoder of images of random features."""
    generator = torch.Generator().manual_seed(seed)
    chosen_from = selection(*grids)
    features = torch.randn(chosen_from.tokens, 8, generator=generator)
    attention = tuple(
        EncoderAttention(
            tuple(torch.rand(image.tokens, generator=generator) for _ in range(2)),
            torch.randn(image.tokens, 4, generator=generator),
        )
        for image in chosen_from.images
    )
    question = torch.randn(5, 8, generator=generator)
    return ScoreContext(
        cut=method.plan(chosen_from, SEVEN_B)[0],
        survivors=torch.arange(chosen_from.tokens),
        preselection=chosen_from,
        attention=lambda queries="question": pytest.fail("no text has looked yet"),
        states=lambda: features,
        encoded=EncodedPrompt(features, lambda: question, attention),
    )


class TestAll:
    def test_every_name_has_its_method(self):
        assert tuple(sorted(METHODS)) == BASELINES
        for name in BASELINES:
            policy = BaselinePolicy(name, 0.25, seed=3)
            assert method_for(policy).name == name
            assert policy_from_dict(policy_to_dict(policy)) == policy

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"method": "magic"}, "one of cdpruner"),
            ({"retention": 0.0}, "above 0"),
            ({"measure": "total"}, "final or layer_average"),
            ({"seed": -1}, "at least 0"),
        ],
    )
    def test_what_a_policy_refuses(self, settings, message):
        with pytest.raises(erase.PolicyError, match=message):
            BaselinePolicy(**({"method": "random", "retention": 0.5} | settings))

    @pytest.mark.parametrize("name", BASELINES)
    def test_nothing_is_cut_where_nothing_is_to_be_pruned(self, name):
        assert made(name, 1.0).cuts(selection((4, 5)), SEVEN_B) == ()
        assert made(name, 0.2).cuts(selection(), SEVEN_B) == ()

    @pytest.mark.parametrize("name", BEFORE_DECODER)
    @pytest.mark.parametrize("retention", [0.5, 0.15, 0.001])
    def test_what_is_chosen_before_the_decoder_is_a_share_of_every_image(self, name, retention):
        method, grids = made(name, retention), [(10, 12), (3, 7), (1, 1)]
        cut_context = random_context(method, grids)
        chosen = method.choose(cut_context)
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert len(chosen) == cut_context.cut.keep
        for first, end, tokens in ((0, 120, 120), (120, 141, 21), (141, 142, 1)):
            own = int(((chosen >= first) & (chosen < end)).sum())
            assert own <= max(1, int(tokens * retention))
            assert own >= max(1, int(0.8 * tokens * retention)) or name == "pooling"
        assert method.merge(cut_context, chosen).shape == (len(chosen), 8)

    @pytest.mark.parametrize("name", BEFORE_DECODER)
    def test_it_runs_with_all_layers_alike(self, name):
        plan = made(name, 0.3).plan(selection((10, 10)), SEVEN_B)
        kept = plan[0].keep
        assert [cut.after_layers for cut in plan] == [0]
        assert layer_average_retention(100, 100, plan, DEPTH) == pytest.approx(kept / 100)

    @pytest.mark.parametrize("name", [*INSIDE, "vscan"])
    @pytest.mark.parametrize("retention", [0.75, 0.5, 0.35, 0.27])
    @pytest.mark.parametrize("depth", [16, 28, 36])
    def test_both_measures_come_out_as_asked(self, name, retention, depth):
        chosen_from, architecture = selection((40, 40)), replace(SEVEN_B, depth=depth)
        final = made(name, retention).plan(chosen_from, architecture)
        assert final[-1].keep / 1600 == pytest.approx(retention, abs=0.001)
        averaged = made(name, retention, measure="layer_average").plan(chosen_from, architecture)
        assert layer_average_retention(1600, 1600, averaged, depth) == pytest.approx(retention, abs=0.003)

    @pytest.mark.parametrize(("name", "least"), [("pyramiddrop", 0.25), ("fastv", 2 / 28), ("sparsevlm", 2 / 28)])
    def test_an_average_below_what_the_first_layers_take_is_refused(self, name, least):
        with pytest.raises(erase.PolicyError, match="cannot be reached"):
            made(name, least - 0.01, measure="layer_average").cuts(selection((9, 9)), SEVEN_B)

    def test_shares_add_up_and_stay_below_their_limits(self):
        assert shared_out(7, [1, 1, 1], [9, 9, 9]) == [3, 2, 2]
        assert shared_out(7, [5, 1, 1], [3, 9, 9]) == [3, 2, 2]
        assert shared_out(4, [0, 0, 0], [1, 9, 9]) == [1, 2, 1]
        assert shared_out(99, [1, 2], [3, 4]) == [3, 4]

    def test_stages_at_shares_of_the_depth(self):
        assert layers_at((1 / 4, 1 / 2, 3 / 4), 28) == (7, 14, 21)
        assert layers_at((2 / 32, 6 / 32, 15 / 32), 32) == (2, 6, 15)
        assert layers_at((1 / 4, 1 / 2, 3 / 4), 2) == (1,)
        assert average((0.5, 0.25, 0.125), (7, 14, 21), 28) == pytest.approx(0.46875)
        assert falling(BaselinePolicy("pyramiddrop", 0.125), (7, 14, 21), 28) == pytest.approx((0.5, 0.25, 0.125))


class TestRandom:
    def test_a_seed_gives_the_same_sample_and_another_one_another(self):
        own = view(torch.randn(100, 4), (10, 10))
        samples = [made("random", 0.2, seed=seed).choose_in(own, 20).tolist() for seed in (0, 0, 1)]
        assert samples[0] == samples[1] != samples[2]
        assert len(set(samples[0])) == 20


class TestPooling:
    def test_cells_are_averages_and_stand_at_their_centres(self):
        features = torch.arange(24.0).view(24, 1)
        method, own = made("pooling", 0.25), view(features, (4, 6))
        assert coarser((4, 6), 6) == (2, 3)
        chosen = method.choose_in(own, 6)
        assert chosen.tolist() == [7, 9, 11, 19, 21, 23]  # rows 1 and 3, columns 1, 3 and 5
        blocks = [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
        expected = [sum(block) / 4 + shift for shift in (0, 12) for block in blocks]
        assert method.merge_in(own, chosen).flatten().tolist() == expected

    def test_tiles_are_pooled_one_by_one(self):
        features = torch.cat([torch.zeros(9, 1), torch.ones(9, 1)])
        method, own = made("pooling", 0.5), replace(view(features, (6, 3)), tiles=2)
        tiled = Preselection((replace(selection((6, 3)).images[0], grid=(2, 3, 3)),))
        assert method.keeps(tiled) == [2 * 4]
        chosen = method.choose_in(own, 8)
        assert chosen.tolist() == [0, 2, 6, 8, 9, 11, 15, 17]
        assert method.merge_in(own, chosen).flatten().tolist() == [0.0] * 4 + [1.0] * 4

    def test_a_coarser_grid_has_nearly_the_shape_and_nearly_the_cells(self):
        assert coarser((10, 10), 26) == (5, 5)
        assert coarser((1, 9), 3) == (1, 3)
        assert coarser((9, 1), 3) == (3, 1)
        rows, columns = coarser((32, 40), 192)
        assert 170 < rows * columns <= 192
        assert rows / columns == pytest.approx(32 / 40, rel=0.25)


class TestDownsample:
    def test_both_sides_shrink_by_the_root(self):
        method = made("downsample", 0.25)
        assert method.image_scale == 0.5
        assert method.cuts(selection((4, 4)), SEVEN_B) == ()


class TestFastV:
    def test_one_cut_after_two_layers_by_what_the_last_token_sees(self):
        method, asked = made("fastv", 0.4), []
        assert method.cuts(selection((2, 5)), SEVEN_B) == (Cut(2, 4, prune_cache=False),)
        scores = torch.tensor([0.1, 0.9, 0.3, 0.2, 0.8, 0.0])
        watched = replace(context(scores, 2), attention=lambda queries="question": asked.append(queries) or scores)
        assert method.choose(watched).tolist() == [1, 4]
        assert asked == ["last"]

    def test_the_layers_before_the_cut_count_in_the_average(self):
        (cut,) = made("fastv", 0.5, measure="layer_average").cuts(selection((10, 26)), SEVEN_B)
        assert cut.keep == 120  # 260 * (0.5 * 28 - 2) / 26


class TestPyramidDrop:
    def test_three_stages_keep_half_each_time(self):
        method = made("pyramiddrop", 0.125)
        assert [(cut.after_layers, cut.keep) for cut in method.cuts(selection((8, 10)), SEVEN_B)] == [
            (7, 40),
            (14, 20),
            (21, 10),
        ]
        assert method.choose(context(torch.tensor([3.0, 1.0, 2.0]), 2)).tolist() == [0, 2]


class TestSparseVLM:
    def test_raters_are_the_words_that_vision_tokens_choose(self):
        features = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
        question = torch.tensor([[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0]])
        assert raters(features, question).tolist() == [0]
        assert raters(features, torch.ones(3, 2)).tolist() == [0, 1, 2]  # none above the mean: all

    def test_centres_are_dense_and_far_from_what_is_denser(self):
        line = torch.tensor([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2], [50.0]])
        centres = density_peaks(line, 2).tolist()
        assert {centre // 3 for centre in centres} == {0, 1}

    def test_the_best_of_the_dropped_come_back_as_one_and_count(self):
        scores = torch.arange(20.0).flip(0)  # token 0 is looked at most
        states = torch.arange(20.0).view(20, 1) * torch.ones(1, 2)
        method = made("sparsevlm", 0.3)
        encoded = EncodedPrompt(torch.ones(20, 2), lambda: torch.ones(3, 2))
        cut_context = context(scores, 6, states, encoded)
        assert clusters_of(15) == 1
        chosen = method.choose(cut_context)
        assert chosen.tolist()[:5] == [0, 1, 2, 3, 4]  # five as they are, 30% of the other 15 make one
        assert chosen.tolist()[5] in (5, 6, 7, 8)
        merged = method.merge(cut_context, chosen)
        assert merged[:5].tolist() == states[:5].tolist()
        assert merged[5].tolist() == [6.5, 6.5]  # mean of tokens 5 to 8

    @pytest.mark.parametrize(("tokens", "keep"), [(400, 100), (30, 2), (30, 1), (5, 4), (1000, 20), (60, 59)])
    def test_it_keeps_as_many_as_the_cut_says(self, tokens, keep):
        generator = torch.Generator().manual_seed(tokens)
        states = torch.randn(tokens, 6, generator=generator)
        encoded = EncodedPrompt(states, lambda: torch.randn(4, 6, generator=generator))
        cut_context = context(torch.rand(tokens, generator=generator), keep, states, encoded)
        chosen = made("sparsevlm", 0.5).choose(cut_context)
        assert len(set(chosen.tolist())) == keep
        assert made("sparsevlm", 0.5).merge(cut_context, chosen).shape == (keep, 6)


class TestVisionZip:
    def test_the_rest_is_added_to_evenly_spaced_ones(self):
        features = torch.eye(12)
        received = torch.tensor([0.0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4])
        keys = torch.tensor([[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 6)
        method, own = made("visionzip", 0.5), view(features, (3, 4), received, keys=keys)
        chosen = method.choose_in(own, 6).sort().values
        assert chosen.tolist() == [0, 1, 3, 5, 7, 9]  # round(6 * 5.4 / 6.4) = 5 dominant; of 0 2 4 6 8 10 11 the first
        merged = method.merge_in(own, chosen)
        assert torch.equal(merged[1:], features[[1, 3, 5, 7, 9]])
        expected = features[0] + features[[2, 4, 6, 8, 10, 11]].mean(0)
        assert torch.allclose(merged[0], expected)

    def test_each_goes_to_the_one_whose_key_is_most_like_its_own(self):
        features, received = torch.eye(20), torch.arange(20.0).flip(0)
        keys = torch.nn.functional.one_hot((torch.arange(20) >= 14).long()).float()
        method, own = made("visionzip", 0.65), view(features, (4, 5), received, keys=keys)
        chosen = method.choose_in(own, 13).sort().values
        assert chosen.tolist() == [*range(11), 11, 15]  # strided by 9 // 2 among 11 to 19
        merged = method.merge_in(own, chosen)
        assert torch.allclose(merged[11], features[11] + features[[12, 13]].mean(0))
        assert torch.allclose(merged[12], features[15] + features[[14, 16, 17, 18, 19]].mean(0))


class TestVisPruner:
    def test_half_by_attention_and_half_by_leaving_out_what_repeats(self):
        features = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0], [1, 1, 0]])
        received = torch.tensor([6.0, 5, 4, 3, 2, 1])
        chosen = made("vispruner", 0.7).choose_in(view(features, (2, 3), received), 4)
        # 0 and 1 are important. Of 2 3 4 5, the evens 2 and 4 face the odds 3 and 5: 2 repeats 3, 4 is like 5.
        # Two of four have to go: both evens.
        assert sorted(chosen.tolist()) == [0, 1, 3, 5]
        chosen = made("vispruner", 0.9).choose_in(view(features, (2, 3), received), 5)
        assert sorted(chosen.tolist()) == [0, 1, 3, 4, 5]  # round(2.5) = 2 important; 2 repeats 3 most

    def test_what_repeats_nothing_stays(self):
        features = torch.ones(200, 8)
        features[90] = torch.tensor([1.0, -1, 1, -1, 1, -1, 1, -1])
        received = torch.arange(200.0).flip(0)
        chosen = made("vispruner", 0.1).choose_in(view(features, (10, 20), received), 20)
        assert 90 in chosen.tolist()

    def test_the_rest_shrinks_until_it_is_few_enough(self):
        chosen = made("vispruner", 0.1).choose_in(view(torch.randn(64, 8), (8, 8), torch.rand(64)), 6)
        assert len(set(chosen.tolist())) == 6


class TestDivPrune:
    def test_it_starts_with_the_loner_and_goes_on_with_the_farthest(self):
        angles = torch.tensor([0.0, 5.0, 10.0, 90.0, 180.0, 100.0]).deg2rad()
        features = torch.stack([angles.cos(), angles.sin()], dim=1)
        chosen = made("divprune", 0.5).choose_in(view(features, (2, 3)), 3)
        assert chosen[0] == 4  # 80 degrees from its nearest
        assert chosen[1] == 0  # opposite
        assert chosen[2] == 3  # 90 degrees from both


class TestCDPruner:
    def test_the_greedy_set_maximises_the_determinant_step_by_step(self):
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(9, 12, generator=generator, dtype=torch.float64)
        kernel = rows @ rows.T
        chosen = most_probable(rows, 5).tolist()
        for number, best in enumerate(chosen):
            volumes = {}
            for other in set(range(9)) - set(chosen[:number]):
                own = [*chosen[:number], other]
                volumes[other] = float(torch.linalg.det(kernel[own][:, own]))
            assert max(volumes, key=volumes.get) == best

    def test_the_largest_volume_is_chosen_greedily(self):
        # The longest row first; the second in its direction adds nothing.
        rows = torch.tensor([[3.0, 0.0], [2.9, 0.0], [0.5, 1.0], [0.0, 0.5]])
        assert most_probable(rows, 2).tolist() == [0, 2]

    def test_more_tokens_than_dimensions_are_chosen_in_rounds_and_none_twice(self):
        rows = torch.randn(700, 24, generator=torch.Generator().manual_seed(0))
        chosen = most_probable(rows, 350)
        assert len(set(chosen.tolist())) == 350
        rest = torch.ones(700, dtype=torch.bool).index_fill(0, chosen[:24], False).nonzero().squeeze(1)
        assert chosen[24:48].tolist() == rest[most_probable(rows[rest], 24)].tolist()

    @pytest.mark.parametrize(
        "rows", [torch.zeros(6, 3), torch.ones(6, 3), torch.eye(6)], ids=["zero", "equal", "unlike"]
    )
    @pytest.mark.parametrize("keep", [1, 4, 6])
    def test_none_is_chosen_twice_whatever_the_tokens(self, rows, keep):
        chosen = most_probable(rows, keep).tolist()
        assert len(set(chosen) & set(range(6))) == keep

    def test_relevant_ones_come_first_but_not_what_repeats_them(self):
        features = torch.tensor([[1.0, 0.0, 0.0], [0.999, 0.04, 0.0], [0.7, 0.7, 0.0], [0.0, 0.0, 1.0]])
        question = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        chosen = made("cdpruner", 0.5).choose_in(view(features, (2, 2), question=question), 2)
        assert chosen[0] == 0
        assert chosen[1] == 2


class TestVScan:
    def test_two_shares_one_before_the_decoder_and_one_in_the_middle(self):
        assert made("vscan", 0.05).cuts(selection((10, 20)), SEVEN_B) == (
            Cut(0, 30, prune_cache=False),
            Cut(14, 10, prune_cache=False),
        )

    def test_half_everywhere_and_half_from_every_window_alike(self):
        last, first = torch.zeros(64), torch.zeros(64)
        last[[0, 1, 8, 9]] = torch.tensor([9.0, 8, 7, 6])
        first[[27, 4, 60, 59, 63]] = torch.tensor([5.0, 4, 3, 2, 1])  # 27 and 59 lie in the left windows
        own = view(torch.randn(64, 4), (8, 8), last, first)
        chosen = made("vscan", 0.1).choose_in(own, 8)
        assert sorted(chosen.tolist()) == [0, 1, 4, 8, 9, 27, 59, 60]

    def test_what_is_dropped_is_averaged_into_the_most_alike(self):
        features = torch.tensor([[1.0, 0.0], [3.0, 0.1], [0.0, 2.0], [0.1, 4.0]])
        merged = made("vscan", 0.1).merge_in(view(features, (2, 2)), torch.tensor([0, 2]))
        assert torch.allclose(merged, torch.tensor([[2.0, 0.05], [0.05, 3.0]]))

    def test_what_is_left_over_goes_to_the_windows_that_were_looked_at_most(self):
        first = torch.zeros(256)
        first[[255, 130]] = torch.tensor([2.0, 1.0])  # the last window, and one in the middle
        own = view(torch.randn(256, 4), (16, 16), torch.arange(256.0).flip(0), first)
        chosen = made("vscan", 0.01).choose_in(own, 4)
        assert set(chosen.tolist()) == {0, 1, 255, 130}

    def test_in_the_middle_the_last_token_decides(self):
        method = made("vscan", 0.1)
        assert method.choose(context(torch.tensor([1.0, 3.0, 2.0]), 2)).tolist() == [1, 2]


class TestHoloV:
    def test_slices_get_quotas_and_inside_attention_decides(self):
        received = torch.tensor([4.0, 1, 1, 2, 1, 0, 1, 0, 0, 0]) / 10
        own = view(torch.ones(10, 3), (2, 5), received)  # all alike: no variance
        chosen = made("holov", 0.5).choose_in(own, 5)
        # ceil(1.8 * 10 / 5) = 4 slices: 0 1 | 2 3 4 | 5 6 | 7 8 9 with means .25, .133, .05, 0
        assert sorted(chosen.tolist()) == [0, 1, 2, 3, 6]

    def test_a_tokens_likeness_to_itself_says_nothing(self):
        # Two that are unlike each other vary as little as two that are alike.
        assert _varying(torch.eye(2)).tolist() == [0.0, 0.0]
        assert _varying(torch.ones(1, 2)).tolist() == [0.0]
        three = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        assert _varying(three).tolist() == pytest.approx([0.25, 0.25, 0.0])

    def test_variance_lifts_a_slice_that_shows_different_things(self):
        same = torch.tensor([[1.0, 0.0]]).repeat(5, 1)
        mixed = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
        own = view(torch.cat([same, mixed]), (2, 5), torch.full((10,), 0.1))
        chosen = made("holov", 0.9).choose_in(own, 9)
        assert sum(place >= 5 for place in chosen.tolist()) == 5


class TestPruMerge:
    def test_outliers_then_evenly_spaced_then_one_for_the_rest(self):
        received = torch.full((16,), 0.01)
        received[[3, 12]] = 0.4
        received[7] = 0.02
        own = view(torch.eye(16), (4, 4), received)
        chosen = made("prumerge", 0.4).choose_in(own, 6)
        assert set(chosen.tolist()[:3]) == {3, 12, 7}
        assert len(set(chosen.tolist())) == 6

    def test_survivors_add_their_neighbours_and_the_last_one_is_the_mean_of_the_rest(self):
        received = torch.tensor([0.5, 0.1, 0.1, 0.3])
        keys = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        features = torch.eye(4)
        method, own = made("prumerge", 0.5), view(features, (2, 2), received, keys=keys)
        chosen = method.choose_in(own, 2).sort().values
        assert chosen.tolist() == [0, 3]  # no outlier: the first of the spaced, and the most looked-at of the rest
        merged = method.merge_in(own, chosen)
        assert torch.allclose(merged[0], torch.tensor([1.0, 0.1, 0.1, 0.3]))  # all are among its 32 neighbours
        assert torch.allclose(merged[1], torch.tensor([0.0, 0.1, 0.1, 0.3]) / 0.5)


def test_what_is_left_out():
    assert others(torch.tensor([3, 0]), 5).tolist() == [1, 2, 4]
