"""Shannon entropy of image cells, the signal of stage 1 (arXiv 2605.09982)."""

import torch
from torch import Tensor

LEVELS = 256
FIXED_POINT = 2.0**40  # steps per nat
CELLS_AT_A_TIME = 256  # keeps the intermediate images in the processor's cache, twice as fast as all cells at once


def grey(cells: Tensor) -> Tensor:
    """Luma of RGB cells: (0.299 R + 0.587 G) + 0.114 B, rounded to float32 after each operation.

    The order matters: revision 1 takes the floor, so the last bit decides the grey level.

    Args:
        cells: uint8 [N, 3, c, c].

    Returns:
        float32 [N, c, c], 0..255.
    """
    red, green, blue = cells.to(torch.float32).unbind(1)
    # Separate kernels, so that no multiply and add are fused into one rounding.
    return (red * 0.299 + green * 0.587) + blue * 0.114


def cell_entropy(cells: Tensor) -> Tensor:
    """Entropy of each cell's 256-level integer grey histogram, as revision 1 defines it.

    Args:
        cells: uint8 [N, 3, c, c].

    Returns:
        float32 [N], nats, 0..ln 256; a flat cell has exactly 0.
    """
    parts = (cells,) if cells.is_cuda else torch.split(cells, CELLS_AT_A_TIME)
    return torch.cat([_histogram_entropy(part) for part in parts])


def _histogram_entropy(cells: Tensor) -> Tensor:
    cells_count = cells.shape[0]
    levels = grey(cells).floor_().to(torch.int64).flatten(1)
    pixels = levels.shape[1]
    rows = torch.arange(cells_count, device=cells.device).unsqueeze(1) * LEVELS
    counts = torch.bincount((levels + rows).reshape(-1), minlength=cells_count * LEVELS).view(cells_count, LEVELS)
    # Fixed-point terms add up exactly in any order, so equal histograms tie on every device and in every batch.
    share = torch.arange(pixels + 1, dtype=torch.float64, device=cells.device) / pixels
    terms = (torch.special.entr(share) * FIXED_POINT).round().to(torch.int64)
    nats: Tensor = terms[counts].sum(dim=1).to(torch.float64) / FIXED_POINT
    return nats.to(torch.float32)
