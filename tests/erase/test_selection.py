"""Choice of tokens from scores."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erase import selection
from erase.selection import farthest_points, lower_median, top_indices

few_values = st.lists(st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, 3.0]), min_size=1, max_size=60)
any_values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60)


@given(st.one_of(few_values, any_values), st.integers(-1, 70))
def test_the_highest_scores_are_kept_and_ties_go_to_the_lowest_index(scores, k):
    kept = top_indices(torch.tensor(scores), k).tolist()
    ranked = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    assert kept == sorted(ranked[: max(k, 0)])


@given(few_values, st.integers(0, 60), st.integers(0, 60))
def test_keeping_fewer_keeps_a_subset(scores, a, b):
    fewer, more = sorted((a, b))
    assert set(top_indices(torch.tensor(scores), fewer).tolist()) <= set(
        top_indices(torch.tensor(scores), more).tolist()
    )


@given(any_values)
def test_the_median_of_an_even_count_is_the_lower_middle_value(values):
    assert lower_median(torch.tensor(values)) == sorted(values)[(len(values) - 1) // 2]


def naive_farthest_points(features, k):
    directions = torch.nn.functional.normalize(features, dim=-1)
    apart = 1 - directions @ directions.T
    lonely = apart + 9 * torch.eye(len(apart))
    taken = [int(lonely.min(1).values.argmax())]
    while len(taken) < k:
        nearest = apart[taken].min(0).values
        nearest[taken] = -1
        taken.append(int(nearest.argmax()))
    return taken


@pytest.mark.parametrize("whole", [0, 10_000], ids=["row by row", "all at once"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 3), (40, 40), (1500, 30)])
def test_the_farthest_points_are_those_of_the_definition(monkeypatch, whole, n, k):
    monkeypatch.setattr(selection, "_WHOLE", whole)
    features = torch.randn(n, 12, generator=torch.Generator().manual_seed(n))
    assert farthest_points(features, k).tolist() == naive_farthest_points(features, k)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_ties_are_the_same_on_the_gpu():
    scores = torch.randint(0, 5, (2000,)).float()
    assert torch.equal(top_indices(scores.cuda(), 700).cpu(), top_indices(scores, 700))
