"""Writes a checkpoint as a model folder: python -m bench.demo_model export --run .erase/demo-model --out erase/demo"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from bench.demo_model.recipe import RECIPES
from bench.demo_model.train import build

_PROCESSOR: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "merge_size": 2,
    "patch_size": 14,
    "resample": 3,
    "rescale_factor": 1 / 255,
    # 36 and 2,560 vision tokens of 28 x 28 pixels
    "size": {"shortest_edge": 36 * 784, "longest_edge": 2560 * 784},
    "temporal_patch_size": 2,
}


def export(run: Path, out: Path, recipe_name: str, shard: str = "1GB") -> None:
    """Stock files with float16 weights: configuration, weights, tokenizer, image processor, generation settings.

    No file of weights is larger than `shard`.
    """
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    network = build(RECIPES[recipe_name], run)
    network.load_state_dict(state["network"])
    model = network.model.to(torch.float16)
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=model.config.text_config.eos_token_id,
        pad_token_id=model.config.text_config.pad_token_id,
    )
    model.save_pretrained(out, max_shard_size=shard)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(run / name, out / name)
    (out / "preprocessor_config.json").write_text(json.dumps(_PROCESSOR, indent=2) + "\n", encoding="utf-8")
