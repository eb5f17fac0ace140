"""Cell entropy against a definition written out pixel by pixel, and the compiled version against the plain one."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from erase_cases import GoldenCase
from torch import Tensor

from erase.errors import InputError
from erase.pixels import kernels
from erase.pixels.entropy import cell_entropy, level_entropy
from erase.pixels.lowpass import POOL, low_pass
from erase.pixels.luma import BT601, BT601_UNIT, Luma, grey

CELLS = {"qwen2_5_vl": 28, "qwen3_vl": 32}
NEUTRAL = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)


def entropy_by_hand(cell: np.ndarray) -> float:
    """uint8 [3, c, c] to nats, in NumPy's float32 scalars."""
    levels = []
    for red, green, blue in cell.reshape(3, -1).T.astype(np.float32):
        luma = (np.float32(0.299) * red + np.float32(0.587) * green) + np.float32(0.114) * blue
        levels.append(math.floor(luma))
    return entropy_of_counts(list(Counter(levels).values()))


def entropy_of_counts(counts: list[int]) -> float:
    return -sum(count / sum(counts) * math.log(count / sum(counts)) for count in counts)


def images(cell: int, tiles: int = 3) -> dict[str, Tensor]:
    """uint8 [tiles, 3, 3 cells, 5 cells] of every kind that pages and photographs have."""
    generator = torch.Generator().manual_seed(cell)
    shape = (tiles, 3, 3 * cell, 5 * cell)
    ramp = torch.arange(5 * cell).expand(tiles, 3, 3 * cell, -1) % 256
    return {
        "random": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        "flat": torch.full(shape, 127, dtype=torch.uint8),
        "black": torch.zeros(shape, dtype=torch.uint8),
        "white": torch.full(shape, 255, dtype=torch.uint8),
        "text": (torch.rand((tiles, 1, *shape[2:]), generator=generator) < 0.2).to(torch.uint8).mul(255).expand(shape),
        "gradient": ramp.to(torch.uint8),
        "dark": torch.randint(0, 7, shape, generator=generator, dtype=torch.uint8),
    }


@pytest.mark.parametrize("luma", [BT601, BT601_UNIT], ids=["levels", "unit range"])
@pytest.mark.parametrize("cell", [28, 32, 7, 6])
def test_the_compiled_version_gives_the_bits_of_the_plain_one(
    cell: int, luma: Luma, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: cell_entropy(image, cell, luma) for name, image in images(cell).items()}
    monkeypatch.setattr(kernels, "AVAILABLE", False)
    for name, image in images(cell).items():
        assert torch.equal(found[name], cell_entropy(image, cell, luma)), name


