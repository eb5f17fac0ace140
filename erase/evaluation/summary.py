"""From answers to figures: accuracy that is retained, with paired confidence intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from erase.evaluation.answers import Answer
from erase.evaluation.contestants import Contest, Contestant
from erase.policy import Measure
from erase.records import Record

NONE = Contestant("none", None)
_RESAMPLES = 2000


@dataclass(frozen=True)
class Retained:
    """Score over the unpruned model's on the same questions, with a 95% interval from resampling whole images.

    Zeros where the unpruned model scores nothing.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One method in one contest: mean score, what is retained of the unpruned one, and what it kept on average."""

    name: str
    measure: Measure
    target: float
    questions: int
    score: float
    retained: Retained
    final: float
    layer_average: float
    evidence: float | None
    by_group: Mapping[str, Retained]


@dataclass(frozen=True)
class Summary:
    """All contests of an evaluation, and the unpruned score by group (`all` included)."""

    questions: int
    images: int
    unpruned: Mapping[str, float]
    lines: tuple[Line, ...]
    absent: Mapping[str, Mapping[str, str]]
    """By contest, as `label` names it: who is not there, and why."""


def label(measure: Measure, target: float) -> str:
    """A contest's name."""
    return f"{measure} {target:g}"


def summarise(
    records: Sequence[Record], contests: Sequence[Contest], answers: Mapping[tuple[int, str], Answer]
) -> Summary:
    """Figures of all contests; answers of `NONE` must be there."""
    by_image: dict[tuple[Path, ...], list[int]] = defaultdict(list)
    for number, record in enumerate(records):
        by_image[record.images].append(number)
    images = list(by_image.values())
    groups = sorted({record.group for record in records if record.group})
    plain = np.array([answers[number, NONE.key].score for number in range(len(records))])
    resampled = _resamples(images, len(records))
    members = {group: np.array([record.group == group for record in records]) for group in groups}
    unpruned = {"all": float(plain.mean())}
    unpruned |= {group: float(plain[inside].mean()) for group, inside in members.items()}
    lines = []
    for contest in contests:
        for name in dict.fromkeys(contestant.name for contestant in contest.contestants):
            keys = [contestant.key for contestant in contest.contestants if contestant.name == name]

            def mean(figure: Callable[[Answer], float], keys: Sequence[str] = keys) -> NDArray[np.float64]:
                """Per record, averaged over the contestants of that name."""
                return np.array(
                    [sum(figure(answers[number, key]) for key in keys) / len(keys) for number in range(len(records))]
                )

            scores = mean(lambda answer: answer.score)
            evidence = [
                found
                for number in range(len(records))
                for key in keys
                if (found := answers[number, key].evidence) is not None
            ]
            lines.append(
                Line(
                    name=name,
                    measure=contest.measure,
                    target=contest.target,
                    questions=len(records),
                    score=float(scores.mean()),
                    retained=_retained(scores, plain, resampled),
                    final=float(mean(lambda answer: answer.final).mean()),
                    layer_average=float(mean(lambda answer: answer.layer_average).mean()),
                    evidence=sum(evidence) / len(evidence) if evidence else None,
                    by_group={
                        group: _retained(scores * inside, plain * inside, resampled)
                        for group, inside in members.items()
                    },
                )
            )
    return Summary(
        questions=len(records),
        images=len(images),
        unpruned=unpruned,
        lines=tuple(lines),
        absent={label(contest.measure, contest.target): contest.absent for contest in contests if contest.absent},
    )


def _resamples(images: Sequence[Sequence[int]], records: int) -> NDArray[np.float64]:
    """How often each record is drawn when whole images are drawn with replacement: [resamples, records]."""
    drawn = np.random.default_rng(0).integers(0, len(images), size=(_RESAMPLES, len(images)))
    counts = np.zeros((_RESAMPLES, len(images)))
    np.add.at(counts, (np.arange(_RESAMPLES)[:, None], drawn), 1)
    image_of = np.zeros(records, dtype=np.int64)
    for number, own in enumerate(images):
        image_of[list(own)] = number
    return counts[:, image_of]


def _retained(scores: NDArray[np.float64], plain: NDArray[np.float64], resampled: NDArray[np.float64]) -> Retained:
    whole = plain.sum()
    if whole == 0:
        return Retained(0.0, 0.0, 0.0)
    wholes = resampled @ plain
    ratios = (resampled @ scores)[wholes > 0] / wholes[wholes > 0]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Retained(float(scores.sum() / whole), float(low), float(high))
