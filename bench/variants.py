"""What was tried beyond the paper's two revisions, at equal layer-averaged retention on validation images.

    erase synthesize .erase/variants/images --split validation --images 8 --tokens 1000 1300
    python -m bench.variants .erase/variants/images --out .erase/variants

`erase-distinct` came out of this and is a policy of the library; the others are here so that their figures can be made
again. On a CPU.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional

from bench.report import fractions, progress, run_main, this_machine
from erase.budget import BudgetCut, distinct_cuts
from erase.cli.evaluate import answer_bar
from erase.errors import EraseError, InputError
from erase.evaluation import Contest, Contestant, Part, evaluate, summarise
from erase.evaluation.report import markdown
from erase.evaluation.summary import NONE
from erase.methods.base import Architecture, Method, Preselection, ScoreContext
from erase.methods.baselines.cdpruner import most_probable
from erase.methods.budget import BudgetMethod
from erase.methods.distinct import DistinctMethod
from erase.methods.none import NoPruning
from erase.models import qwen2_5_vision as vision
from erase.models.loading import LoadedModel, load_model
from erase.pixels.images import VisionImage
from erase.policy import BudgetPolicy, DistinctPolicy, Policy
from erase.records import load_records
from erase.selection import farthest_points

AGAINST = "erase-distinct"
CUE_WEIGHT = 0.3
MEAN_SHARE = 1 / 3
"""Of an image's cells, what stage 1 of revision 2 leaves of generated images on average."""
RELEVANCE_FLOOR = 0.2


class EarlyDistinct(BudgetMethod):
    """What is looked at and different: greedy maximum of a determinantal point process, as in CDPruner."""

    sees_features = True

    def choose(self, context: ScoreContext) -> Tensor:
        attention = context.attention()
        spread = (attention.max() - attention.min()).clamp(min=1e-9)
        relevance = RELEVANCE_FLOOR + (attention - attention.min()) / spread
        return most_probable(_directions(context) * relevance[:, None], context.cut.keep).sort().values


class AllCells(DistinctMethod):
    """Nothing is dropped for its pixels, however faint."""

    def preselect(self, images: Sequence[VisionImage]) -> Preselection:
        return NoPruning().preselect(images)


class Merging(DistinctMethod):
    """What repeats is averaged into the token that it is most like."""

    def merge(self, context: ScoreContext, chosen: Tensor) -> Tensor:
        states = super().merge(context, chosen)
        if context.cut.after_layers > 0 or context.states is None:
            return states
        left = torch.ones(len(context.survivors), dtype=torch.bool)
        left[chosen] = False
        dropped, directions = left.nonzero().squeeze(1), _directions(context)
        nearest = (directions[dropped] @ directions[chosen].T).argmax(1)
        sums = states.index_add(0, nearest, context.states()[dropped])
        return sums / (1 + torch.bincount(nearest, minlength=len(chosen)))[:, None]


class Cued(DistinctMethod):
    """Distances count more where pixels have edges and entropy."""

    def choose(self, context: ScoreContext) -> Tensor:
        if context.cut.after_layers > 0:
            return super().choose(context)
        entropy, edges = _seen(context)
        weight = 1 + CUE_WEIGHT * (edges / edges.std().clamp(min=1e-6) + entropy / entropy.std().clamp(min=1e-6))
        likeness = _directions(context)
        likeness = likeness @ likeness.T
        chosen = torch.empty(context.cut.keep, dtype=torch.int64)
        chosen[0] = ((1 - likeness.fill_diagonal_(-1).amax(1)) * weight).argmax()
        nearest = 1 - likeness[chosen[0]]
        for number in range(1, len(chosen)):
            nearest[chosen[:number]] = -1.0
            chosen[number] = (nearest * weight).argmax()
            nearest = torch.minimum(nearest, 1 - likeness[chosen[number]])
        return chosen.sort().values


class OwnBudget(DistinctMethod):
    """Images of which stage 1 leaves more get a larger budget: by the root of their share over the usual one."""

    def planned(self, preselection: Preselection, architecture: Architecture) -> Sequence[BudgetCut]:
        share = preselection.kept.numel() / preselection.tokens
        return distinct_cuts(
            tokens=preselection.tokens,
            survivors=preselection.kept.numel(),
            retention=min(1.0, self.policy.retention * (share / MEAN_SHARE) ** 0.5),
            late_retention=self.policy.late_retention,
            depth=architecture.depth,
            late=architecture.late,
        )


