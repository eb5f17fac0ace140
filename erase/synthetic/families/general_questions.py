"""The questions of the general family, each with one right answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain

from erase.synthetic import shapes
from erase.synthetic.canvas import Canvas
from erase.synthetic.families.things import Scene, Thing
from erase.synthetic.sample import Question

_MOST = 7


def ask(canvas: Canvas, scene: Scene) -> tuple[Question, ...]:
    """Up to seven questions about the scene, at most three of a kind."""
    rng = canvas.rng
    candidates = list(
        chain(
            _colours(canvas, scene),
            _shapes(canvas, scene),
            _counts(canvas, scene),
            _positions(scene),
            _places(scene),
            _extremes(canvas, scene),
            _plains(canvas, scene),
        )
    )
    if not candidates:
        candidates = [_total(scene)]
    rng.shuffle(candidates)
    kinds: Counter[str] = Counter()
    asked = []
    for question in candidates:
        kinds[question.kind] += 1
        if kinds[question.kind] <= _limit(question.kind, scene):
            asked.append(question)
    return tuple(asked[:_MOST])


def _limit(kind: str, scene: Scene) -> int:
    """How often a kind is asked: colours and shapes less where the scene is made for something else."""
    if kind in ("color", "shape"):
        return 1 if scene.counted or scene.neighbours or scene.places else 2
    return 3


def _alone(things: list[Thing]) -> tuple[list[Thing], list[Thing]]:
    """The things whose shape, and those whose colour, no other thing has."""
    shapes_seen = Counter(thing.shape for thing in things)
    colours_seen = Counter(thing.colour for thing in things)
    return (
        [thing for thing in things if shapes_seen[thing.shape] == 1],
        [thing for thing in things if thing.colour and colours_seen[thing.colour] == 1],
    )


def _colours(canvas: Canvas, scene: Scene) -> Iterator[Question]:
    for thing in _alone(scene.things)[0]:
        if thing.colour:
            text = canvas.rng.choice(("What color is the {}?", "What is the color of the {}?"))
            yield Question(text.format(thing.shape), thing.colour, (thing.box,), "color")


def _shapes(canvas: Canvas, scene: Scene) -> Iterator[Question]:
    if len(scene.things) == 1 and not scene.panels:
        yield Question("What shape is this?", scene.things[0].shape, (scene.things[0].box,), "shape")
    for thing in _alone(scene.things)[1]:
        text = canvas.rng.choice(("What shape is {}?", "What is the shape of the {} object?"))
        yield Question(text.format(thing.colour), thing.shape, (thing.box,), "shape")


def _counts(canvas: Canvas, scene: Scene) -> Iterator[Question]:
    rng, things = canvas.rng, scene.things
    if scene.counted is None:
        return
    yield _count(scene, scene.counted)
    if len(things) <= 9 and rng.random() < 0.15:
        yield _total(scene)
    hoped = [str(rng.randint(4, 9)) for _ in range(3)]  # small numbers come up often enough
    names = (*shapes.NAMES, *dict.fromkeys(thing.colour for thing in things if thing.colour))
    others = [_count(scene, name) for name in names if name != scene.counted]
    fitting = [question for question in others if question.answer in hoped]
    if fitting:
        yield rng.choice(fitting)


def _count(scene: Scene, name: str) -> Question:
    """How many things are of a shape or colour."""
    boxes = tuple(thing.box for thing in scene.things if name in (thing.shape, thing.colour))
    what = _plural(name) if name in shapes.NAMES else f"{name} objects"
    return Question(f"How many {what} are there?", str(len(boxes)), boxes, "count")


def _total(scene: Scene) -> Question:
    boxes = tuple(thing.box for thing in scene.things)
    return Question("How many objects are there?", str(len(boxes)), boxes, "count")


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _positions(scene: Scene) -> Iterator[Question]:
    looks = Counter((thing.shape, thing.colour) for thing in scene.things)
    alone = {thing.shape for thing in _alone(scene.things)[0]}
    for word, one, other in scene.neighbours:
        thing, answer = scene.things[one], scene.things[other]
        evidence = (thing.box, answer.box)
        if thing.shape in alone:
            yield Question(f"What shape is {word} the {thing.shape}?", answer.shape, evidence, "position")
        elif thing.colour and looks[thing.shape, thing.colour] == 1:
            text = f"What shape is {word} the {thing.colour} {thing.shape}?"
            yield Question(text, answer.shape, evidence, "position")


def _places(scene: Scene) -> Iterator[Question]:
    for place, number in scene.places:
        thing = scene.things[number]
        yield Question(f"What shape is in the {place}?", thing.shape, (thing.box,), "corner")


def _extremes(canvas: Canvas, scene: Scene) -> Iterator[Question]:
    if not scene.sized:
        return
    boxes = tuple(thing.box for thing in scene.things)
    by_size = sorted(scene.things, key=lambda thing: thing.radius)
    for word, thing in (("biggest", by_size[-1]), ("smallest", by_size[0])):
        if thing.colour and canvas.rng.random() < 0.8:
            yield Question(f"What color is the {word} shape?", thing.colour, boxes, word)
        else:
            yield Question(f"What is the {word} shape?", thing.shape, boxes, word)


def _plains(canvas: Canvas, scene: Scene) -> Iterator[Question]:
    if scene.background:
        yield Question("What color is the background?", scene.background, (canvas.bounds,), "background")
    for panel in scene.panels:
        yield Question(f"What color is the {panel.place}?", panel.colour, (panel.box,), "panel")
