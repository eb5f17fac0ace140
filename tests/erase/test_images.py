"""Cells recovered from what the stock image processor made of an image."""

import numpy as np
import pytest
import torch
from erase_cases import cells_of, noise_image
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

import erase
from erase.cells import cells_from_pixel_values

SIZES = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
HALF = ([0.5] * 3, [0.5] * 3)
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def processed(images, mean, std):
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    processor = Qwen2VLImageProcessorPil(
        image_mean=mean, image_std=std, size={"shortest_edge": 1, "longest_edge": 10**9}
    )
    return processor(images=pictures, return_tensors="pt")


@pytest.mark.parametrize(("mean", "std"), [HALF, CLIP], ids=["half", "clip"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_pixel_comes_back_in_token_order(mean, std, dtype):
    images = [noise_image(3, 5, seed=1), noise_image(2, 2, seed=2), noise_image(4, 3, seed=3)]
    batch = processed(images, mean, std)
    cells = cells_from_pixel_values(
        batch["pixel_values"].to(dtype), batch["image_grid_thw"], **SIZES, image_mean=mean, image_std=std
    )
    assert [len(image) for image in cells] == [15, 4, 12]
    for image, expected in zip(cells, images, strict=True):
        assert image.dtype == torch.uint8
        assert torch.equal(image, cells_of(expected))


def test_every_level_survives_both_normalisations_and_half_precision():
    levels = np.arange(256, dtype=np.uint8).repeat(28 * 28 // 256 + 1)[: 28 * 28].reshape(1, 28, 28)
    image = torch.from_numpy(np.concatenate([levels, levels, levels]))
    for mean, std in (HALF, CLIP):
        batch = processed([image], mean, std)
        (cells,) = cells_from_pixel_values(
            batch["pixel_values"].half(), batch["image_grid_thw"], **SIZES, image_mean=mean, image_std=std
        )
        assert torch.equal(cells[0], image)


def test_tensors_that_do_not_fit_are_refused():
    rows = torch.zeros(16, 3 * 2 * 14 * 14)
    settings = SIZES | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    with pytest.raises(erase.InputError, match="pixel_values must be"):
        cells_from_pixel_values(rows[:12], torch.tensor([[1, 4, 4]]), **settings)
    with pytest.raises(erase.InputError, match="pixel_values must be"):
        cells_from_pixel_values(rows[:, :-1], torch.tensor([[1, 4, 4]]), **settings)
    with pytest.raises(erase.InputError, match="multiple of merge_size"):
        cells_from_pixel_values(rows[:15], torch.tensor([[1, 3, 5]]), **settings)
    with pytest.raises(erase.InputError, match="image_grid_thw must be"):
        cells_from_pixel_values(rows, torch.tensor([1, 4, 4]), **settings)
    with pytest.raises(erase.UnsupportedError, match="video"):
        cells_from_pixel_values(rows, torch.tensor([[2, 2, 4]]), **settings)
