"""How right an answer is, by the rules of the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

Metric = Literal["exact", "relaxed", "anls", "contains"]
METRICS: tuple[Metric, ...] = get_args(Metric)
_TOLERANCE = 0.05
_LEAST_LIKENESS = 0.5


def score(metric: Metric, answer: str, accepted: Sequence[str]) -> float:
    """From 0 to 1, the best over the accepted answers; case and white space around never count.

    `exact`: the same text. `relaxed` (charts): numbers within 5%, else the same text. `anls` (documents): one minus
    the edit distance over the longer length, 0 below 0.5. `contains` (reading text): the accepted text stands in it.
    """
    given = _plain(answer)
    return max(_SCORERS[metric](given, _plain(one)) for one in accepted)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _exact(given: str, accepted: str) -> float:
    return float(given == accepted)


def _relaxed(given: str, accepted: str) -> float:
    number, wanted = _number(given), _number(accepted)
    if number is None or wanted is None:
        return _exact(given, accepted)
    return float(abs(number - wanted) <= _TOLERANCE * abs(wanted))


def _anls(given: str, accepted: str) -> float:
    longest = max(len(given), len(accepted))
    likeness = 1 - edit_distance(given, accepted) / longest if longest else 1.0
    return likeness if likeness >= _LEAST_LIKENESS else 0.0


def _contains(given: str, accepted: str) -> float:
    return float(accepted in given)


_SCORERS = {"exact": _exact, "relaxed": _relaxed, "anls": _anls, "contains": _contains}


def _number(text: str) -> float | None:
    """The number that a text is, a percentage as its fraction; None if it is none."""
    plain = text.replace(",", "").removeprefix("$")
    share = plain.endswith("%")
    try:
        value = float(plain.removesuffix("%"))
    except ValueError:
        return None
    return (value / 100 if share else value) if math.isfinite(value) else None


def edit_distance(one: str, other: str) -> int:
    """Characters to insert, delete or replace to turn one text into the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for number, character in enumerate(one, 1):
        before, row[0] = row[0], number
        for place, wanted in enumerate(other, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (character != wanted))
    return row[-1]
