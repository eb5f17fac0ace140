"""Fixtures: golden cases and tiny random models."""

import json
from collections.abc import Callable

import pytest
import torch
from erase_cases import GOLDEN, MANIFEST, GoldenCase, load_case, load_golden_model
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_model() -> Qwen2_5_VLForConditionalGeneration:
    return load_golden_model("sdpa")


@pytest.fixture(params=MANIFEST, ids=[entry["name"] for entry in MANIFEST])
def golden_case(request: pytest.FixtureRequest) -> GoldenCase:
    return load_case(request.param)


@pytest.fixture
def first_case() -> GoldenCase:
    return load_case(MANIFEST[0])


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Qwen2_5_VLForConditionalGeneration]:
    """Builds a tiny randomly weighted model of any depth, larger weights than usual so that attention differs."""

    def build(depth: int, attention: str = "sdpa") -> Qwen2_5_VLForConditionalGeneration:
        settings = json.loads((GOLDEN / "qwen2_5_vl" / "config.json").read_text())
        text = settings["text_config"]
        text |= {"num_hidden_layers": depth, "layer_types": ["full_attention"] * depth, "initializer_range": 0.1}
        torch.manual_seed(depth)
        config = Qwen2_5_VLConfig(**settings, attn_implementation=attention)
        model = Qwen2_5_VLForConditionalGeneration(config).eval()
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        return model

    return build