class BeforeEncoder(DistinctMethod):
    """Stage 1 before the vision encoder, which then sees only what is kept; `ring` cells around it, too."""

    def __init__(self, policy: DistinctPolicy, loaded: LoadedModel, ring: int = 0) -> None:
        super().__init__(policy)
        self._loaded, self._ring = loaded, ring
        self._features: WeakKeyDictionary[Preselection, Tensor] = WeakKeyDictionary()

    def preselect(self, images: Sequence[VisionImage]) -> Preselection:
        preselection = super().preselect(images)
        (image,), (selection,) = images, preselection.images
        _, height, width = image.grid
        seen = torch.zeros(1, 1, height, width)
        seen.view(-1)[selection.kept] = 1.0
        if self._ring:
            seen = functional.max_pool2d(seen, 2 * self._ring + 1, 1, self._ring)
        self._features[preselection] = self._encoded(image, seen.flatten() > 0)
        return preselection

    def choose(self, context: ScoreContext) -> Tensor:
        if context.cut.after_layers > 0:
            return super().choose(context)
        own = self._features[context.preselection][context.survivors]
        return farthest_points(own.float(), context.cut.keep).sort().values

    def postencode(self, features: Tensor, preselection: Preselection) -> Tensor:
        return self._features[preselection][preselection.kept].to(features.dtype)

    @torch.no_grad()
    def _encoded(self, image: VisionImage, seen: Tensor) -> Tensor:
        """What the encoder makes of the cells that it sees, in its windows: [cells, d], zero for the others."""
        visual, processor = self._loaded.adapter.inner.visual, self._loaded.image_processor
        merge, (_, height, width) = visual.spatial_merge_size, image.grid
        side = visual.window_size // merge // visual.patch_size
        numbers = torch.arange(height * width).view(height, width)
        order: list[Tensor] = []
        windows: dict[int, list[Tensor]] = defaultdict(list)
        rows = 0
        for top in range(0, height, side):
            for left in range(0, width, side):
                cells = numbers[top : top + side, left : left + side].flatten()
                cells = cells[seen[cells]]
                if len(cells):
                    count = len(cells) * merge**2
                    order.append(cells)
                    windows[count].append(torch.arange(rows, rows + count))
                    rows += count
        cells = torch.cat(order)
        mean, std = (torch.tensor(part)[:, None, None] for part in (processor.image_mean, processor.image_std))
        patches = _patches((image.tiles[0] / 255 - mean) / std, visual.patch_size, merge, processor.temporal_patch_size)
        weight = visual.patch_embed.proj.weight
        hidden = functional.linear(patches[cells].flatten(0, 1).to(weight.dtype), weight.flatten(1))
        cos, sin = vision._rotations(visual, vision._places(cells, width, merge))
        groups = [torch.stack(own) for own in windows.values()]
        for number, block in enumerate(visual.blocks):
            query, key, value = vision._heads(block.attn, block.norm1(hidden))
            query, key = vision._rotated(query, cos, sin), vision._rotated(key, cos, sin)
            if number in visual.fullatt_block_indexes:
                looked = vision._attend_images(query, key, value, (len(hidden),))
            else:
                looked = vision._attend_windows(query, key, value, groups)
            hidden = hidden + block.attn.proj(looked.flatten(1))
            hidden = hidden + block.mlp(block.norm2(hidden))
        merged = visual.merger(hidden)
        features = torch.zeros(height * width, merged.shape[1], dtype=merged.dtype)
        features[cells] = merged
        return features


