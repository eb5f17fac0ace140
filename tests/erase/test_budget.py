"""The arithmetic of revision 2, against numbers computed by hand and as properties."""

import pytest
import torch
from erase_cases import MANIFEST, load_case
from hypothesis import given
from hypothesis import strategies as st
from slow_cases import tiny_internvl, tiny_qwen2_5_vl, tiny_qwen3_vl

from erase.budget import LARGEST_ENTROPY, budget_cuts, importance, informative
from erase.models import adapter_for
from erase.trace import vision_tokens_per_layer

DEFAULT_LAYERS = {2: (1,), 3: (2,), 8: (2, 5), 12: (2, 8), 28: (2, 19), 36: (2, 24), 48: (2, 32)}
DEFAULT_DEEP = {2: 1, 3: 2, 8: 6, 12: 8, 28: 17, 36: 22, 48: 29}


def cuts(tokens=100, survivors=60, retention=0.25, late_retention=0.3, depth=28, layers=(2, 19), may_drop_all=False):
    return budget_cuts(
        tokens=tokens,
        survivors=survivors,
        retention=retention,
        late_retention=late_retention,
        depth=depth,
        layers=layers,
        may_drop_all=may_drop_all,
    )


def per_layer(plan, survivors, depth):
    return vision_tokens_per_layer(survivors, [(cut.layer, cut.keep) for cut in plan], depth)


@st.composite
def prompts(draw):
    """Any prompt in any model."""
    tokens = draw(st.integers(1, 3000))
    return {
        "tokens": tokens,
        "survivors": draw(st.integers(1, tokens)),
        "retention": draw(st.floats(0.001, 1.0)),
        "late_retention": draw(st.floats(0.01, 1.0)),
        "depth": (depth := draw(st.integers(2, 60))),
        "layers": draw(st.tuples(st.integers(0, depth + 3), st.integers(0, depth + 3))),
        "may_drop_all": draw(st.booleans()),
    }


class TestPlansByHand:
    def test_both_cuts(self):
        # T = 28 x 0.25 / 0.6 = 11.667; early (11.667 - 2) / (17 + 9 x 0.3) = 0.4907; 60 x 0.4907 = 29.4; 29 x 0.3 = 8.7
        assert cuts() == ((2, 29, "early"), (19, 8, "late"))

    def test_a_budget_that_the_early_cut_cannot_spend_leaves_the_late_one_alone(self):
        # T = 25.667; early 23.667 / 19.7 > 1; late (25.667 - 19) / 9 = 0.7407; 60 x 0.7407 = 44.4
        assert cuts(retention=0.55) == ((19, 44, "late"),)

    @pytest.mark.parametrize(("survivors", "count"), [(24, 0), (25, 0), (26, 1), (27, 1), (60, 2)])
    def test_what_stage_1_reaches_alone_needs_no_cut(self, survivors, count):
        assert len(cuts(survivors=survivors)) == count

    def test_a_last_token_is_never_worth_a_cut(self):
        assert cuts(tokens=3, survivors=1, retention=0.1) == ()
        assert len(cuts(tokens=3, survivors=2, retention=0.1)) == 2

    def test_the_published_late_share_stays_when_it_would_keep_all(self):
        assert cuts(late_retention=1.0) == ((2, 22, "early"),)

    @pytest.mark.parametrize(("may_drop_all", "left"), [(True, 0), (False, 1)])
    def test_a_budget_that_is_spent_before_the_first_cut_leaves_nothing_or_one(self, may_drop_all, left):
        # T = 28 x 0.04 / 0.6 = 1.87 layers, and two have run.
        assert cuts(retention=0.04, may_drop_all=may_drop_all) == ((2, left, "early"), (19, left, "late"))

    @pytest.mark.parametrize("may_drop_all", [True, False])
    def test_a_budget_that_is_not_spent_keeps_at_least_one_whatever_the_model(self, may_drop_all):
        # T = 2.05; early 0.05 / 19.7 = 0.0025; 60 x 0.0025 < 1
        plan = cuts(retention=0.044, may_drop_all=may_drop_all)
        assert plan == ((2, 1, "early"), (19, 1, "late"))


@pytest.mark.parametrize("name", [entry["name"] for entry in MANIFEST if entry["revision"] == 2])
def test_the_recorded_plans_come_out(name):
    case = load_case(next(entry for entry in MANIFEST if entry["name"] == name))
    policy = case.policy
    plan = cuts(
        tokens=sum(case.entry["image_tokens"]),
        survivors=len(case.tensors["stage1_kept"]),
        retention=policy.retention,
        late_retention=policy.late_retention,
        depth=len(case.entry["cache_lengths"]),
        layers=policy.layers,
        may_drop_all=case.entry["model"] == "qwen2_5_vl",
    )
    assert [(cut.layer, cut.keep) for cut in plan] == [(layer, len(kept)) for layer, kept in case.cuts]
    roles = {"attn_edge": "early", "attn": "late"}
    assert [cut.role for cut in plan] == [roles[cut["score_mode"]] for cut in case.entry["plan"]]


@pytest.mark.parametrize("depth", DEFAULT_LAYERS)
@pytest.mark.parametrize(("build", "shallow"), [(tiny_qwen2_5_vl, 2), (tiny_qwen3_vl, 4), (tiny_internvl, 2)])
def test_every_depth_has_its_default_cuts(build, shallow, depth):
    architecture = adapter_for(build(depth)).architecture
    layers = (architecture.early, architecture.late)
    plan = cuts(tokens=1000, survivors=900, retention=0.55, depth=depth, layers=layers)
    assert tuple(cut.layer for cut in plan) == DEFAULT_LAYERS[depth]
    assert architecture.shallow == min(shallow, depth - 1)
    assert architecture.deep == DEFAULT_DEEP[depth]


