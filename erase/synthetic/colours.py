"""Colours by their English name, in several shades."""

from __future__ import annotations

from random import Random

Rgb = tuple[int, int, int]

# Middle of each colour's range; `shade` varies it, yet two names never meet.
NAMED: dict[str, Rgb] = {
    "red": (208, 32, 36),
    "orange": (242, 128, 16),
    "yellow": (245, 212, 24),
    "green": (34, 150, 60),
    "blue": (30, 84, 204),
    "purple": (124, 44, 164),
    "pink": (246, 130, 180),
    "brown": (122, 74, 34),
    "gray": (128, 128, 128),
    "black": (20, 20, 22),
    "white": (248, 248, 248),
}
NAMES = tuple(NAMED)
VIVID = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")


def shade(name: str, rng: Random, spread: int = 14) -> Rgb:
    """A colour that everybody would call `name`."""
    red, green, blue = (max(0, min(255, value + rng.randint(-spread, spread))) for value in NAMED[name])
    if name == "gray":
        return red, red, red
    return red, green, blue


def luminance(colour: Rgb) -> float:
    """Brightness from 0 to 255 (ITU-R BT.601 weights)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def mixed(one: Rgb, other: Rgb, share: float) -> Rgb:
    """`share` of `other` mixed into `one`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def paper(rng: Random) -> Rgb:
    """A light, plain ground."""
    base = rng.randint(226, 255)
    red, green, blue = (max(0, min(255, base + rng.randint(-8, 6))) for _ in range(3))
    return red, green, blue


def ink(ground: Rgb, rng: Random, contrast: float = 0.75) -> Rgb:
    """A grey or coloured ink on `ground` whose brightness differs by about `contrast` of what is possible."""
    dark = luminance(ground) > 127
    end: Rgb = (0, 0, 0) if dark else (255, 255, 255)
    share = max(0.12, min(1.0, contrast + rng.uniform(-0.1, 0.1)))
    red, green, blue = mixed(ground, end, share)
    tint = 18 if share > 0.5 else 4
    return (
        max(0, min(255, red + rng.randint(-tint, tint))),
        max(0, min(255, green + rng.randint(-tint, tint))),
        max(0, min(255, blue + rng.randint(-tint, tint))),
    )
