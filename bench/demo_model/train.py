"""Trains the demo model: python -m bench.demo_model train --minutes 12

Goes on where the run's checkpoint ends. The curriculum and the learning rate follow the training time that is used
up, so that a recipe fits any machine. On a CPU that is processor time: a training in the background loses nothing while
others have the processor, or while it is stopped.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from bench.demo_model.data import MARK_CLASSES, Stream, loader, mark_weights
from bench.demo_model.muon import Muon
from bench.demo_model.network import Batch, Looks, TrainingNetwork, compile_layers
from bench.demo_model.precision import reduced_precision
from bench.demo_model.recipe import RECIPES, Phase, Recipe
from bench.demo_model.tokenizer import SPECIAL, save_tokenizer
from bench.demo_model.validate import validate
from erase.bar import progress_bar

CHECKPOINT = "checkpoint.pt"
_MARK_SCALE = 20.0
_LOOK_SCALE = 0.5
_ADAMW_SCALE = 0.5
_REPORT_EVERY = 20


@dataclass
class Progress:
    """How far the training is; `seconds` counts only time spent training (see `training_clock`)."""

    seconds: float = 0.0
    step: int = 0
    images: int = 0
    answers: int = 0


def train(
    out: Path,
    recipe_name: str,
    minutes: float,
    device: str,
    workers: int,
    seed: int = 0,
    compiled: bool = False,
    start: Path | None = None,
    checkpoint_minutes: float = 10.0,
) -> None:
    """Trains until `minutes` of training are used up; writes checkpoint.pt and log.jsonl into `out`.

    Without a checkpoint it begins anew: with the weights of the model in the folder `start`, or with random ones.
    """
    torch.manual_seed(seed)
    if compiled:
        compile_layers()
    recipe = RECIPES[recipe_name]
    if not (out / "tokenizer.json").exists():
        save_tokenizer(out)
    network = build(recipe, out)
    if start is not None and not (out / CHECKPOINT).exists():
        trained = AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32)
        network.model.load_state_dict(trained.state_dict())
    network.to(device)
    optimizers = make_optimizers(network, recipe)
    progress = _resume(out, network, optimizers) or Progress()
    share = torch.zeros(1).share_memory_()  # type: ignore[no-untyped-call]
    share[0] = min(1.0, progress.seconds / max(60 * minutes, 1e-9))
    batches = loader(Stream(recipe, out, share, seed + progress.step), workers)
    run = _Run(
        out, network, optimizers, recipe, progress, 60 * minutes, share, torch.device(device), 60 * checkpoint_minutes
    )
    run.go(batches)


def build(recipe: Recipe, tokenizer_folder: Path) -> TrainingNetwork:
    """A network with random weights; the matrices that write into the residual stream start at zero."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    special = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = Qwen2_5_VLConfig(**recipe.config(len(tokenizer), special))
    model = Qwen2_5_VLForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "attn.proj.weight")):
            torch.nn.init.zeros_(weight)
        elif "visual.blocks" in name and weight.ndim == 2:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    torch.nn.init.normal_(model.model.visual.patch_embed.proj.weight, std=0.02)
    return TrainingNetwork(model, MARK_CLASSES)


