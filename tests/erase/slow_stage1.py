"""The pixel side of ERASE a second time, slow and with nothing of the library: entropies, edges, stage 1.

An image is uint8 [T, 3, H, W] as resized for the model: T = 1 for the Qwens, for InternVL its tiles, where the last one
is the thumbnail if there are several. Cells are counted tile after tile, each in raster order.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

BINOMIAL = [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
SOBEL_X = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]
SOBEL_Y = [[-1, -2, -1], [0, 0, 0], [1, 2, 1]]
GREATEST_ENTROPY = 5.541263545158426
MEAN_MARGIN, LEAST_EDGE = 1e-4, 8.0


@dataclass
class Stage1:
    """What stage 1 leaves of all images; indices count the cells of all images one after another."""

    kept: list[int] = field(default_factory=list)
    entropies: list[list[float]] = field(default_factory=list)
    edge_ratios: list[list[float]] = field(default_factory=list)
    any_complex: bool = False


def is_binned(policy: object) -> bool:
    return hasattr(policy, "thresholds")


def is_unpruned(policy: object) -> bool:
    return (policy.final_retention if is_binned(policy) else policy.retention) >= 1.0


def stage_1(images: list[Tensor], policy: object, cell: int, *, internvl: bool = False) -> Stage1:
    result, offset = Stage1(), 0
    for image in images:
        if is_binned(policy):
            entropies = binned_entropies(image, cell)
            kept, is_complex = keep_by_bin(entropies, policy)
            result.any_complex |= is_complex
        else:
            kept, entropies, edges = keep_by_mean_or_edge(image, policy, cell, internvl=internvl)
            result.edge_ratios.append(edges)
        if is_unpruned(policy):
            kept = list(range(len(entropies)))
        result.kept += [offset + index for index in sorted(kept)]
        result.entropies.append(entropies)
        offset += len(entropies)
    return result


def binned_entropies(image: Tensor, cell: int) -> list[float]:
    return [entropy(levels) for tile in image for levels in cells_of(grey_of(tile).floor(), cell)]


def keep_by_bin(entropies: list[float], policy: object) -> tuple[list[int], bool]:
    """Indices of one image's cells, and whether the image is complex."""
    bins = len(policy.stage1_retention)
    complexity = lower_median(entropies)
    bin_index = next((j for j, threshold in enumerate(policy.thresholds) if complexity > threshold), bins - 1)
    share = max(policy.stage1_retention[bin_index], policy.final_retention)
    count = max(1, int(len(entropies) * share))
    return best_first(entropies)[:count], bin_index < math.ceil(bins / 2)


def keep_by_mean_or_edge(
    image: Tensor, policy: object, cell: int, *, internvl: bool
) -> tuple[list[int], list[float], list[float]]:
    """Kept indices, entropies and edge ratios of one image's cells."""
    kept, entropies, edges = [], [], []
    for tiles in groups_of(image, internvl=internvl):
        blurred = [low_pass(grey_of(tile, internvl=internvl)) for tile in tiles]
        group_entropies = [entropy(levels) for tile in blurred for levels in cells_of(tile.round(), cell // 4)]
        threshold = edge_threshold(blurred, policy.edge_tau)
        marks = [levels > threshold for tile in blurred for levels in cells_of(sobel(tile), cell // 4)]
        group_edges = [int(mark.sum()) / mark.numel() for mark in marks]
        mean = math.fsum(group_entropies) / len(group_entropies)
        for value, edge in zip(group_entropies, group_edges, strict=True):
            if value > mean + MEAN_MARGIN or edge > 0:
                kept.append(len(entropies))
            entropies.append(value)
            edges.append(edge)
    return kept or best_first(entropies)[:1], entropies, edges


def groups_of(image: Tensor, *, internvl: bool) -> list[Tensor]:
    """InternVL's local tiles are one group and its thumbnail another; any other image is one group."""
    return [image[:-1], image[-1:]] if internvl and len(image) > 1 else [image]


def grey_of(image: Tensor, *, internvl: bool = False) -> Tensor:
    """uint8 [3, H, W] to float32 grey [H, W], 0..255; every product and sum is rounded to float32 on its own."""
    red, green, blue = image.float()
    if not internvl:
        return (0.299 * red + 0.587 * green) + 0.114 * blue
    red, green, blue = red / 255, green / 255, blue / 255
    return ((0.2989 * red + 0.5870 * green) + 0.1140 * blue) * 255


def low_pass(grey: Tensor) -> Tensor:
    """Grey [H, W] to its blurred quarter [H / 4, W / 4], float32."""
    pooled = functional.avg_pool2d(grey.clamp(0, 255)[None, None], 4)[0, 0]
    return convolve(pooled, BINOMIAL, divisor=16)


def sobel(image: Tensor) -> Tensor:
    across, down = convolve(image, SOBEL_X), convolve(image, SOBEL_Y)
    return (across.square() + down.square() + 1e-12).sqrt()


def edge_threshold(blurred: list[Tensor], tau: float) -> float:
    values = [value for tile in blurred for value in tile.flatten().tolist()]
    return max((1 - tau) * lower_median(values), LEAST_EDGE)


def convolve(image: Tensor, kernel: list[list[int]], divisor: int = 1) -> Tensor:
    """3x3 correlation of [H, W] with reflect padding (the border row itself is not repeated), float32."""
    padded = functional.pad(image[None, None], (1, 1, 1, 1), mode="reflect")
    return functional.conv2d(padded, torch.tensor(kernel).float()[None, None] / divisor)[0, 0]


def cells_of(image: Tensor, cell: int) -> list[Tensor]:
    """[H, W] to its cells [cell, cell] in raster order."""
    height, width = image.shape
    return [
        image[top : top + cell, left : left + cell] for top in range(0, height, cell) for left in range(0, width, cell)
    ]


def entropy(levels: Tensor) -> float:
    """Nats of whole-numbered grey levels; cells whose histograms have the same counts give the same number."""
    counts = Counter(levels.flatten().tolist()).values()
    return -math.fsum(count / levels.numel() * math.log(count / levels.numel()) for count in counts)


def lower_median(values: list[float]) -> float:
    return sorted(values)[(len(values) - 1) // 2]


def best_first(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))