def variants(retention: float, loaded: LoadedModel) -> dict[str, Policy | Method]:
    """All variants at a layer-averaged retention, by name."""
    distinct = DistinctPolicy(retention)
    early = BudgetPolicy(retention, late_retention=1.0, cue_weight=0.0, scoring="exact")  # all its budget in one cut
    return {
        AGAINST: distinct,
        "erase-2": BudgetPolicy(retention),
        "erase-2-exact": BudgetPolicy(retention, scoring="exact"),
        "early": early,
        "early, cued": replace(early, cue_weight=0.2),
        "early, distinct": EarlyDistinct(early),
        "distinct alone": DistinctPolicy(retention, late_retention=1.0),
        "distinct, late keeps 0.3": DistinctPolicy(retention, late_retention=0.3),
        "distinct, late after half": DistinctPolicy(retention, late_layer=loaded.adapter.depth // 2),
        "distinct of all cells": AllCells(distinct),
        "distinct, merging": Merging(distinct),
        "distinct, cued": Cued(distinct),
        "distinct, own budget": OwnBudget(distinct),
        "distinct, before encoder": BeforeEncoder(distinct, loaded),
        "distinct, before encoder and ring": BeforeEncoder(distinct, loaded, ring=1),
    }


def _seen(context: ScoreContext) -> tuple[Tensor, Tensor]:
    """Entropy and edge ratio of the survivors."""
    images, survivors = context.preselection.images, context.survivors
    edges = [image.edge_ratio for image in images if image.edge_ratio is not None]
    return torch.cat([image.entropy for image in images])[survivors], torch.cat(edges)[survivors]


def _directions(context: ScoreContext) -> Tensor:
    """Unit vectors [survivors, d] of what the vision encoder made."""
    if context.encoded is None:
        raise InputError("variants look at the encoder's output, which is not there")
    return functional.normalize(context.encoded.features[context.survivors].float(), dim=-1)


def _patches(image: Tensor, side: int, merge: int, frames: int) -> Tensor:
    """[3, H, W] as the encoder takes it: [cells, patches of a cell, 3 * frames * side * side]."""
    channels, height, width = image.shape
    rows, columns = height // side // merge, width // side // merge
    cut = image.view(channels, rows, merge, side, columns, merge, side).permute(1, 4, 2, 5, 0, 3, 6)
    frozen = cut[:, :, :, :, :, None].expand(rows, columns, merge, merge, channels, frames, side, side)
    return frozen.reshape(rows * columns, merge * merge, -1)


@dataclass(frozen=True)
class Tried(Contestant):
    """A variant. One that is a method and no policy has its name and retention for a key."""

    retention: float = 1.0

    @cached_property
    def key(self) -> str:
        own = f"{self.name} {self.retention:g}"
        return own if isinstance(self.policy, Method) else f"{own} {super().key}"


def run(options: argparse.Namespace) -> None:
    """Asks all questions, or a part of them, and prints the table."""
    progress(str(this_machine()))
    loaded, records = load_model(options.model, device="cpu"), load_records(options.data)
    contests = [
        Contest("layer_average", retention, tuple(_tried(retention, loaded, options.only)), {})
        for retention in options.retentions
    ]
    everyone = [NONE, *(one for contest in contests for one in contest.contestants)]
    with answer_bar() as show:
        answers = evaluate(
            loaded,
            records,
            everyone,
            options.out / "answers",
            part=options.part,
            restart=options.restart,
            progress=show,
        )
    if options.part.whole:
        text = markdown(summarise(records, contests, answers, AGAINST))
        (options.out / "variants.md").write_text(text, encoding="utf-8")
        print(text)


def _tried(retention: float, loaded: LoadedModel, only: Sequence[str]) -> Iterator[Contestant]:
    found = variants(retention, loaded)
    unknown = set(only) - set(found)
    if unknown:
        raise InputError(f"there is no variant {sorted(unknown)[0]!r}; known: {'; '.join(found)}")
    for name, one in found.items():
        if not only or name in (*only, AGAINST):
            yield Tried(name, cast(Policy, one), retention)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares the variants."""
    parser = argparse.ArgumentParser(prog="python -m bench.variants", description="Variants beyond both revisions.")
    parser.add_argument("data", type=Path, help="folder with records.jsonl, one image per question")
    parser.add_argument("--out", type=Path, required=True, help="folder of answers and table")
    parser.add_argument("--model", default="demo", help="a Qwen2.5-VL (%(default)s)")
    parser.add_argument("--retentions", type=fractions, default=[0.15, 0.075], help="0.15,0.075")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this one; again for more (all)")
    parser.add_argument("--part", type=Part.parse, default=Part(), help="K/N, as of erase evaluate")
    parser.add_argument("--restart", action="store_true", help="forget the answers of an earlier run")
    return run_main(run, parser.parse_args(arguments), EraseError)


if __name__ == "__main__":
    sys.exit(main())
