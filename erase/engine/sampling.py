"""Choosing the next token. Every draw depends only on the sequence's seed and the token's number."""

from __future__ import annotations

import torch
from torch import Tensor

from erase.engine.sequence import SamplingParams


def next_token(logits: Tensor, params: SamplingParams, step: int) -> int:
    """Choose from `logits` [vocabulary] the token number `step` of an answer (greedy ties go to the lowest id)."""
    if params.temperature == 0.0:
        return int(logits.argmax())
    scores = logits.double().cpu()
    # The highest becomes 0, so that no temperature, however low, makes it infinite.
    probabilities = torch.softmax((scores - scores.max()) / params.temperature, dim=-1)
    if params.top_p < 1.0:
        ordered, order = probabilities.sort(descending=True, stable=True)
        # A token stays while the probability before it is below top_p (above 0), so at least one always does.
        ordered[ordered.cumsum(0) - ordered >= params.top_p] = 0.0
        probabilities = torch.zeros_like(probabilities).scatter_(0, order, ordered)
    generator = torch.Generator().manual_seed((params.seed * 1_000_003 + step) % 2**63)
    return int(torch.multinomial(probabilities, 1, generator=generator))