@given(prompts())
def test_cuts_lie_inside_the_model_and_keep_less_and_less(prompt):
    plan = cuts(**prompt)
    layers = [cut.layer for cut in plan]
    assert layers == sorted(set(layers))
    assert all(1 <= layer <= prompt["depth"] - 1 for layer in layers)
    running = per_layer(plan, prompt["survivors"], prompt["depth"])
    assert running == sorted(running, reverse=True)
    assert [cut.role for cut in plan] in ([], ["early"], ["late"], ["early", "late"])


@given(prompts())
def test_the_last_token_falls_only_where_that_is_allowed(prompt):
    left = per_layer(cuts(**prompt), prompt["survivors"], prompt["depth"])[-1]
    assert left >= (0 if prompt["may_drop_all"] else 1)


@given(prompts(), st.floats(0.001, 1.0))
def test_a_lower_retention_never_keeps_more_in_any_layer(prompt, other):
    low, high = sorted((prompt["retention"], other))
    survivors, depth = prompt["survivors"], prompt["depth"]
    fewer, more = (per_layer(cuts(**prompt | {"retention": value}), survivors, depth) for value in (low, high))
    assert all(a <= b for a, b in zip(fewer, more, strict=True))


@given(prompts())
def test_a_budget_is_met_unless_the_layers_before_the_first_cut_exceed_it_already(prompt):
    plan = cuts(**prompt)
    survivors, depth = prompt["survivors"], prompt["depth"]
    spent = sum(per_layer(plan, survivors, depth))
    budget = prompt["tokens"] * depth * prompt["retention"]
    fixed = survivors * plan[0].layer if plan else 0
    at_least_one = depth if survivors == 1 or any(cut.keep == 1 for cut in plan) else 0
    assert spent <= max(budget, fixed) + at_least_one + 1e-6
    if plan and fixed <= budget:
        # Each cut rounds down by less than one token, in all layers behind it.
        assert spent > budget - sum(depth - cut.layer for cut in plan) - 1e-6


class TestInformative:
    def test_cells_above_the_mean_or_with_an_edge_stand_out(self):
        entropy, edges = torch.tensor([1.0, 2.0, 3.0, 2.0]), torch.tensor([0.0, 0.0, 0.0, 0.02])
        assert informative(entropy, edges).tolist() == [False, False, True, True]

    @pytest.mark.parametrize("value", [0.0, 0.1, 1.2345678])
    def test_rounding_noise_stands_out_of_nothing(self, value):
        entropy = torch.full((1001,), value) + torch.linspace(-1e-6, 1e-6, 1001)
        assert not informative(entropy, torch.zeros(1001)).any()

    @pytest.mark.parametrize(("above", "expected"), [(0.9e-4, False), (1.2e-4, True)])
    def test_a_cell_needs_a_margin_over_the_mean(self, above, expected):
        entropy = torch.zeros(10_000)
        entropy[7] = above
        assert bool(informative(entropy, torch.zeros(10_000))[7]) is expected


class TestImportance:
    attention, entropy, edges = (
        torch.tensor([0.1, 0.4, 0.2, 0.3]),
        torch.tensor([0.0, 1.0, 3.0, 6.0]),
        torch.tensor([0.5, 0.0, 0.25, 0.25]),
    )

    def test_the_cue_is_scaled_to_the_spread_of_attention(self):
        # Population deviations: attention 0.1118034, edges 0.1767767, entropies / 5.54126 up to 1: 0.3979398.
        clamped = [0.0, 1 / LARGEST_ENTROPY, 3 / LARGEST_ENTROPY, 1.0]
        mean = sum(clamped) / 4
        deviation = (sum((value - mean) ** 2 for value in clamped) / 4) ** 0.5
        cue = [edge / 0.1767767 + e / deviation for edge, e in zip(self.edges.tolist(), clamped, strict=True)]
        cue_mean = sum(cue) / 4
        cue_deviation = (sum((value - cue_mean) ** 2 for value in cue) / 4) ** 0.5
        expected = [a + 0.2 * 0.1118034 / cue_deviation * c for a, c in zip(self.attention.tolist(), cue, strict=True)]
        found = importance(self.attention, self.entropy, self.edges, 0.2)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("constant", [0.0, 0.5])
    def test_a_signal_that_does_not_vary_says_nothing(self, constant):
        same = torch.full((4,), constant)
        without_edges = importance(self.attention, self.entropy, same, 0.2)
        assert torch.equal(without_edges, importance(self.attention, self.entropy, torch.zeros(4), 0.2))
        without_entropy = importance(self.attention, same, self.edges, 0.2)
        assert torch.equal(without_entropy, importance(self.attention, torch.zeros(4), self.edges, 0.2))
        assert torch.equal(importance(self.attention, same, same, 0.2), self.attention)

    def test_a_single_survivor_keeps_its_attention(self):
        assert importance(torch.tensor([0.7]), torch.tensor([2.0]), torch.tensor([0.3]), 0.2).tolist() == [
            pytest.approx(0.7)
        ]

    def test_attention_that_does_not_vary_is_returned_as_it_is(self):
        even = torch.full((4,), 0.25)
        assert torch.equal(importance(even, self.entropy, self.edges, 0.2), even)

    def test_without_weight_attention_decides_alone(self):
        assert torch.equal(importance(self.attention, self.entropy, self.edges, 0.0), self.attention)

    @given(st.floats(0.1, 100.0))
    def test_the_unit_of_the_edges_does_not_matter(self, unit):
        scaled = importance(self.attention, self.entropy, self.edges * unit, 0.2)
        torch.testing.assert_close(scaled, importance(self.attention, self.entropy, self.edges, 0.2))
