"""Starts a model from a smaller trained one: wider, deeper, with another vocabulary, yet computing the same.

The smaller model's weights become the corner of the larger matrices. What reads from new channels is random, what
writes to them is zero (as in Net2Net, arXiv 1511.05641), and new layers start as identities.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoTokenizer

from bench.demo_model.network import TrainingNetwork

_READ_SCALE = 0.7


@torch.no_grad()
def grow_from(small_folder: Path, network: TrainingNetwork, tokenizer_folder: Path) -> None:
    """Fills the network with a smaller Qwen2.5-VL's weights; words that both tokenizers know keep their embedding.

    Raises:
        ValueError: the head widths differ, or the smaller model is larger somewhere.
    """
    small = AutoModelForImageTextToText.from_pretrained(small_folder, dtype=torch.float32).model
    large = network.model.model
    _fitting(small.config, large.config)
    _grow_vision(small.visual, large.visual)
    old, new = small.language_model, large.language_model
    _grow_embedding(old.embed_tokens, new.embed_tokens, small_folder, tokenizer_folder)
    for layer, place in _spread(old.layers, new.layers):
        _grow_decoder_layer(layer, place)
    _grow_norm(old.norm, new.norm)


def _fitting(small: Any, large: Any) -> None:
    for part in ("text_config", "vision_config"):
        one, other = getattr(small, part), getattr(large, part)
        heads = "num_heads" if part == "vision_config" else "num_attention_heads"
        widths = [config.hidden_size // getattr(config, heads) for config in (one, other)]
        if widths[0] != widths[1]:
            raise ValueError(f"{part}: attention heads are {widths[0]} wide here and {widths[1]} there")
        if one.hidden_size > other.hidden_size:
            raise ValueError(f"{part}: the smaller model is {one.hidden_size} wide, the larger {other.hidden_size}")
        depths = [config.depth if part == "vision_config" else config.num_hidden_layers for config in (one, other)]
        if depths[0] > depths[1]:
            raise ValueError(f"{part}: the smaller model has {depths[0]} layers, the larger {depths[1]}")


def _spread(old: nn.ModuleList, new: nn.ModuleList) -> Iterator[tuple[Any, Any]]:
    """Each old layer with the new one that it becomes: evenly, so that early and late ones keep their parts."""
    for number, layer in enumerate(old):
        yield layer, new[math.ceil((number + 1) * len(new) / len(old)) - 1]


def _grow_vision(old: Any, new: Any) -> None:
    width = old.patch_embed.proj.weight.shape[0]
    new.patch_embed.proj.weight.zero_()
    new.patch_embed.proj.weight[:width] = old.patch_embed.proj.weight
    for one, other in _spread(old.blocks, new.blocks):
        _grow_norm(one.norm1, other.norm1)
        _grow_norm(one.norm2, other.norm2)
        for number in range(3):
            _grow_linear(_third(one.attn.qkv, number), _third(other.attn.qkv, number), writes=False)
        _grow_linear(_parts(one.attn.proj), _parts(other.attn.proj), writes=True)
        _grow_mlp(one.mlp, other.mlp)
    _grow_norm(old.merger.ln_q, new.merger.ln_q)
    _grow_merger(old.merger.mlp, new.merger.mlp, width)


def _grow_decoder_layer(old: Any, new: Any) -> None:
    _grow_norm(old.input_layernorm, new.input_layernorm)
    _grow_norm(old.post_attention_layernorm, new.post_attention_layernorm)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        one, other = getattr(old.self_attn, name), getattr(new.self_attn, name)
        _grow_linear(_parts(one), _parts(other), writes=name == "o_proj")
    _grow_mlp(old.mlp, new.mlp)


def _grow_mlp(old: Any, new: Any) -> None:
    for name in ("gate_proj", "up_proj", "down_proj"):
        _grow_linear(_parts(getattr(old, name)), _parts(getattr(new, name)), writes=name == "down_proj")


def _grow_merger(old: Any, new: Any, width: int) -> None:
    first, last = new[0], new[2]
    hidden = old[0].out_features
    first.weight.normal_(std=_READ_SCALE * first.in_features**-0.5)
    first.weight.view(first.out_features, 4, -1)[:hidden, :, :width] = old[0].weight.view(hidden, 4, width)
    first.bias.zero_()
    first.bias[:hidden] = old[0].bias
    _grow_linear(_parts(old[2]), _parts(last), writes=True)


def _grow_embedding(old: Any, new: Any, old_folder: Path, new_folder: Path) -> None:
    known = AutoTokenizer.from_pretrained(old_folder).get_vocab()
    new.weight.normal_(std=float(old.weight.std()))
    new.weight[:, old.weight.shape[1] :] = 0
    tokenizer = AutoTokenizer.from_pretrained(new_folder)
    for token, number in tokenizer.get_vocab().items():
        word = token if token in known else tokenizer.decode([number]).strip().lower()
        if word in known:
            new.weight[number, : old.weight.shape[1]] = old.weight[known[word]]


def _grow_norm(old: Any, new: Any) -> None:
    """A wider norm divides by less, since the new channels are zero at first."""
    width = old.weight.shape[0]
    new.weight[:width] = old.weight * math.sqrt(width / new.weight.shape[0])


def _grow_linear(old: tuple[Tensor, Tensor | None], new: tuple[Tensor, Tensor | None], writes: bool) -> None:
    (weight, bias), (grown, grown_bias) = old, new
    rows, columns = weight.shape
    if writes:
        grown.zero_()
    else:
        grown.normal_(std=_READ_SCALE * grown.shape[1] ** -0.5)
    grown[:rows, :columns] = weight
    if bias is not None and grown_bias is not None:
        grown_bias.zero_()
        grown_bias[:rows] = bias


def _parts(linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return linear.weight, linear.bias


def _third(linear: nn.Linear, number: int) -> tuple[Tensor, Tensor | None]:
    """The query, key or value part of one joint projection."""
    return linear.weight.chunk(3)[number], linear.bias.chunk(3)[number]
