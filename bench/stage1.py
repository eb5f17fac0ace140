"""Stage 1 on pixels: our compiled and plain versions against the authors' formulation, on one thread."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bench.pages import page
from bench.report import (
    BenchmarkError,
    by_turns,
    output_file,
    percentile,
    positive,
    progress,
    run_main,
    show_spread,
    spread,
    table,
    this_machine,
    write_json,
)
from erase.errors import EraseError
from erase.pixels import kernels
from erase.pixels.edges import WEAKEST_EDGE, edge_ratio, edge_threshold
from erase.pixels.entropy import cell_entropy, level_entropy
from erase.pixels.lowpass import POOL, low_pass
from erase.pixels.luma import grey

TAU = 0.45
WARM_UP = 3
ENTROPY_TOLERANCE = 1e-5
"""Nats; the authors add 1e-10 to every share."""
AUTHORS, NAIVE, PLAIN, COMPILED = "authors' formulation", "naive numba loop", "ours, plain torch", "ours, compiled"

Signals = tuple[Tensor, ...]
"""Entropy, and for revision 2 the edge ratio: float32 [N] each."""


@dataclass(frozen=True)
class Row:
    """Milliseconds of one side for one image, and how many times as fast as the authors' formulation it is."""

    revision: int
    side: str
    milliseconds: float
    megapixels_per_s: float
    speedup: dict[str, float]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table, write the JSON. Returns 1 when the sides disagree."""
    return run_main(bench, _parser().parse_args(arguments), EraseError)


def bench(options: argparse.Namespace) -> None:
    """One whole run. Raises `BenchmarkError` if the compiled versions are off or the sides disagree."""
    if not kernels.AVAILABLE:
        raise BenchmarkError("the compiled versions are off: install numba and unset STAGE1_PURE")
    torch.set_num_threads(1)
    image = _image(options.cells_across * options.cell, options.cells_down * options.cell)
    megapixels = image.shape[2] * image.shape[3] / 1e6
    rows = []
    for revision, sides in ((1, _revision_1(image, options.cell)), (2, _revision_2(image, options.cell))):
        _check(revision, {name: side() for name, side in sides.items()})
        times = _measure(revision, sides, options.rounds)
        rows += [_row(revision, name, times, megapixels) for name in sides]
    machine = this_machine()
    print(machine)
    print(f"image     {image.shape[3]} x {image.shape[2]}, {options.rounds} rounds, medians\n")
    header = ["revision", "side", "ms", "Mpixel/s", "speed-up"]
    shown = [
        [
            str(row.revision),
            row.side,
            f"{row.milliseconds:.2f}",
            f"{row.megapixels_per_s:.0f}",
            show_spread(row.speedup),
        ]
        for row in rows
    ]
    print(table(header, shown))
    write_json(options.json, machine, options, {"rows": [asdict(row) for row in rows]})


def _image(width: int, height: int) -> Tensor:
    """uint8 [1, 3, height, width]: a page of text whose lower quarter is noise."""
    pixels = np.array(page(0, width, height)).transpose(2, 0, 1)
    noise = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    pixels[:, height * 3 // 4 :] = noise[:, height * 3 // 4 :]
    return torch.from_numpy(np.ascontiguousarray(pixels)).unsqueeze(0)


def _revision_1(image: Tensor, cell: int) -> dict[str, Callable[[], Signals]]:
    terms = np.array([-share * np.log(share) if share else 0.0 for share in np.arange(cell**2 + 1) / cell**2])
    pixels = image[0].numpy()
    naive_loop = _compiled_naive_loop()

    def ours() -> Signals:
        return (cell_entropy(image, cell),)

    def naive() -> Signals:
        return (torch.from_numpy(naive_loop(pixels, cell, terms)).to(torch.float32),)

    return {
        AUTHORS: lambda: (_scattered_entropy(grey(image).floor(), cell),),
        NAIVE: naive,
        PLAIN: lambda: _plainly(ours),
        COMPILED: ours,
    }


def _revision_2(image: Tensor, cell: int) -> dict[str, Callable[[], Signals]]:
    side = cell // POOL

    def ours() -> Signals:
        blurred = low_pass(image)
        entropy = level_entropy(blurred.round().to(torch.uint8), side)
        return entropy, edge_ratio(blurred, side, edge_threshold(blurred, TAU))

    return {AUTHORS: lambda: _convolved(image, side), PLAIN: lambda: _plainly(ours), COMPILED: ours}


def _scattered_entropy(levels: Tensor, cell: int) -> Tensor:
    """Levels [1, h, w] to entropies by an int64 scatter into one histogram per cell."""
    _, height, width = levels.shape
    cells = levels.view(height // cell, cell, width // cell, cell).transpose(1, 2).reshape(-1, cell**2).to(torch.int64)
    counts = torch.zeros(cells.shape[0], 256).scatter_add_(1, cells, torch.ones(cells.shape))
    share = counts / cell**2
    return -(share * torch.log(share + 1e-10)).sum(1)


def _convolved(image: Tensor, side: int) -> Signals:
    """Revision 2 by torch's pooling and convolutions."""
    binomial = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    pooled = functional.avg_pool2d(grey(image).clamp(0, 255).unsqueeze(1), POOL)
    blurred = _convolve(pooled, binomial)
    across, down = _convolve(blurred, sobel), _convolve(blurred, sobel.T)
    magnitude = torch.sqrt(across**2 + down**2 + 1e-12)
    threshold = torch.clamp((1 - TAU) * blurred.median(), min=WEAKEST_EDGE)
    edges = (magnitude > threshold).to(torch.float32)
    return _scattered_entropy(blurred.squeeze(1).round(), side), functional.avg_pool2d(edges, side).flatten()


