"""The vision encoder over many images at once against the stock one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_cases import tiny_qwen2_5_vl
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

from erase.models import adapter_for
from erase.models.qwen2_5_vision import encode_steps, layout

grids = st.lists(st.tuples(st.integers(1, 11), st.integers(1, 11)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def adapter():
    return adapter_for(tiny_qwen2_5_vl(4))


def encode(adapter, values, sizes, with_attention=False):
    steps = encode_steps(adapter.inner.visual, values, sizes, with_attention)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def pixels(sizes):
    generator = torch.Generator().manual_seed(len(sizes))
    return torch.randn(sum(4 * height * width for height, width in sizes), 2 * 3 * 14 * 14, generator=generator)


@settings(deadline=None, max_examples=30)
@given(grids)
def test_features_of_images_of_any_size_are_those_of_the_stock_encoder(adapter, sizes):
    values = pixels(sizes)
    stock = adapter.inner.get_image_features(
        values, torch.tensor([(1, 2 * height, 2 * width) for height, width in sizes]), return_dict=True
    ).pooler_output
    for own, expected in zip(encode(adapter, values, sizes)[0], stock, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)


@given(grids)
def test_every_patch_lies_in_exactly_one_window_of_its_own_image(sizes):
    found = layout(sizes, 4, 2)
    patches = sum(4 * height * width for height, width in sizes)
    assert torch.cat([rows.flatten() for rows in found.windows]).sort().values.tolist() == list(range(patches))
    image_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(found.images))
    assert all(len(image_of[row].unique()) == 1 for rows in found.windows for row in rows)


def test_windows_of_one_size_attend_in_one_call_however_many_images(adapter, monkeypatch):
    calls = []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v: calls.append(len(q)) or real(q, k, v)
    )
    encode(adapter, pixels([(8, 8)] * 3), [(8, 8)] * 3)
    vision = adapter.config.vision_config
    full = len(vision.fullatt_block_indexes)
    side = vision.window_size // vision.patch_size // vision.spatial_merge_size
    windows = 3 * (8 // side) ** 2
    assert sorted(calls) == sorted([1] * (3 * full) + [windows] * (vision.depth - full))


def test_received_attention_is_that_of_the_stock_blocks_in_reading_order(adapter):
    size, seen = (6, 9), {}
    visual = adapter.inner.visual
    hooks = [
        visual.blocks[number].attn.register_forward_pre_hook(
            lambda attention, given, named, number=number: seen.update(
                {number: stock_attention(attention, given[0] if given else named["hidden_states"], **named)}
            ),
            with_kwargs=True,
        )
        for number in visual.fullatt_block_indexes
    ]
    values = pixels([size])
    try:
        adapter.inner.get_image_features(values, torch.tensor([(1, 12, 18)]), return_dict=True)
    finally:
        for hook in hooks:
            hook.remove()
    order = layout([size], visual.window_size // visual.spatial_merge_size // visual.patch_size, 2).order
    (own,) = encode(adapter, values, [size], with_attention=True)[1]
    assert len(own.received) == len(visual.fullatt_block_indexes) > 0
    for received, (maps, _) in zip(own.received, seen.values(), strict=True):
        expected = torch.empty(54)
        expected[order] = maps.mean((0, 1)).view(-1, 4).mean(1)  # of heads and queries, then of a token's patches
        torch.testing.assert_close(received, expected)
        assert float(received.detach().sum()) == pytest.approx(1 / 4)
    *_, (_, keys) = seen.values()
    expected_keys = torch.empty_like(own.keys)
    expected_keys[order] = keys.mean(1).view(54, 4, -1).mean(1)
    torch.testing.assert_close(own.keys, expected_keys)


def stock_attention(attention, hidden, position_embeddings, **others):
    """Attention maps [heads, patches, patches] of a block over one image, and its keys before rotation."""
    query, key, _ = attention.qkv(hidden).view(len(hidden), 3, attention.num_heads, -1).unbind(1)
    rotated = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
    query, rotated_key = (part.transpose(0, 1) for part in rotated)
    return (query @ rotated_key.transpose(1, 2) * query.shape[-1] ** -0.5).softmax(-1), key


def test_images_encoded_together_have_their_own_attention(adapter):
    sizes = [(4, 4), (5, 7), (2, 1)]
    values = pixels(sizes)
    together = encode(adapter, values, sizes, with_attention=True)[1]
    parts = torch.split(values, [4 * height * width for height, width in sizes])
    for own, part, size in zip(together, parts, sizes, strict=True):
        (alone,) = encode(adapter, part, [size], with_attention=True)[1]
        torch.testing.assert_close(own.received, alone.received)
        torch.testing.assert_close(own.keys, alone.keys)
