"""Average pooling of vision tokens on their grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from erase.methods.base import Preselection
from erase.methods.baselines.per_image import ImageView, PerImage, kept_of


class Pooling(PerImage):
    """Adaptive average pool onto a coarser grid of about the image's shape; a cell stands where its centre was.

    Tiles are pooled one by one: what stands below each other in the prompt is not so in the picture.
    """

    name = "pooling"

    def keeps(self, preselection: Preselection) -> list[int]:
        grids = [image.grid for image in preselection.images]
        return [tiles * math.prod(self._coarser((height, width))) for tiles, height, width in grids]

    def choose_in(self, view: ImageView, keep: int) -> Tensor:
        height, width = self._tile(view)
        rows, columns = self._coarser((height, width))
        down, across = _centres(height, rows), _centres(width, columns)
        starts = range(0, view.tokens, height * width)
        places = [start + row * width + column for start in starts for row in down for column in across]
        return torch.tensor(places, device=view.features.device)

    def merge_in(self, view: ImageView, chosen: Tensor) -> Tensor:
        tile = self._tile(view)
        planes = view.features.view(view.tiles, *tile, -1).permute(0, 3, 1, 2)
        pooled = torch.nn.functional.adaptive_avg_pool2d(planes, self._coarser(tile))
        return pooled.flatten(2).transpose(1, 2).flatten(0, 1)

    @staticmethod
    def _tile(view: ImageView) -> tuple[int, int]:
        """Height and width."""
        return view.grid[0] // view.tiles, view.grid[1]

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
