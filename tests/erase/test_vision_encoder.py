"""The vision encoder over many images at once against the stock one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_cases import tiny_qwen2_5_vl

from erase.models import adapter_for
from erase.models.qwen2_5_vision import encode_steps, layout

grids = st.lists(st.tuples(st.integers(1, 11), st.integers(1, 11)), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def adapter():
    return adapter_for(tiny_qwen2_5_vl(4))


def encode(adapter, values, sizes):
    steps = encode_steps(adapter.inner.visual, values, sizes)
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
    for own, expected in zip(encode(adapter, values, sizes), stock, strict=True):
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
