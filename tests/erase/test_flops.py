"""Counted operations against sums written out, PyTorch's own counter, and traces."""

from types import SimpleNamespace

import pytest
import torch
from erase_cases import HALF, noise_image, prompt_ids, stock_inputs
from hypothesis import given
from hypothesis import strategies as st
from slow_cases import tiny_internvl, tiny_qwen2_5_vl, tiny_qwen3_vl
from torch.utils.flop_counter import FlopCounterMode

import erase
from erase.flops import DecoderCosts, decoder_costs
from erase.models import adapter_for

SMALL = SimpleNamespace(
    hidden_size=8, num_attention_heads=4, num_key_value_heads=2, head_dim=3, intermediate_size=10, vocab_size=50
)


def test_the_costs_of_a_small_decoder_by_hand():
    # Queries 4 x 3 = 12 and keys 2 x 3 = 6 wide: q and o, k and v, three matrices of the feed-forward network.
    matrices = 8 * 12 + 12 * 8 + 8 * 6 + 8 * 6 + 3 * 8 * 10
    assert decoder_costs(SMALL) == DecoderCosts(linear=2 * matrices, pair=2 * 2 * 12, vocabulary=2 * 8 * 50)


def test_a_head_is_its_share_of_the_hidden_size_where_the_configuration_does_not_say():
    whole = SimpleNamespace(**vars(SMALL) | {"head_dim": None})
    assert decoder_costs(whole) == decoder_costs(SimpleNamespace(**vars(SMALL) | {"head_dim": 2}))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=5))
def test_prefill_counts_every_row_and_every_visible_pair(rows):
    costs = decoder_costs(SMALL)
    total = costs.vocabulary
    for count in rows:
        total += sum(costs.linear + costs.pair * (row + 1) for row in range(count))
    assert costs.prefill(rows) == total


@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(0, 6))
def test_decode_counts_every_step_behind_its_cache(cache, steps):
    costs = decoder_costs(SMALL)
    total = 0.0
    for step in range(steps):
        total += costs.vocabulary + sum(costs.linear + costs.pair * (held + step + 1) for held in cache)
    assert costs.decode(cache, steps) == total


@given(st.lists(st.integers(0, 60), min_size=1, max_size=4), st.integers(1, 20))
def test_a_prefill_and_its_decode_cost_what_one_long_prefill_costs(rows, steps):
    costs = decoder_costs(SMALL)
    together = costs.prefill([count + steps for count in rows]) + steps * costs.vocabulary
    assert costs.prefill(rows) + costs.decode(rows, steps) == together


@pytest.mark.parametrize("build", [tiny_qwen2_5_vl, tiny_qwen3_vl, tiny_internvl])
def test_linear_layers_are_those_that_pytorch_counts(build):
    # Eager attention is two more matrix products, of all pairs: PyTorch does not skip those that the mask hides.
    model, length = build(3, "eager"), 17
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(3, 3 + length).unsqueeze(0), logits_to_keep=1)
    costs, adapter = decoder_costs(model.config.text_config), adapter_for(model)
    # Older transformers multiply positions and frequencies as matrices.
    with torch.inference_mode(), FlopCounterMode(display=False) as angles:
        adapter.rotary(torch.zeros(1, length, 1), torch.arange(length).expand(adapter.position_axes, 1, -1))
    assert (
        counter.get_total_flops() - angles.get_total_flops()
        == 3 * (length * costs.linear + costs.pair * length**2) + costs.vocabulary
    )


@pytest.mark.parametrize(
    "policy", [erase.preset("qwen2.5-vl-7b"), erase.BudgetPolicy(0.25), erase.DistinctPolicy(0.25), None], ids=str
)
def test_a_trace_counts_the_rows_that_each_layer_ran(golden, policy):
    images = [noise_image(5, 6, seed=3), noise_image(4, 4, seed=4)]
    inputs = stock_inputs(prompt_ids(images), images)
    model = golden("qwen2_5_vl")
    with erase.pruning(model, policy, **HALF) as trace:
        model(**inputs)
    (prompt,) = trace.calls[0].prompts
    length = inputs["input_ids"].shape[1]
    rows = [length - 46 + len(prompt.stage1_kept)] * 28
    for cut in prompt.cuts:
        rows[cut.layer :] = [length - 46 + len(cut.kept)] * (28 - cut.layer)
    costs = decoder_costs(model.config.text_config)
    assert prompt.flops == (costs.prefill(rows), costs.prefill([length] * 28))
    assert (prompt.flops.pruned < prompt.flops.unpruned) == (policy is not None)
