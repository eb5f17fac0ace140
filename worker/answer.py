"""The answer object of a finished sequence. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from erase.engine import Result, Sequence
from erase.models.prompt import PreparedImage
from erase.trace import layer_average_retention
from worker.contract import (
    Answer,
    ImageReport,
    Plan,
    PruningMap,
    PruningReport,
    Timings,
    Usage,
    VisionTokens,
)


@dataclass(frozen=True)
class JobTimes:
    """Seconds that the engine cannot know: from acceptance to the job's turn, of preprocessing, from acceptance on."""

    queue: float
    preprocess: float
    total: float


def build_answer(
    job_id: str, plan: Plan, sequence: Sequence, result: Result, times: JobTimes, depth: int, *, with_map: bool
) -> Answer:
    """Put together what the client gets. `depth` counts decoder layers."""
    before = sequence.preselection.tokens
    kept = len(result.kept)
    average = layer_average_retention(before, len(sequence.preselection.kept), result.cuts, depth)
    phases = result.times
    return Answer(
        id=job_id,
        answer=result.text,
        finish_reason="stop" if result.finish_reason == "stop" else "length",
        model=plan.model,
        usage=Usage(
            prompt_tokens=len(sequence.prompt.tokens),
            completion_tokens=len(result.tokens),
            vision_tokens=VisionTokens(
                input=before, after_stage1=len(result.entered), kept=kept, layer_average=round(average * before, 2)
            ),
            token_reduction=round(1 - average, 4),
        ),
        pruning=PruningReport(
            policy=plan.policy,
            requested=plan.retention if plan.usual_retention is None else plan.usual_retention,
            final=round(kept / before, 4) if before else 1.0,
            layer_average=round(average, 4),
            lowered_to=None if plan.usual_retention is None else plan.retention,
            stage2_skipped=result.stage2_skipped,
        ),
        images=tuple(
            ImageReport(
                width=image.pixel_size[0],
                height=image.pixel_size[1],
                tokens=image.tokens,
                complexity=round(selection.complexity, 4),
            )
            for image, selection in zip(sequence.prompt.images, sequence.preselection.images, strict=True)
        ),
        timings_ms=Timings(
            queue=_ms(times.queue + phases.queue),
            preprocess=_ms(times.preprocess),
            encode=_ms(phases.encode),
            prefill=_ms(phases.prefill),
            decode=_ms(phases.decode),
            first_token=_ms(times.queue + times.preprocess + phases.first_token),
            total=_ms(times.total),
        ),
        pruning_map=_maps(sequence, result) if with_map else None,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)


def _maps(sequence: Sequence, result: Result) -> tuple[PruningMap, ...]:
    """Per image its grid of cells: 0 dropped before the language model, 1 dropped inside it, 2 kept."""
    fate = [0] * sequence.preselection.tokens
    for index in result.entered.tolist():
        fate[index] = 1
    for index in result.kept.tolist():
        fate[index] = 2
    maps = []
    start = 0
    for image in sequence.prompt.images:
        maps.append(PruningMap(rows=_rows(image, fate[start : start + image.tokens])))
        start += image.tokens
    return tuple(maps)


def _rows(image: PreparedImage, fate: list[int]) -> tuple[tuple[int, ...], ...]:
    width = image.cell_grid[1]
    return tuple(tuple(fate[at : at + width]) for at in range(0, len(fate), width))
