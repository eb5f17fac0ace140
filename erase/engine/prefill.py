"""Packed prefill: prompts of any size as one run of rows, without padding, pruned between layers."""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from erase.cutting import LayerRun, add_deep_features, cut_before_layers, cut_prompt
from erase.engine.attention import Attention
from erase.engine.cache import CachePool, SequenceCache
from erase.engine.sequence import Sequence
from erase.methods.base import Cut, EncodedPrompt
from erase.models.base import VisionFeatures, VisionLanguageAdapter
from erase.rows import PromptRows
from erase.trace import CutTrace


@dataclass(eq=False)
class PackedPrompt:
    """One prompt inside the packed run: which of its rows are left, where they lie, and what they cached."""

    sequence: Sequence
    rows: PromptRows
    cache: SequenceCache
    deep: tuple[Tensor, ...]
    """DeepStack features [vision tokens, d] to add after the first layers."""
    offset: int
    """First row in the packed run."""
    waiting: dict[int, tuple[Tensor, Tensor]]
    """Keys and values [rows, key heads, head_dim] of layers that a later cut will prune before they are cached."""

    @property
    def slice(self) -> slice:
        """Its rows in the packed run."""
        return slice(self.offset, self.offset + self.rows.rows)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The cuts that its method planned."""
        return self.rows.cuts

    @property
    def done(self) -> tuple[CutTrace, ...]:
        """The cuts made so far."""
        return tuple(self.rows.done)


class Prefill:
    """Prompts on their way through the layers, as many layers at a time as the caller likes.

    Args:
        adapter: the model.
        attention: how to compute attention.
        sequences: the prompts.
        features: vision features of each, its images concatenated.
        caches: an empty cache for each, of the planned lengths.
        device: the model's.
    """

    @torch.inference_mode()
    def __init__(
        self,
        adapter: VisionLanguageAdapter,
        attention: Attention,
        sequences: List[Sequence],
        features: List[VisionFeatures],
        caches: List[SequenceCache],
        device: torch.device,
    ) -> None:
        self._adapter = adapter
        self._attention = attention
        self._device = device
        self._layer = 0
        self.prompts: list[PackedPrompt] = []
        self._hidden, self._cos, self._sin = self._pack(sequences, features, caches)

    @property
    def layers_left(self) -> int:
        """Decoder layers that have not run yet."""
        return self._adapter.depth - self._layer

    @property
    def rows(self) -> int:
        """Rows that the next layer runs."""
        return len(self._hidden)

    @torch.inference_mode()
    def run_layer(self) -> None:
        """Run the next decoder layer and the cuts behind it."""
        adapter, layer = self._adapter, self._layer
        heads = adapter.project(layer, self._hidden, self._cos, self._sin)
        query, key, value = (part.transpose(0, 1) for part in heads)
        for prompt in self.prompts:
            prompt.waiting[layer] = key[prompt.slice], value[prompt.slice]
            prompt.rows.ran_layer()
        if self.layers_left == 1:
            self._finish_last_layer(query, key, value)
        else:
            self._finish_layer(query, key, value)
        for prompt in self.prompts:
            _cache_final_rows(prompt)
            if layer in prompt.waiting and len(self.prompts) > 1:
                key, value = prompt.waiting[layer]
                prompt.waiting[layer] = key.clone(), value.clone()  # a view would keep those of all prompts
        self._layer += 1

    def _finish_layer(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        adapter, layer = self._adapter, self._layer
        lengths = [prompt.rows.rows for prompt in self.prompts]
        attended = self._attention.prompts(query, key, value, lengths, adapter.scale)
        layer_input, hidden = self._hidden, adapter.finish_layer(layer, self._hidden, attended.transpose(0, 1))
        for prompt in self.prompts:
            if layer < len(prompt.deep):
                add_deep_features(hidden, prompt.rows, prompt.offset, prompt.deep[layer])
            if layer + 1 >= len(prompt.deep):
                prompt.deep = ()  # all added; unpruned, they outweigh a pruned cache
        run = LayerRun(layer, layer_input, hidden, self._cos, self._sin)
        kept = [self._cut(prompt, run) for prompt in self.prompts]
        self._hidden = hidden
        if any(rows is not None for rows in kept):
            self._close_gaps(kept)

    def _finish_last_layer(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Of the last layer, cache aside, only the row that the answer follows on is needed; it is text."""
        spans = [prompt.slice for prompt in self.prompts]
        last = torch.tensor([span.stop - 1 for span in spans], device=self._device)
        attended = self._attention.steps(query[last], key, value, [1] * len(spans), spans, self._adapter.scale)
        self._hidden = self._adapter.finish_layer(self._layer, self._hidden[last], attended.transpose(0, 1))

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """After the last layer: the logits behind each prompt's last token [prompts, vocabulary]."""
        return self._adapter.logits(self._hidden)

    def _pack(
        self, sequences: List[Sequence], features: List[VisionFeatures], caches: List[SequenceCache]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows that enter the decoder, all prompts one behind the other: states [R, d] and rotations [R, head_dim]."""
        adapter, device = self._adapter, self._device
        hidden, positions = [], []
        offset = 0
        for sequence, feature, cache in zip(sequences, features, caches, strict=True):
            method, preselection = sequence.method, sequence.preselection
            cuts = method.plan(preselection, adapter.architecture)
            tokens = sequence.prompt.tokens.to(device)
            rows = PromptRows(method, preselection, cuts, tokens == adapter.image_token_id, sequence.frozen_cuts)
            if method.sees_features:
                asking = tokens[rows.index[rows.queries]]
                rows.encoded = EncodedPrompt(feature.tokens, partial(adapter.embed_tokens, asking), feature.attention)
            vision = cut_before_layers(rows, method.postencode(feature.tokens, preselection))
            states = adapter.embed_tokens(tokens[rows.index])
            states[rows.columns] = vision.to(states.dtype)
            self.prompts.append(PackedPrompt(sequence, rows, cache, feature.deep, offset, {}))
            offset += rows.rows
            hidden.append(states)
            positions.append(sequence.prompt.positions.to(device)[:, rows.index])
        states = torch.cat(hidden)
        cos, sin = adapter.rotary(states.unsqueeze(0), torch.cat(positions, dim=1).unsqueeze(1))
        return states, cos.squeeze(0), sin.squeeze(0)

    def _cut(self, prompt: PackedPrompt, run: LayerRun) -> Tensor | None:
        """Stage 2 after this layer if the prompt's plan says so: the rows (of this prompt) that survive, else None."""
        cut = prompt.rows.next_cut
        keys = prompt.waiting[run.layer][0].transpose(0, 1)
        kept = cut_prompt(self._adapter, prompt.rows, run, prompt.offset, lambda: keys)
        if kept is not None and cut is not None and cut.prune_cache:
            for layer, states in prompt.waiting.items():
                rows = prompt.rows.cached_rows(layer)
                key, value = (part.index_select(0, rows) for part in states)
                prompt.waiting[layer] = key, value
            prompt.rows.forget_dropped()
        return kept

    def _close_gaps(self, kept: list[Tensor | None]) -> None:
        """Close the gaps that cuts left in the packed run."""
        rows = []
        offset = 0
        for prompt, own in zip(self.prompts, kept, strict=True):
            if own is None:
                own = torch.arange(prompt.rows.rows, device=self._device)
            rows.append(own + prompt.offset)
            prompt.offset = offset
            offset += prompt.rows.rows
        index = torch.cat(rows)
        self._hidden, self._cos, self._sin = self._hidden[index], self._cos[index], self._sin[index]


def _cache_final_rows(prompt: PackedPrompt) -> None:
    """Move to the cache what no later cut will prune."""
    if any(cut.prune_cache for cut in prompt.cuts[len(prompt.rows.done) :]):
        return
    for layer, (key, value) in prompt.waiting.items():
        prompt.cache.store(layer, key, value)
    prompt.waiting.clear()


@dataclass(frozen=True, eq=False)
class StepRows:
    """New tokens of one running sequence for one step."""

    cache: SequenceCache
    tokens: tuple[int, ...]
    position: int
    """Rotary position of the first of them."""


@torch.inference_mode()
def step(
    adapter: VisionLanguageAdapter, attention: Attention, pool: CachePool, rows: List[StepRows], device: torch.device
) -> Tensor:
    """Run the new tokens of all running sequences together: logits of every new token [tokens, vocabulary]."""
    tokens = torch.tensor([token for row in rows for token in row.tokens], device=device)
    positions = torch.cat([torch.arange(row.position, row.position + len(row.tokens)) for row in rows]).to(device)
    hidden = adapter.embed_tokens(tokens)
    cos, sin = (
        part.squeeze(0) for part in adapter.rotary(hidden.unsqueeze(0), positions.expand(adapter.position_axes, 1, -1))
    )
    lengths = [len(row.tokens) for row in rows]
    spans = list(zip(*(row.cache.spans_with(len(row.tokens)) for row in rows), strict=True))  # by layer
    places = torch.tensor([_last_places(own, lengths) for own in spans], device=device)
    for layer in range(adapter.depth):
        query, key, value = (part.transpose(0, 1) for part in adapter.project(layer, hidden, cos, sin))
        pool.write(places[layer], key, value)
        attended = attention.steps(query, pool.keys, pool.values, lengths, spans[layer], adapter.scale)
        hidden = adapter.finish_layer(layer, hidden, attended.transpose(0, 1))
    logits = adapter.logits(hidden)
    for row in rows:
        row.cache.commit(len(row.tokens))
    return logits


def _last_places(spans: List[slice], lengths: List[int]) -> list[int]:
    """The last `lengths` rows of every span, one sequence behind the other."""
    return [place for span, rows in zip(spans, lengths, strict=True) for place in range(span.stop - rows, span.stop)]
