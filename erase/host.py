"""Runs a stock decoder's layers over a prompt that shrinks on its way, and over the tokens that follow it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.masking_utils import create_causal_mask

from erase.attention import vision_attention
from erase.cache import PrunedCache
from erase.methods.base import Cut, Method, Preselection, ScoreContext
from erase.models.qwen2_5_vl import Qwen2_5_VL
from erase.selection import top_indices
from erase.trace import CutTrace, PromptTrace, Retention, layer_average_retention


def prefill(
    adapter: Qwen2_5_VL,
    method: Method,
    preselection: Preselection,
    cuts: tuple[Cut, ...],
    *,
    embeddings: Tensor,
    features: Tensor,
    positions: Tensor,
    vision: Tensor,
    cache: PrunedCache,
) -> tuple[Tensor, PromptTrace]:
    """One prompt through all decoder layers, cut where the method says.

    Args:
        adapter: the model.
        method: the pruning method.
        preselection: its stage 1 for this prompt.
        cuts: its cuts for this prompt.
        embeddings: [1, L, d], what enters the unpruned decoder.
        features: [stage-1 survivors, d], the method's own vision embeddings.
        positions: int64 [3, 1, L], of the unpruned prompt.
        vision: bool [L], where the vision tokens are.
        cache: empty; holds every layer's survivors afterwards.

    Returns:
        [1, L, d] normalised hidden states, NaN in the rows of dropped tokens, and what happened.
    """
    length = embeddings.shape[1]
    vision_rows = vision.nonzero().squeeze(1)
    survivors = preselection.kept.to(vision.device)
    alive = ~vision
    alive[vision_rows[survivors]] = True
    rows = alive.nonzero().squeeze(1)  # rows of the unpruned prompt that are still there
    hidden = embeddings[:, rows]
    hidden[0, vision[rows]] = features.to(hidden.dtype)
    cos, sin = adapter.rotary(hidden, positions[:, :, rows])
    planned = {cut.after_layers: (index, cut) for index, cut in enumerate(cuts)}
    done: list[CutTrace] = []
    mask = _causal_mask(adapter, hidden, None)
    for layer_index, layer in enumerate(adapter.layers):
        layer_input = hidden
        hidden = layer(
            hidden, attention_mask=mask, position_embeddings=(cos, sin), past_key_values=cache, use_cache=True
        )
        if layer_index + 1 not in planned:
            continue
        cut_index, cut = planned[layer_index + 1]
        is_vision = vision[rows]
        attention = partial(
            _attention,
            adapter,
            method,
            layer_index,
            layer_input=layer_input,
            cos=cos,
            sin=sin,
            queries=(~is_vision & (rows > vision_rows[0])).nonzero().squeeze(1),
            columns=is_vision.nonzero().squeeze(1),
            cache=cache,
        )
        chosen = _choose(method, cut, cut_index, survivors, preselection, attention)
        survivors = survivors[chosen]
        still = ~is_vision
        still[is_vision.nonzero().squeeze(1)[chosen]] = True
        kept = still.nonzero().squeeze(1)
        rows, hidden, cos, sin = rows[kept], hidden[:, kept], cos[:, kept], sin[:, kept]
        if cut.prune_cache:
            cache.keep_rows(kept, range(layer_index + 1))
        mask = _causal_mask(adapter, hidden, None)
        done.append(CutTrace(cut.after_layers, survivors.cpu()))
    cache.declare_length(length)
    normalised = adapter.language_model.norm(hidden)
    output = normalised.new_full((1, length, normalised.shape[2]), float("nan"))
    output[:, rows] = normalised
    return output, prompt_trace(preselection, cuts, tuple(done), cache.cache_lengths(), adapter.depth)


def decode(adapter: Qwen2_5_VL, hidden: Tensor, positions: Tensor, cache: PrunedCache) -> Tensor:
    """Text that follows a pruned prompt: [1, n, d] embeddings at positions [3, 1, n] to normalised hidden states."""
    cos, sin = adapter.rotary(hidden, positions)
    masks: dict[int, Any] = {}
    for index, length in enumerate(cache.cache_lengths()):
        if length not in masks:
            masks[length] = _causal_mask(adapter, hidden, cache.layers[index])
    for layer, length in zip(adapter.layers, cache.cache_lengths(), strict=True):
        hidden = layer(
            hidden, attention_mask=masks[length], position_embeddings=(cos, sin), past_key_values=cache, use_cache=True
        )
    output: Tensor = adapter.language_model.norm(hidden)
    return output


def prompt_trace(
    preselection: Preselection,
    cuts: tuple[Cut, ...],
    done: tuple[CutTrace, ...],
    cache_lengths: tuple[int, ...],
    depth: int,
) -> PromptTrace:
    """The trace of a prompt with these stages behind it."""
    tokens, stage1 = preselection.tokens, preselection.kept.numel()
    left = cuts[-1].keep if cuts else stage1
    return PromptTrace(
        images=preselection.images,
        stage1_kept=preselection.kept,
        cuts=done,
        cache_lengths=cache_lengths,
        retention=Retention(
            final=left / tokens if tokens else 1.0,
            layer_average=layer_average_retention(tokens, stage1, cuts, depth),
        ),
    )


@torch.no_grad()
def _attention(
    adapter: Qwen2_5_VL,
    method: Method,
    layer_index: int,
    *,
    layer_input: Tensor,
    cos: Tensor,
    sin: Tensor,
    queries: Tensor,
    columns: Tensor,
    cache: PrunedCache,
) -> Tensor:
    query = adapter.scoring_query(
        layer_index, layer_input[0, queries], cos[0, queries], sin[0, queries], method.scoring
    )
    key = cache.layers[layer_index].keys[0]
    device = key.device
    return vision_attention(query.to(device), key, queries.to(device), columns.to(device), scale=adapter.scale).to(
        layer_input.device
    )


@torch.no_grad()
def _choose(
    method: Method,
    cut: Cut,
    cut_index: int,
    survivors: Tensor,
    preselection: Preselection,
    attention: Callable[[], Tensor],
) -> Tensor:
    context = ScoreContext(cut, cut_index, survivors, preselection, attention)
    return top_indices(method.score(context), cut.keep).to(survivors.device)


def _causal_mask(adapter: Qwen2_5_VL, hidden: Tensor, cache_layer: Any | None) -> Any:
    # A one-layer view shows the mask builder physical lengths, which are what the layer's keys have.
    past = None if cache_layer is None else Cache(layers=[cache_layer])
    return create_causal_mask(
        config=adapter.language_model.config, inputs_embeds=hidden, attention_mask=None, past_key_values=past
    )
