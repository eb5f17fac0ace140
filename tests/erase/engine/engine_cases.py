"""Sequences, observers and references for the tests of the engine; a plain module, so that every file can import it."""

import itertools
import threading
from collections.abc import Callable, Iterator
from collections.abc import Sequence as List
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from erase_cases import GoldenCase
from PIL import Image
from slow_cases import IMAGENET_MEAN, IMAGENET_STD, QWEN_MEAN, QWEN_STD, inputs_for
from torch import Tensor

import erase
from erase.engine import Engine, EngineLimits, EngineObserver, Handle, Result, SamplingParams, Sequence
from erase.engine.attention import Attention, SdpaAttention
from erase.engine.cache import CachePool, SequenceCache
from erase.engine.images import Encoding, FeatureCache
from erase.engine.prefill import Prefill, StepRows, step
from erase.engine.running import PromptPlan
from erase.methods import method_for
from erase.methods.base import Method, ScoreContext
from erase.methods.none import NoPruning
from erase.models import adapter_for
from erase.models.base import VisionFeatures, VisionLanguageAdapter
from erase.models.loading import LoadedModel
from erase.models.prompt import PreparedImage, PreparedPrompt, prepare_images, prepare_prompt
from erase.pixels.images import VisionImage

TIMEOUT_S = 60.0
_ids = itertools.count()


@dataclass(frozen=True)
class Sample:
    image: Image.Image
    question: str
    answer: str


