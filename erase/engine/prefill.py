"""Packed prefill: prompts of any size as one run of rows, without padding, pruned between layers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from erase.attention import vision_attention
from erase.engine.cache import SequenceCache, attend
from erase.engine.sequence import Sequence
from erase.methods.base import Cut, ScoreContext
from erase.models.qwen2_5_vl import Qwen2_5_VL
from erase.selection import top_indices

TEXT = -1


@dataclass(eq=False)
class PackedPrompt:
    """One prompt inside the packed run: its rows, and which vision token each row is."""

    sequence: Sequence
    cuts: tuple[Cut, ...]
    cache: SequenceCache
    vision: Tensor
    """Per row the index of its unpruned vision token, `TEXT` for a text token; int64 [rows]."""
    text_before: int
    """Rows in front of the first unpruned vision token: text that asks about no image, so no query of a cut."""
    offset: int = 0
    """First row in the packed run."""
    done: int = field(default=0)
    """Cuts already made."""

    @property
    def rows(self) -> int:
        """Rows that are left."""
        return int(self.vision.shape[0])

    @property
    def slice(self) -> slice:
        """Its rows in the packed run."""
        return slice(self.offset, self.offset + self.rows)


@torch.inference_mode()
def encode_images(adapter: Qwen2_5_VL, sequences: list[Sequence], device: torch.device) -> list[Tensor]:
    """Vision features [vision tokens, d] of each sequence, all images in one call of the encoder."""
    images = [image for sequence in sequences for image in sequence.prompt.images]
    if not images:
        width = adapter.embed_tokens.weight.shape[1]
        return [adapter.embed_tokens.weight.new_empty(0, width) for _ in sequences]
    grids = torch.tensor([image.grid_thw for image in images], device=device)
    pixels = torch.cat([image.pixel_values for image in images]).to(device)
    features = iter(adapter.encode_images(pixels, grids))
    empty = adapter.embed_tokens.weight.new_empty(0, adapter.embed_tokens.weight.shape[1])
    return [torch.cat([empty, *(next(features) for _ in sequence.prompt.images)]) for sequence in sequences]


@torch.inference_mode()
def prefill(
    adapter: Qwen2_5_VL, sequences: list[Sequence], features: list[Tensor], device: torch.device
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
        kept = [_cut(adapter, prompt, layer, layer_input, cos, sin) for prompt in prompts]
        if any(rows is not None for rows in kept):
            hidden, cos, sin = _repack(prompts, kept, hidden, cos, sin)
    last = torch.tensor([prompt.offset + prompt.rows - 1 for prompt in prompts], device=device)
    return prompts, adapter.logits(hidden[last])


def _pack(
    adapter: Qwen2_5_VL, sequences: list[Sequence], features: list[Tensor], device: torch.device
) -> tuple[list[PackedPrompt], Tensor, Tensor]:
    """Rows of all prompts after stage 1, one behind the other: hidden states [R, d] and positions [3, R]."""
    prompts, hidden, positions = [], [], []
    offset = 0
    for sequence, feature in zip(sequences, features, strict=True):
        tokens = sequence.prompt.tokens
        is_vision = tokens == adapter.image_token_id
        vision = torch.full_like(tokens, TEXT)
        vision[is_vision] = torch.arange(int(is_vision.sum()))
        stays = ~is_vision
        stays[is_vision.nonzero().squeeze(1)[sequence.preselection.kept]] = True
        rows = adapter.embed_tokens(tokens[stays].to(device))
        own_vision = vision[stays].to(device)
        entering = sequence.method.postencode(feature, sequence.preselection)
        rows[own_vision != TEXT] = entering.to(rows.dtype)
        prompts.append(
            PackedPrompt(
                sequence=sequence,
                cuts=sequence.method.cuts(sequence.preselection, adapter.architecture),
                cache=SequenceCache(adapter.depth),
                vision=own_vision,
                text_before=int(is_vision.int().argmax()),
                offset=offset,
            )
        )
        offset += len(rows)
        hidden.append(rows)
        positions.append(sequence.prompt.positions[:, stays].to(device))
    return prompts, torch.cat(hidden), torch.cat(positions, dim=1)


def _cut(
    adapter: Qwen2_5_VL, prompt: PackedPrompt, layer: int, layer_input: Tensor, cos: Tensor, sin: Tensor
) -> Tensor | None:
    """Stage 2 after `layer` if the prompt's plan says so: the rows (of this prompt) that survive, else None."""
    if prompt.done == len(prompt.cuts) or prompt.cuts[prompt.done].after_layers != layer + 1:
        return None
    cut = prompt.cuts[prompt.done]
    columns = (prompt.vision != TEXT).nonzero().squeeze(1)
    queries = (prompt.vision == TEXT).nonzero().squeeze(1)[prompt.text_before :]
    method = prompt.sequence.method

    def attention() -> Tensor:
        rows = queries + prompt.offset
        query = adapter.scoring_query(layer, layer_input[rows], cos[rows], sin[rows], method.scoring)
        return vision_attention(query, prompt.cache.keys(layer), queries, columns, scale=adapter.scale)

    context = ScoreContext(
        cut=cut,
        cut_index=prompt.done,
        survivors=prompt.vision[columns],
        preselection=prompt.sequence.preselection,
        attention=attention,
    )
    stays = prompt.vision == TEXT
    stays[columns[top_indices(method.score(context), cut.keep)]] = True
    rows = stays.nonzero().squeeze(1)
    prompt.done += 1
    if cut.prune_cache:
        for earlier in range(layer + 1):
            prompt.cache.keep_rows(earlier, rows)
    return rows


def _repack(
    prompts: list[PackedPrompt], kept: list[Tensor | None], hidden: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Close the gaps that cuts left in the packed run."""
    rows = []
    offset = 0
    for prompt, own in zip(prompts, kept, strict=True):
        if own is None:
            own = torch.arange(prompt.rows, device=hidden.device)
        rows.append(own + prompt.offset)
        prompt.vision = prompt.vision[own]
        prompt.offset = offset
        offset += prompt.rows
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
def step(adapter: Qwen2_5_VL, rows: list[StepRows], device: torch.device) -> Tensor:
    """Run the new tokens of all running sequences together: logits of every new token [tokens, vocabulary]."""
    tokens = torch.tensor([token for row in rows for token in row.tokens], device=device)
    positions = torch.cat([torch.arange(row.position, row.position + len(row.tokens)) for row in rows]).to(device)
    hidden = adapter.embed_tokens(tokens)
    cos, sin = (part.squeeze(0) for part in adapter.rotary(hidden.unsqueeze(0), positions.expand(3, 1, -1)))
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
