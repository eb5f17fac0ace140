"""Stage 2: a cut in the run of rows of many prompts, padded or packed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from erase.attention import vision_attention
from erase.methods.base import ScoreContext
from erase.models.base import VisionLanguageAdapter
from erase.rows import PromptRows
from erase.selection import top_indices


@dataclass(frozen=True, eq=False)
class LayerRun:
    """A decoder layer that has just run over the rows of many prompts, flat: [R, d] states, [R, head_dim] rotations."""

    layer: int
    input: Tensor
    output: Tensor
    cos: Tensor
    sin: Tensor


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
    frozen = prompt.frozen_choice
    if frozen is not None:
        return prompt.keep(cut, frozen)
    columns = prompt.columns
    source = prompt.method.query_source(adapter.architecture)
    states = run.output if source == "output" else run.input

    def attention(queries: Literal["question", "last"] = "question") -> Tensor:
        key = keys()
        asking = prompt.queries if queries == "question" else torch.tensor([prompt.rows - 1], device=columns.device)
        # Rows, layer and rotations may lie on different devices of a model that is spread over several.
        hidden, cos, sin = (
            part[(asking + start).to(part.device)].to(key.device) for part in (states, run.cos, run.sin)
        )
        query = adapter.scoring_query(run.layer, hidden, cos, sin, normed=source == "normed_input")
        return vision_attention(query, key, asking.to(key.device), columns.to(key.device), scale=adapter.scale)

    context = ScoreContext(
        cut=cut,
        cut_index=len(prompt.done),
        survivors=prompt.survivors,
        preselection=prompt.preselection,
        attention=attention,
    )
    if cut.keep >= len(columns):
        return prompt.keep(cut, torch.arange(len(columns), device=columns.device))
    chosen = top_indices(prompt.method.score(context), cut.keep)
    return prompt.keep(cut, chosen.to(columns.device))


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
