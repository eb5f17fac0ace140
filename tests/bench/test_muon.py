"""Muon: orthogonal updates of the size of AdamW's, the same as PyTorch's own."""

import pytest
import torch

from bench.demo_model.muon import Muon, orthogonal

SHAPES = [(96, 32), (32, 96), (32, 32), (96, 32)]


@pytest.mark.parametrize("shape", SHAPES[:3], ids=["tall", "wide", "square"])
def test_singular_values_come_near_one(shape):
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape) * torch.tensor([1e-3, 1.0, 1e3]).view(3, 1, 1)
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert values.max() < 1.3
    assert values.median() > 0.6


def test_nothing_to_learn_changes_nothing():
    assert not orthogonal(torch.zeros(1, 4, 6)).any()


def test_it_steps_as_pytorchs_own_does_up_to_the_rounding_there():
    torch.manual_seed(1)
    start = [torch.randn(shape) for shape in SHAPES]
    ours, theirs = ([torch.nn.Parameter(weight.clone()) for weight in start] for _ in range(2))
    optimizers = [
        Muon(ours, lr=0.01, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, first in zip(ours, theirs, start, strict=True):
        assert (one - other).norm() < 0.03 * (one - first).norm()


def test_weights_without_a_gradient_stay_as_they_are():
    still, moving = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    moving.grad = torch.eye(4)
    Muon([still, moving], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(still, torch.ones(4, 4))
    assert not torch.equal(moving, torch.ones(4, 4))
