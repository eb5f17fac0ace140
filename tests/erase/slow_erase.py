"""Revision 1 a second time, slow and with nothing of the library: tokens are masked away instead of removed.

Every step recomputes the whole text from the model's weights; which rows may look at which is one boolean matrix per
layer. Prompt rows see the tokens that were alive when their layer ran, generated rows only those alive at the end.
"""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class SlowRun:
    stage1: list[int]
    kept: list[int]
    cut: int
    logits: Tensor


def entropy(cell: Tensor) -> float:
    red, green, blue = cell.float()
    levels = ((0.299 * red + 0.587 * green) + 0.114 * blue).floor().flatten().tolist()
    return -sum(count / len(levels) * math.log(count / len(levels)) for count in Counter(levels).values())


def stage_1(images: list[Tensor], policy) -> tuple[list[int], bool]:
    """Kept indices over all images, and whether any image is complex. `images` are uint8 [N, 3, c, c]."""
    kept, offset, any_complex = [], 0, False
    bins = len(policy.stage1_retention)
    for cells in images:
        values = [entropy(cell) for cell in cells]
        middle = sorted(values)[(len(values) - 1) // 2]
        bin_index = next((j for j, t in enumerate(policy.thresholds) if middle > t), bins - 1)
        any_complex |= bin_index < math.ceil(bins / 2)
        count = max(1, int(len(values) * max(policy.stage1_retention[bin_index], policy.final_retention)))
        ranked = sorted(range(len(values)), key=lambda index: (-values[index], index))
        kept += [offset + index for index in sorted(ranked[:count])]
        offset += len(values)
    return kept, any_complex


def run(model, inputs: dict[str, Tensor], images: list[Tensor], policy, steps: int) -> SlowRun:
    """Greedy decoding of `steps` tokens; `logits` [steps, vocabulary]."""
    weights = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}
    text, decoder = model.config.text_config, "model.language_model."
    depth, heads, key_heads = text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads
    size = text.hidden_size // heads
    ids = inputs["input_ids"][0].tolist()
    length = len(ids)
    columns = [row for row, token in enumerate(ids) if token == model.config.image_token_id]
    with torch.no_grad():
        encoded = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
    )
    positions = positions[:, 0].double()

    stage1, any_complex = stage_1(images, policy)
    cut = (policy.layers or (2, round(0.58 * depth) + 1))[1 if any_complex else 0]
    cut = min(cut, depth - 1)
    keep = min(int(len(columns) * policy.final_retention), len(stage1))
    entering = set(range(length)) - {columns[i] for i in range(len(columns)) if i not in stage1}
    questions = [row for row in range(columns[0], length) if row not in columns]
    alive, kept = entering, stage1

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + text.rms_norm_eps).sqrt() * weights[name]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def rotate(x: Tensor, where: Tensor) -> Tensor:
        """[heads, rows, size] at (t, h, w) positions [3, rows]."""
        angles = torch.empty(x.shape[1], size // 2, dtype=torch.float64)
        sections = text.rope_parameters["mrope_section"]
        owner = [axis for axis, count in enumerate(sections) for _ in range(count)]
        for pair, axis in enumerate(owner):
            angles[:, pair] = where[axis] / text.rope_parameters["rope_theta"] ** (2 * pair / size)
        first, second = x[..., : size // 2], x[..., size // 2 :]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    logits = []
    for step in range(steps):
        total = len(ids)
        following = positions.max() + 1 + torch.arange(total - length)
        where = torch.cat([positions, following.expand(3, -1)], 1)
        x = weights[decoder + "embed_tokens.weight"][ids]
        x[columns] = torch.cat(tuple(encoded.pooler_output)).double()
        for index in range(depth):
            layer = f"{decoder}layers.{index}."
            running = entering if index < cut else alive
            normed = norm(x, layer + "input_layernorm.weight")
            split = [
                rotate(linear(source, layer + "self_attn." + name).view(total, -1, size).transpose(0, 1), where)
                for source, name in ((normed, "q_proj"), (normed, "k_proj"))
            ]
            queries, keys = split[0], split[1].repeat_interleave(heads // key_heads, 0)
            values = linear(normed, layer + "self_attn.v_proj").view(total, -1, size).transpose(0, 1)
            values = values.repeat_interleave(heads // key_heads, 0)
            visible = torch.zeros(total, total, dtype=torch.bool)
            for row in range(total):
                for column in range(row + 1):
                    visible[row, column] = column >= length or column in (alive if row >= length else running)
                visible[row, row] = True
            if step == 0 and index == cut - 1 and keep < len(stage1):
                source = normed if policy.scoring == "exact" else x
                asking = linear(source, layer + "self_attn.q_proj").view(total, -1, size).transpose(0, 1)
                asking = rotate(asking, where)[:, questions]
                scores = (asking @ keys.transpose(1, 2) / size**0.5).masked_fill(~visible[questions], -math.inf)
                score = scores.softmax(-1).mean(0).sum(0)
                ranked = sorted(stage1, key=lambda i: (-score[columns[i]].item(), i))
                kept = sorted(ranked[:keep])
                alive = entering - {columns[i] for i in stage1 if i not in kept}
            attention = (queries @ keys.transpose(1, 2) / size**0.5).masked_fill(~visible, -math.inf).softmax(-1)
            x = x + linear((attention @ values).transpose(0, 1).reshape(total, -1), layer + "self_attn.o_proj")
            normed = norm(x, layer + "post_attention_layernorm.weight")
            gate = torch.nn.functional.silu(linear(normed, layer + "mlp.gate_proj"))
            x = x + linear(gate * linear(normed, layer + "mlp.up_proj"), layer + "mlp.down_proj")
        last = norm(x[-1], decoder + "norm.weight") @ weights["lm_head.weight"].T
        logits.append(last.float())
        ids.append(int(last.argmax()))
    return SlowRun(stage1, kept, cut, torch.stack(logits))