@pytest.mark.parametrize("cell", [7, 8, 28])
def test_the_compiled_version_counts_given_levels_as_the_plain_one(cell: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: level_entropy(image[:, 0], cell) for name, image in images(cell).items()}
    monkeypatch.setattr(kernels, "AVAILABLE", False)
    for name, image in images(cell).items():
        assert torch.equal(found[name], level_entropy(image[:, 0].to(torch.int64), cell)), name


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "plain"])
class TestEitherVersion:
    @pytest.fixture(autouse=True)
    def _version(self, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if compiled and not kernels.AVAILABLE:
            pytest.skip("numba is missing, or STAGE1_PURE set")
        monkeypatch.setattr(kernels, "AVAILABLE", compiled)

    @pytest.mark.parametrize("levels", [1, 2, 5, 40, 256])
    def test_entropy_is_that_of_the_256_level_grey_histogram(self, levels: int) -> None:
        generator = torch.Generator().manual_seed(levels)
        image = torch.randint(0, levels, (2, 3, 28, 84), generator=generator, dtype=torch.uint8)
        expected = [entropy_by_hand(cell) for tile in image.numpy() for cell in np.split(tile, 3, axis=2)]
        torch.testing.assert_close(cell_entropy(image, 28), torch.tensor(expected), rtol=0, atol=1e-5)

    def test_recorded_entropies_of_the_authors_are_met(self, golden_case: GoldenCase) -> None:
        cell = CELLS[golden_case.entry["model"]]
        for index, image in enumerate(golden_case.images):
            if golden_case.entry["revision"] == 1:
                found = cell_entropy(image.unsqueeze(0), cell)
            else:
                found = level_entropy(low_pass(image.unsqueeze(0)).round().to(torch.uint8), cell // POOL)
            torch.testing.assert_close(found, golden_case.tensors[f"entropy_{index}"], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
    def test_a_flat_cell_has_no_entropy_at_all(self, value: int) -> None:
        image = torch.full((2, 3, 28, 56), value, dtype=torch.uint8)
        assert cell_entropy(image, 28).tolist() == [0.0] * 4
        assert level_entropy(image[:, 0], 7).tolist() == [0.0] * 64

    def test_histograms_computed_by_hand(self) -> None:
        half = torch.tensor([0, 255], dtype=torch.uint8).repeat(392).view(1, 1, 28, 28).expand(1, 3, 28, 28)
        assert cell_entropy(half, 28).item() == pytest.approx(math.log(2))
        levels = torch.tensor([0] * 7 + [9] * 14 + [255] * 28).view(1, 7, 7)
        assert level_entropy(levels, 7).item() == pytest.approx(entropy_of_counts([7, 14, 28]))
        assert level_entropy(torch.arange(256).view(1, 16, 16), 16).item() == pytest.approx(math.log(256))

    def test_thirteen_neutral_levels_floor_to_the_one_below(self) -> None:
        # Each of the 13 shares its level with the one below, which costs 2 / 256 ln 2.
        expected = math.log(256) - 13 * 2 / 256 * math.log(2)
        assert cell_entropy(NEUTRAL, 16).item() == pytest.approx(expected, abs=1e-5)

    def test_equal_histograms_tie_exactly_whatever_their_levels_and_order(self) -> None:
        generator = torch.Generator().manual_seed(1)
        levels = torch.randint(0, 9, (784,), generator=generator)
        other = torch.tensor([7, 200, 31, 90, 150, 3, 255, 60, 111])[levels.flip(0)]
        first, second = level_entropy(torch.stack([levels, other]).view(2, 28, 28), 28).tolist()
        assert first == second

    def test_cells_come_in_raster_order_tile_after_tile(self) -> None:
        image = images(28)["random"] % torch.arange(1, 16, dtype=torch.uint8).view(1, 1, 3, 5).repeat_interleave(
            28, 2
        ).repeat_interleave(28, 3)
        alone = [
            cell_entropy(image[tile : tile + 1, :, top : top + 28, left : left + 28], 28)
            for tile in range(3)
            for top in range(0, 84, 28)
            for left in range(0, 140, 28)
        ]
        assert torch.equal(cell_entropy(image, 28), torch.cat(alone))

    def test_pixels_may_lie_in_memory_in_any_order(self) -> None:
        image = images(28)["random"]
        interleaved = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        assert torch.equal(cell_entropy(interleaved, 28), cell_entropy(image, 28))
        levels = image[:, 0].transpose(1, 2)
        assert torch.equal(level_entropy(levels, 28), level_entropy(levels.contiguous(), 28))

    def test_a_large_image_has_the_entropies_of_its_parts(self) -> None:
        image = torch.randint(0, 256, (1, 3, 28 * 9, 28 * 40), dtype=torch.uint8)
        parts = [cell_entropy(strip, 28) for strip in image.split(28, dim=2)]
        assert torch.equal(cell_entropy(image, 28), torch.cat(parts))

    def test_cells_larger_than_the_compiled_version_counts_have_an_entropy_too(self) -> None:
        assert cell_entropy(torch.zeros(1, 3, 260, 260, dtype=torch.uint8), 260).tolist() == [0.0]

    def test_no_tiles_have_no_entropies(self) -> None:
        assert cell_entropy(torch.zeros(0, 3, 28, 28, dtype=torch.uint8), 28).shape == (0,)
        assert level_entropy(torch.zeros(0, 7, 7, dtype=torch.uint8), 7).shape == (0,)

    def test_inference_mode_changes_nothing(self) -> None:
        image = images(28)["dark"]
        with torch.inference_mode():
            found = cell_entropy(image.clone(), 28)
        assert torch.equal(found, cell_entropy(image, 28))

    def test_wrong_images_are_refused(self) -> None:
        image = torch.zeros(1, 3, 28, 28, dtype=torch.uint8)
        for wrong, cell in [(image.float(), 28), (image[0], 28), (image[:, :1], 28), (image, 32), (image, 0)]:
            with pytest.raises(InputError):
                cell_entropy(wrong, cell)
        for levels, cell in [(image[0].float(), 7), (image, 7), (image[0], 8), (image[0], 0)]:
            with pytest.raises(InputError):
                level_entropy(levels, cell)


def test_grey_is_rounded_to_float32_after_every_operation() -> None:
    floors = grey(NEUTRAL).floor().flatten()
    assert int((floors != torch.arange(256)).sum()) == 13
    assert grey(NEUTRAL).dtype == torch.float32


def test_grey_of_the_unit_range_divides_first_and_multiplies_last() -> None:
    image = images(4, tiles=1)["random"]
    red, green, blue = (channel.astype(np.float32) / np.float32(255) for channel in image[0].numpy())
    luma = (np.float32(0.2989) * red + np.float32(0.5870) * green) + np.float32(0.1140) * blue
    assert np.array_equal(grey(image, BT601_UNIT)[0].numpy(), luma * np.float32(255))
