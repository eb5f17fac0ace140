"""ERASE a second time, slow and with nothing of the library: tokens are masked away instead of removed.

One prompt at a time, in float64 from the model's weights. Every step recomputes the whole text; which rows may look at
which is one boolean matrix per layer. Only vision features, DeepStack features and positions come from the stock model.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

import torch
from slow_stage1 import GREATEST_ENTROPY, Stage1, best_first, is_binned, is_unpruned, stage_1
from torch import Tensor


@dataclass
class SlowRun:
    """Vision tokens are counted over all images of the unpruned prompt."""

    stage1: list[int]
    cuts: list[tuple[int, list[int]]]  # layers run before the cut, kept vision tokens
    cache_lengths: list[int]  # per layer, after prefill
    entropies: list[list[float]]  # per image, nats
    edge_ratios: list[list[float]]  # per image, revision 2 only
    logits: Tensor  # [steps, vocabulary] float32
    generated: list[int]
    gaps: list[float] = field(default_factory=list)  # per cut: (worst kept - best dropped score) / worst kept


@dataclass
class PlannedCut:
    layer: int  # layers run before it
    count: Callable[[int], int]  # survivors so far to tokens to keep
    with_cue: bool = False


def run(model, inputs: dict[str, Tensor], images: list[Tensor], policy, steps: int) -> SlowRun:
    """Greedy decoding of `steps` tokens after pruning.

    `inputs` are batch-1 tensors as the stock model takes them, `images` the resized pixels as uint8 [T, 3, H, W],
    `policy` anything with the attributes of a binned policy (revision 1) or of a budget policy (revision 2).
    """
    assert bool(inputs["attention_mask"].all())
    decoder = SlowDecoder(model, inputs)
    first = stage_1(images, policy, cell_of(model), internvl=decoder.kind == "internvl")
    total = sum(map(len, first.entropies))
    assert total == len(decoder.columns)
    cuts = [] if is_unpruned(policy) else plan(policy, decoder.kind, decoder.depth, total, first)
    pruner = Pruner(decoder, policy, first, cuts)
    logits, generated = [], []
    for _ in range(steps):
        logits.append(decoder.last_logits(generated, pruner))
        generated.append(int(logits[-1].argmax()))
    return SlowRun(
        stage1=first.kept,
        cuts=pruner.done,
        cache_lengths=[len(alive) for alive in pruner.cached],
        entropies=first.entropies,
        edge_ratios=first.edge_ratios,
        logits=torch.stack(logits).float(),
        generated=generated,
        gaps=pruner.gaps,
    )


def kind_of(model) -> str:
    return model.config.model_type


def cell_of(model) -> int:
    """Pixels along one side of a vision token."""
    vision = model.config.vision_config
    if kind_of(model) == "internvl":
        return round(vision.patch_size[0] / model.config.downsample_ratio)
    return vision.patch_size * vision.spatial_merge_size


def plan(policy, kind: str, depth: int, total: int, first: Stage1) -> list[PlannedCut]:
    survivors = len(first.kept)
    if is_binned(policy):
        shallow, deep = policy.layers or (4 if kind == "qwen3_vl" else 2, round(0.58 * depth) + 1)
        keep = min(int(total * policy.final_retention), survivors)
        return [PlannedCut(min(deep if first.any_complex else shallow, depth - 1), lambda _: keep)]
    return [
        PlannedCut(layer, lambda alive, keep=keep: keep_count(alive, keep, kind), with_cue)
        for layer, keep, with_cue in plan_budget(policy, depth, total, survivors)
    ]


def keep_count(alive: int, keep: float, kind: str) -> int:
    if keep <= 0 and kind == "qwen2_5_vl":
        return 0
    return min(alive, max(1, int(alive * keep)))


def plan_budget(policy, depth: int, total: int, survivors: int) -> list[tuple[int, float, bool]]:
    """Revision 2's cuts: layers run before, kept share of those alive, whether pixel cues count."""
    if survivors <= max(1, int(total * policy.retention)):
        return []
    early, late = policy.layers or (2, round(0.67 * depth))
    early = max(1, min(early, depth - 1))
    late = max(early + 1, min(late, depth - 1))  # `depth` if the early cut already takes the last place
    target = depth * policy.retention / (survivors / total)
    late_keep = policy.late_retention
    early_keep = (target - early) / ((late - early) + (depth - late) * late_keep)
    if early_keep >= 1:
        early_keep = 1.0
        late_keep = (target - late) / (depth - late) if late < depth else 1.0
    cuts = [(early, early_keep, True), (late, late_keep, False)]
    return [(layer, max(keep, 0.0), cue) for layer, keep, cue in cuts if keep < 1 and layer < depth]


