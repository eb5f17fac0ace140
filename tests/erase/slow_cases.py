"""Tiny models of any depth, stock inputs and unambiguous images for the three architectures."""

import json
from itertools import pairwise
from types import SimpleNamespace

import slow_stage1
import torch
from erase_cases import GOLDEN, IMAGE_TOKEN, VISION_END, VISION_START
from slow_erase import cell_of, kind_of
from torch import Tensor
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

QWEN_MEAN, QWEN_STD = 0.5, 0.5
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GOLDEN_CLASSES = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration, "qwen3_vl": Qwen3VLForConditionalGeneration}
SPREAD = 0.1
TEMPORAL_COPIES = 2


def load_golden(name: str, attention: str = "sdpa") -> PreTrainedModel:
    return without_end(
        GOLDEN_CLASSES[name].from_pretrained(GOLDEN / name, dtype=torch.float32, attn_implementation=attention)
    )


def golden_policy(entry: dict) -> SimpleNamespace:
    return SimpleNamespace(**{"layers": None, "scoring": "reference"} | entry["policy"])


def tiny_qwen2_5_vl(depth: int, attention: str = "sdpa") -> Qwen2_5_VLForConditionalGeneration:
    settings = golden_settings("qwen2_5_vl", depth)
    settings["text_config"]["layer_types"] = ["full_attention"] * depth
    return randomised(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(**settings, attn_implementation=attention))


def tiny_qwen3_vl(depth: int, attention: str = "sdpa") -> Qwen3VLForConditionalGeneration:
    settings = golden_settings("qwen3_vl", depth)
    return randomised(Qwen3VLForConditionalGeneration, Qwen3VLConfig(**settings, attn_implementation=attention))


