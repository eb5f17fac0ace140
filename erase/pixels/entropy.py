"""Shannon entropy of image cells, the signal of stage 1 (arXiv 2605.09982)."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from erase.errors import InputError
from erase.pixels import kernels
from erase.pixels.luma import BT601, Luma, check_tiles, grey

LEVELS = 256
FIXED_POINT = 2.0**40  # steps per nat
PIXELS_AT_A_TIME = 200_000  # keeps the intermediate images in the processor's cache, twice as fast as all at once


def cell_entropy(tiles: Tensor, cell: int, luma: Luma = BT601) -> Tensor:
    """Entropy of each cell's 256-level integer grey histogram, as revision 1 defines it.

    Args:
        tiles: uint8 [T, 3, H, W].
        cell: pixels along a cell; divides H and W.
        luma: how colour becomes grey; its floor is counted.

    Returns:
        float32 [N], nats, 0..ln 256, cells in raster order, tile after tile; a flat cell has exactly 0. The same bits
        on every device.

    Raises:
        InputError: the images are not of that kind, or not made of such cells.
    """
    check_tiles(tiles, cell)
    if kernels.serve(tiles) and cell <= kernels.LARGEST_CELL:
        sums = np.empty(_cells(tiles, cell), np.int64)
        pixels = tiles.contiguous().numpy()
        kernels.cell_entropy(pixels, cell, luma.weights, luma.unit_range, _terms(cell**2).numpy(), sums)
        return _nats(torch.from_numpy(sums))
    parts = [_entropy_of_strips(grey(strips, luma).floor_(), cell) for strips in _strips(tiles, cell)]
    return torch.cat(parts)


def level_entropy(levels: Tensor, cell: int) -> Tensor:
    """Entropy of each cell's histogram of given grey levels, as revision 2 takes of the low-passed image.

    Args:
        levels: uint8 or integer [T, h, w], 0..255.
        cell: pixels along a cell; divides h and w.

    Returns:
        float32 [N], nats, as `cell_entropy`.

    Raises:
        InputError: the levels are not of that kind, or not made of such cells.
    """
    if levels.is_floating_point() or levels.ndim != 3 or cell < 1 or levels.shape[1] % cell or levels.shape[2] % cell:
        raise InputError(
            f"levels must be integers [T, h, w] with h and w multiples of {cell}, got {levels.dtype} "
            f"{list(levels.shape)}"
        )
    if kernels.serve(levels):
        sums = np.empty(_cells(levels, cell), np.int64)
        pixels = levels.to(torch.uint8).contiguous().numpy()
        kernels.level_entropy(pixels, cell, _terms(cell**2).numpy(), sums)
        return _nats(torch.from_numpy(sums))
    parts = [_entropy_of_strips(strips.squeeze(1), cell) for strips in _strips(levels.unsqueeze(1), cell)]
    return torch.cat(parts)


def _cells(image: Tensor, cell: int) -> int:
    return image.shape[0] * (image.shape[-2] // cell) * (image.shape[-1] // cell)


def _strips(image: Tensor, cell: int) -> tuple[Tensor, ...]:
    """[T, C, H, W] as strips of one row of cells [S, C, cell, W], on CPU some at a time."""
    tiles, channels, height, width = image.shape
    strips = image.reshape(tiles, channels, height // cell, cell, width).transpose(1, 2).flatten(0, 1)
    at_a_time = max(1, PIXELS_AT_A_TIME // max(1, cell * width))
    return torch.split(strips, at_a_time) if image.device.type == "cpu" else (strips,)


def _entropy_of_strips(levels: Tensor, cell: int) -> Tensor:
    """Levels [S, cell, W] to float32 [S * W / cell]."""
    strips, _, width = levels.shape
    across = width // cell
    cells = strips * across
    first = torch.arange(0, cells * LEVELS, LEVELS, device=levels.device).view(strips, 1, across, 1)
    bins = (levels.to(torch.int64).view(strips, cell, across, cell) + first).view(-1)
    # Not `bincount`, which makes the host wait for a GPU.
    counts = torch.zeros(cells * LEVELS, dtype=torch.int32, device=levels.device)
    counts.scatter_add_(0, bins, torch.ones_like(bins, dtype=torch.int32))
    terms = _terms(cell**2).to(levels.device, non_blocking=True)
    return _nats(terms.take(counts.view(cells, LEVELS).to(torch.int64)).sum(dim=1))


def _nats(sums: Tensor) -> Tensor:
    return (sums.to(torch.float64) / FIXED_POINT).to(torch.float32)


@lru_cache(maxsize=16)
def _terms(pixels: int) -> Tensor:
    """int64 [pixels + 1]: -p ln p of every share p of `pixels`.

    In fixed point, so that terms add up exactly in any order and equal histograms tie on every device; on CPU, as the
    logarithms of devices differ.
    """
    share = torch.arange(pixels + 1, dtype=torch.float64) / pixels
    terms: Tensor = (torch.special.entr(share) * FIXED_POINT).round().to(torch.int64)
    return terms
