"""Mirrors general visual question answering: colours, shapes, counts, positions and sizes of plain objects."""

from __future__ import annotations

import math
from random import Random

from erase.synthetic import shapes
from erase.synthetic.canvas import Canvas
from erase.synthetic.colours import NAMES, shade
from erase.synthetic.families.general_questions import ask
from erase.synthetic.families.things import Ground, Panel, Scene, Thing, paint_ground, paint_things, standing_out
from erase.synthetic.sample import Box, Question

Spot = tuple[float, float, float]  # x, y, radius
_MOST = 24
_LARGEST = 300.0  # radius in pixels


def compose(canvas: Canvas, crowd: float, hard: str | None) -> tuple[Question, ...]:
    """Paints one scene and returns the questions about it."""
    if hard == "flat" and canvas.rng.random() < 0.6:
        return ask(canvas, _panels(canvas, crowd))
    ground = paint_ground(canvas, hard)
    arrange = canvas.rng.choice((_few, _counted, _counted, _counted, _grid, _grid, _corners, _sizes))
    scene = arrange(canvas, crowd, ground)
    paint_things(canvas, scene.things, ground)
    return ask(canvas, scene)


def _few(canvas: Canvas, crowd: float, ground: Ground) -> Scene:
    """A handful of things anywhere."""
    spots = _scattered(canvas, canvas.rng.randint(1, 2 + round(6 * crowd)))
    return Scene(_dressed(canvas.rng, spots, ground.usable), ground.name)


def _counted(canvas: Canvas, crowd: float, ground: Ground) -> Scene:
    """Several things of one shape or colour among others."""
    rng = canvas.rng
    most = 2 + round((_MOST - 2) * crowd)
    wanted = max(rng.randint(1, min(9, most)) for _ in range(1 + (crowd > 0.3 and rng.random() < 0.6)))
    others = rng.randint(0, min(most - wanted, 3 + round(9 * crowd)))
    spots = _scattered(canvas, wanted + others)
    by_shape = not ground.usable or rng.random() < 0.5
    names: tuple[str, ...] = shapes.NAMES if by_shape else ground.usable
    counted = rng.choice(names)
    rest = [name for name in names if name != counted]
    column = [counted if number < wanted else rng.choice(rest) for number in range(len(spots))]
    second: list[str] = _choices(rng, ground.usable if by_shape else shapes.NAMES, len(spots))
    looks = zip(column, second, strict=True) if by_shape else zip(second, column, strict=True)
    things = [Thing(shape, colour or None, *spot) for (shape, colour), spot in zip(looks, spots, strict=True)]
    return Scene(things, ground.name, counted=counted)


def _grid(canvas: Canvas, crowd: float, ground: Ground) -> Scene:
    """Rows and columns; two things side by side are the smallest grid."""
    rng = canvas.rng
    width, height = canvas.width * rng.uniform(0.7, 1.0), canvas.height * rng.uniform(0.7, 1.0)
    left, top = rng.uniform(0, canvas.width - width), rng.uniform(0, canvas.height - height)
    columns, rows = _grid_size(canvas, crowd, width, height)
    cell_width, cell_height = width / columns, height / rows
    radius = min(_LARGEST, min(cell_width, cell_height) * rng.uniform(0.25, 0.38))
    radius = max(radius, min(_smallest(canvas), 0.4 * min(cell_width, cell_height)))
    spots = [
        (
            left + (column + 0.5) * cell_width + radius * rng.uniform(-0.15, 0.15),
            top + (row + 0.5) * cell_height + radius * rng.uniform(-0.15, 0.15),
            radius,
        )
        for row in range(rows)
        for column in range(columns)
    ]
    things = _dressed(rng, spots, ground.usable)
    return Scene(things, ground.name, neighbours=_neighbours(columns, rows))


def _grid_size(canvas: Canvas, crowd: float, width: float, height: float) -> tuple[int, int]:
    rng = canvas.rng
    least = 2.7 * _smallest(canvas)
    most = 2 + round((_MOST - 6) * crowd)
    sizes = [
        (columns, rows)
        for columns in range(1, 7)
        for rows in range(1, 7)
        if 2 <= columns * rows <= most and width / columns >= least and height / rows >= least
    ]
    if not sizes:
        return (2, 1) if width > height else (1, 2)
    large = [size for size in sizes if size[0] * size[1] > most / 2]
    return rng.choice(large or sizes)


def _neighbours(columns: int, rows: int) -> tuple[tuple[str, int, int], ...]:
    found = []
    for number in range(columns * rows):
        if number % columns:
            found += [("left of", number, number - 1), ("right of", number - 1, number)]
        if number >= columns:
            found += [("above", number, number - columns), ("below", number - columns, number)]
    return tuple(found)


def _corners(canvas: Canvas, crowd: float, ground: Ground) -> Scene:
    """One thing in each corner, often one in the middle; at little crowd only two opposite corners."""
    rng = canvas.rng
    side = min(canvas.width, canvas.height)
    radius = min(_LARGEST, side * 0.2, max(_smallest(canvas), side * rng.uniform(0.08, 0.18)))
    inset = radius * rng.uniform(1.2, 1.4)
    right, bottom = canvas.width - inset, canvas.height - inset
    spots = {
        "top left corner": (inset, inset, radius),
        "bottom right corner": (right, bottom, radius),
        "top right corner": (right, inset, radius),
        "bottom left corner": (inset, bottom, radius),
    }
    if crowd < 0.15:
        spots = dict(list(spots.items())[:2])
    elif rng.random() < 0.6 and radius <= side * 0.15:
        spots["middle"] = (canvas.width / 2, canvas.height / 2, radius)
    things = _dressed(rng, list(spots.values()), ground.usable)
    return Scene(things, ground.name, places=tuple((place, number) for number, place in enumerate(spots)))


