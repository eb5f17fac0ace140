"""Models to measure: the demo model, a folder, or random weights in a real shape; none ever ends an answer."""

from __future__ import annotations

import json
import shutil
import tempfile
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from bench.report import BenchmarkError
from erase.models import adapter_for
from erase.models.loading import DEMO, DEMO_FOLDER, LoadedModel, load_model

CELL = 28
"""Pixels along a vision token in every Qwen2.5-VL."""

SHAPES: dict[str, dict[str, Any]] = {
    # Shares the work between vision encoder and language model as the 7B does at 1,280 vision tokens.
    "small": {
        "text_config": {
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 22,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "vocab_size": 32_768,
            "max_position_embeddings": 32_768,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        },
        "vision_config": {
            "depth": 7,
            "hidden_size": 512,
            "intermediate_size": 1368,
            "num_heads": 8,
            "out_hidden_size": 1024,
            "fullatt_block_indexes": [6],
        },
        "tie_word_embeddings": True,
    },
    # https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct, config.json
    "7b-shape": {
        "text_config": {
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152_064,
            "max_position_embeddings": 128_000,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision_config": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        "tie_word_embeddings": False,
    },
}


def endless_model(name: str, device: str, dtype: str) -> LoadedModel:
    """The model `name` (demo, a key of `SHAPES`, or a folder) without end token: every answer has the length asked for.

    Raises:
        ModelLoadError: the folder, device or dtype cannot be used.
    """
    loaded = random_model(name, device, dtype) if name in SHAPES else load_model(name, device=device, dtype=dtype)
    settings = loaded.model.generation_config
    settings.eos_token_id = None
    settings.do_sample, settings.temperature, settings.top_p, settings.top_k = False, None, None, None
    settings.repetition_penalty = None
    return loaded


def random_model(shape: str, device: str, dtype: str) -> LoadedModel:
    """A Qwen2.5-VL with fixed random weights, and the demo model's tokenizer stretched over its vocabulary."""
    demo = load_model(DEMO, device=device, dtype=dtype)
    tokenizer = _stretched_tokenizer(SHAPES[shape]["text_config"]["vocab_size"])
    demo_config = demo.model.config
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    settings = deepcopy(SHAPES[shape])
    settings["text_config"] |= {"bos_token_id": None, "eos_token_id": None}
    config = Qwen2_5_VLConfig(**settings, **{name: getattr(demo_config, name) for name in ids})
    torch.manual_seed(0)
    with demo.device:
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=demo.dtype, attn_implementation="sdpa")
    model.eval().requires_grad_(False).to(demo.device)
    model.generation_config.pad_token_id = 0
    limits = {"shortest_edge": 4 * CELL**2, "longest_edge": 16_384 * CELL**2}
    return replace(
        demo,
        name=f"random weights, {shape}",
        revision="seed 0",
        model=model,
        adapter=adapter_for(model),
        tokenizer=tokenizer,
        text_tokenizer=deepcopy(tokenizer),
        image_processor=AutoImageProcessor.from_pretrained(str(DEMO_FOLDER), backend="pil", size=limits),
        policy_file=None,
        bins_file=None,
    )


def save_random_model(shape: str, folder: Path) -> None:
    """Writes a model with fixed random weights as a folder that any server can load; it never ends an answer."""
    loaded = random_model(shape, "cpu", "float32")
    loaded.model.generation_config.eos_token_id = None
    loaded.model.generation_config.do_sample = False
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    loaded.image_processor.save_pretrained(folder)


def parameters(loaded: LoadedModel) -> int:
    """Number of weights."""
    return sum(weight.numel() for weight in loaded.model.parameters())


def image_size(tokens: int) -> tuple[int, int]:
    """Width and height in pixels, as square as possible, of an image of exactly `tokens` vision tokens.

    Raises:
        BenchmarkError: only long strips have that many.
    """
    rows = next(rows for rows in range(int(tokens**0.5), 0, -1) if tokens % rows == 0)
    columns = tokens // rows
    if columns > 4 * rows:
        raise BenchmarkError(f"no image of usual shape has {tokens} vision tokens; take a number like 169, 1280, 4096")
    return columns * CELL, rows * CELL


def _stretched_tokenizer(size: int) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(DEMO_FOLDER / name, folder)
        description = json.loads((DEMO_FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
        words = description["model"]["vocab"]
        words.update({f"w{number}": number for number in range(len(words), size)})
        (Path(folder) / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder)
