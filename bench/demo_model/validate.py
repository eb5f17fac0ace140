"""Share of right answers on fixed validation images while the model is in training.

An answer counts when every one of its tokens is the likeliest one given the right ones before it: then, and only
then, greedy decoding gives that answer.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from random import Random

import torch

from bench.demo_model.data import Collator, render
from bench.demo_model.network import Batch, TrainingNetwork
from bench.demo_model.precision import reduced_precision
from erase import synthetic

SIZES = ((8, 8), (12, 12), (20, 16))
"""Columns and rows in cells."""
_IMAGES = 12
_QUESTIONS = 5


def validate(
    network: TrainingNetwork, tokenizer_folder: Path, device: torch.device, images: int = _IMAGES
) -> dict[str, float]:
    """Right answers by family and by number of vision tokens."""
    collator = Collator(tokenizer_folder)
    right: dict[str, list[bool]] = defaultdict(list)
    network.eval()
    for columns, rows in SIZES:
        for family in synthetic.FAMILIES:
            rng = Random(f"{family}/{columns}")
            samples = [render(family, "validation", index, columns, rows, rng) for index in range(images)]
            batch = collator.batch(samples, [one.questions[:_QUESTIONS] for one in samples]).to(device)
            answers = answered(network, batch)
            right[family] += answers
            right[f"{columns * rows} tokens"] += answers
    network.train()
    return {name: sum(many) / len(many) for name, many in right.items()}


@torch.no_grad()
def answered(network: TrainingNetwork, batch: Batch, reduced: bool = True) -> list[bool]:
    """Whether each question's answer comes out whole, image by image; `reduced`: bfloat16 where that is faster."""
    with reduced_precision(batch.images.device, enabled=reduced):
        logits, targets = network(batch)
    hits = logits.argmax(-1) == targets
    learned = batch.targets >= 0
    image, column = learned.nonzero(as_tuple=True)
    branch = batch.branch[image, column]
    outcome: dict[tuple[int, int], bool] = {}
    for key, hit in zip(zip(image.tolist(), branch.tolist(), strict=True), hits.tolist(), strict=True):
        outcome[key] = outcome.get(key, True) and hit
    return list(outcome.values())
