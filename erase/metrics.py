"""How right an answer is, by the rules of the benchmarks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, get_args

Metric = Literal["exact", "relaxed", "anls", "vqa", "contains", "words"]
METRICS: tuple[Metric, ...] = get_args(Metric)
_TOLERANCE = 0.05
_LEAST_LIKENESS = 0.5
_ENOUGH_PEOPLE = 3
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {name: str(number) for number, name in enumerate(_NUMBERS)} | {"none": "0"}


def score(metric: Metric, answer: str, accepted: Sequence[str]) -> float:
    """From 0 to 1, the best over the accepted answers; case and white space around never count.

    `exact`: the same text. `relaxed` (ChartQA): numbers within 5%, else the same text. `anls` (DocVQA): one minus the
    edit distance over the longer length, 0 below 0.5. `vqa` (TextVQA): a third for each person who said the same, at
    most 1, averaged over all people but one; of fewer than four answers, any. `contains` (OCRBench): the accepted text
    stands in it, inside a word or number, too. `words`: it stands there as whole words and numbers.
    """
    if metric == "vqa":
        return _vqa(answer, accepted)
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


def _words(given: str, accepted: str) -> float:
    alone = rf"(?<![\w-])(?<!\d[.,:]){re.escape(accepted)}(?!-?\w)(?![.,:]\d)"
    return float(re.search(alone, given) is not None)


_SCORERS = {"exact": _exact, "relaxed": _relaxed, "anls": _anls, "contains": _contains, "words": _words}


def _vqa(answer: str, people: Sequence[str]) -> float:
    given = _as_vqa_compares(answer)
    same = sum(_as_vqa_compares(one) == given for one in people)
    others = len(people) - 1
    if others < _ENOUGH_PEOPLE:
        return float(same > 0)
    without_one_of_them, without_another = (min(count / _ENOUGH_PEOPLE, 1.0) for count in (same - 1, same))
    return (same * without_one_of_them + (len(people) - same) * without_another) / len(people)


def _as_vqa_compares(text: str) -> str:
    """Without articles and most punctuation, small numbers as digits, as the benchmark's own evaluation does it.

    A mark beside a space goes, one inside a word becomes a space; where a number has a comma, all marks go.
    Contractions stay as they are.
    """
    plain = kept = _plain(text)
    with_comma = re.search(r"\d,\d", plain) is not None
    for mark in _PUNCTUATION:
        beside = f"{mark} " in plain or f" {mark}" in plain
        kept = kept.replace(mark, "" if beside or with_comma else " ")
    words = (_DIGITS.get(word, word) for word in re.sub(r"\.(?!\d)", "", kept).split())
    return " ".join(word for word in words if word not in ("a", "an", "the"))


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
