"""What pruning did, call by call: plain values that stay valid after the model is gone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from erase.methods.base import Cut, ImageSelection


class CutTrace(NamedTuple):
    """A cut that happened: decoder layers run before it, and what survived.

    `kept` is int64, sorted, indices into the prompt's unpruned vision tokens, images concatenated.
    """

    layer: int
    kept: Tensor


class Retention(NamedTuple):
    """Fractions of the prompt's vision tokens: left at the end, and run on average over the decoder's layers."""

    final: float
    layer_average: float


@dataclass(frozen=True, eq=False)
class PromptTrace:
    """One prompt's prefill.

    `images` say per image what stage 1 saw and kept, `stage1_kept` the same over the prompt (indices as in `CutTrace`);
    `cache_lengths` are the valid tokens per decoder layer once the prefill is done.
    """

    images: tuple[ImageSelection, ...]
    stage1_kept: Tensor
    cuts: tuple[CutTrace, ...]
    cache_lengths: tuple[int, ...]
    retention: Retention

    @property
    def tokens(self) -> int:
        """Vision tokens of the unpruned prompt."""
        return sum(image.tokens for image in self.images)


@dataclass(frozen=True, eq=False)
class CallTrace:
    """One `generate` or forward call that prefilled prompts."""

    prompts: tuple[PromptTrace, ...]


@dataclass(eq=False)
class Trace:
    """Every call inside one `pruning()` context, in order; calls that only continue a cache add nothing."""

    calls: list[CallTrace] = field(default_factory=list)


def layer_average_retention(tokens: int, stage1: int, cuts: Sequence[Cut], depth: int) -> float:
    """Vision tokens that each decoder layer runs with, averaged over the layers, as a fraction of the unpruned count.

    Args:
        tokens: vision tokens of the unpruned prompt; none gives 1.0.
        stage1: vision tokens that enter the decoder.
        cuts: shallowest first.
        depth: decoder layers.
    """
    if tokens == 0:
        return 1.0
    total = 0
    running, layers_run = stage1, 0
    for cut in cuts:
        total += running * (cut.after_layers - layers_run)
        running, layers_run = cut.keep, cut.after_layers
    total += running * (depth - layers_run)
    return total / (tokens * depth)