class Pruner:
    """Knows which prompt rows each layer runs with, and which its cache holds afterwards."""

    def __init__(self, decoder: "SlowDecoder", policy, first: Stage1, cuts: list[PlannedCut]) -> None:
        self.policy, self.first = policy, first
        self.columns, self.questions = decoder.columns, decoder.questions
        self.text = set(range(decoder.length)) - set(self.columns)
        self.alive = first.kept
        self.waiting, self.done, self.gaps = list(cuts), [], []
        self.ran_with = [self.rows() for _ in range(decoder.depth)]
        self.cached = list(self.ran_with)

    def rows(self) -> set[int]:
        return self.text | {self.columns[index] for index in self.alive}

    def is_due(self, layers_run: int) -> bool:
        return bool(self.waiting) and self.waiting[0].layer == layers_run

    def cut(self, attention: Tensor) -> None:
        """`attention`: score of every prompt row, [prompt]."""
        planned = self.waiting.pop(0)
        scores = attention[[self.columns[index] for index in self.alive]]
        if planned.with_cue and self.alive:
            scores = scores + self.cue_bonus(scores)
        ranked = best_first(scores.tolist())
        count = planned.count(len(self.alive))
        if 0 < count < len(ranked):
            worst_kept, best_dropped = scores[ranked[count - 1]], scores[ranked[count]]
            self.gaps.append(float((worst_kept - best_dropped) / worst_kept.abs()))
        self.alive = sorted(self.alive[index] for index in ranked[:count])
        self.done.append((planned.layer, self.alive))
        for layer in range(planned.layer, len(self.ran_with)):
            self.ran_with[layer] = self.cached[layer] = self.rows()
        if is_binned(self.policy):
            self.cached = [self.rows() for _ in self.cached]

    def cue_bonus(self, scores: Tensor) -> Tensor:
        edges = torch.tensor([*chain(*self.first.edge_ratios)], dtype=torch.float64)[self.alive]
        entropies = torch.tensor([*chain(*self.first.entropies)], dtype=torch.float64)[self.alive]
        cue = in_deviations(edges) + in_deviations((entropies / GREATEST_ENTROPY).clamp(0, 1))
        return self.policy.cue_weight * deviation(scores) / max(deviation(cue), 1e-6) * cue


def deviation(values: Tensor) -> float:
    return values.std(correction=0).item()


def in_deviations(values: Tensor) -> Tensor:
    return values / deviation(values) if deviation(values) > 1e-6 else torch.zeros_like(values)


