"""What pruning did, call by call: plain values that stay valid after the model is gone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from erase.flops import DecoderCosts, PrefillFlops
from erase.methods.base import Cut, ImageSelection, Method, Preselection
from erase.policy import Measure


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

    `method` is the method's name; `images` say per image what stage 1 saw and kept, `stage1_kept` the same over the
    prompt (indices as in `CutTrace`); `cache_lengths` are the valid tokens per decoder layer once the prefill is done;
    `requested` is the retention that the policy's dial asked for, of the kind that `measure` names; `flops` counts the
    decoder's operations (formula in `erase.flops`).
    """

    method: str
    images: tuple[ImageSelection, ...]
    stage1_kept: Tensor
    cuts: tuple[CutTrace, ...]
    cache_lengths: tuple[int, ...]
    retention: Retention
    requested: float | None
    measure: Measure
    flops: PrefillFlops

    @property
    def tokens(self) -> int:
        """Vision tokens of the unpruned prompt."""
        return sum(image.tokens for image in self.images)

    @property
    def achieved(self) -> float:
        """The retention that `requested` asks for, as it came out; what cannot be reached differs."""
        return self.retention.final if self.measure == "final" else self.retention.layer_average


@dataclass(frozen=True, eq=False)
class CallTrace:
    """One `generate` or forward call that prefilled prompts."""

    prompts: tuple[PromptTrace, ...]


@dataclass(eq=False)
class Trace:
    """Every call inside one `pruning()` context, in order; calls that only continue a cache add nothing."""

    calls: list[CallTrace] = field(default_factory=list)


def prompt_trace(
    method: Method,
    preselection: Preselection,
    done: Sequence[CutTrace],
    cache_lengths: Sequence[int],
    text: int,
    costs: DecoderCosts,
) -> PromptTrace:
    """The trace of a prompt with `text` tokens besides its vision tokens, and these stages behind it."""
    tokens, stage1, depth = preselection.tokens, preselection.kept.numel(), len(cache_lengths)
    cuts = [(cut.layer, len(cut.kept)) for cut in done]
    running = vision_tokens_per_layer(stage1, cuts, depth)
    return PromptTrace(
        method=method.name,
        images=preselection.images,
        stage1_kept=preselection.kept,
        cuts=tuple(done),
        cache_lengths=tuple(cache_lengths),
        retention=Retention(
            final=(cuts[-1][1] if cuts else stage1) / tokens if tokens else 1.0,
            layer_average=sum(running) / (tokens * depth) if tokens else 1.0,
        ),
        requested=method.requested,
        measure=method.measure,
        flops=PrefillFlops(
            pruned=costs.prefill([text + count for count in running]),
            unpruned=costs.prefill([text + tokens] * depth),
        ),
    )


def vision_tokens_per_layer(stage1: int, cuts: Sequence[tuple[int, int]], depth: int) -> list[int]:
    """Vision tokens that each decoder layer runs with.

    Args:
        stage1: those that enter the decoder.
        cuts: (layers run before the cut, tokens kept), shallowest first.
        depth: decoder layers.
    """
    running = [stage1] * depth
    for layer, kept in cuts:
        running[layer:] = [kept] * (depth - layer)
    return running


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
    running = vision_tokens_per_layer(stage1, [(cut.after_layers, cut.keep) for cut in cuts], depth)
    return sum(running) / (tokens * depth)
