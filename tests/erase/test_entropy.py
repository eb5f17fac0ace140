"""Cell entropy against a definition written out pixel by pixel."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from erase.entropy import CELLS_AT_A_TIME, cell_entropy, grey


def entropy_by_hand(cell: np.ndarray) -> float:
    """uint8 [3, c, c] to nats, in NumPy's float32 scalars."""
    levels = []
    for red, green, blue in cell.reshape(3, -1).T.astype(np.float32):
        luma = (np.float32(0.299) * red + np.float32(0.587) * green) + np.float32(0.114) * blue
        levels.append(math.floor(luma))
    shares = [count / len(levels) for count in Counter(levels).values()]
    return -sum(share * math.log(share) for share in shares)


@pytest.mark.parametrize("levels", [1, 2, 5, 40, 256])
def test_entropy_is_that_of_the_256_level_grey_histogram(levels):
    generator = torch.Generator().manual_seed(levels)
    cells = torch.randint(0, levels, (6, 3, 28, 28), generator=generator, dtype=torch.uint8)
    expected = [entropy_by_hand(cell) for cell in cells.numpy()]
    torch.testing.assert_close(cell_entropy(cells), torch.tensor(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_a_flat_cell_has_no_entropy_at_all(value):
    assert cell_entropy(torch.full((3, 3, 28, 28), value, dtype=torch.uint8)).tolist() == [0.0] * 3


def test_the_largest_entropy_is_that_of_an_even_histogram():
    ramp = torch.arange(256, dtype=torch.uint8).repeat(4).view(1, 1, 32, 32).expand(1, 3, 32, 32)
    # 13 neutral levels floor to the one below (see the last test), each pair losing 2/256 ln 2.
    assert cell_entropy(ramp).item() == pytest.approx(math.log(256) - 13 * 2 / 256 * math.log(2), abs=1e-5)
    half = torch.tensor([0, 255], dtype=torch.uint8).repeat(392).view(1, 1, 28, 28).expand(1, 3, 28, 28)
    assert cell_entropy(half).item() == pytest.approx(math.log(2))


def test_equal_histograms_tie_exactly_whatever_their_levels():
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(0, 9, (784,), generator=generator)
    order = torch.tensor([7, 200, 31, 90, 150, 3, 255, 60, 111])
    grey_cells = torch.stack([counts, order[counts]]).view(2, 1, 28, 28).expand(2, 3, 28, 28).to(torch.uint8)
    # Neutral greys do not all floor to themselves; keep the two cells' levels apart to compare like with like.
    first, second = cell_entropy(grey_cells).tolist()
    assert len(set(grey(grey_cells[1:]).floor().flatten().tolist())) == 9
    assert first == second


def test_grey_is_rounded_after_every_operation():
    neutral = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    floors = grey(neutral).floor().flatten()
    assert int((floors != torch.arange(256)).sum()) == 13
    assert grey(neutral).dtype == torch.float32


def test_many_cells_have_the_entropies_they_have_alone():
    cells = torch.randint(0, 256, (CELLS_AT_A_TIME + 3, 3, 4, 4), dtype=torch.uint8)
    together = cell_entropy(cells)
    assert torch.equal(together, torch.cat([cell_entropy(cell.unsqueeze(0)) for cell in cells]))
    assert cell_entropy(cells[:0]).shape == (0,)
