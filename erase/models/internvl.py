"""InternVL3 in its transformers form: tiles, an optional thumbnail, plain text positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import InternVLForConditionalGeneration

from erase.errors import InputError
from erase.models.base import VisionFeatures, VisionLanguageAdapter, image_runs
from erase.pixels.images import VisionImage, images_from_tiles, require_tiles
from erase.pixels.luma import BT601_UNIT


class InternVL(VisionLanguageAdapter):
    """An image is one tile, or several and a thumbnail; the model is told no tile counts, so runs of image tokens are.

    The published scores (revision 2) used the layers' true queries.
    """

    model_type = "internvl"
    model_class = InternVLForConditionalGeneration
    default_preset = "internvl3-8b-budget"
    luma = BT601_UNIT
    binned_queries = "normed_input"
    budget_queries = "normed_input"
    position_axes = 1
    cuts_tiles = True
    pixel_inputs = ("pixel_values",)

    @property
    def cell(self) -> int:
        """Pixels along each side of a vision token: patch size over the pixel shuffle's ratio."""
        side: int = self.config.vision_config.patch_size[0]
        return round(side / float(self.config.downsample_ratio))

    @property
    def tile_tokens(self) -> int:
        """Vision tokens of a tile."""
        return int(self.config.image_seq_length)

    def images_of(
        self, call: Mapping[str, Any], vision: Tensor, mean: Sequence[float], std: Sequence[float]
    ) -> list[list[VisionImage]]:
        runs = self._tiles_of(vision)
        tiles = torch.tensor([[count, 1, 1] for row in runs for count in row])
        images = iter(self.vision_images(call["pixel_values"], tiles, mean, std))
        return [[next(images) for _ in row] for row in runs]

    def vision_images(
        self, pixel_values: Tensor, grids: Tensor, mean: Sequence[float], std: Sequence[float]
    ) -> list[VisionImage]:
        return images_from_tiles(
            pixel_values, grids[:, 0].tolist(), cell=self.cell, image_mean=mean, image_std=std, luma=self.luma
        )

    def prepare_image(self, image_processor: Any, image: Any) -> tuple[Tensor, tuple[int, int, int]]:
        # The stock InternVL processor asks its image processor for tiles; by itself that makes one per image.
        pixels = image_processor(images=[image], crop_to_patches=True, return_tensors="pt")["pixel_values"]
        tiles, _, height, width = pixels.shape
        patch_height, patch_width = self.config.vision_config.patch_size
        return pixels, (tiles, height // patch_height, width // patch_width)

    def image_span(self, tokenizer: Any, tokens: int) -> list[int]:
        inside = super().image_span(tokenizer, tokens)
        return [tokenizer.start_image_token_id, *inside, tokenizer.end_image_token_id]

    def check_call(self, call: Mapping[str, Any], vision: Tensor) -> None:
        tiles = [count for row in self._tiles_of(vision) for count in row]
        pixels = call.get("pixel_values")
        if pixels is None:
            return
        height, width = pixels.shape[-2:] if pixels.ndim == 4 else (0, 0)
        if height % self.cell or width % self.cell or height * width != self.tile_tokens * self.cell**2:
            raise InputError(
                f"pixel_values must be tiles [tiles, 3, height, width] of {self.tile_tokens} vision tokens, "
                f"cells of {self.cell} pixels each, got {list(pixels.shape)}"
            )
        require_tiles(pixels, tiles)

    def encode_images(self, pixel_values: Tensor, grids: Tensor) -> tuple[VisionFeatures, ...]:
        features = self.inner.get_image_features(pixel_values, return_dict=True).pooler_output  # (tiles, tokens, d)
        parts = torch.split(features, grids[:, 0].tolist())
        return tuple(VisionFeatures(part.flatten(0, 1)) for part in parts)

    def positions(self, tokens: Tensor, is_image: Tensor, grids: Tensor | None) -> tuple[Tensor, int]:
        return torch.arange(len(tokens)).unsqueeze(0), 0

    def _tiles_of(self, vision: Tensor) -> list[list[int]]:
        """Tiles of each image of each prompt: an image is a run of image tokens."""
        runs = image_runs(vision)
        if any(length % self.tile_tokens for row in runs for length in row):
            raise InputError(f"every run of image tokens must be a multiple of a tile's {self.tile_tokens} tokens")
        return [[length // self.tile_tokens for length in row] for row in runs]
