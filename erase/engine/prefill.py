"""Packed prefill: prompts of any size as one run of rows, without padding, pruned between layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from erase.cutting import LayerRun, add_deep_features, cut_prompt
from erase.engine.cache import SequenceCache, attend
from erase.engine.sequence import Sequence
from erase.methods.base import Cut
from erase.models.base import VisionFeatures, VisionLanguageAdapter
from erase.rows import PromptRows


@dataclass(eq=False)
class PackedPrompt:
    """One prompt inside the packed run: which of its rows are left, where they lie, and what they cached."""

    sequence: Sequence
    rows: PromptRows
    cache: SequenceCache
    deep: tuple[Tensor, ...]
    """DeepStack features [vision tokens, d] to add after the first layers."""
    offset: int = 0
    """First row in the packed run."""

    @property
    def slice(self) -> slice:
        """Its rows in the packed run."""
        return slice(self.offset, self.offset + self.rows.rows)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The cuts that its method planned."""
        return self.rows.cuts


@torch.inference_mode()
def encode_images(
    adapter: VisionLanguageAdapter, sequences: list[Sequence], device: torch.device
) -> list[VisionFeatures]:
    """Vision features of each sequence, its images concatenated; all images in one call of the encoder."""
    images = [image for sequence in sequences for image in sequence.prompt.images]
    encoded: Iterator[VisionFeatures] = iter(())
    if images:
        grids = torch.tensor([image.grid_thw for image in images], device=device)
        pixels = torch.cat([image.pixel_values for image in images]).to(device)
        encoded = iter(adapter.encode_images(pixels, grids))
    weight = adapter.embed_tokens.weight
    return [
        _concatenated([next(encoded) for _ in sequence.prompt.images], weight.new_empty(0, weight.shape[1]))
        for sequence in sequences
    ]


def _concatenated(images: list[VisionFeatures], nothing: Tensor) -> VisionFeatures:
    layers = zip(*(image.deep for image in images), strict=True)
    return VisionFeatures(
        tokens=torch.cat([nothing, *(image.tokens.to(nothing.dtype) for image in images)]),
        deep=tuple(torch.cat(layer) for layer in layers),
    )


@torch.inference_mode()
def prefill(
    adapter: VisionLanguageAdapter, sequences: list[Sequence], features: list[VisionFeatures], device: torch.device
) -> tuple[list[PackedPrompt], Tensor]:
    """Run prompts through all layers.

    Returns the prompts, with filled caches, and the logits after each prompt's last token [prompts, vocabulary].
    """
    prompts, hidden, positions = _pack(adapter, sequences, features, device)
    cos, sin = (part.squeeze(0) for part in adapter.rotary(hidden.unsqueeze(0), positions.unsqueeze(1)))
    for layer in range(adapter.depth):
        query, key, value = adapter.project(layer, hidden, cos, sin)
        attended = torch.empty_like(query)
        for prompt in prompts:
            own_key, own_value = key[:, prompt.slice], value[:, prompt.slice]
            prompt.cache.store(layer, own_key, own_value)
            attended[:, prompt.slice] = attend(query[:, prompt.slice], own_key, own_value, adapter.scale)
        layer_input, hidden = hidden, adapter.finish_layer(layer, hidden, attended)
        for prompt in prompts:
            prompt.rows.ran_layer()
            if layer < len(prompt.deep):
                add_deep_features(hidden, prompt.rows, prompt.offset, prompt.deep[layer])
        run = LayerRun(layer, layer_input, hidden, cos, sin)
        kept = [_cut(adapter, prompt, run) for prompt in prompts]
        if any(rows is not None for rows in kept):
            hidden, cos, sin = _repack(prompts, kept, hidden, cos, sin)
    last = torch.tensor([prompt.slice.stop - 1 for prompt in prompts], device=device)
    return prompts, adapter.logits(hidden[last])


def _pack(
    adapter: VisionLanguageAdapter, sequences: list[Sequence], features: list[VisionFeatures], device: torch.device
) -> tuple[list[PackedPrompt], Tensor, Tensor]:
    """Rows of all prompts after stage 1, one behind the other: hidden states [R, d] and positions [axes, R]."""
    prompts, hidden, positions = [], [], []
    offset = 0
    for sequence, feature in zip(sequences, features, strict=True):
        method, preselection = sequence.method, sequence.preselection
        cuts = method.plan(preselection, adapter.architecture)
        tokens = sequence.prompt.tokens.to(device)
        rows = PromptRows(method, preselection, cuts, tokens == adapter.image_token_id)
        states = adapter.embed_tokens(tokens[rows.index])
        states[rows.columns] = method.postencode(feature.tokens, preselection).to(states.dtype)
        prompts.append(PackedPrompt(sequence, rows, SequenceCache(adapter.depth), feature.deep, offset))
        offset += rows.rows
        hidden.append(states)
        positions.append(sequence.prompt.positions.to(device)[:, rows.index])
    return prompts, torch.cat(hidden), torch.cat(positions, dim=1)


def _cut(adapter: VisionLanguageAdapter, prompt: PackedPrompt, run: LayerRun) -> Tensor | None:
    """Stage 2 after this layer if the prompt's plan says so: the rows (of this prompt) that survive, else None."""
    cut = prompt.rows.next_cut
    kept = cut_prompt(adapter, prompt.rows, run, prompt.offset, lambda: prompt.cache.keys(run.layer))
    if kept is not None and cut is not None and cut.prune_cache:
        for layer in range(run.layer + 1):
            prompt.cache.keep_rows(layer, prompt.rows.cached_rows(layer))
        prompt.rows.forget_dropped()
    return kept


def _repack(
    prompts: list[PackedPrompt], kept: list[Tensor | None], hidden: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Close the gaps that cuts left in the packed run."""
    rows = []
    offset = 0
    for prompt, own in zip(prompts, kept, strict=True):
        if own is None:
            own = torch.arange(prompt.rows.rows, device=hidden.device)
        rows.append(own + prompt.offset)
        prompt.offset = offset
        offset += prompt.rows.rows
    index = torch.cat(rows)
    return hidden[index], cos[index], sin[index]


@dataclass(frozen=True, eq=False)
class StepRows:
    """New tokens of one running sequence for one step."""

    cache: SequenceCache
    tokens: tuple[int, ...]
    position: int
    """Rotary position of the first of them."""


@torch.inference_mode()
def step(adapter: VisionLanguageAdapter, rows: list[StepRows], device: torch.device) -> Tensor:
    """Run the new tokens of all running sequences together: logits of every new token [tokens, vocabulary]."""
    tokens = torch.tensor([token for row in rows for token in row.tokens], device=device)
    positions = torch.cat([torch.arange(row.position, row.position + len(row.tokens)) for row in rows]).to(device)
    hidden = adapter.embed_tokens(tokens)
    cos, sin = (
        part.squeeze(0) for part in adapter.rotary(hidden.unsqueeze(0), positions.expand(adapter.position_axes, 1, -1))
    )
    for layer in range(adapter.depth):
        query, key, value = adapter.project(layer, hidden, cos, sin)
        attended = torch.empty_like(query)
        start = 0
        for row in rows:
            own = slice(start, start + len(row.tokens))
            keys, values = row.cache.append(layer, key[:, own], value[:, own])
            attended[:, own] = attend(query[:, own], keys, values, adapter.scale)
            start = own.stop
        hidden = adapter.finish_layer(layer, hidden, attended)
    logits = adapter.logits(hidden)
    for row in rows:
        row.cache.commit(len(row.tokens))
    return logits
