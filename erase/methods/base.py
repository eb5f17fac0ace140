"""What a pruning method is: four hooks over plain values, the same for `pruning()` and for the packed engine."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from erase.policy import Scoring


@dataclass(frozen=True)
class Architecture:
    """What a method may know of a model. `shallow` and `deep` count decoder layers run before a cut."""

    name: str
    depth: int
    shallow: int
    deep: int


@dataclass(frozen=True, eq=False)
class ImageSelection:
    """What stage 1 saw and kept of one image.

    `kept` is int64, sorted, indices into this image's tokens; `entropy` is float32 [tokens] in nats; `complexity` in
    nats; `bin` is None where the method has no bins.
    """

    tokens: int
    kept: Tensor
    entropy: Tensor
    complexity: float
    bin: int | None


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

    With `prune_cache` the keys and values of every earlier layer are cut, too; without it they stay as they ran.
    """

    after_layers: int
    keep: int
    prune_cache: bool


@dataclass(frozen=True, eq=False)
class ScoreContext:
    """What a method may rank by at a cut.

    `survivors` are sorted indices into the unpruned vision tokens, the order of every score. `attention()` computes,
    when called, float32 [survivors] as the method's scoring says.
    """

    cut: Cut
    cut_index: int
    survivors: Tensor
    preselection: Preselection
    attention: Callable[[], Tensor]


class Method(ABC):
    """One way to prune. Stateless: the hooks get everything they need and may run in any thread."""

    name: str
    scoring: Scoring

    @abstractmethod
    def preselect(self, images: Sequence[Tensor]) -> Preselection:
        """Stage 1, from pixels alone: uint8 [N_i, 3, c, c] cells per image."""

    def postencode(self, features: Tensor, preselection: Preselection) -> Tensor:
        """The encoder's [tokens, d] turned into the [kept, d] that enter the decoder."""
        if preselection.kept.numel() == preselection.tokens:
            return features
        return features.index_select(0, preselection.kept.to(features.device))

    @abstractmethod
    def cuts(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        """The cuts inside the decoder, shallowest first; none that would drop nothing."""

    def score(self, context: ScoreContext) -> Tensor:
        """float32 [survivors]; the highest survive, ties to the lowest index."""
        return context.attention()
