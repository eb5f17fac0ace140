"""Runs a stock decoder's layers over prompts that shrink on their way, and over the tokens that follow them."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.masking_utils import create_causal_mask

from erase.cutting import LayerRun, add_deep_features, cut_prompt
from erase.models.base import VisionLanguageAdapter
from erase.rows import PromptRows
from erase.stock.cache import Columns, PrunedCache
from erase.stock.compat import CACHE


def prefill(
    adapter: VisionLanguageAdapter,
    prompts: Sequence[PromptRows],
    *,
    embeddings: Tensor,
    features: Iterable[Tensor],
    deep: Sequence[Sequence[Tensor]],
    positions: Tensor,
    places: Sequence[Tensor],
    cache: PrunedCache | None,
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Prompts through all decoder layers, each cut where its method says. Rows are padded on the left.

    Args:
        adapter: the model.
        prompts: one per row of the batch, before any layer has run.
        embeddings: [B, L, d], what enters the unpruned decoder.
        features: per prompt [stage-1 survivors, d], the method's own vision embeddings; made one by one as they are
            placed, so that they are not alive beside the layers.
        deep: per prompt and early layer [vision tokens, d], DeepStack features to add after the layer.
        positions: int64 [axes, B, L], of the unpruned prompts.
        places: per prompt int64 [tokens], where its tokens stand among the L; the others are padding.
        cache: empty; holds every layer's survivors afterwards. None holds nothing.

    Returns:
        [B, L, d] normalised hidden states, NaN in the rows of dropped tokens and padding, and per prompt the valid
        cached tokens of every layer.
    """
    batch, length, _ = embeddings.shape
    entering = _left_padded([places[number][prompt.index] for number, prompt in enumerate(prompts)])
    hidden = _gather(embeddings, entering)
    _place_features(hidden, prompts, features)
    cos, sin = adapter.rotary(hidden, torch.stack([_gather(axis, entering) for axis in positions]))
    columns = _columns(prompts, hidden)
    mask = _causal_mask(adapter, hidden, columns, None)
    held: list[Columns] = []
    for number, layer in enumerate(adapter.layers):
        run_input = hidden
        hidden = layer(
            hidden,
            attention_mask=mask,
            position_embeddings=(cos, sin),
            use_cache=cache is not None,
            **{CACHE: cache},
        )
        _add_deep_features(hidden, prompts, deep, number)
        held.append(columns)
        for prompt in prompts:
            prompt.ran_layer()
        if not any(prompt.next_cut and prompt.next_cut.after_layers == number + 1 for prompt in prompts):
            continue
        flat = (states.flatten(0, 1) for states in (run_input, hidden, cos, sin))
        stays = _cut_all(adapter, prompts, LayerRun(number, *flat), hidden.shape[1], cache)
        hidden, cos, sin = (_gather(states, stays) for states in (hidden, cos, sin))
        columns = _columns(prompts, hidden)
        mask = _causal_mask(adapter, hidden, columns, None)
        _prune_cache(prompts, number + 1, cache, held)
    if cache is not None:
        cache.declare(length, held)
    normalised = adapter.language_model.norm(hidden)
    output = normalised.new_full((batch, length, normalised.shape[2]), float("nan"))
    for number, prompt in enumerate(prompts):
        alive = places[number][prompt.index].to(output.device)
        output[number, alive] = normalised[number, normalised.shape[1] - prompt.rows :]
    return output, [prompt.cached_lengths for prompt in prompts]


def decode(
    adapter: VisionLanguageAdapter, hidden: Tensor, positions: Tensor, new: Tensor, cache: PrunedCache
) -> Tensor:
    """Text that follows pruned prompts.

    Args:
        adapter: the model.
        hidden: [B, n, d] embeddings.
        positions: int64 [axes, B, n].
        new: bool [B, n], which of them are tokens and not padding.
        cache: grows by n columns.

    Returns:
        [B, n, d] normalised hidden states.
    """
    cos, sin = adapter.rotary(hidden, positions)
    columns = cache.extend(new)
    masks: dict[int, Any] = {}
    for own, held in zip(columns, cache.layers, strict=True):
        if id(own) not in masks:
            masks[id(own)] = _causal_mask(adapter, hidden, own, held)
    for layer, own in zip(adapter.layers, columns, strict=True):
        hidden = layer(
            hidden, attention_mask=masks[id(own)], position_embeddings=(cos, sin), use_cache=True, **{CACHE: cache}
        )
    output: Tensor = adapter.language_model.norm(hidden)
    return output


