"""The stock Qwen2.5-VL modules run over a batch of equal-sized images with several questions each.

Stock code encodes images window by window in a Python loop and repeats the image for every question. Training does
neither: windows are one batch dimension, and the questions of an image are branches behind it that do not see each
other. A test holds that the logits equal the stock model's, question by question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.demo_model.looks import EVENLY
from bench.demo_model.recipe import Head

WINDOW = 4
"""Vision tokens along a side of an attention window (112 pixels)."""
_SHORT = 1500
_NEVER = -30000.0


@dataclass(frozen=True)
class Batch:
    """B images of one size and their questions.

    Attributes:
        images: (B, height, width, 3) uint8, both sides multiples of the cell (28 pixels).
        tokens: (B, L) the prompt; the image's pad tokens stand at columns `image_start` and on.
        positions: (3, B, L) multimodal rotary positions; every branch starts at the same one.
        branch: (B, L) 0 for what all questions share, 1 and on for a question and its answer, -1 for padding.
        targets: (B, L) the token to predict after each, -100 where nothing is learned.
        marks: (M, 3) which image, vision token and class is marked, for the auxiliary loss.
        looks: by kind (looks.py) (G, 3) image, position that looks, position that it should look at.
    """

    images: Tensor
    tokens: Tensor
    positions: Tensor
    branch: Tensor
    targets: Tensor
    marks: Tensor
    looks: Mapping[str, Tensor]
    image_start: int
    families: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """In memory that a GPU reads while it computes."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            images=change(self.images),
            tokens=change(self.tokens),
            positions=change(self.positions),
            branch=change(self.branch),
            targets=change(self.targets),
            marks=change(self.marks),
            looks={kind: change(pairs) for kind, pairs in self.looks.items()},
        )


class TrainingNetwork(nn.Module):
    """The model and the head that learns what lies in each cell; only the model is kept afterwards."""

    def __init__(self, model: Any, mark_classes: int) -> None:
        super().__init__()
        self.model = model
        self.cells = nn.Linear(model.config.text_config.hidden_size, mark_classes)
        nn.init.constant_(self.cells.bias, -5.0)  # nearly every class is absent from nearly every cell

    def look(self, batch: Batch, frozen: bool = False) -> Tensor:
        """Vision tokens (B, N, D); `frozen`: without gradients."""
        return encode(self.model.model.visual, batch.images, frozen=frozen)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (A, V) of the answer tokens of all questions, and the right ones (A,)."""
        return self.answer(batch, self.look(batch))

    def answer(self, batch: Batch, vision: Tensor, looks: Looks | None = None) -> tuple[Tensor, Tensor]:
        """`forward` with vision tokens that are there already; `looks` takes note of where heads look."""
        hidden = decode(self.model.model.language_model, batch, vision, looks)
        learned = batch.targets >= 0
        return self.model.lm_head(hidden[learned]), batch.targets[learned]


class Looks:
    """What watched heads miss, by kind of look: means of -log(attention on what should be looked at)."""

    def __init__(self, heads: Mapping[str, Sequence[Head]]) -> None:
        self.heads = heads
        self.missed: dict[str, list[Tensor]] = {kind: [] for kind in heads}

    def watch(
        self, number: int, layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, batch: Batch
    ) -> None:
        """To be called before layer `number` works on `hidden`."""
        for kind, heads in self.heads.items():
            for where, head in heads:
                if where == number and len(batch.looks[kind]):
                    share = attention_on(layer, head, hidden, cos, sin, mask, batch.looks[kind], evenly=kind in EVENLY)
                    self.missed[kind].append(-share.mean())

    def losses(self) -> dict[str, Tensor]:
        """A mean over the heads of each kind; kinds without anything to look at are left out."""
        return {kind: torch.stack(missed).mean() for kind, missed in self.missed.items() if missed}


def attention_on(
    layer: Any,
    head: int,
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    mask: Tensor,
    pairs: Tensor,
    *,
    evenly: bool = False,
) -> Tensor:
    """Logarithms of the attention that a head pays, from each position in `pairs`, to all that it is paired with.

    Args:
        pairs: (G, 3) image, position that looks, position that is looked at.
        evenly: less by how far the attention is from equal shares for all of them (Kullback-Leibler divergence).
    """
    attention = layer.self_attn
    width = attention.head_dim
    normed = _norm(layer.input_layernorm, hidden)
    rows, row_of = torch.unique(pairs[:, :2], dim=0, return_inverse=True)
    image, place = rows.unbind(1)
    query = _head(attention.q_proj, head, width, normed[image, place])
    key = _head(attention.k_proj, head // attention.num_key_value_groups, width, normed)
    query = _rotated(query, cos[image, 0, place], sin[image, 0, place])
    key = _rotated(key, cos[:, 0], sin[:, 0])
    scores = torch.einsum("rd,rld->rl", query.float(), key.float()[image]) * width**-0.5
    shares: Tensor = scores.masked_fill(~mask[image, 0, place], _NEVER).log_softmax(-1)
    wanted = torch.zeros_like(shares, dtype=torch.bool)
    wanted[row_of, pairs[:, 2]] = True
    if evenly:
        many = wanted.sum(-1)
        return shares.masked_fill(~wanted, 0.0).sum(-1) / many + many.log()
    return shares.masked_fill(~wanted, _NEVER).logsumexp(-1)


def _head(projection: Any, head: int, width: int, states: Tensor) -> Tensor:
    own = slice(head * width, (head + 1) * width)
    return functional.linear(states, projection.weight[own], projection.bias[own])


def compile_layers() -> None:
    """Has the layers compiled from now on, for any size: about a fifth faster on a CPU after two slow minutes."""
    global _vision_block, _decoder_layer
    torch._dynamo.config.recompile_limit = 64  # with and without gradients, windows and masks; eager code after that
    _vision_block = torch.compile(_vision_block, dynamic=True)
    _decoder_layer = torch.compile(_decoder_layer, dynamic=True)


def encode(visual: Any, images: Tensor, *, frozen: bool = False) -> Tensor:
    """Vision tokens (B, N, D) of uint8 images (B, H, W, 3), in reading order; `frozen`: without gradients."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        hidden = _encode_patches(visual, images)  # (B, rows, columns, 4, D)
        tokens: Tensor = visual.merger(hidden.flatten(0, 3))
    return tokens.view(len(images), hidden.shape[1] * hidden.shape[2], -1)


