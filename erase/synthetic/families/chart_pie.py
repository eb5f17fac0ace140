"""Pie charts with a legend."""

from __future__ import annotations

import math
from random import Random

from erase.synthetic.canvas import Canvas
from erase.synthetic.colours import Rgb, ink, shade
from erase.synthetic.families.chart_parts import Entry, Look
from erase.synthetic.sample import Box

_ROW = 1.15  # distance of the legend's lines in heights of text
_WITHIN = 0.35  # how often the percentages stand in the slices and not in the legend, where there is room


def pie(canvas: Canvas, look: Look, frame: Box, names: list[str]) -> list[Entry]:
    """A pie with a legend that names the colours; the shares in percent stand in the slices or in the legend."""
    rng = canvas.rng
    names = names[: min(6, len(look.colours), max(1, int(frame.height // (look.height * _ROW))))]
    within = rng.random() < _WITHIN and len(names) <= 5
    legend = look.widest(names) + look.size * 2.4 + (0.0 if within else look.width("100%"))
    radius = min(frame.height / 2, (frame.width - legend) / 2) - 2
    if len(names) < 2 or radius < look.size * 1.2:
        return []
    shares = _shares(rng, len(names), 12 if within else 4)
    within = within and all(_holds(look, radius, share) for share in shares)
    if not within and legend + look.width("100%") + 2 * radius > frame.width:
        radius = (frame.width - legend - look.width("100%")) / 2 - 2
        if radius < look.size * 1.2:
            return []
    paints = [(colour, shade(colour, rng)) for colour in rng.sample(look.colours, len(names))]
    x, y = frame.left + radius, (frame.top + frame.bottom) / 2
    middles = _slices(canvas, x, y, radius, shares, paints)
    left, top = x + radius + look.size * 0.6, y - len(names) * look.height * _ROW / 2
    entries = []
    for number, (name, share, (colour, paint), turn) in enumerate(zip(names, shares, paints, middles, strict=True)):
        line = top + number * look.height * _ROW
        key = Box(left, line + look.height * 0.2, left + look.height * 0.6, line + look.height * 0.8)
        canvas.fill(key, paint)
        canvas.mark("colour", colour, key)
        word_left = key.right + look.size * 0.4
        word = canvas.text(word_left, line, name, look.face, look.size, look.ink)
        text, slice_box = f"{share}%", _around_slice(x, y, radius, share, turn)
        if within:
            at = (x + radius * 0.64 * math.cos(turn), y + radius * 0.64 * math.sin(turn))
            figure = _figure_within(canvas, look, text, at, paint)
        else:
            figure_left = word_left + look.width(name) + look.size * 0.5
            figure = canvas.text(figure_left, line, text, look.face, look.size, look.ink)
        entries.append(Entry(name, share, colour, (key, word, figure, slice_box)))
    return entries


def _slices(
    canvas: Canvas, x: float, y: float, radius: float, shares: list[int], paints: list[tuple[str, Rgb]]
) -> list[float]:
    """Draws and marks the slices; returns the directions of their middles in radians."""
    start = canvas.rng.uniform(0, 2 * math.pi)
    middles = []
    for share, (colour, paint) in zip(shares, paints, strict=True):
        sweep = share / 100 * 2 * math.pi
        steps = max(2, int(sweep / 0.06))
        rim = [start + sweep * number / steps for number in range(steps + 1)]
        canvas.polygon([(x, y), *((x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in rim)], paint)
        middles.append(start + sweep / 2)
        canvas.mark("colour", colour, _around_slice(x, y, radius, share, middles[-1]))
        start += sweep
    return middles


def _around_slice(x: float, y: float, radius: float, share: int, turn: float) -> Box:
    """A box around the middle of a slice, no wider than it."""
    cx, cy = x + radius * 0.64 * math.cos(turn), y + radius * 0.64 * math.sin(turn)
    half = min(radius * 0.25, _half_width(radius, share))
    return Box(cx - half, cy - half, cx + half, cy + half)


def _half_width(radius: float, share: int) -> float:
    return radius * 0.64 * math.sin(min(math.pi / 2, share / 100 * math.pi))


def _holds(look: Look, radius: float, share: int) -> bool:
    """Whether the slice is large enough for its percentage, whichever way it points."""
    half = math.hypot(look.width(f"{share}%"), look.height * 0.7) / 2
    return half < _half_width(radius, share) and half < radius * 0.34


def _figure_within(canvas: Canvas, look: Look, text: str, at: tuple[float, float], paint: Rgb) -> Box:
    colour = ink(paint, canvas.rng, 1.0)
    left, top = at[0] - look.width(text) / 2, at[1] - look.height / 2
    return canvas.text(left, top, text, look.face, look.size, colour)


def _shares(rng: Random, count: int, least: int) -> list[int]:
    """Distinct whole percentages, none below `least`, that add up to 100."""
    while True:
        cuts = sorted(rng.sample(range(least, 101 - least), count - 1))
        shares = [high - low for low, high in zip([0, *cuts], [*cuts, 100], strict=True)]
        if min(shares) >= least and len(set(shares)) == count:
            return shares