def _place_features(hidden: Tensor, prompts: Sequence[PromptRows], features: Iterable[Tensor]) -> None:
    for number, (prompt, own) in enumerate(zip(prompts, features, strict=True)):
        rows = (prompt.columns + hidden.shape[1] - prompt.rows).to(hidden.device)
        hidden[number, rows] = own.to(hidden.device, hidden.dtype)


def _add_deep_features(
    hidden: Tensor, prompts: Sequence[PromptRows], deep: Sequence[Sequence[Tensor]], layer: int
) -> None:
    for number, (prompt, own) in enumerate(zip(prompts, deep, strict=True)):
        if layer < len(own):
            add_deep_features(hidden[number], prompt, hidden.shape[1] - prompt.rows, own[layer])


def _cut_all(
    adapter: VisionLanguageAdapter, prompts: Sequence[PromptRows], run: LayerRun, width: int, cache: PrunedCache | None
) -> Tensor:
    """Makes the cuts planned after this layer: of `width` columns those that stay, int64 [B, columns]."""
    stays = []
    for number, prompt in enumerate(prompts):
        rows = prompt.rows
        padding = width - rows
        start = number * width + padding
        keys = (
            partial(cache.keys, run.layer, number)
            if cache is not None
            else partial(_computed_keys, adapter, run, start)
        )
        kept = cut_prompt(adapter, prompt, run, start, partial(keys, rows))
        stays.append(padding + (torch.arange(rows, device=prompt.index.device) if kept is None else kept))
    return _left_padded(stays)


def _computed_keys(adapter: VisionLanguageAdapter, run: LayerRun, start: int, rows: int) -> Tensor:
    """The layer's keys [key heads, rows, head_dim] of a prompt once more, where no cache has them."""
    own = slice(start, start + rows)
    hidden, cos, sin = (part[own].to(run.output.device) for part in (run.input, run.cos, run.sin))
    return adapter.project(run.layer, hidden, cos, sin)[1]


def _prune_cache(prompts: Sequence[PromptRows], layers: int, cache: PrunedCache | None, held: list[Columns]) -> None:
    """Takes dropped tokens out of the cache of the first `layers` layers, where a prompt's last cut asks for it."""
    pruning = [bool(prompt.done) and prompt.cuts[len(prompt.done) - 1].prune_cache for prompt in prompts]
    if not any(pruning):
        return
    layouts: dict[int, tuple[Tensor, Columns]] = {}
    for layer in range(layers):
        old = held[layer]
        if id(old) not in layouts:
            stays = []
            for prompt, prunes in zip(prompts, pruning, strict=True):
                cached = prompt.cached_lengths[layer]
                rows = prompt.cached_rows(layer) if prunes else torch.arange(cached, device=prompt.index.device)
                stays.append(old.valid.shape[1] - cached + rows)
            layouts[id(old)] = _left_padded(stays), _layout([len(rows) for rows in stays], old.valid.device)
        columns, held[layer] = layouts[id(old)]
        if cache is not None:
            cache.keep_columns(layer, columns)
    for prompt, prunes in zip(prompts, pruning, strict=True):
        if prunes:
            prompt.forget_dropped()


def _columns(prompts: Sequence[PromptRows], hidden: Tensor) -> Columns:
    return _layout([prompt.rows for prompt in prompts], hidden.device)


def _layout(lengths: Sequence[int], device: torch.device) -> Columns:
    longest = max(lengths)
    padding = longest - torch.tensor(lengths, device=device)
    return Columns(torch.arange(longest, device=device) >= padding[:, None], padded=min(lengths) < longest)


def _left_padded(rows: Sequence[Tensor]) -> Tensor:
    """int64 [B, longest]: the rows behind padding, which points at some row of the same prompt."""
    longest = max(len(own) for own in rows)
    return torch.stack([torch.cat([own[:1].expand(longest - len(own)), own]) for own in rows])


def _gather(states: Tensor, columns: Tensor) -> Tensor:
    """Of [B, S, ...] the columns int64 [B, n]."""
    columns = columns.to(states.device)
    if len(columns) == 1:
        return states.index_select(1, columns[0])
    return states[torch.arange(len(columns), device=states.device)[:, None], columns]


def _causal_mask(adapter: VisionLanguageAdapter, hidden: Tensor, columns: Columns, cache_layer: Any | None) -> Any:
    # A one-layer view shows the mask builder physical lengths, which are what the layer's keys have.
    past = None if cache_layer is None else Cache(layers=[cache_layer])
    return create_causal_mask(
        config=adapter.text_config,
        inputs_embeds=hidden,
        attention_mask=columns.valid if columns.padded else None,
        **{CACHE: past},
    )
