"""What Qwen2.5-VL and Qwen3-VL have in common: patches in grids, (t, h, w) positions, token types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from erase.errors import InputError, UnsupportedError
from erase.models.base import VisionFeatures, VisionLanguageAdapter, image_runs, share_out
from erase.pixels.images import VisionImage, fitting_grids, images_from_patches


class QwenVL(VisionLanguageAdapter):
    """A vision encoder over merged patches in front of a decoder with multi-axis rotary positions."""

    position_axes = 3
    pixel_inputs = ("pixel_values", "image_grid_thw")

    @property
    def cell(self) -> int:
        """Pixels along each side of a vision token: patch size times merge size."""
        vision = self.config.vision_config
        return int(vision.patch_size * vision.spatial_merge_size)

    def images_of(
        self, call: Mapping[str, Any], vision: Tensor, mean: Sequence[float], std: Sequence[float]
    ) -> list[list[VisionImage]]:
        images = iter(self.vision_images(call["pixel_values"], call["image_grid_thw"], mean, std))
        return [[next(images) for _ in range(share)] for share in self._shares(call, vision)]

    def vision_images(
        self, pixel_values: Tensor, grids: Tensor, mean: Sequence[float], std: Sequence[float]
    ) -> list[VisionImage]:
        return images_from_patches(
            pixel_values, grids, **self._patch_sizes, image_mean=mean, image_std=std, luma=self.luma
        )

    def prepare_image(self, image_processor: Any, image: Any) -> tuple[Tensor, tuple[int, int, int]]:
        features = image_processor(images=[image], return_tensors="pt")
        time, height, width = features["image_grid_thw"][0].tolist()
        return features["pixel_values"], (time, height, width)

    def stock_inputs(self, input_ids: Tensor, pixel_values: Tensor | None, grids: Tensor | None) -> dict[str, Tensor]:
        token_types = {"mm_token_type_ids": (input_ids == self.image_token_id).int()}
        if pixel_values is None or grids is None:
            return token_types
        return token_types | {"pixel_values": pixel_values, "image_grid_thw": grids}

    def check_call(self, call: Mapping[str, Any], vision: Tensor) -> None:
        token_types = call.get("mm_token_type_ids")
        if token_types is None:
            if call.get("position_ids") is None:
                raise UnsupportedError(
                    "mm_token_type_ids is missing, so the model would give the image tokens text positions; pass it as "
                    "the processor returns it (1 for image tokens, 0 for text)"
                )
        elif token_types.shape != vision.shape or not bool(torch.equal(token_types.to(vision.device) == 1, vision)):
            raise InputError("mm_token_type_ids must be 1 exactly where input_ids has image tokens")
        if all(call.get(name) is not None for name in self.pixel_inputs):
            self._shares(call, vision)

    def encode_images(self, pixel_values: Tensor, grids: Tensor) -> tuple[VisionFeatures, ...]:
        output = self.inner.get_image_features(pixel_values, grids, return_dict=True)
        tokens = tuple(output.pooler_output)
        deep = [_per_image(layer, tokens) for layer in getattr(output, "deepstack_features", None) or ()]
        return tuple(VisionFeatures(own, tuple(layer[number] for layer in deep)) for number, own in enumerate(tokens))

    def positions(self, tokens: Tensor, is_image: Tensor, grids: Tensor | None) -> tuple[Tensor, int]:
        if grids is None:
            return torch.arange(len(tokens)).expand(3, -1), 0
        positions, delta = self.inner.get_rope_index(
            tokens.unsqueeze(0), mm_token_type_ids=is_image.unsqueeze(0), image_grid_thw=grids
        )
        return positions[:, 0], int(delta)

    @property
    def _patch_sizes(self) -> dict[str, int]:
        vision = self.config.vision_config
        return {
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
        }

    def _shares(self, call: Mapping[str, Any], vision: Tensor) -> list[int]:
        """How many images each prompt has."""
        sizes = self._patch_sizes
        grids = fitting_grids(call["pixel_values"], call["image_grid_thw"], **sizes)
        tokens = [height * width // sizes["merge_size"] ** 2 for height, width in grids]
        return share_out(tokens, image_runs(vision))


def _per_image(features: Any, tokens: Sequence[Tensor]) -> Sequence[Tensor]:
    return torch.split(features, [len(own) for own in tokens]) if isinstance(features, Tensor) else features
