"""One question through the engine, and the figures that tell what pruning did to it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erase.engine import Engine, EngineLimits, Result, SamplingParams
from erase.engine import Sequence as EngineSequence
from erase.flops import PrefillFlops, decoder_costs
from erase.methods.base import Method, Preselection, entering
from erase.models.base import VisionLanguageAdapter
from erase.models.loading import LoadedModel
from erase.models.prompt import PreparedImage, prepare_images, prepare_prompt
from erase.pictures import open_picture
from erase.trace import vision_tokens_per_layer


@dataclass(frozen=True, eq=False)
class Asked:
    """A question that was answered."""

    images: tuple[PreparedImage, ...]
    preselection: Preselection
    result: Result
    vision_tokens: int
    """Of the images as they are; `images` are smaller where the method resizes them."""
    prompt_tokens: int
    """Of the unpruned prompt."""
    prepare_s: float
    """Seconds to read and resize the images and to run stage 1."""
    total_s: float
    """Seconds from the files to the whole answer; loading the model is not in it."""


def ask(loaded: LoadedModel, method: Method, paths: Sequence[Path], question: str, max_tokens: int) -> Asked:
    """Put a question about images to the model; greedy.

    Raises:
        InputError: an image cannot be used, or the prompt is too long.
        EngineError: the model failed.
    """
    start = time.monotonic()
    images, whole = images_for(loaded, method, paths)
    preselection = method.preselect([image.pixels for image in images])
    prompt = prepare_prompt(loaded, question, images)
    prepared = time.monotonic()
    with Engine(loaded, EngineLimits(max_running=1)) as engine:
        sampling = SamplingParams(max_tokens=max_tokens)
        result = engine.submit(EngineSequence("question", prompt, method, preselection, sampling)).result()
    prompt_tokens = len(prompt.tokens) - preselection.tokens + whole
    return Asked(images, preselection, result, whole, prompt_tokens, prepared - start, time.monotonic() - start)


def images_for(loaded: LoadedModel, method: Method, paths: Sequence[Path]) -> tuple[tuple[PreparedImage, ...], int]:
    """Images as the method wants them, and the vision tokens that they have as they are.

    Raises:
        InputError: an image cannot be used.
    """
    pictures = [open_picture(path) for path in paths]
    images = prepare_images(loaded, pictures, method.image_scale)
    whole = images if method.image_scale == 1.0 else prepare_images(loaded, pictures)
    return images, sum(image.tokens for image in whole)


@dataclass(frozen=True)
class PlannedCut:
    """A cut inside the model: decoder layers run before it, and vision tokens kept."""

    after_layers: int
    kept: int


@dataclass(frozen=True)
class Pruned:
    """What pruning does to a prompt, in vision tokens; a retention is a fraction of the unpruned ones.

    It follows from the images and the policy alone; which tokens the cuts keep is up to the question.
    """

    tokens: int
    entering: int
    """Into the decoder."""
    kept: int
    per_layer: tuple[int, ...]
    cuts: tuple[PlannedCut, ...]
    requested: float | None
    measure: str
    """Which retention was requested: `final` or `layer_average`."""

    @property
    def layer_average(self) -> float:
        """Vision tokens that a layer runs with, averaged over layers."""
        return sum(self.per_layer) / len(self.per_layer)

    @property
    def achieved(self) -> float:
        """The retention that `requested` asks for, as it comes out."""
        return (self.kept if self.measure == "final" else self.layer_average) / self.tokens

    def flops(self, adapter: VisionLanguageAdapter, prompt_tokens: int) -> PrefillFlops:
        """Operations of the decoder's prefill of an unpruned prompt of so many tokens, text included."""
        costs, text = decoder_costs(adapter.text_config), prompt_tokens - self.tokens
        return PrefillFlops(
            pruned=costs.prefill([text + count for count in self.per_layer]),
            unpruned=costs.prefill([prompt_tokens] * len(self.per_layer)),
        )

    def as_json(self) -> dict[str, Any]:
        """For programs, under the names that the service's answers use."""
        return {
            "vision_tokens": {
                "input": self.tokens,
                "after_stage1": self.entering,
                "kept": self.kept,
                "layer_average": round(self.layer_average, 2),
            },
            "retention": {
                "requested": self.requested,
                "achieved": round(self.achieved, 4),
                "measure": self.measure,
                "final": round(self.kept / self.tokens, 4),
                "layer_average": round(self.layer_average / self.tokens, 4),
            },
            "cuts": [{"after_layers": cut.after_layers, "kept": cut.kept} for cut in self.cuts],
        }


def pruned(loaded: LoadedModel, method: Method, preselection: Preselection, vision_tokens: int) -> Pruned:
    """What a method does to a prompt with these images, which have so many vision tokens as they are."""
    architecture = loaded.adapter.architecture
    plan = method.plan(preselection, architecture)
    enter = entering(len(preselection.kept), plan)
    cuts = tuple(PlannedCut(cut.after_layers, cut.keep) for cut in plan if cut.after_layers)
    counts = [(cut.after_layers, cut.kept) for cut in cuts]
    return Pruned(
        tokens=vision_tokens,
        entering=enter,
        kept=cuts[-1].kept if cuts else enter,
        per_layer=tuple(vision_tokens_per_layer(enter, counts, architecture.depth)),
        cuts=cuts,
        requested=method.requested,
        measure=method.measure,
    )
