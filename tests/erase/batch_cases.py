"""Prompts of every layout and with every pruning in one batch; a plain module, so that every test can import it."""

import random
from dataclasses import dataclass
from functools import cache

import torch
from erase_cases import IMAGE_TOKEN
from hypothesis import strategies as st
from slow_cases import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    QWEN_MEAN,
    QWEN_STD,
    inputs_for,
    mixed_image,
    prompt_for,
    tiny_internvl,
    tiny_qwen2_5_vl,
    tiny_qwen3_vl,
)
from slow_erase import cell_of, kind_of
from torch import Tensor
from transformers import PreTrainedModel

import erase
from erase.methods.base import Cut, ImageSelection, Method, Preselection

BUILDERS = {"qwen2_5_vl": tiny_qwen2_5_vl, "qwen3_vl": tiny_qwen3_vl, "internvl": tiny_internvl}
DEPTH = 7
BINNED = erase.BinnedPolicy(thresholds=(3.0, 1.0), stage1_retention=(0.9, 0.6, 0.4), final_retention=0.25)
BUDGET = erase.BudgetPolicy(retention=0.3)


class Pairs(Method):
    """Merges every two cells into one, then cuts three times, of all kinds, by what the last token looks at."""

    name = "pairs"

    def preselect(self, images):
        return Preselection(
            tuple(
                ImageSelection(
                    image.tokens, torch.arange(0, image.tokens, 2), torch.zeros(image.tokens), 0.0, None, image.grid
                )
                for image in images
            )
        )

    def postencode(self, features, preselection):
        kept = preselection.kept
        return (features[kept] + features[(kept + 1).clamp(max=max(0, len(features) - 1))]) / 2

    def cuts(self, preselection, architecture):
        left = preselection.kept.numel()
        if not left:
            return ()
        return (
            Cut(1, max(1, 2 * left // 3), prune_cache=False),
            Cut(3, max(1, left // 2), prune_cache=True),
            Cut(architecture.depth - 1, left // 4, prune_cache=False),
        )

    def score(self, context):
        return context.attention("last")


POLICIES = {
    "none": None,
    "retention 1": BINNED.with_retention(1.0),
    "budget 1": BUDGET.with_retention(1.0),
    "binned": BINNED,
    "deep": erase.BinnedPolicy((0.1,), (0.9, 0.2), 0.2, layers=(1, 6), scoring="exact"),
    "budget": BUDGET,
    "distinct": erase.DistinctPolicy(0.2),
    "tight": erase.BudgetPolicy(0.1, cue_weight=0.7, scoring="exact"),
    "late": erase.BudgetPolicy(0.6, late_retention=0.1, layers=(3, 4)),
    "pairs": Pairs(),
}


@cache
def tiny(kind: str, attention: str = "sdpa") -> PreTrainedModel:
    return BUILDERS[kind](DEPTH, attention)


def normalisation(model: PreTrainedModel) -> dict:
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if kind_of(model) == "internvl" else (QWEN_MEAN, QWEN_STD)
    return {"image_mean": mean, "image_std": std}


@dataclass(frozen=True)
class Prompt:
    """Sizes of images are cells, or for InternVL (tiles, anything)."""

    policy: str
    sizes: tuple[tuple[int, int], ...]
    before: int
    between: int
    after: int
    seed: int

    def images(self, model: PreTrainedModel) -> list[Tensor]:
        cell, seeds = cell_of(model), range(10 * self.seed, 10 * self.seed + 10)
        if kind_of(model) != "internvl":
            return [mixed_image(*size, cell, seed) for seed, size in zip(seeds, self.sizes, strict=False)]
        side = model.config.vision_config.image_size[0] // cell
        return [
            torch.cat([mixed_image(side, side, cell, 100 * seed + tile) for tile in range(tiles)])
            for seed, (tiles, _) in zip(seeds, self.sizes, strict=False)
        ]

    def ids(self, model: PreTrainedModel) -> Tensor:
        layout = {"before": self.before, "between": self.between, "after": self.after, "seed": self.seed}
        return prompt_for(model, self.images(model), **layout)[0]


@st.composite
def prompts(draw, policies: tuple[str, ...] = tuple(POLICIES)) -> Prompt:
    return Prompt(
        policy=draw(st.sampled_from(policies)),
        sizes=tuple(draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), max_size=3))),
        before=draw(st.integers(0, 6)),
        between=draw(st.integers(0, 3)),
        after=draw(st.integers(1, 9)),
        seed=draw(st.integers(0, 10_000)),
    )


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Rows [n] as one [B, L] of tokens and one of ones at tokens; `anywhere` puts padding between them, too."""
    longest = max(map(len, rows)) + (2 if side == "anywhere" else 0)
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for number, row in enumerate(rows):
        places = range(longest - len(row), longest) if side == "left" else range(len(row))
        if side == "anywhere":
            places = sorted(random.Random(len(row)).sample(range(longest), len(row)))
        tokens[number, list(places)], mask[number, list(places)] = row, 1
    return tokens, mask


def inputs_of(model: PreTrainedModel, batch: list[Prompt], side: str = "left") -> dict[str, Tensor]:
    input_ids, mask = padded([prompt.ids(model) for prompt in batch], side)
    images = [image for prompt in batch for image in prompt.images(model)]
    if images:
        settings = normalisation(model)
        inputs = inputs_for(model, input_ids, images, settings["image_mean"], settings["image_std"])
    else:
        inputs = {"input_ids": input_ids, "mm_token_type_ids": torch.zeros_like(input_ids)}
        if kind_of(model) == "internvl":
            del inputs["mm_token_type_ids"]
    return inputs | {"attention_mask": mask}


def pruned(model: PreTrainedModel, batch: list[Prompt]):
    """`pruning()` as the prompts ask for, on a model that remembers no other call."""
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    return erase.pruning(model, [POLICIES[prompt.policy] for prompt in batch], **normalisation(model))


def assert_same_trace(one, other) -> None:
    assert one.method == other.method
    assert one.stage1_kept.tolist() == other.stage1_kept.tolist()
    assert [(cut.layer, cut.kept.tolist()) for cut in one.cuts] == [
        (cut.layer, cut.kept.tolist()) for cut in other.cuts
    ]
    assert one.cache_lengths == other.cache_lengths
    assert one.retention == other.retention
    assert one.flops == other.flops


def vision_of(inputs: dict[str, Tensor]) -> Tensor:
    return inputs["input_ids"] == IMAGE_TOKEN
