"""Vision features of prompts: each image is encoded once, however often and by whomever it is asked about."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from erase.models.base import VisionFeatures, VisionLanguageAdapter
from erase.models.prompt import PreparedImage


class FeatureCache:
    """The features of the images that were used last, up to so many bytes.

    Keys are `PreparedImage.digest`: SHA-256 of all that an image's features depend on beside the model. The cache
    belongs to one model.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._features: OrderedDict[str, VisionFeatures] = OrderedDict()

    def get(self, digest: str) -> VisionFeatures | None:
        """Features of an image, which count as used now."""
        found = self._features.get(digest)
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
            self._features.move_to_end(digest)
        return found

    def put(self, digest: str, features: VisionFeatures) -> None:
        """Keep features; what was not used for longest makes room. One too large for the cache is not kept."""
        size = _bytes(features)
        if size > self.max_bytes or digest in self._features:
            return
        self._features[digest] = _owned(features)
        self.bytes += size
        while self.bytes > self.max_bytes:
            _, dropped = self._features.popitem(last=False)
            self.bytes -= _bytes(dropped)


class Encoding:
    """Images of several prompts on their way through the vision encoder, a layer at a time where the adapter can.

    Args:
        adapter: the model.
        prompts: the images of each prompt.
        cache: remembers features; what it has is not encoded.
        device: the model's.
        tokens_at_once: vision tokens of the images that are encoded together, if there is more than one.
    """

    def __init__(
        self,
        adapter: VisionLanguageAdapter,
        prompts: Sequence[Sequence[PreparedImage]],
        cache: FeatureCache,
        device: torch.device,
        tokens_at_once: int,
    ) -> None:
        self._adapter = adapter
        self._prompts = prompts
        self._cache = cache
        self._device = device
        self._found: dict[str, VisionFeatures] = {}
        missing: dict[str, PreparedImage] = {}
        for image in (image for images in prompts for image in images):
            if image.digest in self._found or image.digest in missing:
                continue
            features = cache.get(image.digest)
            if features is None:
                missing[image.digest] = image
            else:
                self._found[image.digest] = features
        self._groups = list(_groups(missing.values(), tokens_at_once))
        self._steps: Generator[None, None, tuple[VisionFeatures, ...]] | None = None

    @property
    def done(self) -> bool:
        """Whether every image is encoded."""
        return not self._groups

    @torch.inference_mode()
    def run_layer(self) -> None:
        """Run the next layer of the encoder over the images whose turn it is."""
        images = self._groups[0]
        if self._steps is None:
            grids = torch.tensor([image.grid_thw for image in images], device=self._device)
            pixels = torch.cat([image.pixel_values for image in images]).to(self._device)
            self._steps = self._adapter.encode_steps(pixels, grids)
        try:
            next(self._steps)
        except StopIteration as end:
            for image, features in zip(images, end.value, strict=True):
                self._found[image.digest] = features
                self._cache.put(image.digest, features)
            self._steps = None
            del self._groups[0]

    def features(self) -> list[VisionFeatures]:
        """Once it is done: the features of each prompt, its images concatenated."""
        weight = self._adapter.embed_tokens.weight
        nothing = weight.new_empty(0, weight.shape[1])
        return [_concatenated([self._found[image.digest] for image in images], nothing) for images in self._prompts]


def _groups(images: Iterable[PreparedImage], tokens_at_once: int) -> Iterator[list[PreparedImage]]:
    group: list[PreparedImage] = []
    for image in images:
        if group and sum(one.tokens for one in group) + image.tokens > tokens_at_once:
            yield group
            group = []
        group.append(image)
    if group:
        yield group


def _concatenated(images: list[VisionFeatures], nothing: Tensor) -> VisionFeatures:
    layers = zip(*(image.deep for image in images), strict=True)
    return VisionFeatures(
        tokens=torch.cat([nothing, *(image.tokens.to(nothing.dtype) for image in images)]),
        deep=tuple(torch.cat(layer) for layer in layers),
    )


def _owned(features: VisionFeatures) -> VisionFeatures:
    """The features without the rest of the group that they were encoded with."""
    return VisionFeatures(features.tokens.clone(), tuple(part.clone() for part in features.deep))


def _bytes(features: VisionFeatures) -> int:
    return sum(part.numel() * part.element_size() for part in (features.tokens, *features.deep))
