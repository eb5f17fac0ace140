"""Choosing tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erase.engine import SamplingParams
from erase.engine.sampling import next_token

logits = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12).map(torch.tensor)
seeds = st.integers(0, 2**63 - 1)
steps = st.integers(0, 4096)


@given(logits)
def test_greedy_takes_the_highest_and_of_equals_the_lowest_id(values):
    expected = min(range(len(values)), key=lambda index: (-float(values[index]), index))
    assert next_token(values, SamplingParams(), 0) == expected


@given(logits, seeds, steps)
def test_a_draw_depends_on_seed_and_step_only(values, seed, step):
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=seed)
    torch.manual_seed(0)
    first = next_token(values, params, step)
    torch.rand(7)
    assert next_token(values.clone(), params, step) == first


@given(logits, seeds, steps, st.floats(1e-6, 1.0), st.floats(1e-300, 5.0))
def test_a_draw_stays_within_the_smallest_set_that_reaches_top_p(values, seed, step, top_p, temperature):
    token = next_token(values, SamplingParams(temperature=temperature, top_p=top_p, seed=seed), step)
    scores = values.double()
    probabilities = torch.softmax((scores - scores.max()) / temperature, 0)
    before = float(probabilities[probabilities > probabilities[token]].sum())
    assert probabilities[token] > 0
    assert before <= top_p + 1e-12


@given(logits, seeds, steps)
def test_a_tiny_top_p_takes_the_highest(values, seed, step):
    token = next_token(values, SamplingParams(temperature=1.0, top_p=1e-9, seed=seed), step)
    assert float(values[token]) == pytest.approx(float(values.max()), abs=1e-9)


@given(seeds, steps)
def test_a_tiny_temperature_is_greedy(seed, step):
    values = torch.tensor([1.0, 3.0, -2.0])
    assert next_token(values, SamplingParams(temperature=1e-310, seed=seed), step) == 1


def test_draws_follow_the_probabilities_over_steps_and_over_seeds():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    for settings in (lambda n: (7, n), lambda n: (n, 0)):
        counts = torch.zeros(4)
        for number in range(3000):
            seed, step = settings(number)
            counts[next_token(probabilities.log(), SamplingParams(temperature=1.0, seed=seed), step)] += 1
        torch.testing.assert_close(counts / 3000, probabilities, rtol=0, atol=0.03)
