"""Chooses the pictures that are bundled with the model: one per family, with questions that it answers right.

    python -m bench.demo_model samples --model erase/demo

They show what the model can do and are no evaluation: what it gets wrong is left out. They come from the test split.
A picture that is bundled already stays, with its questions, while all of them are answered right.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from erase import load_policy, synthetic
from erase.engine import Engine, SamplingParams
from erase.engine import Sequence as EngineSequence
from erase.methods import method_for
from erase.methods.base import Method
from erase.models.loading import LoadedModel, load_model
from erase.models.prompt import PreparedImage, prepare_images, prepare_prompt

_SIZES = {
    "documents": (448, 448),
    "charts": (448, 336),
    "scene_text": (448, 336),
    "infographics": (448, 448),
    "ocr": (448, 336),
    "general": (336, 336),
}
_QUESTIONS = 4
_TRIES = 400
_CROWD = 0.7


@dataclass(frozen=True)
class Chosen:
    """A sample and some of its questions: once chosen, those that are answered right with and without pruning."""

    sample: synthetic.Sample
    questions: tuple[synthetic.Question, ...]


def choose(loaded: LoadedModel, family: str, before: Chosen | None = None) -> Chosen:
    """`before`, or the first test sample of the family's size, with enough questions that are all answered right."""
    policies = [None] if loaded.policy_file is None else [None, load_policy(loaded.policy_file)]
    methods = [method_for(policy) for policy in policies]
    best = Chosen(_drawn(family, 0), ())
    with Engine(loaded) as engine:
        if before and len(before.questions) == _QUESTIONS == len(_right(engine, loaded, before, methods)):
            return before
        for index in range(_TRIES):
            sample = _drawn(family, index)
            right = _right(engine, loaded, Chosen(sample, sample.questions), methods)
            if len(right) > len(best.questions):
                best = Chosen(sample, right[:_QUESTIONS])
            if len(best.questions) == _QUESTIONS:
                break
    return best


def bundle(model_folder: Path) -> dict[str, int]:
    """Writes samples/FAMILY.png and samples/samples.json into the model's folder; questions kept by family."""
    loaded = load_model(str(model_folder), device="cpu", dtype="float32")
    folder = model_folder / "samples"
    folder.mkdir(exist_ok=True)
    entries, kept = [], {}
    before = bundled(folder)
    for family in synthetic.FAMILIES:
        chosen = choose(loaded, family, before.get(family))
        chosen.sample.image.save(folder / f"{family}.png", optimize=True)
        kept[family] = len(chosen.questions)
        turns = [{"question": question.text, "answer": question.answer} for question in chosen.questions]
        entries.append({"image": f"{family}.png", "family": family, "name": chosen.sample.name, "turns": turns})
    (folder / "samples.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return kept


def bundled(folder: Path) -> dict[str, Chosen]:
    """What samples.json in the folder names, by family; nothing without that file."""
    file = folder / "samples.json"
    found = {}
    for entry in json.loads(file.read_text(encoding="utf-8")) if file.exists() else ():
        sample = _drawn(entry["family"], int(entry["name"].rsplit("-", 1)[1]))
        asked = {turn["question"] for turn in entry["turns"]}
        found[sample.family] = Chosen(sample, tuple(one for one in sample.questions if one.text in asked))
    return found


def _drawn(family: str, index: int) -> synthetic.Sample:
    return synthetic.sample(family, "test", index, size=_SIZES[family], crowd=_CROWD)


def _right(
    engine: Engine, loaded: LoadedModel, chosen: Chosen, methods: Sequence[Method]
) -> tuple[synthetic.Question, ...]:
    """Those of the questions that every method gets right."""
    images = prepare_images(loaded, [chosen.sample.image])
    return tuple(one for one in chosen.questions if _is_right(engine, loaded, images, one, methods))


def _is_right(
    engine: Engine,
    loaded: LoadedModel,
    images: Sequence[PreparedImage],
    question: synthetic.Question,
    methods: Sequence[Method],
) -> bool:
    """Whether every method gets the answer right."""
    prompt = prepare_prompt(loaded, question.text, images)
    for method in methods:
        preselection = method.preselect([image.pixels for image in images])
        sequence = EngineSequence("sample", prompt, method, preselection, SamplingParams(max_tokens=24))
        if engine.submit(sequence).result().text != question.answer:
            return False
    return True
