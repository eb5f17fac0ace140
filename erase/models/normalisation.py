"""How an image processor turned pixels into a model's inputs, so that they can be turned back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from erase.errors import InputError, UnsupportedError

Channels = tuple[float, ...]


def normalisation(
    processor: Any | None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> tuple[Channels, Channels]:
    """Mean and standard deviation per channel that turned pixels in 0..1 into `pixel_values`.

    Args:
        processor: a model's processor or image processor; what is given besides counts more.
        mean: one or per channel.
        std: likewise.

    Raises:
        UnsupportedError: the processor does not rescale pixels by 1/255.
        InputError: the normalisation is unknown, or not of three channels.
    """
    images = getattr(processor, "image_processor", processor)
    if images is not None and (mean is None or std is None):
        if not getattr(images, "do_rescale", True) or abs(getattr(images, "rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
            raise UnsupportedError("the processor must rescale pixels by 1/255, or the images cannot be recovered")
        normalises = getattr(images, "do_normalize", True)
        mean = (getattr(images, "image_mean", None) if normalises else 0.0) if mean is None else mean
        std = (getattr(images, "image_std", None) if normalises else 1.0) if std is None else std
    if mean is None or std is None:
        raise InputError(
            "how pixel_values were normalised is unknown; pass processor= (the model's processor or image processor) "
            "or both image_mean= and image_std="
        )
    return _channels("image_mean", mean), _channels("image_std", std)


def _channels(name: str, values: Sequence[float] | float) -> Channels:
    channels = (float(values),) * 3 if isinstance(values, int | float) else tuple(float(value) for value in values)
    if len(channels) != 3:
        raise InputError(f"{name} must be one number or one per channel (3), got {len(channels)}")
    return channels
