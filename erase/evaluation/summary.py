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
    """One method in one contest: mean score, what is retained of the unpruned one, and what it kept on average.

    `stays_right` is the share of the unpruned score that is not lost on the same question, whatever is won on others;
    `difference` is what it retains more than the method that all are compared with, on the same drawn images; None for
    that method itself, and where it is not in the contest.
    """

    name: str
    measure: Measure
    target: float
    questions: int
    score: float
    retained: Retained
    stays_right: float
    difference: Retained | None
    final: float
    layer_average: float
    evidence: float | None
    by_group: Mapping[str, Retained]


@dataclass(frozen=True)
class Summary:
    """All contests of an evaluation, and the unpruned score by group (`all` included)."""

    against: str
    """The method that the others' `difference` is to."""
    questions: int
    images: int
    unpruned: Mapping[str, float]
    lines: tuple[Line, ...]
    absent: Mapping[str, Mapping[str, str]]
    """By contest, as `label` names it: who is not there, and why."""


ALL = "all"
"""The score of all questions, beside those of groups."""


def label(measure: Measure, target: float) -> str:
    """A contest's name."""
    return f"{measure} {target:g}"


def summarise(
    records: Sequence[Record],
    contests: Sequence[Contest],
    answers: Mapping[tuple[int, str], Answer],
    against: str = "",
) -> Summary:
    """Figures of all contests; answers of `NONE` must be there. The other methods are compared with `against`."""
    by_image: dict[tuple[Path, ...], list[int]] = defaultdict(list)
    for number, record in enumerate(records):
        by_image[record.images].append(number)
    images = list(by_image.values())
    group_of = [f"{ALL} (a group)" if record.group == ALL else record.group for record in records]
    groups = sorted({group for group in group_of if group})
    plain = np.array([answers[number, NONE.key].score for number in range(len(records))])
    resampled = _resamples(images, len(records))
    members = {group: np.array([own == group for own in group_of]) for group in groups}
    unpruned = {ALL: float(plain.mean())}
    unpruned |= {group: float(plain[inside].mean()) for group, inside in members.items()}
    lines = []
    for contest in contests:
        keys_of: dict[str, list[str]] = defaultdict(list)
        for contestant in contest.contestants:
            keys_of[contestant.name].append(contestant.key)

        def mean(keys: Sequence[str], figure: Callable[[Answer], float]) -> NDArray[np.float64]:
            """Per record, averaged over the contestants of a name."""
            return np.array(
                [sum(figure(answers[number, key]) for key in keys) / len(keys) for number in range(len(records))]
            )

        def kept(keys: Sequence[str]) -> NDArray[np.float64]:
            """Per record, what is left of the unpruned score, averaged over the contestants of a name."""
            own = [[answers[number, key].score for key in keys] for number in range(len(records))]
            left: NDArray[np.float64] = np.minimum(np.array(own), plain[:, None]).mean(axis=1)
            return left

        scores_of = {name: mean(keys, lambda answer: answer.score) for name, keys in keys_of.items()}
        for name, keys in keys_of.items():
            scores = scores_of[name]
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
                    stays_right=float(kept(keys).sum() / plain.sum()) if plain.any() else 0.0,
                    difference=(
                        _retained(scores - scores_of[against], plain, resampled)
                        if against in scores_of and name != against
                        else None
                    ),
                    final=float(mean(keys, lambda answer: answer.final).mean()),
                    layer_average=float(mean(keys, lambda answer: answer.layer_average).mean()),
                    evidence=sum(evidence) / len(evidence) if evidence else None,
                    by_group={
                        group: _retained(scores * inside, plain * inside, resampled)
                        for group, inside in members.items()
                    },
                )
            )
    return Summary(
        against=against,
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