def tiny_internvl(depth: int, attention: str = "sdpa", side: int = 112) -> InternVLForConditionalGeneration:
    """Tiles of `side` x `side` pixels, (side / 28)^2 vision tokens each."""
    config = InternVLConfig(
        text_config={
            "model_type": "qwen2",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": depth,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 160,
            "max_position_embeddings": 4096,
            "initializer_range": SPREAD,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": (side, side),
            "patch_size": (14, 14),
            "initializer_range": SPREAD,
        },
        image_token_id=IMAGE_TOKEN,
        image_seq_length=(side // 28) ** 2,
        tie_word_embeddings=False,
        attn_implementation=attention,
    )
    return randomised(InternVLForConditionalGeneration, config)


def golden_settings(name: str, depth: int) -> dict:
    settings = json.loads((GOLDEN / name / "config.json").read_text())
    settings["text_config"] |= {"num_hidden_layers": depth, "initializer_range": SPREAD}
    settings["vision_config"]["initializer_range"] = SPREAD
    return settings


def randomised(kind: type[PreTrainedModel], config) -> PreTrainedModel:
    """Random norms and biases too: with the initial ones, reference and exact scoring agree on Qwen3-VL."""
    torch.manual_seed(config.text_config.num_hidden_layers)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return without_end(model)


def without_end(model: PreTrainedModel) -> PreTrainedModel:
    model.eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def inputs_for(
    model: PreTrainedModel,
    input_ids: Tensor,
    images: list[Tensor],
    mean: float | tuple[float, ...],
    std: float | tuple[float, ...],
) -> dict[str, Tensor]:
    """What the processor makes of uint8 images [T, 3, H, W] that already have the model's size."""
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    normalised = [(image.float() / 255 - channels(mean)) / channels(std) for image in images]
    if kind_of(model) == "internvl":
        return inputs | {"pixel_values": torch.cat(normalised)}
    vision = model.config.vision_config
    rows = [patches_of(image[0], vision.patch_size, vision.spatial_merge_size) for image in normalised]
    grids = [[1, image.shape[2] // vision.patch_size, image.shape[3] // vision.patch_size] for image in images]
    return inputs | {
        "pixel_values": torch.cat(rows),
        "image_grid_thw": torch.tensor(grids),
        "mm_token_type_ids": (input_ids == IMAGE_TOKEN).int(),
    }


def channels(values: float | tuple[float, ...]) -> Tensor:
    return torch.tensor(values).reshape(-1, 1, 1)


def patches_of(image: Tensor, patch: int, merge: int) -> Tensor:
    """[3, H, W] to rows of patches, cell by cell: [patches, 3 x temporal copies x patch x patch]."""
    rows = []
    for top in range(0, image.shape[1], patch * merge):
        for left in range(0, image.shape[2], patch * merge):
            for down in range(merge):
                for across in range(merge):
                    y, x = top + down * patch, left + across * patch
                    piece = image[:, y : y + patch, x : x + patch]
                    rows.append(piece.unsqueeze(1).expand(-1, TEMPORAL_COPIES, -1, -1).flatten())
    return torch.stack(rows)


def prompt_for(
    model: PreTrainedModel, images: list[Tensor], *, before: int = 3, between: int = 0, after: int = 9, seed: int = 0
) -> Tensor:
    """[1, L]: text, the images between their vision markers with text between them, text."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(3, 140, (count,), generator=generator).tolist()

    ids = words(before)
    for index, image in enumerate(images):
        tokens = image.shape[0] * image.shape[2] * image.shape[3] // cell_of(model) ** 2
        ids += [*words(between if index else 0), VISION_START, *([IMAGE_TOKEN] * tokens), VISION_END]
    return torch.tensor([ids + words(after)])


def tiles_for(model: PreTrainedModel, count: int, seed: int = 0) -> Tensor:
    """An InternVL image of `count` tiles."""
    side = model.config.vision_config.image_size[0] // cell_of(model)
    return torch.cat([clear_image(model, side, side, seed=100 * seed + index) for index in range(count)])


def clear_image(model: PreTrainedModel, rows: int, columns: int, seed: int = 0) -> Tensor:
    """uint8 [1, 3, rows x cell, columns x cell] whose stage 1 does not hang on how float32 sums are rounded."""
    for attempt in range(100):
        image = mixed_image(rows, columns, cell_of(model), seed=1000 * seed + attempt)
        if is_clear(image, cell_of(model), internvl=kind_of(model) == "internvl"):
            return image
    raise AssertionError("no clear image in 100 attempts")


def mixed_image(rows: int, columns: int, cell: int, seed: int) -> Tensor:
    """A calm half, plain paper or faint noise, and a busy one, print or strong noise, cell by cell."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape or (1,), generator=generator)

    paper = draw(190, 250, 3, 1, 1)
    image = paper.expand(3, rows * cell, columns * cell).clone()
    side, by_row = int(draw(0, 2)), bool(draw(0, 2))
    for index in range(rows * columns):
        row, column = divmod(index, columns)
        part = image[:, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
        is_calm = (2 * row < rows if by_row else 2 * column < columns) == bool(side)
        if is_calm and draw(0, 3):
            part += draw(-int(draw(2, 20)), 1, 1, cell, cell)
        elif not is_calm and draw(0, 2):
            strokes = draw(0, 100, cell // 4, cell // 2) < draw(10, 60)
            part[:, strokes.repeat_interleave(4, 0).repeat_interleave(2, 1)] = draw(0, 40, 3, 1)
        elif not is_calm:
            part[:] = draw(60, 200, 3, 1, 1) + draw(-int(draw(5, 60)), 1, 3, cell, cell)
    return image.to(torch.uint8).unsqueeze(0)


def is_clear(image: Tensor, cell: int, *, internvl: bool, tau: float = 0.45) -> bool:
    """No blurred value near a rounding step, no edge near its threshold, no entropy near the mean or another one's."""
    blurred = slow_stage1.low_pass(slow_stage1.grey_of(image[0], internvl=internvl))
    edges = slow_stage1.sobel(blurred) / slow_stage1.edge_threshold([blurred], tau)
    entropies = [slow_stage1.entropy(part) for part in slow_stage1.cells_of(blurred.round(), cell // 4)]
    varied = sorted({value for value in entropies if value > 0})
    mean = sum(entropies) / len(entropies) + slow_stage1.MEAN_MARGIN
    binned = sorted(set(slow_stage1.binned_entropies(image, cell)))
    return (
        bool(((blurred % 1 - 0.5).abs() > 1e-4).all())
        and bool(((edges - 1).abs() > 1e-4).all())
        and all(abs(value - mean) > 1e-4 for value in varied)
        and all(after - before > 1e-5 for values in (varied, binned) for before, after in pairwise(values))
    )
