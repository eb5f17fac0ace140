"""Stage 2's attention score against the full map."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from erase.attention import vision_attention

HEADS, KEY_HEADS, KEYS, DIM = 6, 2, 40, 8


def full_map(query, key, rows, columns, scale):
    key = key.repeat_interleave(len(query) // len(key), dim=0)
    scores = query @ key.transpose(1, 2) * scale
    for index, row in enumerate(rows.tolist()):
        scores[:, index, row + 1 :] = float("-inf")
    return scores.softmax(-1).mean(0).sum(0)[columns]


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(HEADS, 11, DIM, generator=generator)
    key = torch.randn(KEY_HEADS, KEYS, DIM, generator=generator)
    return query, key, torch.arange(29, 40), torch.arange(5, 25)


@given(st.data())
def test_any_queries_of_any_heads_are_scored(data):
    key_heads, group, keys = (data.draw(st.integers(1, top)) for top in (3, 4, 30))
    subset = st.sets(st.integers(0, keys - 1)).map(sorted)
    rows, columns = (torch.tensor(data.draw(subset), dtype=torch.int64) for _ in range(2))
    generator = torch.Generator().manual_seed(keys)
    query = torch.randn(key_heads * group, len(rows), DIM, generator=generator)
    key = torch.randn(key_heads, keys, DIM, generator=generator)
    score = vision_attention(query, key, rows, columns, scale=0.7, chunk=data.draw(st.integers(1, 9)))
    torch.testing.assert_close(score, full_map(query, key, rows, columns, 0.7), rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, 11, 64])
def test_the_score_is_the_vision_part_of_the_causal_softmax(states, chunk):
    score = vision_attention(*states, scale=DIM**-0.5, chunk=chunk)
    torch.testing.assert_close(score, full_map(*states, DIM**-0.5), rtol=0, atol=1e-6)


def test_queries_between_the_images_see_only_what_comes_before_them(states):
    query, key, _, columns = states
    rows = torch.tensor([4, 10, 12, 20, 24, 26, 30, 31, 33, 36, 39])
    score = vision_attention(query, key, rows, columns, scale=0.3)
    torch.testing.assert_close(score, full_map(query, key, rows, columns, 0.3), rtol=0, atol=1e-6)


def test_half_precision_is_scored_in_float32(states):
    query, key, rows, columns = states
    score = vision_attention(query.bfloat16(), key.bfloat16(), rows, columns, scale=0.3)
    assert score.dtype == torch.float32
    expected = full_map(query.bfloat16().float(), key.bfloat16().float(), rows, columns, 0.3)
    torch.testing.assert_close(score, expected, rtol=0, atol=1e-6)


def test_no_query_gives_no_score(states):
    query, key, rows, columns = states
    assert vision_attention(query[:, :0], key, rows[:0], columns, scale=1.0).tolist() == [0.0] * 20
