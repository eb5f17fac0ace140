"""The low-passed image against its definition and torch's convolution, the compiled version against the plain one."""

import pytest
import torch
from test_entropy import images
from torch import Tensor
from torch.nn import functional

from erase.errors import InputError
from erase.pixels import kernels
from erase.pixels.lowpass import low_pass
from erase.pixels.luma import BT601, BT601_UNIT, Luma, grey

SIZES = [(8, 8), (28, 28), (56, 140), (252, 1036), (644, 448), (1008, 1344)]
BINOMIAL = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16


def mirrored(tiles: Tensor) -> Tensor:
    """The pooled image [T, 1, H / 4 + 2, W / 4 + 2] with a mirrored border."""
    pooled = functional.avg_pool2d(grey(tiles, BT601).clamp(0, 255).unsqueeze(1), 4)
    return functional.pad(pooled, (1, 1, 1, 1), mode="reflect")


def in_order(tiles: Tensor) -> Tensor:
    """The definition, its nine products added one after the other in row-major order."""
    padded = mirrored(tiles)[:, 0]
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    total = torch.zeros(len(tiles), height, width)
    for row in range(3):
        for column in range(3):
            total += BINOMIAL[row, column] * padded[:, row : row + height, column : column + width]
    return total


@pytest.fixture(params=[True, False], ids=["compiled", "plain"])
def _version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not kernels.AVAILABLE:
        pytest.skip("numba is missing, or STAGE1_PURE set")
    monkeypatch.setattr(kernels, "AVAILABLE", request.param)


@pytest.mark.parametrize("luma", [BT601, BT601_UNIT], ids=["levels", "unit range"])
@pytest.mark.parametrize("cell", [28, 32])
def test_the_compiled_version_gives_the_bits_of_the_plain_one(
    cell: int, luma: Luma, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {name: low_pass(image, luma) for name, image in images(cell).items()}
    monkeypatch.setattr(kernels, "AVAILABLE", False)
    for name, image in images(cell).items():
        assert torch.equal(found[name], low_pass(image, luma)), name


@pytest.mark.usefixtures("_version")
class TestEitherVersion:
    @pytest.mark.parametrize("size", SIZES, ids=str)
    @pytest.mark.parametrize("levels", [256, 2, 12])
    def test_it_has_the_bits_of_its_definition_and_is_torchs_convolution(
        self, size: tuple[int, int], levels: int
    ) -> None:
        generator = torch.Generator().manual_seed(levels)
        image = torch.randint(0, levels, (1, 3, *size), generator=generator, dtype=torch.uint8)
        image *= 255 if levels == 2 else 1
        found = low_pass(image)
        assert torch.equal(found, in_order(image))
        # In which order that adds up depends on the processor.
        torch.testing.assert_close(
            found, functional.conv2d(mirrored(image), BINOMIAL[None, None])[:, 0], rtol=1e-6, atol=0
        )

    def test_tiles_do_not_see_each_other(self) -> None:
        tiles = images(28)["random"]
        assert torch.equal(low_pass(tiles), torch.cat([low_pass(tile) for tile in tiles.split(1)]))
        assert torch.equal(low_pass(tiles), in_order(tiles))

    def test_a_flat_image_stays_as_it_is(self) -> None:
        white = torch.full((1, 3, 28, 56), 255, dtype=torch.uint8)
        torch.testing.assert_close(low_pass(white), torch.full((1, 7, 14), 255.0))
        assert float(low_pass(white).max()) <= 255.0
        assert torch.equal(low_pass(torch.zeros_like(white)), torch.zeros(1, 7, 14))

    def test_pixels_may_lie_in_memory_in_any_order(self) -> None:
        image = images(28)["random"]
        interleaved = image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        assert torch.equal(low_pass(interleaved), low_pass(image))

    def test_no_tiles_give_no_images(self) -> None:
        assert low_pass(torch.zeros(0, 3, 28, 56, dtype=torch.uint8)).shape == (0, 7, 14)

    def test_images_that_cannot_be_pooled_or_mirrored_are_refused(self) -> None:
        for shape in [(1, 3, 28, 30), (1, 3, 4, 28), (3, 28, 28)]:
            with pytest.raises(InputError):
                low_pass(torch.zeros(shape, dtype=torch.uint8))
