"""Grey levels of images, rounded the same on every device."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from erase.errors import InputError

TOP = 255.0


@dataclass(frozen=True)
class Luma:
    """Weights of the channels in a grey level, and whether levels are scaled to 0..1 before they are weighted."""

    red: float
    green: float
    blue: float
    unit_range: bool

    @property
    def weights(self) -> NDArray[np.float32]:
        """float32 [3], of red, green and blue."""
        return np.array([self.red, self.green, self.blue], dtype=np.float32)


BT601 = Luma(0.299, 0.587, 0.114, False)
"""Qwen2.5-VL and Qwen3-VL."""
BT601_UNIT = Luma(0.2989, 0.5870, 0.1140, True)
"""InternVL3."""


def grey(tiles: Tensor, luma: Luma = BT601) -> Tensor:
    """Luma of RGB images: (red R + green G) + blue B, rounded to float32 after each operation.

    The order matters: revision 1 takes the floor, so the last bit decides the grey level.

    Args:
        tiles: uint8 [T, 3, H, W].
        luma: the weights; with `unit_range`, R, G and B are level / 255 and the sum is multiplied by 255.

    Returns:
        float32 [T, H, W], 0..255 but for the last bit.

    Raises:
        InputError: `tiles` is not uint8 [T, 3, H, W].
    """
    check_tiles(tiles, 1)
    channels = tiles.to(torch.float32)
    if luma.unit_range:
        # A number on the device, as CUDA multiplies by the reciprocal of one on the host.
        channels = channels / torch.full((), TOP, device=tiles.device)
    red, green, blue = channels.unbind(1)
    # Separate kernels, so that no multiply and add are fused into one rounding.
    shade = (red * luma.red + green * luma.green) + blue * luma.blue
    return shade * TOP if luma.unit_range else shade


def check_tiles(tiles: Tensor, side: int) -> None:
    """Raise `InputError` unless `tiles` is uint8 [T, 3, H, W] with H and W multiples of `side` pixels."""
    if tiles.dtype != torch.uint8 or tiles.ndim != 4 or tiles.shape[1] != 3:
        raise InputError(f"images must be uint8 [T, 3, H, W], got {tiles.dtype} {list(tiles.shape)}")
    if side < 1 or tiles.shape[2] % side or tiles.shape[3] % side:
        raise InputError(f"height and width must be multiples of {side} pixels, got {list(tiles.shape[2:])}")
