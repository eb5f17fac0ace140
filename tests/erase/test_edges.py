"""Edges against torch's own convolution and the authors' recorded ratios."""

from typing import Any

import pytest
import torch
from erase_cases import MANIFEST, load_case
from test_entropy import CELLS, images
from torch import Tensor
from torch.nn import functional

from erase.errors import InputError
from erase.pixels import kernels
from erase.pixels.edges import WEAKEST_EDGE, edge_ratio, edge_threshold, sobel_magnitude
from erase.pixels.lowpass import POOL, low_pass

GOLDEN_TAU = 0.45
WITH_EDGES = [entry for entry in MANIFEST if entry["revision"] == 2]


def magnitude_by_torch(blurred: Tensor) -> Tensor:
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    padded = functional.pad(blurred.unsqueeze(1), (1, 1, 1, 1), mode="reflect")
    across, down = (functional.conv2d(padded, kernel[None, None]) for kernel in (sobel, sobel.T.contiguous()))
    # Rounded correctly, as on CUDA; torch's float32 root on CPU may be off by the last bit.
    return torch.sqrt((across**2 + down**2 + 1e-12).double()).float().squeeze(1)


@pytest.fixture(params=[True, False], ids=["compiled", "plain"])
def _version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not kernels.AVAILABLE:
        pytest.skip("numba is missing, or STAGE1_PURE set")
    monkeypatch.setattr(kernels, "AVAILABLE", request.param)


@pytest.mark.parametrize("cell", [28, 32])
def test_the_compiled_version_gives_the_bits_of_the_plain_one(cell: int, monkeypatch: pytest.MonkeyPatch) -> None:
    blurred = {name: low_pass(image) for name, image in images(cell).items()}
    found = {name: (sobel_magnitude(one), edge_ratio(one, cell // POOL, 8.0)) for name, one in blurred.items()}
    monkeypatch.setattr(kernels, "AVAILABLE", False)
    for name, one in blurred.items():
        assert torch.equal(found[name][0], sobel_magnitude(one)), name
        assert torch.equal(found[name][1], edge_ratio(one, cell // POOL, 8.0)), name


@pytest.mark.usefixtures("_version")
class TestEitherVersion:
    @pytest.mark.parametrize("name", ["random", "text", "dark", "gradient"])
    def test_magnitudes_have_the_bits_of_torchs_convolution(self, name: str) -> None:
        blurred = low_pass(images(28)[name])
        assert torch.equal(sobel_magnitude(blurred), magnitude_by_torch(blurred))
        large = low_pass(images(28 * 8, tiles=1)[name])
        assert torch.equal(sobel_magnitude(large), magnitude_by_torch(large))

    @pytest.mark.parametrize("entry", WITH_EDGES, ids=[entry["name"] for entry in WITH_EDGES])
    def test_recorded_ratios_of_the_authors_are_met_exactly(self, entry: dict[str, Any]) -> None:
        case = load_case(entry)
        side = CELLS[entry["model"]] // POOL
        for index, image in enumerate(case.images):
            blurred = low_pass(image.unsqueeze(0))
            # The authors know no weakest edge.
            threshold = float((1 - GOLDEN_TAU) * blurred.median())
            assert torch.equal(edge_ratio(blurred, side, threshold), case.tensors[f"edge_ratio_{index}"])

    def test_a_ratio_is_the_share_of_pixels_above_the_threshold(self) -> None:
        blurred = low_pass(images(28)["random"])
        shares = functional.avg_pool2d((magnitude_by_torch(blurred) > 30.0).float().unsqueeze(1), 7).flatten()
        assert 0 < float(shares.mean()) < 1
        torch.testing.assert_close(edge_ratio(blurred, 7, 30.0), shares)

    def test_a_magnitude_equal_to_the_threshold_is_no_edge(self) -> None:
        step = torch.zeros(1, 4, 4)
        step[:, :, 2:] = 2.0
        assert sobel_magnitude(step)[0, 0].tolist() == pytest.approx([1e-6, 8.0, 8.0, 1e-6])
        assert edge_ratio(step, 4, 8.0).tolist() == [0.0]
        assert edge_ratio(step, 4, 7.9).tolist() == [0.5]

    @pytest.mark.parametrize("name", ["black", "flat", "white"])
    def test_an_image_without_contrast_has_no_edge(self, name: str) -> None:
        blurred = low_pass(images(28)[name])
        assert edge_ratio(blurred, 7, edge_threshold(blurred, 0.45)).tolist() == [0.0] * 45
        assert edge_ratio(blurred, 7, edge_threshold(blurred, 1.0)).tolist() == [0.0] * 45

    def test_images_may_lie_in_memory_in_any_order(self) -> None:
        blurred = low_pass(images(28)["random"]).transpose(1, 2)
        assert torch.equal(edge_ratio(blurred, 7, 30.0), edge_ratio(blurred.contiguous(), 7, 30.0))
        assert torch.equal(sobel_magnitude(blurred), sobel_magnitude(blurred.contiguous()))

    def test_wrong_images_are_refused(self) -> None:
        for wrong, cell in [
            (torch.zeros(1, 7, 7, dtype=torch.float64), 7),
            (torch.zeros(7, 7), 7),
            (torch.zeros(1, 1, 7), 1),
            (torch.zeros(1, 7, 7), 8),
            (torch.zeros(1, 7, 7), 0),
        ]:
            with pytest.raises(InputError):
                edge_ratio(wrong, cell, 8.0)


@pytest.mark.usefixtures("_version")
class TestThreshold:
    def test_it_takes_the_lower_of_two_middle_values(self) -> None:
        assert edge_threshold(torch.tensor([[[10.0, 100.0], [200.0, 250.0]]]), 0.5) == 50.0

    @pytest.mark.parametrize("name", ["random", "text", "gradient", "white"])
    @pytest.mark.parametrize("tiles", [1, 3])
    def test_it_is_that_of_torchs_median(self, name: str, tiles: int) -> None:
        blurred = low_pass(images(28, tiles)[name])
        assert edge_threshold(blurred, 0.45) == float(torch.clamp((1 - 0.45) * blurred.median(), min=8.0))

    def test_it_spans_all_tiles_of_a_group(self) -> None:
        tiles = torch.stack([torch.full((7, 7), 40.0), torch.full((7, 7), 200.0), torch.full((7, 7), 220.0)])
        assert edge_threshold(tiles, 0.5) == 100.0

    def test_it_never_falls_below_the_weakest_edge(self) -> None:
        assert WEAKEST_EDGE == 8.0
        assert edge_threshold(torch.zeros(1, 7, 7), 0.45) == WEAKEST_EDGE
        assert edge_threshold(torch.full((1, 7, 7), 14.0), 0.45) == WEAKEST_EDGE
        assert edge_threshold(torch.full((1, 7, 7), 20.0), 0.45) == pytest.approx(11.0)

    def test_an_empty_image_has_none(self) -> None:
        with pytest.raises(InputError):
            edge_threshold(torch.zeros(0, 7, 7), 0.45)
