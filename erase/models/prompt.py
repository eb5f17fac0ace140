"""From a question and images to the model's inputs: chat template, image tokens, patches, positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor

from erase.errors import InputError
from erase.models.loading import LoadedModel
from erase.models.normalisation import normalisation
from erase.pixels.images import VisionImage

_MARK = "\x00"
"""Encloses the number of a text while the template is rendered; no template writes it itself."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation: texts, and `None` where the next image stands."""

    role: str
    """system, user or assistant"""
    parts: tuple[str | None, ...]


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """One image as the vision encoder takes it."""

    pixel_values: Tensor
    """float32, normalised patches or tiles, as the model's image processor makes them."""
    grid_thw: tuple[int, int, int]
    """Patches along time or tiles, height and width."""
    pixels: VisionImage
    """The same, resized but not normalised: what stage 1 looks at."""

    @property
    def tokens(self) -> int:
        """Vision tokens before pruning."""
        return self.pixels.tokens

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pixels that the model sees and of how they are laid out: equal for equal vision features."""
        seen = self.pixels
        digest = sha256(repr((tuple(seen.tiles.shape), self.grid_thw, seen.cell)).encode())
        digest.update(seen.tiles.contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def cell_grid(self) -> tuple[int, int]:
        """Vision tokens along height and width, tiles one below the other."""
        tiles, height, width = self.pixels.grid
        return tiles * height, width

    @property
    def pixel_size(self) -> tuple[int, int]:
        """Width and height in pixels as the model sees the image."""
        height, width = self.cell_grid
        return width * self.pixels.cell, height * self.pixels.cell


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """A prompt before pruning."""

    tokens: Tensor
    """Token ids with one image token per vision token, int64 [n]."""
    positions: Tensor
    """Rotary positions of each token, int64 [axes, n]: (t, h, w), or plain text positions."""
    next_position: int
    """Position of the first generated token."""
    images: tuple[PreparedImage, ...]


def prepare_images(loaded: LoadedModel, images: Sequence[Image.Image], scale: float = 1.0) -> tuple[PreparedImage, ...]:
    """Resize, cut into patches and normalise; with a `scale` as if both sides were so many times what they become.

    Raises:
        InputError: an image that the model cannot take.
    """
    prepared = []
    for image in images:
        own = _prepare_image(loaded, image.convert("RGB"))
        if scale != 1.0:
            width, height = (max(1, round(side * scale)) for side in own.pixel_size)
            own = _prepare_image(loaded, image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC))
        prepared.append(own)
    return tuple(prepared)


def _prepare_image(loaded: LoadedModel, image: Image.Image) -> PreparedImage:
    processor, adapter = loaded.image_processor, loaded.adapter
    try:
        pixel_values, grid = adapter.prepare_image(processor, image)
    except ValueError as error:
        raise InputError(f"the image processor refuses an image of {image.width} x {image.height} pixels") from error
    (pixels,) = adapter.vision_images(pixel_values, torch.tensor([grid]), *normalisation(processor))
    return PreparedImage(pixel_values, grid, pixels)


def generate_inputs(loaded: LoadedModel, prompts: Sequence[tuple[str, Sequence[Image.Image]]]) -> dict[str, Tensor]:
    """What stock `model.generate` takes for (question, images) prompts, without the processor that needs torchvision.

    Returns:
        `input_ids` and `attention_mask` [prompts, L], padded on the left, and what the architecture needs of images.

    Raises:
        InputError: there is no prompt, or an image that the model cannot take.
    """
    if not prompts:
        raise InputError("generate needs at least one prompt")
    prepared = [prepare_images(loaded, images) for _, images in prompts]
    rows = [
        prompt_tokens(loaded, question, [image.tokens for image in images])
        for (question, _), images in zip(prompts, prepared, strict=True)
    ]
    longest = max(len(row) for row in rows)
    padding = loaded.tokenizer.pad_token_id or 0
    input_ids = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0), value=padding) for row in rows])
    mask = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long()
    images = [image for own in prepared for image in own]
    pixels = torch.cat([image.pixel_values for image in images]) if images else None
    grids = torch.tensor([image.grid_thw for image in images]) if images else None
    inputs = {"input_ids": input_ids, "attention_mask": mask} | loaded.adapter.stock_inputs(input_ids, pixels, grids)
    return {name: tensor.to(loaded.device) for name, tensor in inputs.items()}


def question_turns(question: str, images: int) -> tuple[Turn, ...]:
    """A conversation of one message: the images first, then the question."""
    return (Turn("user", (*[None] * images, question)),)


def prepare_prompt(loaded: LoadedModel, question: str, images: Sequence[PreparedImage]) -> PreparedPrompt:
    """Put images first, then the question, into the chat template. See `prepare_chat`."""
    return prepare_chat(loaded, question_turns(question, len(images)), images)


def prepare_chat(loaded: LoadedModel, turns: Sequence[Turn], images: Sequence[PreparedImage]) -> PreparedPrompt:
    """Put a conversation into the chat template, up to where the model answers.

    Texts are encoded as plain text: control tokens of the model inside them stay characters.

    Raises:
        InputError: the model's template leaves out a text or an image.
    """
    tokens = chat_tokens(loaded, turns, [image.tokens for image in images])
    is_image = (tokens == loaded.adapter.image_token_id).int()
    grids = torch.tensor([image.grid_thw for image in images]) if images else None
    positions, delta = loaded.adapter.positions(tokens, is_image, grids)
    return PreparedPrompt(tokens, positions, len(tokens) + delta, tuple(images))


def prompt_tokens(loaded: LoadedModel, question: str, image_tokens: Sequence[int]) -> Tensor:
    """Token ids of a whole prompt with a question about images, int64 [n]. See `chat_tokens`."""
    return chat_tokens(loaded, question_turns(question, len(image_tokens)), image_tokens)


def chat_tokens(loaded: LoadedModel, turns: Sequence[Turn], image_tokens: Sequence[int]) -> Tensor:
    """Token ids of a whole conversation, int64 [n]; each image's placeholder repeated to its number of vision tokens.

    Raises:
        InputError: the model's template leaves out a text or an image, or a text is no valid Unicode.
    """
    tokenizer = loaded.tokenizer
    contents, texts = _contents(turns)
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError("a text of the prompt is not valid Unicode") from error
    pieces = _rendered(tokenizer, turns, contents, len(texts))
    ids = _encode(tokenizer, pieces[0], special=True)
    for text, after in zip(texts, pieces[1:], strict=True):
        ids += _encode(loaded.text_tokenizer, text, special=False) + _encode(tokenizer, after, special=True)
    placeholder = loaded.adapter.image_token_id
    if ids.count(placeholder) != len(image_tokens):
        raise InputError("the model's chat template does not show every image exactly once")
    counts = iter(image_tokens)
    expanded: list[int] = []
    for token in ids:
        expanded += loaded.adapter.image_span(tokenizer, next(counts)) if token == placeholder else [token]
    return torch.tensor(expanded, dtype=torch.int64)


_Content = list[dict[str, str]]


def _contents(turns: Sequence[Turn]) -> tuple[list[_Content], list[str]]:
    """The messages as chat templates take them, with a stand-in for each text, and the texts."""
    contents: list[_Content] = []
    texts: list[str] = []
    for turn in turns:
        content: _Content = []
        for part in turn.parts:
            if part is None:
                content.append({"type": "image"})
            elif content and content[-1]["type"] == "text":
                texts[-1] += part  # templates write them one behind the other, and one text has one encoding
            elif part:
                content.append({"type": "text", "text": f"{_MARK}{len(texts)}{_MARK}"})
                texts.append(part)
        contents.append(content)
    return contents, texts


def _rendered(tokenizer: Any, turns: Sequence[Turn], contents: Sequence[_Content], texts: int) -> list[str]:
    """What the template writes before, between and behind the texts. Raises `InputError` if it does not show them."""
    plain = [
        content if any(part["type"] == "image" for part in content) else "".join(part["text"] for part in content)
        for content in contents
    ]
    for written in (contents, plain):  # some templates know lists only where there are images
        messages = [{"role": turn.role, "content": content} for turn, content in zip(turns, written, strict=True)]
        try:
            pieces = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True).split(_MARK)
        except (TemplateError, TypeError):
            continue
        if pieces[1::2] == [str(number) for number in range(texts)]:
            return list(pieces[::2])
    raise InputError("the model's chat template does not show every message once and in order, or refuses them")


def _encode(tokenizer: object, text: str, *, special: bool) -> list[int]:
    encoding = tokenizer(text, add_special_tokens=False, split_special_tokens=not special)  # type: ignore[operator]
    return list(encoding["input_ids"])
