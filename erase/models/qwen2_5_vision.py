"""Qwen2.5-VL's vision encoder over many images at once: windows of one size attend in one call, not in a loop.

Stock code without flash attention calls the attention once per window of 64 patches. Here the same modules run over all
patches of all images, and windows that have equally many patches are one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from erase.methods.base import EncoderAttention

_MAP_AT_ONCE = 2**24
"""Numbers of an attention map; that of all patches on all patches would not fit into memory."""

Grid = tuple[int, int]
"""Vision tokens of an image along height and width."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the patches of several images lie, window by window.

    `order` int64 [tokens]: vision tokens in window order; `places` int64 [2, patches]: row and column of each patch, in
    that order; `images`: patches of each image; `windows`: per number of patches the rows of all windows that have so
    many, int64 [windows, patches].
    """

    order: Tensor
    places: Tensor
    images: tuple[int, ...]
    windows: tuple[Tensor, ...]


def layout(grids: Sequence[Grid], side: int, merge: int) -> Layout:
    """The layout of images with `grids`, with windows of `side` x `side` vision tokens of `merge` x `merge` patches."""
    order, places, images = [], [], []
    windows: dict[int, list[Tensor]] = defaultdict(list)
    tokens = patches = 0
    for height, width in grids:
        numbers = torch.arange(height * width).view(height, width)
        for top in range(0, height, side):
            for left in range(0, width, side):
                inside = numbers[top : top + side, left : left + side].flatten()
                order.append(inside + tokens)
                count = len(inside) * merge * merge
                windows[count].append(torch.arange(patches, patches + count))
                patches += count
        own = torch.cat(order[-(-(-height // side) * -(-width // side)) :]) - tokens
        places.append(_places(own, width, merge))
        images.append(height * width * merge * merge)
        tokens += height * width
    return Layout(
        order=torch.cat(order),
        places=torch.cat(places, dim=1),
        images=tuple(images),
        windows=tuple(torch.stack(rows) for _, rows in sorted(windows.items())),
    )


def _places(tokens: Tensor, width: int, merge: int) -> Tensor:
    """Row and column [2, patches] of the patches of `tokens`; those of a token come one after the other."""
    inside = torch.arange(merge)
    rows = (tokens // width * merge)[:, None, None] + inside[:, None]
    columns = (tokens % width * merge)[:, None, None] + inside
    return torch.stack([part.expand(len(tokens), merge, merge).flatten() for part in (rows, columns)])


def encode_steps(
    visual: Any, pixel_values: Tensor, grids: Sequence[Grid], with_attention: bool = False
) -> Generator[None, None, tuple[tuple[Tensor, ...], tuple[EncoderAttention, ...]]]:
    """Vision tokens [tokens, d] of each image, in reading order, and what was looked at; pauses after each layer.

    Args:
        visual: the stock `Qwen2_5_VisionTransformerPretrainedModel`.
        pixel_values: [patches, channels * frames * height * width], images concatenated, as the image processor makes
            them.
        grids: vision tokens of each image along height and width.
        with_attention: whether to say per image what was looked at; that computes the full maps a second time.
    """
    merge = visual.spatial_merge_size
    side = visual.window_size // merge // visual.patch_size
    found = layout(grids, side, merge)
    order = found.order.to(pixel_values.device)
    windows = [rows.to(pixel_values.device) for rows in found.windows]
    weight = visual.patch_embed.proj.weight
    # A convolution whose step is its kernel is a matrix product; as Conv3d it takes several times as long on a CPU.
    hidden = functional.linear(pixel_values.to(weight.dtype), weight.flatten(1))
    hidden = hidden.view(len(order), merge * merge, -1)[order].flatten(0, 1)
    cos, sin = _rotations(visual, found.places.to(pixel_values.device))
    received: list[Tensor] = []
    keys = hidden
    for number, block in enumerate(visual.blocks):
        query, plain_key, value = _heads(block.attn, block.norm1(hidden))
        query, key = _rotated(query, cos, sin), _rotated(plain_key, cos, sin)
        if number in visual.fullatt_block_indexes:
            seen = _attend_images(query, key, value, found.images)
            if with_attention:
                received.append(_received(query, key, found.images))
                keys = plain_key.float().mean(1)
        else:
            seen = _attend_windows(query, key, value, windows)
        hidden = hidden + block.attn.proj(seen.flatten(1))
        hidden = hidden + block.mlp(block.norm2(hidden))
        yield
    merged = visual.merger(hidden)
    tokens = torch.empty_like(merged)
    tokens[order] = merged
    counts = [height * width for height, width in grids]
    if not with_attention:
        return torch.split(tokens, counts), ()

    def by_image(patches: Tensor) -> tuple[Tensor, ...]:
        """Values of patches in window order: averaged over each vision token, in reading order, image by image."""
        found_order = patches.view(len(order), merge * merge, -1).mean(1)
        read = torch.empty_like(found_order)
        read[order] = found_order
        return torch.split(read, counts)

    seen_by_image = zip(*(by_image(part) for part in received), strict=True)
    attention = tuple(
        EncoderAttention(tuple(part.squeeze(1) for part in own), own_keys)
        for own, own_keys in zip(seen_by_image, by_image(keys), strict=True)
    )
    return torch.split(tokens, counts), attention


def _rotations(visual: Any, places: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rows (one half of the channels) and columns (the other), float32 [patches, 1, head_dim]."""
    angles = places[..., None].float() * visual.rotary_pos_emb.inv_freq.float()  # [2, patches, head_dim / 4]
    angles = torch.cat([angles[0], angles[1]], dim=-1).repeat(1, 2)[:, None]
    return angles.cos(), angles.sin()


def _heads(attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [patches, heads, head_dim], not rotated yet."""
    query, key, value = attention.qkv(hidden).view(len(hidden), 3, attention.num_heads, -1).unbind(1)
    return query, key, value


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.float().chunk(2, dim=-1)
    return (states * cos + torch.cat((-second, first), dim=-1) * sin).to(states.dtype)


def _attend_images(query: Tensor, key: Tensor, value: Tensor, images: Sequence[int]) -> Tensor:
    """Each patch looks at its whole image; [patches, heads, head_dim] in and out."""
    parts = (torch.split(part, list(images)) for part in (query, key, value))
    return torch.cat([_attend(*(part[None] for part in own))[0] for own in zip(*parts, strict=True)])


def _received(query: Tensor, key: Tensor, images: Sequence[int]) -> Tensor:
    """float32 [patches]: attention that each patch gets from its image, mean over heads and patches."""
    received = []
    for own_query, own_key in zip(torch.split(query, list(images)), torch.split(key, list(images)), strict=True):
        keys = own_key.float().permute(1, 2, 0)  # [heads, head_dim, patches]
        total = torch.zeros(len(own_key), device=key.device)
        at_once = max(1, _MAP_AT_ONCE // (keys.shape[0] * len(own_key)))
        scaled = own_query.float().transpose(0, 1) * query.shape[-1] ** -0.5
        for part in torch.split(scaled, at_once, dim=1):
            total += (part @ keys).softmax(-1).mean(0).sum(0)
        received.append(total / len(own_key))
    return torch.cat(received)


def _attend_windows(query: Tensor, key: Tensor, value: Tensor, windows: Sequence[Tensor]) -> Tensor:
    """Each patch looks at its window; [patches, heads, head_dim] in and out."""
    seen = torch.empty_like(query)
    for rows in windows:
        seen[rows] = _attend(query[rows], key[rows], value[rows])
    return seen


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention without a mask; [batch, patches, heads, head_dim] in and out. Fused kernels want four axes."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
