"""A demo model of no size, and what the stock classes need to be asked the same as it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoImageProcessor, AutoTokenizer

from bench.demo_model.recipe import RECIPES, Phase
from erase.models.loading import DEMO_FOLDER
from erase.synthetic.sample import Question, Sample

TINY = replace(
    RECIPES["gpu"],
    vision_width=64,
    vision_depth=2,
    vision_mlp=96,
    full_attention=(1,),
    width=64,
    depth=4,
    mlp=96,
    heads=2,
    key_value_heads=1,
    phases=(Phase(0.5, (36, 49), 0.3), Phase(1.0, (49, 64), 1.0)),
    batch_tokens=400,
    questions=3,
    looks={},
)


def stock_inputs(folder: Path, sample: Sample, question: Question) -> dict[str, Any]:
    """Arguments for `forward` of the stock classes: the image, the question, and the right answer with its end."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(DEMO_FOLDER, size={"shortest_edge": 784, "longest_edge": 10**7})
    pixels = processor(images=[sample.image], return_tensors="pt")
    content = [{"type": "image"}, {"type": "text", "text": question.text}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    count = int(pixels["image_grid_thw"].prod()) // 4
    text = text.replace("<|image_pad|>", "<|image_pad|>" * count) + question.answer + "<|im_end|>"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    types = (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types, **pixels}


def length_of(folder: Path, answer: str) -> int:
    """Tokens of an answer with its end."""
    return len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(answer, add_special_tokens=False).ids) + 1
