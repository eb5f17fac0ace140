"""Every back end computes the same attention; here the CUDA one runs with its kernel's definition in place of it."""

from unittest.mock import patch

import pytest
import torch
from engine_cases import Packed, mixture
from hypothesis import given
from hypothesis import strategies as st

from erase import UnsupportedError
from erase.engine import attention as attention_module
from erase.engine.attention import SdpaAttention, VarlenAttention, choose_attention

SCALE = 0.3
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def kernel(query, key, value, query_bounds, key_bounds, longest_query, longest_key, **settings):
    """What the documentation of `varlen_attn` says, in loops."""
    assert settings["window_size"] == (-1, 0)
    assert settings["enable_gqa"]
    assert query_bounds.dtype == key_bounds.dtype == torch.int32
    used = settings["seqused_k"]
    seen = torch.full_like(query, float("nan"))
    groups = query.shape[1] // key.shape[1]
    for number in range(len(query_bounds) - 1):
        own = slice(*query_bounds[number : number + 2].tolist())
        start, end = key_bounds[number : number + 2].tolist()
        assert start <= end
        if used is not None:
            assert used.dtype == torch.int32
            end = start + int(used[number])
        rows, keys = own.stop - own.start, end - start
        assert rows <= longest_query
        assert keys <= longest_key
        own_key, own_value = (part[start:end].repeat_interleave(groups, 1) for part in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[own], own_key) * settings["scale"]
        hidden = torch.arange(keys) > torch.arange(rows)[:, None] + keys - rows
        scores = scores.masked_fill(hidden, float("-inf"))
        seen[own] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), own_value)
    return seen


BACK_ENDS = [SdpaAttention(), VarlenAttention(kernel)]
back_ends = pytest.mark.parametrize("attention", BACK_ENDS, ids=lambda attention: attention.name)
heads = st.sampled_from([(4, 4), (4, 2), (4, 1)])


@back_ends
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), heads)
def test_prompts_look_back_at_themselves_only(attention, lengths, heads):
    torch.manual_seed(sum(lengths))
    query, key, value = (torch.randn(sum(lengths), count, 8) for count in (heads[0], heads[1], heads[1]))
    own = attention.prompts(query, key, value, lengths, SCALE)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        bounds = torch.tensor([0, length], dtype=torch.int32)
        settings = {"window_size": (-1, 0), "enable_gqa": True, "seqused_k": None, "scale": SCALE}
        expected = kernel(query[part], key[part], value[part], bounds, bounds, length, length, **settings)
        torch.testing.assert_close(own[part], expected)
        start += length


@pytest.mark.parametrize("small", [0, 5 * 8 * 4, 10**6], ids=["singly", "some together", "together"])
@back_ends
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=4),
    heads,
    st.randoms(use_true_random=False),
)
def test_last_rows_look_at_their_own_part_of_the_pool_only(attention, small, sequences, heads, random):
    order = list(range(len(sequences)))
    random.shuffle(order)
    spans, end = [slice(0)] * len(sequences), 0
    for number in order:
        rows, before, gap = sequences[number]
        spans[number] = slice(end + gap, end + gap + before + rows)
        end = spans[number].stop
    torch.manual_seed(end)
    keys, values = (torch.randn(end + 3, heads[1], 8) for _ in range(2))
    outside = torch.ones(end + 3, dtype=torch.bool)
    for span in spans:
        outside[span] = False
    keys[outside] = values[outside] = float("nan")  # as memory may be that nobody has written
    lengths = [rows for rows, _, _ in sequences]
    query = torch.randn(sum(lengths), heads[0], 8)
    with patch.object(attention_module, "_SMALL", small):
        own = attention.steps(query, keys, values, lengths, spans, SCALE)
    start = 0
    for rows, span in zip(lengths, spans, strict=True):
        part = slice(start, start + rows)
        expected = SdpaAttention().steps(
            query[part], keys[span], values[span], [rows], [slice(0, len(keys[span]))], SCALE
        )
        torch.testing.assert_close(own[part], expected)
        start += rows


def test_whole_prompts_and_answers_are_the_same_with_every_back_end(demo, samples, pruned):
    sequences = mixture(demo, samples, pruned)
    expected, *others = (Packed(demo.adapter, sequences, attention=attention) for attention in BACK_ENDS)
    steps = expected.greedy(4)
    for packed in others:
        torch.testing.assert_close(packed.greedy(4), steps, rtol=0, atol=1e-4)
        for prompt, same in zip(packed.prompts, expected.prompts, strict=True):
            assert [cut.kept.tolist() for cut in prompt.done] == [cut.kept.tolist() for cut in same.done]


def test_the_back_end_follows_device_and_type():
    assert choose_attention(CPU, torch.bfloat16).name == "sdpa"
    assert choose_attention(CUDA, torch.float32).name == "sdpa"
    assert choose_attention(CUDA, torch.bfloat16).name == "varlen"
    assert choose_attention(CUDA, torch.bfloat16, "sdpa").name == "sdpa"


@pytest.mark.parametrize(("name", "device"), [("varlen", CPU), ("flash", CUDA)])
def test_a_back_end_that_cannot_serve_is_refused(name, device):
    with pytest.raises(UnsupportedError, match=name):
        choose_attention(device, torch.float32, name)
