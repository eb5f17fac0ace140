"""Vision features of prompts: each image is encoded once, however often and by whomever it is asked about."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from erase.methods.base import EncoderAttention
from erase.models.base import VisionFeatures, VisionLanguageAdapter
from erase.models.prompt import PreparedImage


class FeatureCache:
    """The features of the images that were used last, up to so many bytes.

    Keys begin with `PreparedImage.digest`: SHA-256 of all that an image's features depend on beside the model. The
    cache belongs to one model.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._features: OrderedDict[str, VisionFeatures] = OrderedDict()

    def get(self, key: str) -> VisionFeatures | None:
        """Features of an image, which count as used now."""
        found = self._features.get(key)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
            self._features.move_to_end(key)
        return found

    def put(self, key: str, features: VisionFeatures) -> None:
        """Keep features; what was not used for longest makes room. One too large for the cache is not kept."""
        size = _bytes(features)
        if size > self.max_bytes or key in self._features:
            return
        self._features[key] = _owned(features)
        self.bytes += size
        while self.bytes > self.max_bytes:
            _, dropped = self._features.popitem(last=False)
            self.bytes -= _bytes(dropped)


class Encoding:
    """Images of several prompts on their way through the vision encoder, a layer at a time where the adapter can.

    Args:
        adapter: the model.
        prompts: the images of each prompt.
        with_attention: of each prompt, whether its features shall say what the encoder looked at.
        cache: remembers features; what it has is not encoded.
        device: the model's.
        tokens_at_once: vision tokens of the images that are encoded together, if there is more than one.
    """

    def __init__(
        self,
        adapter: VisionLanguageAdapter,
        prompts: Sequence[Sequence[PreparedImage]],
        with_attention: Sequence[bool],
        cache: FeatureCache,
        device: torch.device,
        tokens_at_once: int,
    ) -> None:
        self._adapter = adapter
        self._prompts = [
            [_Wanted(image, wanted) for image in images] for images, wanted in zip(prompts, with_attention, strict=True)
        ]
        self._cache = cache
        self._device = device
        self._found: dict[str, VisionFeatures] = {}
        missing: dict[str, _Wanted] = {}
        for wanted in (wanted for images in self._prompts for wanted in images):
            if wanted.key in self._found or wanted.key in missing:
                continue
            features = cache.get(wanted.key)
            if features is None:
                missing[wanted.key] = wanted
            else:
                self._found[wanted.key] = features
        by_kind = sorted(missing.values(), key=lambda wanted: wanted.with_attention)
        self._groups = list(_groups(by_kind, tokens_at_once))
        self._steps: Generator[None, None, tuple[VisionFeatures, ...]] | None = None

    @property
    def done(self) -> bool:
        """Whether every image is encoded."""
        return not self._groups

    @torch.inference_mode()
    def run_layer(self) -> None:
        """Run the next layer of the encoder over the images whose turn it is."""
        group = self._groups[0]
        if self._steps is None:
            grids = torch.tensor([wanted.image.grid_thw for wanted in group], device=self._device)
            pixels = torch.cat([wanted.image.pixel_values for wanted in group]).to(self._device)
            self._steps = self._adapter.encode_steps(pixels, grids, with_attention=group[0].with_attention)
        try:
            next(self._steps)
        except StopIteration as end:
            for wanted, features in zip(group, end.value, strict=True):
                self._found[wanted.key] = features
                self._cache.put(wanted.key, features)
            self._steps = None
            del self._groups[0]

    def features(self) -> list[VisionFeatures]:
        """Once it is done: the features of each prompt, its images concatenated."""
        weight = self._adapter.embed_tokens.weight
        nothing = weight.new_empty(0, weight.shape[1])
        return [_concatenated([self._found[wanted.key] for wanted in images], nothing) for images in self._prompts]


@dataclass(frozen=True, eq=False)
class _Wanted:
    """An image and whether to say what the encoder looked at in it."""

    image: PreparedImage
    with_attention: bool

    @property
    def key(self) -> str:
        return f"{self.image.digest}+attention" if self.with_attention else self.image.digest


def _groups(images: Iterable[_Wanted], tokens_at_once: int) -> Iterator[list[_Wanted]]:
    """Images to encode together: all with attention or none, and not too many."""
    group: list[_Wanted] = []
    for wanted in images:
        full = sum(one.image.tokens for one in group) + wanted.image.tokens > tokens_at_once
        if group and (full or group[0].with_attention != wanted.with_attention):
            yield group
            group = []
        group.append(wanted)
    if group:
        yield group


def _concatenated(images: list[VisionFeatures], nothing: Tensor) -> VisionFeatures:
    layers = zip(*(image.deep for image in images), strict=True)
    return VisionFeatures(
        tokens=torch.cat([nothing, *(image.tokens.to(nothing.dtype) for image in images)]),
        deep=tuple(torch.cat(layer) for layer in layers),
        attention=tuple(seen for image in images for seen in image.attention),
    )


def _owned(features: VisionFeatures) -> VisionFeatures:
    """The features without the rest of the group that they were encoded with."""
    attention = tuple(
        EncoderAttention(tuple(part.clone() for part in seen.received), seen.keys.clone())
        for seen in features.attention
    )
    return VisionFeatures(features.tokens.clone(), tuple(part.clone() for part in features.deep), attention)


def _bytes(features: VisionFeatures) -> int:
    seen = [part for own in features.attention for part in (*own.received, own.keys)]
    return sum(part.numel() * part.element_size() for part in (features.tokens, *features.deep, *seen))