def make_optimizers(network: TrainingNetwork, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms, biases, the first and the last layer.

    `scale` of a group multiplies the learning rate.
    """
    matrices: dict[float, list[Tensor]] = {1.0: [], recipe.encoder_scale: []}
    others: dict[float, list[Tensor]] = {1.0: [], recipe.encoder_scale: []}
    for name, weight in network.named_parameters():
        inside = weight.ndim == 2 and (".layers." in name or ".blocks." in name or ".merger." in name)
        scale = recipe.encoder_scale if ".visual." in name else 1.0
        (matrices if inside else others)[scale].append(weight)
    return [
        Muon(
            [{"params": weights, "scale": scale} for scale, weights in matrices.items()],
            lr=recipe.rate,
            weight_decay=recipe.weight_decay,
        ),
        torch.optim.AdamW(
            [{"params": weights, "scale": scale * _ADAMW_SCALE} for scale, weights in others.items()],
            lr=recipe.rate,
            betas=(0.9, 0.98),
            weight_decay=recipe.weight_decay,
        ),
    ]


def learning_rate(recipe: Recipe, step: int, share: float) -> float:
    """Warm-up by steps, then flat, then down to zero over the last `cooldown` share of the training."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return recipe.rate * warm * min(1.0, max(0.02, (1 - share) / recipe.cooldown))


@dataclass(frozen=True)
class Losses:
    """What a batch was off by; zeros for what rests.

    Attributes:
        answers: cross entropy of the answers' tokens.
        cells: binary cross entropy of what lies in each cell.
        looks: -log of the attention that should be paid, by kind of look.
        right: share of answer tokens that are the likeliest.
    """

    answers: Tensor
    cells: Tensor
    looks: dict[str, Tensor]
    right: Tensor

    def total(self) -> Tensor:
        """What training makes smaller."""
        return self.answers + _MARK_SCALE * self.cells + _LOOK_SCALE * sum(self.looks.values())

    def figures(self) -> dict[str, Tensor]:
        """For the log, without gradients."""
        found = {"loss": self.answers, "cells": self.cells, "right": self.right, **self.looks}
        return {name: figure.detach() for name, figure in found.items()}


def losses(network: TrainingNetwork, batch: Batch, phase: Phase, recipe: Recipe) -> Losses:
    """One forward pass over a batch, with as much of it as the phase trains."""
    answers = right = torch.zeros((), device=batch.images.device)
    looks = Looks(recipe.looks)
    with reduced_precision(batch.images.device):
        vision = network.look(batch, phase.frozen)
        if not phase.cells_only:
            logits, targets = network.answer(batch, vision, looks)
            answers = functional.cross_entropy(logits.float(), targets)
            right = (logits.argmax(-1) == targets).float().mean()
        found = network.cells(vision)
    wanted = torch.zeros_like(found, dtype=torch.float32)
    wanted[batch.marks.unbind(1)] = 1.0
    weights = mark_weights().to(found.device)
    cells = functional.binary_cross_entropy_with_logits(found.float(), wanted, weights)
    return Losses(answers, cells, looks.losses(), right)


def training_clock(device: torch.device) -> float:
    """Seconds that pass while this process trains: of its processor time on a CPU, each thread's share of it."""
    return time.perf_counter() if device.type != "cpu" else time.process_time() / torch.get_num_threads()


class _Run:
    """The training loop with what it reports and keeps."""

    def __init__(
        self,
        out: Path,
        network: TrainingNetwork,
        optimizers: list[torch.optim.Optimizer],
        recipe: Recipe,
        progress: Progress,
        budget: float,
        share: Tensor,
        device: torch.device,
        save_every: float,
    ) -> None:
        self.out = out
        self.network = network
        self.optimizers = optimizers
        self.recipe = recipe
        self.progress = progress
        self.budget = budget
        self.share = share
        self.device = device
        self.save_every = save_every
        self.saved_at = progress.seconds
        self.stopping = False
        self.recent: list[dict[str, Tensor]] = []
        self.waited = 0.0
        self.reported_at = progress.seconds

    def go(self, batches: Iterator[Batch]) -> None:
        """Trains until the time is used up, or SIGINT or SIGTERM asks to stop; either way a checkpoint is kept."""
        handlers = {number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        bar = progress_bar(total=round(self.budget), initial=round(self.progress.seconds), unit="s", desc="training")
        try:
            while self.progress.seconds < self.budget and not self.stopping:
                started = training_clock(self.device)
                batch = next(batches)
                self.waited += training_clock(self.device) - started
                self.step(batch)
                self.progress.seconds += training_clock(self.device) - started
                self.share[0] = min(1.0, self.progress.seconds / self.budget)
                bar.update(round(self.progress.seconds) - bar.n)
                if self.progress.step % _REPORT_EVERY == 0:
                    bar.set_postfix_str(self.report(), refresh=False)
                if self.progress.seconds - self.saved_at > self.save_every:
                    self.save()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            bar.close()
        self.save()

    def _ask_to_stop(self, *_: object) -> None:
        self.stopping = True

    def step(self, batch: Batch) -> None:
        batch = batch.to(self.device)
        share = float(self.share)
        rate = learning_rate(self.recipe, self.progress.step, share)
        phase = self.recipe.phase(share)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
        found = losses(self.network, batch, phase, self.recipe)
        found.total().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.images += len(batch.images)
        self.progress.answers += int(batch.branch.amax(1).sum())
        self.recent.append(found.figures())

    def report(self) -> str:
        figures = {
            name: torch.stack([one[name] for one in self.recent if name in one]).mean().item()
            for name in dict.fromkeys(name for one in self.recent for name in one)
        }
        waiting = self.waited / (self.progress.seconds - self.reported_at)
        self.recent.clear()
        self.waited, self.reported_at = 0.0, self.progress.seconds
        self.log({**{name: round(figure, 5) for name, figure in figures.items()}, "waiting": round(waiting, 2)})
        return (
            f"{self.progress.images} images, loss {figures['loss']:.3f}, cells {figures['cells']:.4f}, "
            f"tokens right {figures['right']:.0%}, waiting for images {waiting:.0%}"
        )

    def save(self) -> None:
        self.saved_at = self.progress.seconds
        state = {
            "network": self.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": asdict(self.progress),
        }
        torch.save(state, self.out / "checkpoint.new")
        (self.out / "checkpoint.new").replace(self.out / CHECKPOINT)
        scores = validate(self.network, self.out, self.device)
        self.log({"validation": scores})
        tqdm.write(f"{self.progress.seconds / 60:.0f} min: " + ", ".join(f"{k} {v:.0%}" for k, v in scores.items()))

    def log(self, entry: dict[str, Any]) -> None:
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({**asdict(self.progress), **entry}) + "\n")


def _resume(out: Path, network: TrainingNetwork, optimizers: list[torch.optim.Optimizer]) -> Progress | None:
    file = out / CHECKPOINT
    if not file.exists():
        return None
    state = torch.load(file, map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    return Progress(**state["progress"])
