"""Stage 1 on one processor core: compiled loops over pixels that give the bits of the plain torch versions.

`entropy.py`, `lowpass.py` and `edges.py` call these on CPU tensors when `AVAILABLE`; without numba, or with the
environment variable STAGE1_PURE set, they run in torch. The compiler may neither fuse multiply and add nor reorder
additions (no fastmath), and it releases the interpreter lock, so that images can be prepared in several threads.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def _importable() -> bool:
    if os.environ.get("STAGE1_PURE"):
        return False
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


AVAILABLE = _importable()

LEVELS = 256
LANES = 8  # histograms that take turns, as an increment must not wait for the one before it on a flat cell
LARGEST_CELL = 255  # pixels along a cell, so that its 16-bit counts do not overflow
POOL = 4
_ZERO, _TOP = np.float32(0.0), np.float32(255.0)
_ROUNDING = np.float32(1.5 * 2**23)
_POOLED = np.float32(POOL * POOL)
_TWO, _FOUR, _SIXTEEN = np.float32(2.0), np.float32(4.0), np.float32(16.0)
_TINY = np.float32(1e-12)
_BYTE, _ONE_BYTE, _TWO_BYTES, _THREE_BYTES = np.uint32(255), np.uint32(8), np.uint32(16), np.uint32(24)
_LOWER_HALF = np.uint32(0xFFFF)

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Lanes = NDArray[np.uint16]
Sums = NDArray[np.int64]
P = ParamSpec("P")
R = TypeVar("R")


def _compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile at the first call, kept on disk where numba finds a writable folder."""
    if not AVAILABLE:
        return function
    import numba

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return cast(Callable[P, R], numba.njit(cache=True, **options)(function))
    except RuntimeError:
        return cast(Callable[P, R], numba.njit(**options)(function))


def serve(image: Tensor) -> bool:
    """Whether the compiled versions can be called with this image."""
    return AVAILABLE and image.device.type == "cpu"


@_compiled
def restore(patches: Floats, scale: Floats, shift: Floats, patch: int, merge: int, pixels: Pixels) -> None:
    """Levels of an image behind its normalised patches: round half to even of patch x scale + shift, clamped to 0..255.

    Args:
        patches: [n, 3, copies, patch**2], contiguous, cell by cell; the first copy is taken.
        scale: [3], per channel.
        shift: [3].
        patch: pixels along a patch.
        merge: patches along a cell.
        pixels: [3, H, W], filled.
    """
    side = patch * merge
    across = pixels.shape[2] // side
    for cell in range(patches.shape[0] // (merge * merge)):
        for part in range(merge * merge):
            top = cell // across * side + part // merge * patch
            left = cell % across * side + part % merge * patch
            for channel in range(3):
                source = patches[cell * merge * merge + part, channel, 0]
                factor, summand = scale[channel], shift[channel]
                for y in range(patch):
                    row = pixels[channel, top + y, left : left + patch]
                    for x in range(patch):
                        level = min(max(source[y * patch + x] * factor + summand, _ZERO), _TOP)
                        # Between 2**23 and 2**24 floats are whole numbers, so this sum rounds.
                        row[x] = np.uint8((level + _ROUNDING) - _ROUNDING)


@_compiled
def _shade(red: np.uint8, green: np.uint8, blue: np.uint8, weights: Floats, unit_range: bool) -> np.float32:
    r, g, b = np.float32(red), np.float32(green), np.float32(blue)
    if unit_range:
        r, g, b = r / _TOP, g / _TOP, b / _TOP
    shade: np.float32 = (weights[0] * r + weights[1] * g) + weights[2] * b
    return shade * _TOP if unit_range else shade


@_compiled
def _grey_row(planes: Pixels, y: int, weights: Floats, unit_range: bool, row: Floats) -> None:
    red, green, blue = planes[0, y], planes[1, y], planes[2, y]
    for x in range(row.size):
        row[x] = _shade(red[x], green[x], blue[x], weights, unit_range)


@_compiled
def _level_row(planes: Pixels, y: int, weights: Floats, unit_range: bool, row: Pixels) -> None:
    red, green, blue = planes[0, y], planes[1, y], planes[2, y]
    for x in range(row.size):
        row[x] = np.uint8(np.int32(_shade(red[x], green[x], blue[x], weights, unit_range)))


@_compiled
def _count(levels: Pixels, left: int, cell: int, lanes: Lanes) -> None:
    """Histogram of a cell of any size into the first lane."""
    for y in range(cell):
        for x in range(left, left + cell):
            lanes[0, levels[y, x]] += 1


@_compiled
def _count_in_turns(words: NDArray[np.uint32], left: int, across: int, lanes: Lanes) -> None:
    """Histogram of a cell of 4 * `across` pixels along each side, four levels per word, into the first lane."""
    a, b, c, d, e, f, g, h = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4], lanes[5], lanes[6], lanes[7]
    for y in range(0, 4 * across, 2):
        for x in range(left, left + across):
            upper, lower = words[y, x], words[y + 1, x]
            a[upper & _BYTE] += 1
            b[(upper >> _ONE_BYTE) & _BYTE] += 1
            c[(upper >> _TWO_BYTES) & _BYTE] += 1
            d[upper >> _THREE_BYTES] += 1
            e[lower & _BYTE] += 1
            f[(lower >> _ONE_BYTE) & _BYTE] += 1
            g[(lower >> _TWO_BYTES) & _BYTE] += 1
            h[lower >> _THREE_BYTES] += 1
    for level in range(LEVELS):
        a[level] += b[level] + c[level] + d[level] + e[level] + f[level] + g[level] + h[level]