@dataclass
class Recorder(EngineObserver):
    """Remembers what the engine reports."""

    steps: list[tuple[str, int]] = field(default_factory=list)
    loads: list[tuple[int, int, float]] = field(default_factory=list)
    preemptions: int = 0
    lookups: tuple[int, int] = (0, 0)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def stepped(self, phase: str, batch: int) -> None:
        self.steps.append((phase, batch))

    def load_changed(self, running: int, waiting: int, cache_tokens: float) -> None:
        with self.changed:
            self.loads.append((running, waiting, cache_tokens))
            self.changed.notify_all()

    def preempted(self) -> None:
        self.preemptions += 1

    def images_looked_up(self, found: int, missing: int) -> None:
        self.lookups = found, missing

    def wait_for_load(self, wanted: Callable[[tuple[int, int, float]], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: bool(self.loads) and wanted(self.loads[-1]), TIMEOUT_S)


class Packed:
    """Sequences in one packed prefill, and steps behind it, without an engine around them."""

    def __init__(
        self,
        adapter: VisionLanguageAdapter,
        sequences: List[Sequence],
        room: int = 8,
        attention: Attention | None = None,
        look: Callable[[Prefill], None] = lambda prefill: None,
    ) -> None:
        self.adapter, self.sequences = adapter, sequences
        self.attention = attention or SdpaAttention()
        self.device = adapter.embed_tokens.weight.device
        plans = [PromptPlan.of(sequence, adapter.architecture).cached for sequence in sequences]
        rows = sum(sum(plan) + room * len(plan) for plan in plans)
        self.pool = CachePool(rows, adapter.key_heads, adapter.head_dim, adapter.embed_tokens.weight.dtype, self.device)
        caches = [SequenceCache.create(self.pool, plan, room) for plan in plans]
        self.features = encoded(adapter, sequences)
        prefill = Prefill(adapter, self.attention, sequences, self.features, caches, self.device)  # type: ignore[arg-type]
        while prefill.layers_left:
            prefill.run_layer()
            look(prefill)
        self.prompts, self.logits = prefill.prompts, prefill.logits()
        self.lengths = [prompt.cache.lengths for prompt in self.prompts]
        assert self.lengths == plans

    def step(self, tokens: List[tuple[int, ...]], number: int = 0) -> Tensor:
        """New tokens of each sequence, the first of which has this number in its answer: logits of all."""
        rows = [
            StepRows(prompt.cache, own, prompt.sequence.prompt.next_position + number)
            for prompt, own in zip(self.prompts, tokens, strict=True)
        ]
        return step(self.adapter, self.attention, self.pool, rows, self.device)

    def greedy(self, steps: int) -> Tensor:
        """Logits [sequences, steps, vocabulary] of the prompts' ends and of the likeliest tokens behind them."""
        logits = [self.logits]
        for number in range(steps - 1):
            logits.append(self.step([(int(token),) for token in logits[-1].argmax(-1)], number))
        return torch.stack(logits, dim=1)


def encoded(adapter: VisionLanguageAdapter, sequences: List[Sequence]) -> list[VisionFeatures]:
    """Vision features of each sequence, its images concatenated."""
    images = [sequence.prompt.images for sequence in sequences]
    encoding = Encoding(
        adapter, images, [False] * len(images), FeatureCache(0), adapter.embed_tokens.weight.device, 10**6
    )
    while not encoding.done:
        encoding.run_layer()
    return encoding.features()


class Gate(NoPruning):
    """Holds the engine inside a prefill until opened, so that a test can queue sequences meanwhile."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def postencode(self, features: Tensor, preselection: Any) -> Tensor:
        self.reached.set()
        assert self.opened.wait(TIMEOUT_S)
        return super().postencode(features, preselection)


class Failing(Method):
    """A method that fails when it is asked for scores."""

    name = "failing"

    def __init__(self, inner: Method) -> None:
        self.inner = inner

    def preselect(self, images: List[VisionImage]) -> Any:
        return self.inner.preselect(images)

    def cuts(self, preselection: Any, architecture: Any) -> Any:
        return self.inner.cuts(preselection, architecture)

    def score(self, context: ScoreContext) -> Tensor:
        raise ArithmeticError("no scores")


@contextmanager
def running(loaded: LoadedModel, observer: Recorder | None = None, **limits: Any) -> Iterator[Engine]:
    engine = Engine(loaded, EngineLimits(**limits), observer)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()


@contextmanager
def held(engine: Engine, loaded: LoadedModel) -> Iterator[None]:
    """Inside, submitted sequences queue up behind one that is being prefilled."""
    gate = Gate()
    handle = engine.submit(ask(loaded, "?", method=gate, max_tokens=1))
    assert gate.reached.wait(TIMEOUT_S)
    try:
        yield
    finally:
        gate.opened.set()
    handle.result()


def ask(
    loaded: LoadedModel,
    question: str,
    images: List[Image.Image] = (),
    *,
    method: Method | None = None,
    deadline: float | None = None,
    attempt: int = 1,
    forced_prefix: tuple[int, ...] = (),
    score_only: tuple[int, ...] = (),
    priority: Any = "interactive",
    **sampling: Any,
) -> Sequence:
    """A sequence as the worker would submit it; without a method nothing is pruned."""
    method = method or NoPruning()
    prepared = prepare_images(loaded, images)
    return Sequence(
        id=f"sequence-{next(_ids)}",
        prompt=prepare_prompt(loaded, question, prepared),
        method=method,
        preselection=method.preselect([image.pixels for image in prepared]),
        sampling=SamplingParams(**sampling),
        deadline=deadline,
        attempt=attempt,
        forced_prefix=forced_prefix,
        score_only=score_only,
        priority=priority,
    )


def results(engine: Engine, sequences: List[Sequence]) -> list[Result]:
    handles = [engine.submit(sequence) for sequence in sequences]
    return [handle.result() for handle in handles]


def alone(loaded: LoadedModel, sequences: List[Sequence]) -> list[Result]:
    """Each by itself in an engine that runs nothing else."""
    with running(loaded, max_running=1) as engine:
        return [engine.submit(sequence).result() for sequence in sequences]


def collect(handle: Handle) -> tuple[list[int], str]:
    """Ids and text of all events."""
    ids: list[int] = []
    text = ""
    for event in handle.events():
        ids += event.ids
        text += event.text
    return ids, text


def same(one: Result, other: Result) -> bool:
    return (one.tokens, one.text, one.finish_reason, one.cuts, one.cache_lengths) == (
        other.tokens,
        other.text,
        other.finish_reason,
        other.cuts,
        other.cache_lengths,
    ) and torch.equal(one.kept, other.kept)


def mixture(loaded: LoadedModel, samples: List[Sample], own: Method) -> list[Sequence]:
    """Sequences that differ in everything: pruning, image sizes, number of images, sampling."""
    wide = samples[1].image.resize((336, 196))
    small = samples[3].image.resize((168, 168))
    preset = erase.preset("qwen2.5-vl-7b")
    exact = replace(preset, scoring="exact", layers=(1, 5))
    budget = erase.BudgetPolicy(retention=0.4)
    numbers = [sample for sample in samples if sample.answer.isdigit()]
    return [
        ask(loaded, samples[0].question, [samples[0].image], method=own, max_tokens=10),
        ask(loaded, numbers[0].question, [numbers[0].image], max_tokens=7),
        ask(loaded, numbers[1].question, [numbers[1].image], method=method_for(preset), max_tokens=12),
        ask(loaded, "what is room ?", [samples[3].image, wide], method=own, max_tokens=9),
        ask(loaded, "what is speed ?", method=own, max_tokens=5),
        ask(loaded, "what shape is shown ?", [small], method=method_for(exact), max_tokens=8),
        ask(loaded, "what color is the star ?", [wide], max_tokens=11),
        ask(loaded, numbers[2].question, [numbers[2].image], temperature=1.2, top_p=0.95, seed=3, max_tokens=10),
        ask(loaded, numbers[3].question, [numbers[3].image, small, wide], method=method_for(exact), max_tokens=6),
        ask(loaded, numbers[4].question, [numbers[4].image, small], method=method_for(budget), max_tokens=9),
    ]


def bare(model: Any) -> LoadedModel:
    """A model with neither tokenizer nor image processor."""

    class Numbers:
        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(f"{token} " for token in ids)

    return LoadedModel(
        name="bare",
        revision="0",
        model=model,
        adapter=adapter_for(model),
        tokenizer=Numbers(),
        text_tokenizer=None,
        image_processor=None,
        policy_file=None,
    )


def stock_prompt(loaded: LoadedModel, input_ids: Tensor, images: List[Tensor]) -> dict[str, Tensor]:
    """Stock inputs for ids [1, L] and resized images, uint8 [T, 3, H, W]."""
    tiled = loaded.adapter.model_type == "internvl"
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if tiled else (QWEN_MEAN, QWEN_STD)
    return inputs_for(loaded.model, input_ids, list(images), mean, std)


def bare_sequence(
    loaded: LoadedModel,
    input_ids: Tensor,
    images: List[Tensor],
    method: Method,
    *,
    max_tokens: int = 8,
    **settings: Any,
) -> Sequence:
    """The same for the engine."""
    adapter = loaded.adapter
    prepared = []
    for image in images:
        inputs = stock_prompt(loaded, input_ids, [image])
        seen = VisionImage(image, adapter.cell, adapter.luma, thumbnail=len(image) > 1)
        grid = inputs["image_grid_thw"][0].tolist() if "image_grid_thw" in inputs else seen.grid
        prepared.append(PreparedImage(inputs["pixel_values"], tuple(grid), seen))
    tokens = input_ids[0]
    grids = torch.tensor([image.grid_thw for image in prepared]) if prepared else None
    positions, delta = adapter.positions(tokens, (tokens == adapter.image_token_id).int(), grids)
    return Sequence(
        id=f"sequence-{next(_ids)}",
        prompt=PreparedPrompt(tokens, positions, len(tokens) + delta, tuple(prepared)),
        method=method,
        preselection=method.preselect([image.pixels for image in prepared]),
        sampling=SamplingParams(max_tokens=max_tokens),
        **settings,
    )


def golden_sequence(loaded: LoadedModel, case: GoldenCase, **settings: Any) -> Sequence:
    """A golden case as a sequence for the engine."""
    images = [image.unsqueeze(0) for image in case.images]
    return bare_sequence(loaded, case.tensors["input_ids"], images, method_for(case.policy), **settings)


def again(sequence: Sequence, **changes: Any) -> Sequence:
    """The same question with some settings changed; sampling settings go to its sampling."""
    sampling = {key: changes.pop(key) for key in list(changes) if key in SamplingParams.__dataclass_fields__}
    return replace(sequence, sampling=replace(sequence.sampling, **sampling), **changes)


def stock_inputs_for(loaded: LoadedModel, question: str, images: List[Image.Image]) -> dict[str, Tensor]:
    """What stock transformers code would make of a question, independent of the library's own prompt code."""
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    text = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    inputs: dict[str, Tensor] = {}
    if images:
        features = loaded.image_processor(images=list(images), return_tensors="pt")
        inputs = {"pixel_values": features["pixel_values"], "image_grid_thw": features["image_grid_thw"]}
        first, *rest = text.split("<|image_pad|>")
        text = first + "".join(
            "<|image_pad|>" * (int(grid.prod()) // loaded.model.config.vision_config.spatial_merge_size**2) + part
            for grid, part in zip(features["image_grid_thw"], rest, strict=True)
        )
    ids = loaded.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return inputs | {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == loaded.adapter.image_token_id).int(),
    }
