"""Pages full of characters, shapes and icons: many times more to learn reading from than an ordinary image."""

from __future__ import annotations

from random import Random

from erase.synthetic import icons, shapes, words
from erase.synthetic.canvas import Canvas
from erase.synthetic.colours import NAMED, NAMES, Rgb, ink, luminance, paper, shade
from erase.synthetic.degrade import degrade
from erase.synthetic.families.things import texture
from erase.synthetic.fonts import NAMES as FACES
from erase.synthetic.fonts import height_of, pick
from erase.synthetic.sample import Sample

_WORDS = (*words.LABELS, *words.GOODS, *words.CATEGORIES, *words.SIGNS, *words.NAMES, *words.CITIES, *words.FACTS)
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_TEXTURES = ("clouds", "grain", "weave", "bricks", "leaves", "scene")


def dense_sample(width: int, height: int, rng: Random) -> Sample:
    """An image of that size in pixels without questions, line upon line."""
    canvas = Canvas(width, height, 20, rng, _ground(rng))
    if rng.random() < 0.25:
        canvas.paste(texture(canvas, rng.choice(_TEXTURES), rng.uniform(0.2, 0.7)))
    top = rng.uniform(0, 10)
    while top < height - 18:
        top += _line(canvas, top)
    image = degrade(canvas, 0.0 if rng.random() < 0.3 else rng.random())
    return Sample("dense", "dense", image, (), tuple(canvas.marks))


def _line(canvas: Canvas, top: float) -> float:
    """Draws one line of text, shapes or icons from left to right; returns its height."""
    rng = canvas.rng
    size = min(round(rng.choice((15, 17, 19, 21, 24, 30, 42, 64)) * rng.uniform(0.9, 1.1)), canvas.height)
    face = pick(rng, FACES)
    high = height_of(face, size)
    if top + high > canvas.height:
        return float(high)
    left = rng.uniform(1, 14)
    pictures = rng.random() < 0.3
    while left < canvas.width - size:
        ground = canvas.image.getpixel((min(round(left + 6), canvas.width - 1), round(top + high / 2)))
        name, paint = _paint(rng, ground)  # type: ignore[arg-type]
        if pictures and rng.random() < 0.7:
            radius = size * rng.uniform(0.4, 0.6)
            x, y = left + radius, top + high / 2
            if rng.random() < 0.6:
                canvas.shape(rng.choice(shapes.NAMES), x, y, radius, paint, colour_name=name)
            else:
                icons.draw_icon(canvas, rng.choice(icons.NAMES), x, y, radius, paint)
            left += 2 * radius + rng.uniform(4, 12)
            continue
        text = _text(rng)
        width, _ = canvas.text_size(text, face, size)
        if left + width > canvas.width:
            break
        canvas.text(left, top, text, face, size, paint, colour_name=name)
        left += width + size * rng.uniform(0.3, 1.2)
    return high * rng.uniform(1.0, 1.3)


def _text(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.45:
        word = rng.choice(_WORDS)
        return rng.choice((word, word.upper(), word.title()))
    if kind < 0.8:
        number = str(rng.randint(0, rng.choice((99, 999, 9999))))
        return rng.choice((number, number, f"{number}%", f"{number}.{rng.randint(0, 99):02d}", f"{number}:"))
    return "".join(
        rng.choice(_LETTERS) if rng.random() < 0.6 else str(rng.randint(0, 9)) for _ in range(rng.randint(2, 5))
    )


def _ground(rng: Random) -> Rgb:
    return paper(rng) if rng.random() < 0.6 else shade(rng.choice(NAMES), rng)


def _paint(rng: Random, ground: Rgb) -> tuple[str | None, Rgb]:
    """An ink that can be read on the ground, with its name if it is one of the named colours."""
    if rng.random() < 0.5:
        return None, ink(ground, rng, rng.choice((0.35, 0.6, 0.8, 0.9)))
    usable = [name for name in NAMES if abs(luminance(NAMED[name]) - luminance(ground)) > 60]
    if not usable:
        return None, ink(ground, rng, 0.9)
    name = rng.choice(usable)
    return name, shade(name, rng)