@_compiled
def cell_entropy(pixels: Pixels, cell: int, weights: Floats, unit_range: bool, terms: Sums, sums: Sums) -> None:
    """Entropy of the floored grey of each cell.

    Args:
        pixels: [T, 3, H, W], contiguous.
        cell: pixels along a cell, at most `LARGEST_CELL`; divides H and W.
        weights: [3], of red, green and blue.
        unit_range: whether grey is taken of levels in 0..1.
        terms: [cell**2 + 1], -p ln p of p = count / cell**2 in fixed point.
        sums: [N], filled with the sums of the cells' terms.
    """
    tiles, _, height, width = pixels.shape
    levels = np.empty((cell, width), np.uint8)
    words = levels.view(np.uint32) if cell % 4 == 0 else np.empty((0, 0), np.uint32)
    lanes = np.zeros((LANES, LEVELS), np.uint16)
    index = 0
    for tile in range(tiles):
        for top in range(0, height, cell):
            for y in range(cell):
                _level_row(pixels[tile], top + y, weights, unit_range, levels[y])
            for left in range(0, width, cell):
                if cell % 4 == 0:
                    _count_in_turns(words, left // 4, cell // 4, lanes)
                else:
                    _count(levels, left, cell, lanes)
                total = np.int64(0)
                for level in range(LEVELS):
                    total += terms[lanes[0, level]]
                sums[index] = total
                index += 1
                lanes[:] = 0


@_compiled
def level_entropy(levels: Pixels, cell: int, terms: Sums, sums: Sums) -> None:
    """As `cell_entropy`, of given levels [T, h, w]; made for small cells, whose histograms are mostly empty."""
    tiles, height, width = levels.shape
    gains = terms[1:] - terms[:-1]
    counts = np.zeros(LEVELS, np.int64)
    index = 0
    for tile in range(tiles):
        for top in range(0, height, cell):
            for left in range(0, width, cell):
                total = np.int64(0)
                for y in range(top, top + cell):
                    for x in range(left, left + cell):
                        level = levels[tile, y, x]
                        count = counts[level]
                        total += gains[count]
                        counts[level] = count + 1
                for y in range(top, top + cell):
                    for x in range(left, left + cell):
                        counts[levels[tile, y, x]] = 0
                sums[index] = total
                index += 1


@_compiled
def grey_pool(pixels: Pixels, weights: Floats, unit_range: bool, pooled: Floats) -> None:
    """Grey clamped to 255, averaged over 4 x 4 pixels in row-major order into `pooled` [T, H/4, W/4]."""
    tiles, down, across = pooled.shape
    row = np.empty(across * POOL, np.float32)
    for tile in range(tiles):
        for y in range(down * POOL):
            _grey_row(pixels[tile], y, weights, unit_range, row)
            for x in range(row.size):
                row[x] = min(row[x], _TOP)
            sums = pooled[tile, y // POOL]
            if y % POOL == 0:
                sums[:] = 0
            for x in range(across):
                sums[x] = (((sums[x] + row[4 * x]) + row[4 * x + 1]) + row[4 * x + 2]) + row[4 * x + 3]
            if y % POOL == POOL - 1:
                for x in range(across):
                    sums[x] /= _POOLED


@_compiled
def _reflected(image: Floats) -> Floats:
    """[h, w] with one more pixel on every side, mirrored at the outermost pixels."""
    height, width = image.shape
    padded = np.empty((height + 2, width + 2), np.float32)
    for y in range(height + 2):
        source = image[1 if y == 0 else height - 2 if y == height + 1 else y - 1]
        padded[y, 1 : width + 1] = source
        padded[y, 0], padded[y, width + 1] = source[1], source[width - 2]
    return padded


@_compiled
def blur(image: Floats, blurred: Floats) -> None:
    """Binomial blur of [T, h, w] with reflect padding, nine products added in row-major order."""
    tiles, height, width = image.shape
    for tile in range(tiles):
        padded = _reflected(image[tile])
        for y in range(height):
            above, here, below, out = padded[y], padded[y + 1], padded[y + 2], blurred[tile, y]
            for x in range(width):
                upper = (above[x] + _TWO * above[x + 1]) + above[x + 2]
                middle = ((upper + _TWO * here[x]) + _FOUR * here[x + 1]) + _TWO * here[x + 2]
                out[x] = (((middle + below[x]) + _TWO * below[x + 1]) + below[x + 2]) / _SIXTEEN


@_compiled
def _sobel_row(above: Floats, here: Floats, below: Floats, magnitude: Floats) -> None:
    """Six products of each gradient added in row-major order."""
    for x in range(magnitude.size):
        a, b, c = above[x], above[x + 1], above[x + 2]
        d, f = here[x], here[x + 2]
        g, h, i = below[x], below[x + 1], below[x + 2]
        across = ((((c - a) - _TWO * d) + _TWO * f) - g) + i
        down = ((((-a - _TWO * b) - c) + g) + _TWO * h) + i
        magnitude[x] = math.sqrt((across * across + down * down) + _TINY)


@_compiled
def sobel(image: Floats, magnitude: Floats) -> None:
    """Sobel magnitude of [T, h, w] with reflect padding."""
    tiles, height, _ = image.shape
    for tile in range(tiles):
        padded = _reflected(image[tile])
        for y in range(height):
            _sobel_row(padded[y], padded[y + 1], padded[y + 2], magnitude[tile, y])


@_compiled
def edge_counts(image: Floats, cell: int, threshold: np.float32, counts: Sums) -> None:
    """Pixels per cell of [T, h, w] whose Sobel magnitude exceeds `threshold`, into `counts` [N]."""
    tiles, height, width = image.shape
    magnitude = np.empty(width, np.float32)
    edges = np.empty(width, np.uint32)
    index = 0
    for tile in range(tiles):
        padded = _reflected(image[tile])
        for top in range(0, height, cell):
            edges[:] = 0
            for y in range(top, top + cell):
                _sobel_row(padded[y], padded[y + 1], padded[y + 2], magnitude)
                for x in range(width):
                    edges[x] += magnitude[x] > threshold
            for left in range(0, width, cell):
                count = np.int64(0)
                for x in range(left, left + cell):
                    count += edges[x]
                counts[index] = count
                index += 1


@_compiled
def lower_median(values: Floats) -> float:
    """The lower median of [n >= 1] values, none negative: their bits sort as they do, so count halves of the bits."""
    bits = values.view(np.uint32)
    counts = np.zeros((2, 1 << 16), np.uint32)
    for index in range(bits.size):
        counts[index & 1, bits[index] >> _TWO_BYTES] += 1
    upper, rank = _find_rank(counts, (values.size - 1) // 2)
    counts[:] = 0
    for index in range(bits.size):
        if bits[index] >> _TWO_BYTES == upper:
            counts[index & 1, bits[index] & _LOWER_HALF] += 1
    lower, _ = _find_rank(counts, rank)
    return float(np.array([(upper << 16) | lower], np.uint32).view(np.float32)[0])


@_compiled
def _find_rank(counts: NDArray[np.uint32], rank: int) -> tuple[int, int]:
    """The bin of the value of this rank, and its rank within the bin."""
    for index in range(counts.shape[1]):
        here = int(counts[0, index]) + int(counts[1, index])
        if rank < here:
            return index, rank
        rank -= here
    return -1, 0