def _encode_patches(visual: Any, images: Tensor) -> Tensor:
    patches = _patches(images)
    rows, columns = patches.shape[1:3]
    weight = visual.patch_embed.proj.weight.sum(dim=2).flatten(1)  # the two frames of a still image are the same
    hidden = functional.linear(patches, weight).float()
    hidden = _to_windows(hidden)  # (B, W, 64, D)
    real = _to_windows(torch.ones(1, rows, columns, 4, 1, device=images.device)).bool()[..., 0]  # (1, W, 64)
    angles = _vision_angles(visual, rows, columns, images.device)
    mask = None if bool(real.all()) else real
    for number, block in enumerate(visual.blocks):
        hidden = _vision_block(block, hidden, angles, mask, number in visual.fullatt_block_indexes)
    return _from_windows(hidden, rows, columns)


def decode(language_model: Any, batch: Batch, vision: Tensor, looks: Looks | None = None) -> Tensor:
    """Hidden states (B, L, D) after the last norm."""
    start = batch.image_start
    hidden = language_model.embed_tokens(batch.tokens)
    after = start + vision.shape[1]
    hidden = torch.cat([hidden[:, :start], vision.to(hidden.dtype), hidden[:, after:]], dim=1)
    mask = attention_mask(batch.branch)
    cos, sin = _text_angles(language_model, batch.positions)
    for number, layer in enumerate(language_model.layers):
        if looks:
            looks.watch(number, layer, hidden, cos, sin, mask, batch)
        hidden = _decoder_layer(layer, hidden, cos, sin, mask)
    return _norm(language_model.norm, hidden)


def attention_mask(branch: Tensor) -> Tensor:
    """(B, 1, L, L) true where a token may look: back, at what is shared and at its own branch."""
    own, other = branch[:, :, None], branch[:, None, :]
    back = torch.ones(branch.shape[1], branch.shape[1], dtype=torch.bool, device=branch.device).tril()
    return (back & ((other == 0) | (other == own)))[:, None]


def _patches(images: Tensor) -> Tensor:
    """(B, rows, columns, 4, 3 * 14 * 14) normalised patches by vision token."""
    count, height, width, _ = images.shape
    rows, columns = height // 28, width // 28
    pixels = images.to(torch.float32) / 127.5 - 1
    pixels = pixels.view(count, rows, 2, 14, columns, 2, 14, 3)
    return pixels.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(count, rows, columns, 4, 588)


