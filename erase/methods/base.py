"""What a pruning method is: hooks over plain values, the same for `pruning()` and for the packed engine."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, islice, pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor

from erase.errors import InputError
from erase.pixels.images import VisionImage
from erase.policy import Measure
from erase.selection import top_indices

QuerySource = Literal["input", "normed_input", "output"]
"""Source of stage 2's queries: a layer's input as it is, that after its norm (the true queries), or its output."""


@dataclass(frozen=True)
class Architecture:
    """What a method may know of a model. The cuts count decoder layers run before them."""

    name: str
    depth: int
    shallow: int
    deep: int
    early: int
    late: int
    binned_queries: QuerySource = "input"
    """Source of revision 1's `reference` scoring."""
    budget_queries: QuerySource = "input"
    """Source of revision 2's `reference` scoring."""
    may_drop_all: bool = False
    """Whether revision 2 leaves no vision token once its budget is spent; otherwise one stays."""


@dataclass(frozen=True, eq=False)
class ImageSelection:
    """What stage 1 saw and kept of one image.

    `kept` is int64, sorted, indices into this image's tokens; `entropy` is float32 [tokens] in nats; `complexity` in
    nats, the number that the method judges the image by; `bin` is None where the method has no bins; `edge_ratio` is
    float32 [tokens] where the method looks at edges; `grid` counts cells (tiles, height, width).
    """

    tokens: int
    kept: Tensor
    entropy: Tensor
    complexity: float
    bin: int | None
    grid: tuple[int, int, int]
    edge_ratio: Tensor | None = None

    @property
    def entropy_map(self) -> Tensor:
        """float32 [height, width] in nats, tiles one below the other."""
        tiles, height, width = self.grid
        return self.entropy.view(tiles * height, width)


@dataclass(frozen=True, eq=False)
class Preselection:
    """Stage 1 of one prompt, its images in order."""

    images: tuple[ImageSelection, ...]

    @property
    def tokens(self) -> int:
        """Vision tokens of the unpruned prompt."""
        return sum(image.tokens for image in self.images)

    @cached_property
    def kept(self) -> Tensor:
        """int64, sorted: survivors as indices into the concatenation of all images' tokens."""
        parts = []
        offset = 0
        for image in self.images:
            parts.append(image.kept + offset)
            offset += image.tokens
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Cut:
    """A cut inside the decoder: `keep` vision tokens survive once `after_layers` layers have run.

    After 0 layers they are chosen before the decoder, from what the vision encoder made of all of them. With
    `prune_cache` the keys and values of every earlier layer are cut, too; without it they stay as they ran. `role` is
    for the method that planned the cut.
    """

    after_layers: int
    keep: int
    prune_cache: bool
    role: str = ""


@dataclass(frozen=True, eq=False)
class EncoderAttention:
    """What the vision encoder looked at, in the order of its vision tokens.

    `received` float32 [tokens] for each block with full attention, shallowest first: attention that a vision token's
    patches get, mean over heads, queries and patches. `keys` float32 [tokens, head_dim]: of the last such block, before
    rotation, mean over heads and patches.
    """

    received: tuple[Tensor, ...]
    keys: Tensor


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt as it enters the decoder, unpruned.

    `features` are the encoder's [vision tokens, d]; `question()` gives the embeddings [Q, d] of the text after the
    first vision token; `attention` has an entry per image where the method asked for it.
    """

    features: Tensor
    question: Callable[[], Tensor]
    attention: tuple[EncoderAttention, ...] = ()


def entering(after_stage1: int, cuts: Sequence[Cut]) -> int:
    """Vision tokens that enter the decoder: those that stage 1 left, less what a cut before the first layer drops."""
    return min((cut.keep for cut in cuts if cut.after_layers == 0), default=after_stage1)


class Attention(Protocol):
    """Computes, when called, float32 [survivors]: attention of the prompt's text on each surviving vision token."""

    def __call__(self, queries: Literal["question", "last"] | Tensor = "question") -> Tensor:
        """From all text after the first vision token, from the prompt's last token only, or from some of that text.

        Some: int64, their places among the rows of `EncodedPrompt.question`.
        """


@dataclass(frozen=True, eq=False)
class ScoreContext:
    """What a method may choose by at a cut.

    `survivors` are sorted indices into the unpruned vision tokens (int64, on the model's device), the order of every
    score; `attention` is that of the last layer run, as the method's `query_source` says: none before the first layer.
    `states()` gives the survivors' states [survivors, d]; `encoded` is there where the method asked for it.
    """

    cut: Cut
    survivors: Tensor
    preselection: Preselection
    attention: Attention
    states: Callable[[], Tensor] | None = None
    encoded: EncodedPrompt | None = None


class Method(ABC):
    """One way to prune. Stateless: the hooks get everything they need and may run in any thread."""

    name: str
    requested: float | None = None
    """The retention that was asked for, if the method has such a dial."""
    measure: Measure = "final"
    """Which retention `requested` means."""
    sees_features: bool = False
    """Whether its cuts look at the encoder's output and the question's embeddings."""
    sees_encoder_attention: bool = False
    """Whether its cuts look at the attention inside the vision encoder; that costs the encoder time."""
    image_scale: float = 1.0
    """Factor on both sides of every image before the model's own resizing."""

    @abstractmethod
    def preselect(self, images: Sequence[VisionImage]) -> Preselection:
        """Stage 1, from pixels alone."""

    def postencode(self, features: Tensor, preselection: Preselection) -> Tensor:
        """The encoder's [tokens, d] turned into the [kept, d] that enter the decoder."""
        if preselection.kept.numel() == preselection.tokens:
            return features
        return features.index_select(0, preselection.kept.to(features.device))

    @abstractmethod
    def cuts(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        """The cuts inside the decoder, shallowest first; one that keeps all is only recorded."""

    def plan(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        """What the method's `cuts` mean: each keeps at most what is left.

        Raises:
            InputError: they do not come after ever more layers, from none to all but the last.
        """
        cuts = self.cuts(preselection, architecture)
        layers = [cut.after_layers for cut in cuts]
        if any(late <= early for early, late in pairwise([-1, *layers, architecture.depth])):
            raise InputError(
                f"the method {self.name!r} plans cuts after {layers} layers; they must ascend between 0 and "
                f"{architecture.depth - 1}, the model's depth less one"
            )
        kept = accumulate((cut.keep for cut in cuts), min, initial=preselection.kept.numel())
        return tuple(replace(cut, keep=keep) for cut, keep in zip(cuts, islice(kept, 1, None), strict=True))

    def query_source(self, architecture: Architecture) -> QuerySource:
        """What the attention in a `ScoreContext` takes its queries from."""
        return "normed_input"

    def score(self, context: ScoreContext) -> Tensor:
        """float32 [survivors]; the highest survive, ties to the lowest index."""
        return context.attention()

    def choose(self, context: ScoreContext) -> Tensor:
        """int64 [cut.keep], ascending: which survive, as places among `survivors`."""
        return top_indices(self.score(context), context.cut.keep)

    def merge(self, context: ScoreContext, chosen: Tensor) -> Tensor:
        """The states [chosen, d] that survivors go on with. What is dropped may leave something in them."""
        if context.states is None:
            raise InputError("this cut has no states to merge")
        return context.states()[chosen]
