"""Golden cases and stock inputs for the tests of the library; a plain module, so that every test file can import it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import erase
from erase.pixels.images import VisionImage
from erase.policy import Policy

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
MANIFEST: list[dict[str, Any]] = json.loads((GOLDEN / "manifest.json").read_text())
IMAGE_TOKEN, VISION_START, VISION_END = 151, 153, 154
CELL = 28
CELLS = {"qwen2_5_vl": CELL, "qwen3_vl": 32}
MERGE = 2
HALF = {"image_mean": 0.5, "image_std": 0.5}


@dataclass(frozen=True)
class GoldenCase:
    entry: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def policy(self) -> Policy:
        kind = erase.BinnedPolicy if self.entry["revision"] == 1 else erase.BudgetPolicy
        return kind(**self.entry["policy"])

    @property
    def cell(self) -> int:
        return CELLS[self.entry["model"]]

    @property
    def images(self) -> list[Tensor]:
        return [self.tensors[f"image_{index}"] for index in range(len(self.entry["image_tokens"]))]

    @property
    def vision_images(self) -> list[VisionImage]:
        return [vision_image(image, self.cell) for image in self.images]

    @property
    def inputs(self) -> dict[str, Tensor]:
        return stock_inputs(self.tensors["input_ids"], self.images, self.cell)

    @property
    def cuts(self) -> list[tuple[int, list[int]]]:
        """Layers run before each cut, and what it kept."""
        if self.entry["revision"] == 1:
            return [(self.entry["prune_layer"] + 1, self.tensors["stage2_kept"].tolist())]
        return [(cut["layer"], self.tensors[f"cut{j}_kept"].tolist()) for j, cut in enumerate(self.entry["plan"])]


def vision_image(image: Tensor, cell: int = CELL) -> VisionImage:
    """uint8 [3, H, W] as a model that does not tile sees it."""
    return VisionImage(image.unsqueeze(0), cell)


def stock_inputs(input_ids: Tensor, images: list[Tensor], cell: int = CELL) -> dict[str, Tensor]:
    """What the processor makes of resized images, with mean = std = 0.5."""
    rows, grids = [], []
    patch = cell // MERGE
    for image in images:
        _, height, width = image.shape
        down, across = height // patch, width // patch
        pixels = image.float() / 127.5 - 1
        tiles = pixels.view(3, down // MERGE, MERGE, patch, across // MERGE, MERGE, patch)
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


def prompt_ids(images: list[Tensor], *, before: int = 3, after: int = 9, seed: int = 0, cell: int = CELL) -> Tensor:
    """Text, every image between its vision markers, text."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 140, (before,), generator=generator).tolist()
    for image in images:
        tokens = image.shape[1] * image.shape[2] // cell**2
        ids += [VISION_START, *[IMAGE_TOKEN] * tokens, VISION_END]
    return torch.tensor([ids + torch.randint(3, 140, (after,), generator=generator).tolist()])


def noise_image(height_cells: int, width_cells: int, *, levels: int = 256, seed: int = 0, cell: int = CELL) -> Tensor:
    """Cells whose entropies differ: each draws from its own number of grey levels."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, levels, (3, height_cells * cell, width_cells * cell), generator=generator)
    spread = torch.randint(1, 60, (height_cells, width_cells), generator=generator)
    spread = spread.repeat_interleave(cell, 0).repeat_interleave(cell, 1)
    return (image // spread * spread).to(torch.uint8)


def load_case(entry: dict[str, Any]) -> GoldenCase:
    return GoldenCase(entry, load_file(GOLDEN / f"{entry['name']}.safetensors"))


def cases_of(model: str) -> list[GoldenCase]:
    return [load_case(entry) for entry in MANIFEST if entry["model"] == model]
