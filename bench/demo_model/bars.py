"""Where the bars of a chart show their values: what is compared for the highest one, and what leads to the axis."""

from __future__ import annotations

from collections.abc import Mapping

from erase.synthetic.sample import Box, Question

EXTREMES = ("highest", "lowest")
_PRINTED = 3
"""A bar, its name and its printed value; where more boxes are evidence for one value, they are the axis' numbers."""
Point = tuple[float, float]
"""A place in the image, in pixels from the left and from the top."""


def tip(bar: Box, name: Point) -> Point | None:
    """The end of a bar away from its name: the top above a name, the right beside one; a slice of a pie has none."""
    x, y = bar.centre
    if name[1] > bar.bottom:
        return x, bar.top
    return (bar.right, y) if name[0] < bar.left else None


def tip_to_axis(bars: Mapping[int, Box], question: Question, name: Point) -> Point | None:
    """The tip over which a name and a number of the axis belong together; None where the value is printed.

    Args:
        bars: the boxes of bars among the question's evidence, by their place in it.
    """
    if len(bars) != 1 or len(question.evidence) <= _PRINTED:
        return None
    (bar,) = bars.values()
    return tip(bar, name)


def tip_of_extreme(bars: Mapping[int, Box], boxes: int, name: int, at: Point) -> tuple[int, Point] | None:
    """The bar of the category whose name is the `name`th of the `boxes` evidence boxes, and its tip.

    The evidence of such a question has the boxes of all categories, one after the other and equally many of each.
    """
    if not bars or boxes % len(bars):
        return None
    each = boxes // len(bars)
    own = [place for place in bars if place // each == name // each]
    found = tip(bars[own[0]], at) if len(own) == 1 else None
    return (own[0], found) if found else None
