"""Edges of the low-passed image, the second signal of revision 2 (arXiv 2605.09982)."""

import numpy as np
import torch
from torch import Tensor

from erase.errors import InputError
from erase.pixels import kernels
from erase.pixels.lowpass import neighbours

WEAKEST_EDGE = 8.0
"""Sobel magnitude that an edge exceeds on a page of any darkness: on a black one, rounding noise would be an edge."""
TINY = 1e-12


def sobel_magnitude(blurred: Tensor) -> Tensor:
    """sqrt(gx^2 + gy^2 + 1e-12) of the unnormalised 3 x 3 Sobel gradients, with reflect padding per tile.

    Args:
        blurred: float32 [T, h, w], h and w at least 2.

    Returns:
        float32 [T, h, w], the root rounded correctly: the same bits on every device.

    Raises:
        InputError: `blurred` is not of that kind.
    """
    _check(blurred, 1)
    if kernels.serve(blurred):
        magnitude = torch.empty_like(blurred, memory_format=torch.contiguous_format)
        kernels.sobel(blurred.contiguous().numpy(), magnitude.numpy())
        return magnitude
    a, b, c, d, _, f, g, h, i = neighbours(blurred)
    # Row-major additions, and squares in kernels of their own, so that nothing is fused.
    across = c - a - 2 * d + 2 * f - g + i
    down = -a - 2 * b - c + g + 2 * h + i
    # In float64 and back, which rounds right: torch's float32 root on CPU is off by the last bit now and then.
    return (across * across + down * down + TINY).to(torch.float64).sqrt().to(torch.float32)


def edge_ratio(blurred: Tensor, cell: int, threshold: float) -> Tensor:
    """Share of edge pixels in each cell.

    Args:
        blurred: float32 [T, h, w], h and w at least 2.
        cell: pooled pixels along a cell; divides h and w.
        threshold: an edge's Sobel magnitude exceeds this; see `edge_threshold`.

    Returns:
        float32 [N], 0..1, cells in raster order, tile after tile.

    Raises:
        InputError: `blurred` is not of that kind, or not made of such cells.
    """
    _check(blurred, cell)
    tiles, height, width = blurred.shape
    if kernels.serve(blurred):
        found = np.empty(tiles * (height // cell) * (width // cell), np.int64)
        kernels.edge_counts(blurred.contiguous().numpy(), cell, np.float32(threshold), found)
        counts = torch.from_numpy(found)
    else:
        edges = sobel_magnitude(blurred) > threshold
        counts = edges.view(tiles, height // cell, cell, width // cell, cell).sum(dim=(2, 4)).view(-1)
    # A number on the device, as CUDA multiplies by the reciprocal of one on the host.
    return counts.to(torch.float32) / torch.full((), float(cell**2), device=counts.device)


def edge_threshold(blurred: Tensor, tau: float) -> float:
    """Sobel magnitude that an edge must exceed: (1 - tau) x the lower median of the image, at least `WEAKEST_EDGE`.

    Args:
        blurred: float32 [T, h, w], all tiles of one group; not empty and nowhere negative.
        tau: 0..1; higher finds more edges.

    Returns:
        The threshold, a float32 value.

    Raises:
        InputError: `blurred` is not of that kind.
    """
    _check(blurred, 1)
    if not blurred.numel():
        raise InputError("an empty image has no median")
    if kernels.serve(blurred):
        median = kernels.lower_median(blurred.contiguous().numpy().reshape(-1))
    else:
        median = float(blurred.median())
    return max(float(np.float32(1.0 - tau) * np.float32(median)), WEAKEST_EDGE)


def _check(blurred: Tensor, cell: int) -> None:
    if blurred.dtype != torch.float32 or blurred.ndim != 3 or min(blurred.shape[1:]) < 2:
        raise InputError(
            f"blurred images must be float32 [T, h, w] of at least 2 x 2, got {blurred.dtype} {list(blurred.shape)}"
        )
    if cell < 1 or blurred.shape[1] % cell or blurred.shape[2] % cell:
        raise InputError(f"height and width must be multiples of {cell} pooled pixels, got {list(blurred.shape[1:])}")
