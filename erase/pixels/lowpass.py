"""The low-passed grey image that revision 2 looks at (arXiv 2605.09982)."""

import torch
from torch import Tensor
from torch.nn import functional

from erase.errors import InputError
from erase.pixels import kernels
from erase.pixels.luma import BT601, TOP, Luma, check_tiles, grey

POOL = 4  # pixels along each side that are averaged
ROWS_AT_A_TIME = 64 * POOL  # keeps the grey image in the processor's cache


def low_pass(tiles: Tensor, luma: Luma = BT601) -> Tensor:
    """Grey clamped to 0..255, averaged over 4 x 4 pixels, then blurred by [1 2 1; 2 4 2; 1 2 1] / 16.

    Sums run in row-major order, so that every device gives the same bits, those of the authors' code on an AMD CPU: in
    which order torch's `conv2d` adds up depends on the processor (an Intel Xeon's last bits differ). The blur mirrors
    each tile at its outermost pooled pixels.

    Args:
        tiles: uint8 [T, 3, H, W]; H and W are multiples of 4 and at least 8.
        luma: how colour becomes grey.

    Returns:
        float32 [T, H / 4, W / 4], 0..255.

    Raises:
        InputError: the images are not of that kind.
    """
    check_tiles(tiles, POOL)
    count, _, height, width = tiles.shape
    if min(height, width) < 2 * POOL:
        raise InputError(f"images to low-pass must have {2 * POOL} pixels along each side, got {[height, width]}")
    if kernels.serve(tiles):
        pooled = torch.empty(count, height // POOL, width // POOL)
        kernels.grey_pool(tiles.contiguous().numpy(), luma.weights, luma.unit_range, pooled.numpy())
        blurred = torch.empty_like(pooled)
        kernels.blur(pooled.numpy(), blurred.numpy())
        return blurred
    parts = torch.split(tiles, ROWS_AT_A_TIME, dim=2) if tiles.device.type == "cpu" else (tiles,)
    return _blur(torch.cat([_pool(grey(part, luma).clamp_(0.0, TOP)) for part in parts], dim=1))


def reflected(images: Tensor) -> Tensor:
    """[T, h, w] with one more pixel on every side, mirrored at the outermost pixels."""
    return functional.pad(images.unsqueeze(1), (1, 1, 1, 1), mode="reflect").squeeze(1)


def neighbours(images: Tensor) -> list[Tensor]:
    """The nine pixels around each of [T, h, w], itself in the middle, in row-major order."""
    height, width = images.shape[1:]
    padded = reflected(images)
    return [padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)]


def _pool(image: Tensor) -> Tensor:
    tiles, height, width = image.shape
    blocks = image.view(tiles, height // POOL, POOL, width // POOL, POOL)
    total = blocks[:, :, 0, :, 0].clone()
    for place in range(1, POOL * POOL):
        total += blocks[:, :, place // POOL, :, place % POOL]
    return total / (POOL * POOL)


def _blur(image: Tensor) -> Tensor:
    a, b, c, d, e, f, g, h, i = neighbours(image)
    # Products and the division are exact, so only the order of the additions matters.
    blurred: Tensor = (a + 2 * b + c + 2 * d + 4 * e + 2 * f + g + 2 * h + i) / 16
    return blurred