def _to_windows(grid: Tensor) -> Tensor:
    """(B, rows, columns, 4, D) to (B, windows, 64, D); windows at the right and lower border are padded with zeros."""
    count, rows, columns, merged, width = grid.shape
    grid = functional.pad(grid, (0, 0, 0, 0, 0, -columns % WINDOW, 0, -rows % WINDOW))
    down, across = grid.shape[1] // WINDOW, grid.shape[2] // WINDOW
    grid = grid.view(count, down, WINDOW, across, WINDOW, merged, width).transpose(2, 3)
    return grid.reshape(count, down * across, WINDOW * WINDOW * merged, width)


def _from_windows(windows: Tensor, rows: int, columns: int) -> Tensor:
    count, width = windows.shape[0], windows.shape[-1]
    down, across = -(-rows // WINDOW), -(-columns // WINDOW)
    grid = windows.view(count, down, across, WINDOW, WINDOW, 4, width).transpose(2, 3)
    return grid.reshape(count, down * WINDOW, across * WINDOW, 4, width)[:, :rows, :columns]


def _vision_angles(visual: Any, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (1, W, 64, 1, head width) of every patch's row and column."""
    down = torch.arange(rows * 2, device=device).view(rows, 1, 2, 1).expand(rows, columns, 2, 2)
    across = torch.arange(columns * 2, device=device).view(1, columns, 1, 2).expand(rows, columns, 2, 2)
    places = torch.stack([down, across], dim=-1).reshape(1, rows, columns, 4, 2)
    angles = (_to_windows(places.float())[..., None] * visual.rotary_pos_emb.inv_freq).flatten(-2)
    angles = torch.cat([angles, angles], dim=-1)[..., None, :]
    return angles.cos(), angles.sin()


def _vision_block(
    block: Any, hidden: Tensor, angles: tuple[Tensor, Tensor], real: Tensor | None, everywhere: bool
) -> Tensor:
    count, windows, inside, _ = hidden.shape
    attention = block.attn
    qkv = attention.qkv(_norm(block.norm1, hidden)).view(count, windows, inside, 3, attention.num_heads, -1)
    query, key, value = qkv.unbind(3)
    query, key = _rotated(query, *angles), _rotated(key, *angles)
    if everywhere:
        query, key, value = (part.flatten(1, 2).transpose(1, 2) for part in (query, key, value))
        mask = None if real is None else real.flatten(1)[:, None, None, :]
    else:
        query, key, value = (part.flatten(0, 1).transpose(1, 2) for part in (query, key, value))
        mask = None if real is None else real[0].repeat(count, 1)[:, None, None, :]
    seen = _attend(query, key, value, mask)
    hidden = hidden + attention.proj(seen.transpose(1, 2).reshape(count, windows, inside, -1))
    return hidden + _gated(block.mlp, _norm(block.norm2, hidden))


def _decoder_layer(layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    attention = layer.self_attn
    normed = _norm(layer.input_layernorm, hidden)
    query, key, value = (
        projection(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = _rotated(query, cos, sin), _rotated(key, cos, sin)
    key, value = (part.repeat_interleave(attention.num_key_value_groups, dim=1) for part in (key, value))
    seen = _attend(query, key, value, mask)
    hidden = hidden + attention.o_proj(seen.transpose(1, 2).flatten(2))
    return hidden + _gated(layer.mlp, _norm(layer.post_attention_layernorm, hidden))


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention over (B, heads, L, width); on a CPU, short rows as plain products, which are faster there."""
    count, heads, length, width = query.shape
    if query.device.type != "cpu" or length > _SHORT:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    query, key, value = (part.reshape(count * heads, length, width) for part in (query, key, value))
    bias = query.new_zeros(1, 1, 1)
    if mask is not None:
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, _NEVER)
        bias = bias.expand(count, heads, length, length).reshape(count * heads, length, length)
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), value).view(count, heads, length, width)


def _text_angles(language_model: Any, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B, 1, L, head width), their channels shared out over time, row and column."""
    rotary = language_model.rotary_emb
    angles = positions[..., None].float() * rotary.inv_freq
    sections = language_model.config.rope_parameters["mrope_section"]
    angles = torch.cat([part[number % 3] for number, part in enumerate(angles.split(sections, dim=-1))], dim=-1)
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    return angles.cos(), angles.sin()


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = states.shape[-1] // 2
    crossed = torch.cat([-states[..., half:], states[..., :half]], dim=-1)
    return (states * cos + crossed * sin).to(states.dtype)


def _norm(norm: Any, hidden: Tensor) -> Tensor:
    return functional.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _gated(mlp: Any, hidden: Tensor) -> Tensor:
    written: Tensor = mlp.down_proj(functional.silu(mlp.gate_proj(hidden)) * mlp.up_proj(hidden))
    return written
