"""Stage 2: a cut in the run of rows of many prompts, padded or packed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from erase.attention import vision_attention
from erase.errors import InputError
from erase.methods.base import Attention, Method, ScoreContext
from erase.models.base import VisionLanguageAdapter
from erase.rows import PromptRows


@dataclass(frozen=True, eq=False)
class LayerRun:
    """A decoder layer that has just run over the rows of many prompts, flat: [R, d] states, [R, head_dim] rotations."""

    layer: int
    input: Tensor
    output: Tensor
    cos: Tensor
    sin: Tensor


@torch.no_grad()
def cut_before_layers(prompt: PromptRows, states: Tensor) -> Tensor:
    """Make the cut that a prompt plans before the first layer, if it does.

    Args:
        prompt: loses its dropped rows.
        states: [vision tokens after stage 1, d], what enters the decoder without the cut.

    Returns:
        [vision tokens left, d].
    """
    cut = prompt.next_cut
    if cut is None or cut.after_layers > 0:
        return states
    context = _context(prompt, attention=_no_attention, states=lambda: states)
    chosen = _chosen(prompt, context)
    merged = states if chosen is None else prompt.method.merge(context, chosen)
    prompt.keep(cut, _all_of(prompt) if chosen is None else chosen)
    return merged


@torch.no_grad()
def cut_prompt(
    adapter: VisionLanguageAdapter, prompt: PromptRows, run: LayerRun, start: int, keys: Callable[[], Tensor]
) -> Tensor | None:
    """Make a prompt's next cut, if it is planned after this layer.

    Args:
        adapter: the model.
        prompt: loses its dropped rows.
        run: the layer.
        start: where the prompt's first row lies in the run.
        keys: the layer's rotated keys of the prompt, [key heads, rows, head_dim].

    Returns:
        int64, ascending: the rows of the prompt that stay, counted from its first; None if no cut is planned here.
    """
    cut = prompt.next_cut
    if cut is None or cut.after_layers != run.layer + 1:
        return None
    columns = prompt.columns
    source = prompt.method.query_source(adapter.architecture)
    states = run.output if source == "output" else run.input

    def attention(queries: Literal["question", "last"] | Tensor = "question") -> Tensor:
        key = keys()
        if isinstance(queries, Tensor):
            asking = prompt.queries[queries.to(columns.device)]
        else:
            asking = prompt.queries if queries == "question" else torch.tensor([prompt.rows - 1], device=columns.device)
        # Rows, layer and rotations may lie on different devices of a model that is spread over several.
        hidden, cos, sin = (
            part[(asking + start).to(part.device)].to(key.device) for part in (states, run.cos, run.sin)
        )
        query = adapter.scoring_query(run.layer, hidden, cos, sin, normed=source == "normed_input")
        seen = vision_attention(query, key, asking.to(key.device), columns.to(key.device), scale=adapter.scale)
        return seen.to(columns.device)

    places = (columns + start).to(run.output.device)
    context = _context(prompt, attention=attention, states=lambda: run.output[places].to(columns.device))
    chosen = _chosen(prompt, context)
    if chosen is None:
        return prompt.keep(cut, _all_of(prompt))
    if type(prompt.method).merge is not Method.merge:
        run.output[places[chosen.to(places.device)]] = prompt.method.merge(context, chosen).to(run.output)
    return prompt.keep(cut, chosen)


def _context(prompt: PromptRows, *, attention: Attention, states: Callable[[], Tensor]) -> ScoreContext:
    cut = prompt.next_cut
    assert cut is not None, "no cut is planned"  # noqa: S101
    return ScoreContext(
        cut=cut,
        survivors=prompt.survivors,
        preselection=prompt.preselection,
        attention=attention,
        states=states,
        encoded=prompt.encoded,
    )


def _chosen(prompt: PromptRows, context: ScoreContext) -> Tensor | None:
    """What the next cut keeps, as places among the survivors: as it did before, or chosen anew; None keeps all."""
    frozen = prompt.frozen_choice
    if frozen is not None:
        return frozen
    if context.cut.keep >= len(context.survivors):
        return None
    chosen = prompt.method.choose(context).to(context.survivors.device)
    if len(chosen) != context.cut.keep:
        raise InputError(f"the method {prompt.method.name!r} chose {len(chosen)} tokens, not {context.cut.keep}")
    return chosen


def _all_of(prompt: PromptRows) -> Tensor:
    return torch.arange(len(prompt.survivors), device=prompt.index.device)


def _no_attention(queries: object = "question") -> Tensor:
    raise InputError("before the first layer no text has looked at the vision tokens")


def add_deep_features(hidden: Tensor, prompt: PromptRows, start: int, features: Tensor) -> None:
    """DeepStack: add a vision encoder's intermediate features to the vision tokens that are left, in place.

    Args:
        hidden: [R, d], flat rows of many prompts.
        prompt: whose vision tokens they are.
        start: where the prompt's first row lies.
        features: [vision tokens, d] of the unpruned prompt.
    """
    rows = (prompt.columns + start).to(hidden.device)
    hidden[rows] += features.to(hidden.device, hidden.dtype)[prompt.survivors.to(hidden.device)]
