"""The Muon optimizer (https://kellerjordan.github.io/posts/muon) with the precision that the machine is fast at.

PyTorch's own always orthogonalises in bfloat16, which takes a CPU without AVX-512 longer than the rest of a step, and
takes one matrix after the other, where a model has many of one shape.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bench.demo_model.precision import fast_dtype

_ITERATIONS = 5
_QUINTIC = (3.4445, -4.7750, 2.0315)
_RMS_OF_ADAMW = 0.2


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each matrix has all its singular values brought near one.

    An update's root mean square is that of AdamW's, so that both can share a learning rate.

    Args:
        params: matrices, or groups of them.
        lr: learning rate.
        weight_decay: decoupled, times the learning rate.
        momentum: of the gradients' running mean; Nesterov's.
    """

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step for every matrix that has a gradient."""
        for group in self.param_groups:
            updates: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    updates[weight.shape].append((weight, self._update(weight, group["momentum"])))
            for shape, pairs in updates.items():
                weights, changes = zip(*pairs, strict=True)
                scale = -group["lr"] * _RMS_OF_ADAMW * math.sqrt(max(shape))
                for weight, change in zip(weights, orthogonal(torch.stack(changes)), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(change, alpha=scale)

    def _update(self, weight: Tensor, momentum: float) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        mean: Tensor = state["momentum"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(mean, momentum)  # type: ignore[union-attr]


def orthogonal(matrices: Tensor) -> Tensor:
    """The orthogonal factors of matrices (count, rows, columns), roughly: singular values between about 0.7 and 1.2."""
    tall = matrices.shape[1] > matrices.shape[2]
    near = matrices.mT if tall else matrices
    near = (near / near.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).to(fast_dtype(matrices.device)).contiguous()
    first, second, third = _QUINTIC
    for _ in range(_ITERATIONS):
        square = near @ near.mT
        higher = torch.baddbmm(square, square, square, beta=second, alpha=third)
        near = torch.baddbmm(near, higher, near, beta=first)
    return (near.mT if tall else near).to(matrices.dtype)
