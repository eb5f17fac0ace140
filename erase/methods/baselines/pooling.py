"""Average pooling of vision tokens on their grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from erase.methods.baselines.per_image import ImageView, PerImage, kept_of


class Pooling(PerImage):
    """Adaptive average pool onto a coarser grid of about the image's shape; a cell stands where its centre was."""

    name = "pooling"

    def keep_of(self, grid: tuple[int, int]) -> int:
        rows, columns = self._coarser(grid)
        return rows * columns

    def choose_in(self, view: ImageView, keep: int) -> Tensor:
        (height, width), (rows, columns) = view.grid, self._coarser(view.grid)
        down, across = _centres(height, rows), _centres(width, columns)
        places = [row * width + column for row in down for column in across]
        return torch.tensor(places, device=view.features.device)

    def merge_in(self, view: ImageView, chosen: Tensor) -> Tensor:
        plane = view.features.T.reshape(1, -1, *view.grid)
        return torch.nn.functional.adaptive_avg_pool2d(plane, self._coarser(view.grid)).flatten(2)[0].T

    def _coarser(self, grid: tuple[int, int]) -> tuple[int, int]:
        return coarser(grid, kept_of(grid[0] * grid[1], self.policy.retention))


def coarser(grid: tuple[int, int], most: int) -> tuple[int, int]:
    """Rows and columns: at most `most` cells, many of them, and nearly the shape of the grid (height, width)."""
    height, width = grid

    def merit(size: tuple[int, int]) -> float:
        rows, columns = size
        stretch = abs(math.log((height / rows) / (width / columns)))
        return rows * columns * math.exp(-stretch)

    sizes = [(rows, min(width, most // rows)) for rows in range(1, min(height, most) + 1)]
    return max(sizes, key=merit)


def _centres(length: int, parts: int) -> list[int]:
    """The middle place of each of so many equal parts of a side."""
    return [int((number + 0.5) * length / parts) for number in range(parts)]
