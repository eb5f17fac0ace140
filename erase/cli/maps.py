"""Maps of an image's cells for a terminal: entropies as shades, and what became of every cell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from erase.overlay import Fate

WIDTH = 80
SHADES = "·░▒▓█"
PLAIN_SHADES = ".:+*#"
SIGNS = {Fate.DROPPED_BEFORE: "·", Fate.DROPPED_INSIDE: "▒", Fate.KEPT: "█"}
PLAIN_SIGNS = {Fate.DROPPED_BEFORE: ".", Fate.DROPPED_INSIDE: "+", Fate.KEPT: "#"}
INDENT, GAP = "  ", "   "


def maps(entropy: Sequence[float], fate: Sequence[Fate], columns: int, *, asked: bool, encoding: str | None) -> str:
    """Both maps, side by side where 80 columns have room for that.

    Args:
        entropy: nats, cell after cell, row after row.
        fate: likewise.
        columns: cells along the width.
        asked: whether the model ran, so that a cell may be dropped inside it.
        encoding: of the terminal; one that lacks the shades gets plain characters.
    """
    room = WIDTH - len(INDENT)
    wide = 2 if 2 * columns <= room else 1
    if columns * wide > room:
        return f"{INDENT}(a map of {columns} columns does not fit into {WIDTH}: write a picture with --overlay)"
    fancy = _can_show(encoding)
    shades, signs = (SHADES, SIGNS) if fancy else (PLAIN_SHADES, PLAIN_SIGNS)
    left = [_scale(entropy, shades), *_lines(_shaded(entropy, shades), columns, wide)]
    kept, inside, before = (signs[one] for one in (Fate.KEPT, Fate.DROPPED_INSIDE, Fate.DROPPED_BEFORE))
    legend = f"{kept} kept  {before} dropped before, {inside} in the decoder" if asked else f"{kept} kept by stage 1"
    right = [legend, *_lines([signs[one] for one in fate], columns, wide)]
    across = max(map(len, left))
    if across + len(GAP) + max(map(len, right)) <= room:
        pairs = zip_longest(left, right, fillvalue="")
        return "\n".join(f"{INDENT}{one:<{across}}{GAP}{other}".rstrip() for one, other in pairs)
    return "\n".join(f"{INDENT}{line}".rstrip() for line in [*left, "", *right])


def _can_show(encoding: str | None) -> bool:
    try:
        SHADES.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _scale(entropy: Sequence[float], shades: str) -> str:
    return f"entropy {min(entropy):.2f} {shades} {max(entropy):.2f} nats"


def _shaded(entropy: Sequence[float], shades: str) -> list[str]:
    low, spread = min(entropy), max(entropy) - min(entropy)
    return [shades[round((value - low) / spread * (len(shades) - 1)) if spread else 0] for value in entropy]


def _lines(signs: Sequence[str], columns: int, wide: int) -> list[str]:
    return ["".join(sign * wide for sign in signs[at : at + columns]) for at in range(0, len(signs), columns)]
