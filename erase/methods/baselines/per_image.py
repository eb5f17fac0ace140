"""What the baselines share: nothing is known from pixels, and many choose before the decoder, image by image."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from erase.errors import InputError
from erase.methods.base import Architecture, Cut, EncoderAttention, Preselection, ScoreContext
from erase.methods.none import NoPruning
from erase.policy import BaselinePolicy


class Baseline(NoPruning):
    """A method that keeps all that pixels show and prunes later."""

    cuts_inside: ClassVar[bool] = False
    """Whether it cuts inside the decoder, so that final and layer-averaged retention differ."""

    def __init__(self, policy: BaselinePolicy) -> None:
        self.policy = policy
        self.requested = policy.retention
        self.measure = policy.measure

    def prunes(self, preselection: Preselection) -> bool:
        """Whether there is anything to prune, and less than everything is asked for."""
        return self.policy.retention < 1.0 and preselection.tokens > 0


@dataclass(frozen=True, eq=False)
class ImageView:
    """One image before the decoder: float32 features [n, d], its grid (height, width), and what else was seen.

    `question` are the embeddings [Q, d] of the text behind the first image. The grid may be that of `tiles`, one
    below the other.
    """

    features: Tensor
    grid: tuple[int, int]
    question: Tensor
    attention: EncoderAttention | None
    tiles: int = 1

    @property
    def tokens(self) -> int:
        """Vision tokens of the image."""
        return len(self.features)

    @property
    def received(self) -> Tensor:
        """float32 [n]: attention that each vision token got in the encoder's last full-attention block."""
        return self.seen.received[-1]

    @property
    def seen(self) -> EncoderAttention:
        """What the encoder looked at."""
        if self.attention is None:
            raise InputError("the encoder's attention was not asked for")
        return self.attention


class PerImage(Baseline):
    """Chooses before the decoder, in every image its share; final and layer-averaged retention are the same."""

    sees_features = True

    def cuts(self, preselection: Preselection, architecture: Architecture) -> tuple[Cut, ...]:
        if not self.prunes(preselection):
            return ()
        return (Cut(0, sum(self.keeps(preselection)), prune_cache=False),)

    def keeps(self, preselection: Preselection) -> list[int]:
        """How many vision tokens each image keeps before the decoder."""
        return [self.keep_of(cells(image.grid)) for image in preselection.images]

    def keep_of(self, grid: tuple[int, int]) -> int:
        """How many an image of that height and width keeps."""
        return kept_of(grid[0] * grid[1], self.policy.retention)

    def choose(self, context: ScoreContext) -> Tensor:
        chosen, offset = [], 0
        for view, keep in self._views(context):
            chosen.append(self.choose_in(view, keep).sort().values + offset)
            offset += view.tokens
        return torch.cat(chosen)

    def merge(self, context: ScoreContext, chosen: Tensor) -> Tensor:
        merged, offset = [], 0
        for view, _ in self._views(context):
            inside = (chosen >= offset) & (chosen < offset + view.tokens)
            merged.append(self.merge_in(view, chosen[inside] - offset))
            offset += view.tokens
        return torch.cat(merged)

    @abstractmethod
    def choose_in(self, view: ImageView, keep: int) -> Tensor:
        """int64 [keep]: the tokens of an image that stay, in any order; `keep` may be all."""

    def merge_in(self, view: ImageView, chosen: Tensor) -> Tensor:
        """[chosen, d]: what an image's survivors, in ascending order, go on with."""
        return view.features[chosen]

    def _views(self, context: ScoreContext) -> Iterator[tuple[ImageView, int]]:
        encoded = context.encoded
        if encoded is None:
            raise InputError(f"the method {self.name!r} looks at the encoder's output, which is not there")
        features, question = encoded.features.float(), encoded.question().float()
        offset = 0
        keeps = self.keeps(context.preselection)
        for number, (image, keep) in enumerate(zip(context.preselection.images, keeps, strict=True)):
            own = features[offset : offset + image.tokens]
            attention = encoded.attention[number] if encoded.attention else None
            yield ImageView(own, cells(image.grid), question, attention, tiles=image.grid[0]), keep
            offset += image.tokens


def cells(grid: tuple[int, int, int]) -> tuple[int, int]:
    """Height and width of an image's grid, tiles one below the other."""
    tiles, height, width = grid
    return tiles * height, width


def kept_of(tokens: int, share: float) -> int:
    """How many tokens a share of them is; at least one."""
    return max(1, int(tokens * share + 1e-9))


def ranked(scores: Tensor) -> Tensor:
    """int64: from the highest score to the lowest, equal ones in their order."""
    return scores.sort(descending=True, stable=True).indices


def cosines(left: Tensor, right: Tensor) -> Tensor:
    """[n, m] cosine similarities of rows [n, d] and [m, d]."""
    return torch.nn.functional.normalize(left, dim=-1) @ torch.nn.functional.normalize(right, dim=-1).T


def others(chosen: Tensor, count: int) -> Tensor:
    """int64, ascending: of `count` places those that are not chosen."""
    left = torch.ones(count, dtype=torch.bool, device=chosen.device)
    left[chosen] = False
    return left.nonzero().squeeze(1)


def sums_of(features: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sums [count, d] and sizes [count, 1] of rows [n, d] by the group of each, int64 [n]."""
    sums = torch.zeros(count, features.shape[1], device=features.device).index_add(0, groups, features)
    return sums, torch.bincount(groups, minlength=count)[:, None].to(features.dtype)


def parts_of(count: int, parts: int) -> list[range]:
    """`count` places in so many contiguous parts of nearly the same size."""
    return [range(*span) for span in pairwise(number * count // parts for number in range(parts + 1))]


def shared_out(total: int, weights: Sequence[float], limits: Sequence[int]) -> list[int]:
    """Shares out `total` by weight, none above its limit; what is left over goes to the largest remainders."""
    shares = [0] * len(weights)
    free, left = list(range(len(weights))), min(total, sum(limits))
    while free:
        whole = sum(weights[number] for number in free)
        wished = {number: left * weights[number] / whole if whole > 0 else left / len(free) for number in free}
        full = [number for number in free if wished[number] >= limits[number]]
        if not full:
            for number, wish in wished.items():
                shares[number] = int(wish)
            left -= sum(int(wish) for wish in wished.values())
            for number in sorted(free, key=lambda number: int(wished[number]) - wished[number])[:left]:
                shares[number] += 1
            break
        for number in full:
            shares[number] = limits[number]
            left -= limits[number]
            free.remove(number)
    return shares