def _sizes(canvas: Canvas, crowd: float, ground: Ground) -> Scene:
    """One thing plainly bigger, and one plainly smaller, than the others."""
    rng = canvas.rng
    side = min(canvas.width, canvas.height)
    number = rng.randint(2, 3 + round(7 * crowd))
    small = _smallest(canvas)
    big = min(_LARGEST, side * 0.4, max(2.7 * small, side * rng.uniform(0.12, 0.36)))
    radii = [big, big / 2.7] + [big / rng.uniform(1.5, 1.8) for _ in range(number - 2)]
    spots = _placed(canvas, radii)
    return Scene(_dressed(rng, spots, ground.usable), ground.name, sized=radii[1] in [radius for _, _, radius in spots])


def _panels(canvas: Canvas, crowd: float) -> Scene:
    """Two halves or four quarters in plain colours, with or without things on them."""
    rng = canvas.rng
    panels = _split(canvas)
    for panel in panels:
        canvas.fill(panel.box, shade(panel.colour, rng))
        canvas.mark("colour", panel.colour, panel.box)
    ground = Ground(None, standing_out([shade(panel.colour, rng, 0) for panel in panels]))
    radius = min(min(panel.box.width, panel.box.height) * 0.3, max(_smallest(canvas), 60.0))
    taken = [panel for panel in panels if ground.usable and rng.random() < crowd]
    spots = [(*panel.box.centre, radius) for panel in taken]
    scene = Scene(
        _dressed(rng, spots, ground.usable),
        panels=panels,
        places=tuple((panel.place, number) for number, panel in enumerate(taken)),
    )
    paint_things(canvas, scene.things, ground)
    return scene


def _split(canvas: Canvas) -> tuple[Panel, ...]:
    rng = canvas.rng
    x, y = round(canvas.width * rng.uniform(0.42, 0.58)), round(canvas.height * rng.uniform(0.42, 0.58))
    width, height = canvas.width, canvas.height
    boxes = {
        "sides": {"left half": Box(0, 0, x, height), "right half": Box(x, 0, width, height)},
        "levels": {"top half": Box(0, 0, width, y), "bottom half": Box(0, y, width, height)},
        "quarters": {
            "top left quarter": Box(0, 0, x, y),
            "top right quarter": Box(x, 0, width, y),
            "bottom left quarter": Box(0, y, x, height),
            "bottom right quarter": Box(x, y, width, height),
        },
    }[rng.choice(("sides", "levels", "quarters"))]
    colours = rng.sample(NAMES, len(boxes))
    return tuple(Panel(place, colour, box) for (place, box), colour in zip(boxes.items(), colours, strict=True))


def _smallest(canvas: Canvas) -> float:
    """The least radius of a thing that can still be made out."""
    return max(14.0, 0.8 * canvas.unit)


def _scattered(canvas: Canvas, number: int) -> list[Spot]:
    """`number` spots of similar size, or as many as there is room for, but at least one."""
    rng = canvas.rng
    room = math.sqrt(canvas.width * canvas.height / number) * 0.33
    largest = min(_LARGEST, room, 0.4 * min(canvas.width, canvas.height))
    smallest = min(_smallest(canvas), largest)
    radius = math.exp(rng.uniform(math.log(smallest), math.log(largest)))
    return _placed(canvas, [max(smallest, radius * rng.uniform(0.8, 1.0)) for _ in range(number)])


def _placed(canvas: Canvas, radii: list[float]) -> list[Spot]:
    """Spots that neither touch each other nor the border; those that find no room are left out."""
    rng = canvas.rng
    spots: list[Spot] = []
    for radius in radii:
        for _ in range(60):
            reach = 1.15 * radius
            x, y = rng.uniform(reach, canvas.width - reach), rng.uniform(reach, canvas.height - reach)
            if all(max(abs(x - a), abs(y - b)) > reach + 1.15 * other for a, b, other in spots):
                spots.append((x, y, radius))
                break
    return spots


def _dressed(rng: Random, spots: list[Spot], colours: tuple[str, ...]) -> list[Thing]:
    """Things at the spots, some shapes and colours among them occurring once."""
    looks = zip(_mostly_once(rng, shapes.NAMES, len(spots)), _mostly_once(rng, colours, len(spots)), strict=True)
    return [Thing(shape, colour or None, *spot) for (shape, colour), spot in zip(looks, spots, strict=True)]


def _mostly_once(rng: Random, names: tuple[str, ...], number: int) -> list[str]:
    """All different where possible, else a few that occur once among others that repeat."""
    if len(names) >= number and rng.random() < 0.75:
        return rng.sample(names, number)
    shuffled = rng.sample(names, len(names))
    once = min(3, len(names) // 2, number)
    drawn = shuffled[:once] + _choices(rng, tuple(shuffled[once:]), number - once)
    rng.shuffle(drawn)
    return drawn


def _choices(rng: Random, names: tuple[str, ...], number: int) -> list[str]:
    return [rng.choice(names) if names else "" for _ in range(number)]