def _convolve(image: Tensor, kernel: Tensor) -> Tensor:
    return functional.conv2d(functional.pad(image, (1, 1, 1, 1), mode="reflect"), kernel[None, None])


def _naive_loop(pixels: NDArray[np.uint8], cell: int, terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """What one writes first: one pixel at a time into one histogram per cell."""
    _, height, width = pixels.shape
    across = width // cell
    entropy = np.zeros((height // cell) * across)
    counts = np.zeros(256, np.int64)
    for index in range(entropy.size):
        top, left = index // across * cell, index % across * cell
        counts[:] = 0
        for y in range(top, top + cell):
            for x in range(left, left + cell):
                red, green, blue = np.float32(pixels[0, y, x]), np.float32(pixels[1, y, x]), np.float32(pixels[2, y, x])
                shade = (np.float32(0.299) * red + np.float32(0.587) * green) + np.float32(0.114) * blue
                counts[int(shade)] += 1
        for level in range(256):
            entropy[index] += terms[counts[level]]
    return entropy


def _compiled_naive_loop() -> Callable[[NDArray[np.uint8], int, NDArray[np.float64]], NDArray[np.float64]]:
    import numba

    return cast(Callable[..., NDArray[np.float64]], numba.njit()(_naive_loop))


def _plainly(side: Callable[[], Signals]) -> Signals:
    with _without_kernels():
        return side()


@contextmanager
def _without_kernels() -> Iterator[None]:
    kernels.AVAILABLE = False
    try:
        yield
    finally:
        kernels.AVAILABLE = True


def _check(revision: int, signals: dict[str, Signals]) -> None:
    """Ours must agree in every bit, all in entropy within the tolerance, and in edges exactly."""
    for name, found in signals.items():
        apart = float((found[0] - signals[AUTHORS][0]).abs().max())
        if apart > ENTROPY_TOLERANCE:
            raise BenchmarkError(f"revision {revision}: the entropies of {name} are {apart:.2g} nats off the authors'")
        if not all(torch.equal(own, other) for own, other in zip(found[1:], signals[AUTHORS][1:], strict=True)):
            raise BenchmarkError(f"revision {revision}: the edge ratios of {name} differ from the authors'")
    if not torch.equal(signals[PLAIN][0], signals[COMPILED][0]):
        raise BenchmarkError(f"revision {revision}: the plain and the compiled version differ")
    progress(f"revision {revision}: all sides agree")


def _measure(revision: int, sides: dict[str, Callable[[], Signals]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round."""
    progress(f"revision {revision}: {rounds} rounds of {len(sides)} sides")
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(WARM_UP + rounds):
        for name, side in by_turns(list(sides.items()), number):
            start = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - start)
    return {name: own[WARM_UP:] for name, own in times.items()}


def _row(revision: int, name: str, times: dict[str, list[float]], megapixels: float) -> Row:
    median = percentile(times[name], 50)
    speedups = [authors / own for authors, own in zip(times[AUTHORS], times[name], strict=True)]
    return Row(revision, name, median * 1000, megapixels / median, spread(speedups))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.stage1", description=__doc__)
    parser.add_argument("--cell", type=positive, default=28, help="pixels along a cell, a multiple of 4")
    parser.add_argument("--cells-across", type=positive, default=48)
    parser.add_argument("--cells-down", type=positive, default=36)
    parser.add_argument("--rounds", type=positive, default=50, help="measured after a warm-up")
    parser.add_argument("--json", type=output_file, help="write everything to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
