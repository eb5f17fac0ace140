"""Golden cases and stock inputs for the tests of the library; a plain module, so that every test file can import it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
MANIFEST: list[dict[str, Any]] = json.loads((GOLDEN / "manifest.json").read_text())
IMAGE_TOKEN, VISION_START, VISION_END = 151, 153, 154
PATCH, MERGE, CELL = 14, 2, 28


@dataclass(frozen=True)
class GoldenCase:
    entry: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def images(self) -> list[Tensor]:
        return [self.tensors[f"image_{index}"] for index in range(len(self.entry["image_tokens"]))]

    @property
    def inputs(self) -> dict[str, Tensor]:
        return stock_inputs(self.tensors["input_ids"], self.images)


def cells_of(image: Tensor) -> Tensor:
    """uint8 [3, H, W] to cells [N, 3, c, c] in raster order."""
    _, height, width = image.shape
    tiles = image.view(3, height // CELL, CELL, width // CELL, CELL)
    return tiles.permute(1, 3, 0, 2, 4).reshape(-1, 3, CELL, CELL)


def stock_inputs(input_ids: Tensor, images: list[Tensor]) -> dict[str, Tensor]:
    """What the processor makes of resized images, with mean = std = 0.5."""
    rows, grids = [], []
    for image in images:
        _, height, width = image.shape
        down, across = height // PATCH, width // PATCH
        pixels = image.float() / 127.5 - 1
        tiles = pixels.view(3, down // MERGE, MERGE, PATCH, across // MERGE, MERGE, PATCH)
        patches = tiles.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5).expand(-1, -1, -1, -1, -1, 2, -1, -1)
        rows.append(patches.reshape(down * across, -1))
        grids.append([1, down, across])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": torch.cat(rows),
        "image_grid_thw": torch.tensor(grids),
        "mm_token_type_ids": (input_ids == IMAGE_TOKEN).int(),
    }


def prompt_ids(images: list[Tensor], *, before: int = 3, after: int = 9, seed: int = 0) -> Tensor:
    """Text, every image between its vision markers, text."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 140, (before,), generator=generator).tolist()
    for image in images:
        tokens = image.shape[1] * image.shape[2] // CELL**2
        ids += [VISION_START, *[IMAGE_TOKEN] * tokens, VISION_END]
    return torch.tensor([ids + torch.randint(3, 140, (after,), generator=generator).tolist()])


def noise_image(height_cells: int, width_cells: int, *, levels: int = 256, seed: int = 0) -> Tensor:
    """Cells whose entropies differ: each draws from its own number of grey levels."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, levels, (3, height_cells * CELL, width_cells * CELL), generator=generator)
    spread = torch.randint(1, 60, (height_cells, width_cells), generator=generator)
    spread = spread.repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
    return (image // spread * spread).to(torch.uint8)


def load_case(entry: dict[str, Any]) -> GoldenCase:
    return GoldenCase(entry, load_file(GOLDEN / f"{entry['name']}.safetensors"))


def load_golden_model(attention: str) -> Qwen2_5_VLForConditionalGeneration:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        GOLDEN / "qwen2_5_vl", dtype=torch.float32, attn_implementation=attention
    )
    model.eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model
