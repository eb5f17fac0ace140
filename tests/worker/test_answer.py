"""The answer object: its numbers follow from what the engine did."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from erase.engine import Result, Sequence
from erase.engine.sequence import PhaseTimes
from erase.methods.base import Cut, ImageSelection, Preselection
from erase.methods.none import NoPruning
from erase.models.prompt import PreparedImage, PreparedPrompt
from erase.pixels.images import VisionImage
from worker.answer import JobTimes, build_answer
from worker.contract import Answer, Plan

CELL = 28
PLAN = Plan(model="demo", model_revision="r", policy="p", policy_settings={}, retention=0.2, seed=1)


def image(height: int, width: int, tiles: int = 1) -> PreparedImage:
    """An image of tiles of `height` x `width` vision tokens each."""
    return PreparedImage(
        pixel_values=torch.zeros(0),
        grid_thw=(tiles, 2 * height, 2 * width),
        pixels=VisionImage(torch.zeros(tiles, 3, height * CELL, width * CELL, dtype=torch.uint8), CELL),
    )


def answer(
    grids: list[tuple[int, ...]],
    stage1: list[list[int]],
    kept: list[int],
    cuts: tuple[Cut, ...] = (),
    *,
    depth: int = 8,
    finish_reason: str = "stop",
    with_map: bool = True,
    text_tokens: int = 10,
    entered: list[int] | None = None,
) -> Answer:
    """What comes of a prompt whose images have these grids, of which stage 1 and then all cuts left these tokens."""
    images = tuple(image(*grid) for grid in grids)
    selections = tuple(
        ImageSelection(
            tokens=picture.tokens,
            kept=torch.tensor(left, dtype=torch.int64),
            entropy=torch.zeros(picture.tokens),
            complexity=1.23456,
            bin=0,
            grid=picture.pixels.grid,
        )
        for picture, left in zip(images, stage1, strict=True)
    )
    kept_by_stage1 = Preselection(selections).kept
    length = text_tokens + sum(picture.tokens for picture in images)
    prompt = PreparedPrompt(
        torch.zeros(length, dtype=torch.int64), torch.zeros(3, length, dtype=torch.int64), 0, images
    )
    result = Result(
        tokens=(5, 6, 2),
        text="42",
        finish_reason=finish_reason,
        times=PhaseTimes(queue=0.1, encode=0.2, prefill=0.3, decode=0.4, first_token=0.6),
        cuts=cuts,
        entered=kept_by_stage1 if entered is None else torch.tensor(entered, dtype=torch.int64),
        kept=torch.tensor(kept, dtype=torch.int64),
        cache_lengths=(),
    )
    sequence = Sequence("job_1", prompt, NoPruning(), Preselection(selections))
    return build_answer("job_1", PLAN, sequence, result, JobTimes(1.0, 0.05, 2.5), depth, with_map=with_map)


TWO: dict[str, Any] = {
    "grids": [(2, 3), (2, 2)],
    "stage1": [[0, 2, 5], [1, 3]],
    "kept": [2, 7],
    "cuts": (Cut(after_layers=4, keep=2, prune_cache=True),),
}


def test_the_token_counts_are_sums_over_the_images() -> None:
    usage = answer(**TWO).usage
    assert usage.prompt_tokens == 20
    assert usage.completion_tokens == 3
    vision = usage.vision_tokens
    assert (vision.input, vision.after_stage1, vision.kept) == (10, 5, 2)


def test_the_layer_average_counts_each_layer_with_the_tokens_that_ran_in_it() -> None:
    made = answer(**TWO)
    assert made.usage.vision_tokens.layer_average == (4 * 5 + 4 * 2) / 8
    assert made.pruning.layer_average == 0.35
    assert made.usage.token_reduction == 0.65
    assert made.pruning.final == 0.2
    assert made.pruning.requested == 0.2


def test_two_cuts_average_over_three_stretches_of_layers() -> None:
    cuts = (Cut(2, 6, prune_cache=False), Cut(5, 1, prune_cache=True))
    made = answer([(2, 4)], [list(range(8))], [3], cuts, depth=10)
    assert made.usage.vision_tokens.layer_average == (2 * 8 + 3 * 6 + 5 * 1) / 10


def test_what_is_cut_before_the_decoder_counts_as_dropped_before_the_model() -> None:
    cuts = (Cut(0, 3, prune_cache=False), Cut(4, 1, prune_cache=False))
    made = answer([(2, 3)], [list(range(6))], [4], cuts, entered=[0, 2, 4])
    vision = made.usage.vision_tokens
    assert (vision.input, vision.after_stage1, vision.kept, vision.layer_average) == (6, 3, 1, 2)
    assert made.pruning_map is not None
    assert made.pruning_map[0].rows == ((1, 0, 1), (0, 2, 0))


def test_nothing_pruned_reduces_nothing() -> None:
    made = answer([(2, 3)], [list(range(6))], list(range(6)))
    assert made.usage.token_reduction == 0
    assert (made.pruning.final, made.pruning.layer_average) == (1.0, 1.0)
    assert made.pruning_map is not None
    assert made.pruning_map[0].rows == ((2, 2, 2), (2, 2, 2))


def test_a_prompt_of_text_alone_reports_no_vision_tokens_and_no_reduction() -> None:
    made = answer([], [], [])
    vision = made.usage.vision_tokens
    assert (vision.input, vision.after_stage1, vision.kept, vision.layer_average) == (0, 0, 0, 0)
    assert made.usage.token_reduction == 0
    assert (made.pruning.final, made.pruning.layer_average) == (1.0, 1.0)
    assert made.images == ()
    assert made.pruning_map == ()


def test_every_image_is_reported_in_pixels_as_the_model_saw_it() -> None:
    first, second = answer(**TWO).images
    assert (first.width, first.height, first.tokens) == (3 * CELL, 2 * CELL, 6)
    assert (second.width, second.height, second.tokens) == (2 * CELL, 2 * CELL, 4)
    assert first.complexity == 1.2346


def test_the_maps_show_each_images_own_cells_row_by_row() -> None:
    made = answer(**TWO)
    assert made.pruning_map is not None
    assert [grid.rows for grid in made.pruning_map] == [((1, 0, 2), (0, 0, 1)), ((0, 2), (0, 1))]


def test_tiles_stand_below_each_other_in_a_map() -> None:
    made = answer([(2, 2, 3)], [[0, 3, 5, 11]], [5, 11])
    assert made.pruning_map is not None
    assert made.pruning_map[0].rows == ((1, 0), (0, 1), (0, 2), (0, 0), (0, 0), (0, 2))
    assert (made.images[0].width, made.images[0].height, made.images[0].tokens) == (2 * CELL, 6 * CELL, 12)


@pytest.mark.parametrize("seed", range(20))
def test_the_maps_count_what_each_stage_dropped(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    grids = [(int(torch.randint(1, 6, (1,), generator=draw)), int(torch.randint(1, 6, (1,), generator=draw)))] * 2
    stage1, kept, offset = [], [], 0
    for height, width in grids:
        left = [cell for cell in range(height * width) if torch.rand(1, generator=draw) < 0.6]
        stage1.append(left)
        kept += [offset + cell for cell in left if torch.rand(1, generator=draw) < 0.5]
        offset += height * width
    made = answer(grids, stage1, kept)
    assert made.pruning_map is not None
    assert [(len(grid.rows), len(grid.rows[0])) for grid in made.pruning_map] == grids
    cells = [cell for grid in made.pruning_map for row in grid.rows for cell in row]
    vision = made.usage.vision_tokens
    assert cells.count(0) == vision.input - vision.after_stage1
    assert cells.count(1) == vision.after_stage1 - vision.kept
    assert cells.count(2) == vision.kept


def test_a_map_is_made_only_when_asked_for() -> None:
    assert answer(**TWO, with_map=False).pruning_map is None


def test_the_times_are_milliseconds_from_acceptance() -> None:
    times = answer(**TWO).timings_ms
    assert times.model_dump() == {
        "queue": 1100,
        "preprocess": 50,
        "encode": 200,
        "prefill": 300,
        "decode": 400,
        "first_token": 1650,
        "total": 2500,
    }


@pytest.mark.parametrize(("reason", "shown"), [("stop", "stop"), ("length", "length")])
def test_the_finish_reason_is_the_engines(reason: str, shown: str) -> None:
    assert answer(**TWO, finish_reason=reason).finish_reason == shown


def test_the_answer_travels_unchanged() -> None:
    made = answer(**TWO)
    assert Answer.model_validate_json(made.model_dump_json()) == made
