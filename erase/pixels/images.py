"""Images as the model sees them: resized pixels, cut into one cell per vision token."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from erase.errors import InputError, UnsupportedError
from erase.pixels import kernels
from erase.pixels.luma import BT601, TOP, Luma


@dataclass(frozen=True, eq=False)
class VisionImage:
    """One image, resized for the model.

    Its vision tokens are cells of `cell` x `cell` pixels: in raster order, tile after tile.
    """

    tiles: Tensor
    """uint8 [T, 3, H, W]; H and W are multiples of `cell`. A model that does not tile has T = 1."""
    cell: int
    """Pixels along each side of a vision token."""
    luma: Luma = BT601
    """How the architecture's authors turn colour into grey."""
    thumbnail: bool = False
    """Whether the last tile shows the whole image once more."""

    @property
    def grid(self) -> tuple[int, int, int]:
        """Cells: tiles, and along the height and width of each."""
        tiles, _, height, width = self.tiles.shape
        return tiles, height // self.cell, width // self.cell

    @property
    def tokens(self) -> int:
        """Vision tokens before pruning."""
        tiles, height, width = self.grid
        return tiles * height * width

    @cached_property
    def groups(self) -> tuple[Tensor, ...]:
        """Tiles that share their statistics, [t, 3, H, W] each: the local ones, and the thumbnail."""
        return (self.tiles[:-1], self.tiles[-1:]) if self.thumbnail else (self.tiles,)


def images_from_patches(
    pixel_values: Tensor,
    image_grid_thw: Tensor,
    *,
    patch_size: int,
    merge_size: int,
    temporal_patch_size: int,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    luma: Luma = BT601,
) -> list[VisionImage]:
    """The resized images behind the patches that a Qwen image processor makes.

    Exact for float32 and float16 pixels. bfloat16 pixels keep eight bits of mantissa, so with a wide normalisation
    (CLIP's) a bright level can come back one off.

    Args:
        pixel_values: [patches of all images, 3 * temporal_patch_size * patch_size**2], normalised.
        image_grid_thw: int [images, 3], patches per image in time, height and width.
        patch_size: pixels along a patch.
        merge_size: patches along a cell, so a cell has patch_size * merge_size pixels along each side.
        temporal_patch_size: copies of a still image in one patch; the first is taken.
        image_mean: subtracted from each channel after scaling to 0..1.
        image_std: divided by, per channel.
        luma: handed on to the images.

    Returns:
        One image per grid, on the device of `pixel_values`.

    Raises:
        InputError: the tensors do not fit each other or the sizes.
        UnsupportedError: a grid has more than one time step (a video).
    """
    grids = fitting_grids(
        pixel_values,
        image_grid_thw,
        patch_size=patch_size,
        merge_size=merge_size,
        temporal_patch_size=temporal_patch_size,
    )
    patches = [height * width for height, width in grids]
    images = []
    for own, (height, width) in zip(torch.split(pixel_values, patches), grids, strict=True):
        size = (height * patch_size, width * patch_size)
        copies = own.reshape(-1, 3, temporal_patch_size, patch_size**2)
        restored = _restore(copies, image_mean, image_std, patch_size, merge_size, size)
        images.append(VisionImage(restored.unsqueeze(0), patch_size * merge_size, luma))
    return images


def fitting_grids(
    pixel_values: Tensor, image_grid_thw: Tensor, *, patch_size: int, merge_size: int, temporal_patch_size: int
) -> list[tuple[int, int]]:
    """Patches along height and width of each image; arguments and errors are those of `images_from_patches`."""
    if image_grid_thw.ndim != 2 or image_grid_thw.shape[1] != 3:
        raise InputError(f"image_grid_thw must be [images, 3], got {list(image_grid_thw.shape)}")
    grids: list[list[int]] = image_grid_thw.tolist()
    if any(time != 1 for time, _, _ in grids):
        raise UnsupportedError(
            "an image_grid_thw with more than one time step is a video; only still images are pruned"
        )
    if any(min(height, width) < 1 or height % merge_size or width % merge_size for _, height, width in grids):
        raise InputError(f"every height and width of image_grid_thw must be a multiple of merge_size = {merge_size}")
    patches = sum(height * width for _, height, width in grids)
    columns = 3 * temporal_patch_size * patch_size**2
    if pixel_values.ndim != 2 or pixel_values.shape[0] != patches or pixel_values.shape[1] != columns:
        raise InputError(
            f"pixel_values must be [{patches}, {columns}] for this image_grid_thw, got {list(pixel_values.shape)}"
        )
    return [(height, width) for _, height, width in grids]


def images_from_tiles(
    pixel_values: Tensor,
    tiles: Sequence[int],
    *,
    cell: int,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    luma: Luma,
) -> list[VisionImage]:
    """The resized images behind the tiles that an InternVL image processor makes.

    Args:
        pixel_values: [tiles of all images, 3, H, W], normalised.
        tiles: tiles of each image; the last one of several is the thumbnail.
        cell: pixels along a vision token.
        image_mean: subtracted from each channel after scaling to 0..1.
        image_std: divided by, per channel.
        luma: handed on to the images.

    Returns:
        One image per entry of `tiles`, on the device of `pixel_values`.

    Raises:
        InputError: the numbers of tiles do not fit `pixel_values`.
    """
    require_tiles(pixel_values, tiles)
    levels = _levels(pixel_values, image_mean, image_std)
    return [VisionImage(own, cell, luma, thumbnail=len(own) > 1) for own in torch.split(levels, list(tiles))]


def require_tiles(pixel_values: Tensor, tiles: Sequence[int]) -> None:
    """Refuses pixels that are not these images' tiles; arguments and errors are those of `images_from_tiles`."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or pixel_values.shape[0] != sum(tiles):
        raise InputError(
            f"pixel_values must be [{sum(tiles)}, 3, height, width] for these image tokens, "
            f"got {list(pixel_values.shape)}"
        )


def _restore(
    copies: Tensor, mean: Sequence[float], std: Sequence[float], patch: int, merge: int, size: tuple[int, int]
) -> Tensor:
    """uint8 [3, H, W] behind an image's patches [patches, 3, copies, patch**2]."""
    if kernels.serve(copies):
        scale, shift = (np.array([TOP * value for value in values], np.float32) for values in (std, mean))
        pixels = torch.empty(3, *size, dtype=torch.uint8)
        normalised = copies.detach().to(torch.float32).contiguous().numpy()
        kernels.restore(normalised, scale, shift, patch, merge, pixels.numpy())
        return pixels
    height, width = size
    levels = _levels(copies[:, :, 0].reshape(-1, 3, patch, patch), mean, std)
    cells = levels.view(height // (patch * merge), width // (patch * merge), merge, merge, 3, patch, patch)
    return cells.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, height, width)


def _levels(normalised: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 levels 0..255 behind normalised [..., 3, h, w] pixels."""
    scale, shift = (
        torch.tensor([TOP * value for value in values], dtype=torch.float32, device=normalised.device).view(3, 1, 1)
        for values in (std, mean)
    )
    return (normalised.to(torch.float32) * scale).add_(shift).clamp_(0.0, TOP).round_().to(torch.uint8)