class SlowDecoder:
    """The language model of one prompt, in float64 and without a cache."""

    def __init__(self, model, inputs: dict[str, Tensor]) -> None:
        self.kind, self.text = kind_of(model), model.config.text_config
        assert self.kind in ("qwen2_5_vl", "qwen3_vl", "internvl")
        assert self.text.rope_parameters["rope_type"] == "default"
        self.depth, self.heads = self.text.num_hidden_layers, self.text.num_attention_heads
        self.size = getattr(self.text, "head_dim", None) or self.text.hidden_size // self.heads
        self.weights = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}
        self.ids = inputs["input_ids"][0].tolist()
        self.length = len(self.ids)
        self.columns = [row for row, token in enumerate(self.ids) if token == model.config.image_token_id]
        self.questions = [row for row in range(self.columns[0], self.length) if row not in self.columns]
        self.deepstack: list[Tensor] = []
        with torch.no_grad():
            if self.kind == "internvl":
                encoded = model.get_image_features(pixel_values=inputs["pixel_values"], return_dict=True)
                self.positions = torch.arange(self.length).expand(3, -1).double()
            else:
                grid = inputs["image_grid_thw"]
                encoded = model.get_image_features(inputs["pixel_values"], grid, return_dict=True)
                positions, _ = model.model.get_rope_index(
                    inputs["input_ids"], inputs["mm_token_type_ids"], image_grid_thw=grid
                )
                self.positions = positions[:, 0].double()
        self.vision = torch.cat(tuple(encoded.pooler_output)).double()
        if self.kind == "qwen3_vl":
            # Older transformers have them of all images together.
            layers = (f if isinstance(f, Tensor) else torch.cat(tuple(f)) for f in encoded.deepstack_features)
            self.deepstack = [layer.double() for layer in layers]

    def last_logits(self, generated: list[int], pruner: Pruner) -> Tensor:
        """Logits [vocabulary] after the prompt and `generated`; makes the cuts that are due."""
        ids = self.ids + generated
        following = self.positions.max() + 1 + torch.arange(len(generated))
        where = torch.cat([self.positions, following.expand(3, -1)], 1)
        x = self.weights["model.language_model.embed_tokens.weight"][ids]
        x[self.columns] = self.vision
        for index in range(self.depth):
            visible = visibility(self.length, len(ids), pruner.ran_with[index], pruner.cached[index])
            entering, x = x, self.layer(index, x, where, visible)
            if index < len(self.deepstack):
                x[self.columns] += self.deepstack[index]
            if pruner.is_due(index + 1):
                source = self.query_source(index, entering, x, pruner.policy)
                pruner.cut(self.attention_score(index, source, entering, where, visible))
        return self.norm(x[-1], "model.language_model.norm") @ self.weights["lm_head.weight"].T

    def query_source(self, index: int, entering: Tensor, leaving: Tensor, policy) -> Tensor:
        if policy.scoring == "exact" or self.kind == "internvl":
            return self.norm(entering, f"{layer_name(index)}.input_layernorm")
        return leaving if self.kind == "qwen3_vl" and is_binned(policy) else entering

    def attention_score(self, index: int, source: Tensor, entering: Tensor, where: Tensor, visible: Tensor) -> Tensor:
        """What the question rows look at in layer `index`: [rows]."""
        keys = self.projected(index, "k", self.norm(entering, f"{layer_name(index)}.input_layernorm"), where)
        asking = self.projected(index, "q", source, where)[:, self.questions]
        return self.shares(asking, keys, visible[self.questions]).mean(0).sum(0)

    def layer(self, index: int, x: Tensor, where: Tensor, visible: Tensor) -> Tensor:
        name = layer_name(index)
        normed = self.norm(x, f"{name}.input_layernorm")
        queries, keys = self.projected(index, "q", normed, where), self.projected(index, "k", normed, where)
        mixed = self.shares(queries, keys, visible) @ self.projected(index, "v", normed)
        x = x + self.linear(mixed.transpose(0, 1).reshape(len(x), -1), f"{name}.self_attn.o_proj")
        normed = self.norm(x, f"{name}.post_attention_layernorm")
        gate = torch.nn.functional.silu(self.linear(normed, f"{name}.mlp.gate_proj"))
        return x + self.linear(gate * self.linear(normed, f"{name}.mlp.up_proj"), f"{name}.mlp.down_proj")

    def shares(self, queries: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
        """Attention [heads, queries, keys]."""
        return (queries @ keys.transpose(1, 2) * self.size**-0.5).masked_fill(~visible, -math.inf).softmax(-1)

    def projected(self, index: int, letter: str, x: Tensor, where: Tensor | None = None) -> Tensor:
        """q, k or v of x [rows, hidden]: [heads, rows, size], normed where the model does, rotated if `where`."""
        name = f"{layer_name(index)}.self_attn.{letter}"
        states = self.linear(x, f"{name}_proj").view(len(x), -1, self.size).transpose(0, 1)
        if f"{name}_norm.weight" in self.weights:
            states = self.norm(states, f"{name}_norm")
        if where is not None:
            states = self.rotated(states, where)
        return states.repeat_interleave(self.heads // len(states), 0)

    def rotated(self, x: Tensor, where: Tensor) -> Tensor:
        """x [heads, rows, size] turned by its (t, h, w) positions [3, rows]."""
        half = self.size // 2
        base = self.text.rope_parameters["rope_theta"]
        angles = torch.stack([where[self.axis(pair)] / base ** (2 * pair / self.size) for pair in range(half)], 1)
        first, second = x[..., :half], x[..., half:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def axis(self, pair: int) -> int:
        """Which of t, h, w turns the pair."""
        sections = self.text.rope_parameters.get("mrope_section")
        if not sections:
            return 0
        if self.text.rope_parameters.get("mrope_interleaved"):
            return pair % 3 if pair < 3 * sections[pair % 3] else 0
        return [axis for axis, count in enumerate(sections) for _ in range(count)][pair]

    def norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.text.rms_norm_eps).sqrt() * self.weights[f"{name}.weight"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)


def layer_name(index: int) -> str:
    return f"model.language_model.layers.{index}"


def visibility(prompt: int, rows: int, ran_with: set[int], cached: set[int]) -> Tensor:
    """[rows, rows]: prompt rows see what their layer ran with, generated rows what its cache holds; and themselves."""
    visible = torch.zeros(rows, rows, dtype=torch.bool)
    visible[:prompt, sorted(ran_with)] = True
    visible[prompt:, sorted(cached)] = True
    visible[prompt:, prompt:] = True
    return visible.tril() | torch.eye(rows, dtype=torch.bool)
