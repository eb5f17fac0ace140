"""Cells: the pixels behind each vision token, recovered from what the image processor made of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from erase.errors import InputError, UnsupportedError


def cells_from_pixel_values(
    pixel_values: Tensor,
    image_grid_thw: Tensor,
    *,
    patch_size: int,
    merge_size: int,
    temporal_patch_size: int,
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> list[Tensor]:
    """The resized images behind `pixel_values`, cut into one cell per vision token.

    Exact for float32 and float16 pixels. bfloat16 pixels keep eight bits of mantissa, so with a wide normalisation
    (CLIP's) a bright level can come back one off.

    Args:
        pixel_values: [patches of all images, 3 * temporal_patch_size * patch_size**2], normalised.
        image_grid_thw: int [images, 3], patches per image in time, height and width.
        patch_size: pixels along a patch.
        merge_size: patches along a cell, so a cell has c = patch_size * merge_size pixels along each side.
        temporal_patch_size: copies of a still image in one patch; the first is taken.
        image_mean: subtracted from each channel after scaling to 0..1.
        image_std: divided by, per channel.

    Returns:
        One uint8 [N_i, 3, c, c] per image, cells in token order, on the device of `pixel_values`.

    Raises:
        InputError: the tensors do not fit each other or the sizes.
        UnsupportedError: a grid has more than one time step (a video).
    """
    if image_grid_thw.ndim != 2 or image_grid_thw.shape[1] != 3:
        raise InputError(f"image_grid_thw must be [images, 3], got {list(image_grid_thw.shape)}")
    grids: list[list[int]] = image_grid_thw.tolist()
    if any(time != 1 for time, _, _ in grids):
        raise UnsupportedError(
            "an image_grid_thw with more than one time step is a video; only still images are pruned"
        )
    if any(height % merge_size or width % merge_size for _, height, width in grids):
        raise InputError(f"every height and width of image_grid_thw must be a multiple of merge_size = {merge_size}")
    patches = [height * width for _, height, width in grids]
    columns = 3 * temporal_patch_size * patch_size**2
    if pixel_values.ndim != 2 or pixel_values.shape[0] != sum(patches) or pixel_values.shape[1] != columns:
        raise InputError(
            f"pixel_values must be [{sum(patches)}, {columns}] for this image_grid_thw, got {list(pixel_values.shape)}"
        )
    mean = torch.tensor(image_mean, dtype=torch.float32, device=pixel_values.device).view(3, 1, 1)
    std = torch.tensor(image_std, dtype=torch.float32, device=pixel_values.device).view(3, 1, 1)
    copies = pixel_values.view(-1, 3, temporal_patch_size, patch_size, patch_size)
    pixels = copies[:, :, 0].to(torch.float32) * std + mean
    pixels = pixels.mul_(255.0).round_().clamp_(0.0, 255.0).to(torch.uint8)  # (patch, 3, p, p)
    side = patch_size * merge_size
    tiles = pixels.view(-1, merge_size, merge_size, 3, patch_size, patch_size)
    cells = tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, 3, side, side)
    return list(torch.split(cells, [count // merge_size**2 for count in patches]))
