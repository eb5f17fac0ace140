"""The typefaces that are bundled, cut down to printable ASCII; see fonts/README.md for where they come from."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from random import Random

from PIL import ImageFont

FOLDER = Path(__file__).parent / "fonts"
FACES: dict[str, str] = {
    "sans": "DejaVuSans.ttf",
    "sans-bold": "DejaVuSans-Bold.ttf",
    "sans-oblique": "DejaVuSans-Oblique.ttf",
    "sans-condensed": "DejaVuSansCondensed.ttf",
    "mono": "DejaVuSansMono.ttf",
    "mono-bold": "DejaVuSansMono-Bold.ttf",
    "serif": "DejaVuSerif.ttf",
    "serif-bold": "DejaVuSerif-Bold.ttf",
    "open": "OpenSans-Regular.ttf",
    "open-bold": "OpenSans-Bold.ttf",
    "open-italic": "OpenSans-Italic.ttf",
    "slab": "RobotoSlab-Regular.otf",
    "slab-bold": "RobotoSlab-Bold.otf",
}
NAMES = tuple(FACES)
UPRIGHT = tuple(name for name in NAMES if not name.endswith(("oblique", "italic")))
BOLD = tuple(name for name in NAMES if name.endswith("bold"))


@lru_cache(maxsize=512)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A face at a size in pixels per em; the basic layout engine gives the same glyphs on every machine."""
    return ImageFont.truetype(str(FOLDER / FACES[name]), size, layout_engine=ImageFont.Layout.BASIC)


def pick(rng: Random, names: tuple[str, ...] = NAMES) -> str:
    return names[rng.randrange(len(names))]


def height_of(name: str, size: int) -> int:
    """Pixels from the top of the tallest to the foot of the lowest character: the height of a line of text."""
    ascent, descent = font(name, size).getmetrics()
    return ascent + descent
