"""Pixels recovered from what the stock image processors make of an image."""

import numpy as np
import pytest
import torch
from erase_cases import noise_image
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

import erase
from erase.pixels.images import VisionImage, images_from_patches, images_from_tiles
from erase.pixels.luma import BT601, BT601_UNIT

HALF = ([0.5] * 3, [0.5] * 3)
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
NORMALISATIONS = {"half": HALF, "clip": CLIP, "imagenet": IMAGENET}

by_normalisation = pytest.mark.parametrize(("mean", "std"), NORMALISATIONS.values(), ids=NORMALISATIONS)


def processed(images, mean, std, patch=14):
    """Through the stock processor of the Qwen models, which leaves images of whole cells as large as they are."""
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    processor = Qwen2VLImageProcessorPil(
        image_mean=mean, image_std=std, patch_size=patch, size={"shortest_edge": 1, "longest_edge": 10**9}
    )
    return processor(images=pictures, return_tensors="pt")


def recovered(batch, mean, std, patch=14, dtype=torch.float32):
    return images_from_patches(
        batch["pixel_values"].to(dtype),
        batch["image_grid_thw"],
        patch_size=patch,
        merge_size=2,
        temporal_patch_size=2,
        image_mean=mean,
        image_std=std,
    )


def normalised(tiles, mean, std):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return (tiles.float() / 255 - mean) / std


def random_tiles(count, side=56, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def every_level():
    """uint8 [3, 28, 28] that has all 256 levels in every channel."""
    levels = np.arange(28 * 28).reshape(28, 28) % 256
    return torch.from_numpy(np.stack([levels, levels.T, levels[::-1]]).astype(np.uint8))


@by_normalisation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("patch", [14, 16])
def test_every_pixel_behind_patches_comes_back(mean, std, dtype, patch):
    cell = 2 * patch
    sizes = [(3, 5), (2, 2), (4, 3)]
    images = [noise_image(*size, seed=seed, cell=cell) for seed, size in enumerate(sizes)]
    found = recovered(processed(images, mean, std, patch), mean, std, patch, dtype)
    assert [image.grid for image in found] == [(1, *size) for size in sizes]
    assert [image.tokens for image in found] == [15, 4, 12]
    for image, expected in zip(found, images, strict=True):
        assert (image.cell, image.luma, image.thumbnail) == (cell, BT601, False)
        assert image.tiles.dtype == torch.uint8
        assert torch.equal(image.tiles, expected.unsqueeze(0))


@by_normalisation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_pixel_behind_tiles_comes_back(mean, std, dtype):
    tiles = random_tiles(6)
    pixels = normalised(tiles, mean, std).to(dtype)
    found = images_from_tiles(pixels, [1, 3, 2], cell=28, image_mean=mean, image_std=std, luma=BT601_UNIT)
    assert torch.equal(torch.cat([image.tiles for image in found]), tiles)
    assert [image.grid for image in found] == [(1, 2, 2), (3, 2, 2), (2, 2, 2)]
    assert {(image.cell, image.luma) for image in found} == {(28, BT601_UNIT)}


@by_normalisation
def test_every_level_survives_half_precision(mean, std):
    (image,) = recovered(processed([every_level()], mean, std), mean, std, dtype=torch.float16)
    assert torch.equal(image.tiles[0], every_level())


@by_normalisation
def test_bfloat16_keeps_every_level_of_a_narrow_normalisation_and_is_at_most_one_off_elsewhere(mean, std):
    (image,) = recovered(processed([every_level()], mean, std), mean, std, dtype=torch.bfloat16)
    off = (image.tiles[0].int() - every_level().int()).abs()
    assert int(off.max()) <= (0 if mean == HALF[0] else 1)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4))
def test_images_of_any_sizes_are_told_apart(sizes):
    images = [noise_image(*size, seed=seed) for seed, size in enumerate(sizes)]
    found = recovered(processed(images, *HALF), *HALF)
    assert all(torch.equal(own.tiles[0], image) for own, image in zip(found, images, strict=True))


def test_the_last_of_several_tiles_is_the_thumbnail_and_a_group_of_its_own():
    tiles = random_tiles(4)
    alone, several = images_from_tiles(
        normalised(tiles, *IMAGENET), [1, 3], cell=28, image_mean=IMAGENET[0], image_std=IMAGENET[1], luma=BT601
    )
    assert (alone.thumbnail, several.thumbnail) == (False, True)
    assert [group.shape[0] for group in alone.groups] == [1]
    assert [group.shape[0] for group in several.groups] == [2, 1]
    assert torch.equal(torch.cat(several.groups), several.tiles)


def test_tokens_are_cells_of_all_tiles():
    image = VisionImage(torch.zeros(3, 3, 84, 56, dtype=torch.uint8), 28)
    assert image.grid == (3, 3, 2)
    assert image.tokens == 18


def test_patches_that_do_not_fit_are_refused():
    def refused(error, message, rows, grid):
        batch = {"pixel_values": rows, "image_grid_thw": torch.tensor(grid)}
        with pytest.raises(error, match=message):
            recovered(batch, *HALF)

    rows = torch.zeros(16, 3 * 2 * 14 * 14)
    for wrong in (rows[:12], rows[:, :-1], rows.flatten(), torch.cat([rows, rows])):
        refused(erase.InputError, r"pixel_values must be \[16, 1176\]", wrong, [[1, 4, 4]])
    refused(erase.InputError, r"pixel_values must be \[32, 1176\]", rows, [[1, 4, 4], [1, 4, 4]])
    for grid in ([[1, 3, 5]], [[1, 4, 3]], [[1, 0, 4]]):
        refused(erase.InputError, "multiple of merge_size = 2", rows, grid)
    for grid in ([1, 4, 4], [[4, 4]]):
        refused(erase.InputError, "image_grid_thw must be", rows, grid)
    refused(erase.UnsupportedError, "video", rows, [[2, 2, 4]])


@pytest.mark.parametrize("counts", [[1, 1], [2, 2], []], ids=str)
def test_tiles_that_do_not_fit_are_refused(counts):
    settings = {"cell": 28, "image_mean": HALF[0], "image_std": HALF[1], "luma": BT601_UNIT}
    with pytest.raises(erase.InputError, match=rf"pixel_values must be \[{sum(counts)}, 3, height, width\]"):
        images_from_tiles(torch.zeros(3, 3, 56, 56), counts, **settings)
    for wrong in (torch.zeros(3, 1, 56, 56), torch.zeros(3, 56, 56), torch.zeros(3, 3 * 56 * 56)):
        with pytest.raises(erase.InputError, match="pixel_values must be"):
            images_from_tiles(wrong, [3], **settings)
