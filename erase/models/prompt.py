"""From a question and images to the model's inputs: chat template, image tokens, patches, positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from erase.cells import cells_from_pixel_values
from erase.errors import InputError
from erase.models.loading import LoadedModel

_QUESTION = "\x00question\x00"


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """One image as the vision encoder takes it."""

    pixel_values: Tensor
    """Patches, float32 [grid_t * grid_h * grid_w, channels * temporal * patch * patch]."""
    grid_thw: tuple[int, int, int]
    """Patches along time, height and width."""
    cells: Tensor
    """Resized pixels by vision token, uint8 [tokens, 3, cell, cell]."""
    cell_grid: tuple[int, int]
    """Vision tokens along height and width."""

    @property
    def tokens(self) -> int:
        """Vision tokens before pruning."""
        return int(self.cells.shape[0])

    @property
    def pixel_size(self) -> tuple[int, int]:
        """Width and height in pixels as the model sees the image."""
        height, width = self.cell_grid
        return width * int(self.cells.shape[-1]), height * int(self.cells.shape[-1])


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """A prompt before pruning."""

    tokens: Tensor
    """Token ids with one image token per vision token, int64 [n]."""
    positions: Tensor
    """Rotary positions (t, h, w) of each token, int64 [3, n]."""
    next_position: int
    """Position of the first generated token."""
    images: tuple[PreparedImage, ...]


def prepare_images(loaded: LoadedModel, images: Sequence[Image.Image]) -> tuple[PreparedImage, ...]:
    """Resize, cut into patches and normalise. Raises `InputError` for an image that the model cannot take."""
    prepared = []
    processor, adapter = loaded.image_processor, loaded.adapter
    for image in images:
        try:
            features = processor(images=[image.convert("RGB")], return_tensors="pt")
        except ValueError as error:
            raise InputError(
                f"the image processor refuses an image of {image.width} x {image.height} pixels"
            ) from error
        grid = features["image_grid_thw"]
        cells = cells_from_pixel_values(
            features["pixel_values"],
            grid,
            patch_size=adapter.patch_size,
            merge_size=adapter.merge_size,
            temporal_patch_size=adapter.temporal_patch_size,
            image_mean=processor.image_mean,
            image_std=processor.image_std,
        )[0]
        t, h, w = (int(size) for size in grid[0])
        prepared.append(
            PreparedImage(
                pixel_values=features["pixel_values"],
                grid_thw=(t, h, w),
                cells=cells,
                cell_grid=(h // adapter.merge_size, w // adapter.merge_size),
            )
        )
    return tuple(prepared)


def prepare_prompt(loaded: LoadedModel, question: str, images: Sequence[PreparedImage]) -> PreparedPrompt:
    """Put images first, then the question, into the chat template.

    The question is encoded as plain text: control tokens of the model inside it stay characters.
    """
    tokens = prompt_tokens(loaded, question, [image.tokens for image in images])
    is_image = (tokens == loaded.adapter.image_token_id).int()
    grids = torch.tensor([image.grid_thw for image in images]) if images else None
    positions, delta = loaded.adapter.positions(tokens, is_image, grids)
    return PreparedPrompt(tokens, positions, len(tokens) + delta, tuple(images))


def prompt_tokens(loaded: LoadedModel, question: str, image_tokens: Sequence[int]) -> Tensor:
    """Token ids of the whole prompt, int64 [n]; each image's placeholder repeated to its number of vision tokens."""
    tokenizer = loaded.tokenizer
    content = [{"type": "image"} for _ in image_tokens] + [{"type": "text", "text": _QUESTION}]
    template = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    before, found, after = template.partition(_QUESTION)
    if not found:
        raise InputError("the model's chat template does not show the question")
    ids = (
        _encode(tokenizer, before, special=True)
        + _encode(loaded.text_tokenizer, question, special=False)
        + _encode(tokenizer, after, special=True)
    )
    placeholder = loaded.adapter.image_token_id
    if ids.count(placeholder) != len(image_tokens):
        raise InputError("the model's chat template does not show every image exactly once")
    counts = iter(image_tokens)
    expanded: list[int] = []
    for token in ids:
        expanded += [token] * next(counts) if token == placeholder else [token]
    return torch.tensor(expanded, dtype=torch.int64)


def _encode(tokenizer: object, text: str, *, special: bool) -> list[int]:
    encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=not special)  # type: ignore[operator]
    return list(encoding["input_ids"])
