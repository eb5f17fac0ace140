"""Fixtures: the starter model, once as it is and once without an end token."""

import json

import pytest
from engine_cases import Sample
from PIL import Image

from erase import load_policy
from erase.methods import method_for
from erase.methods.base import Method
from erase.models.loading import LoadedModel, load_model
from tests.starter import STARTER


@pytest.fixture(scope="session")
def demo() -> LoadedModel:
    return load_model(str(STARTER), device="cpu", dtype="float32")


@pytest.fixture
def endless(demo: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """The starter model whose answers only `max_tokens` ends."""
    monkeypatch.setattr(demo.model.generation_config, "eos_token_id", None)
    return demo


@pytest.fixture(scope="session")
def pruned() -> Method:
    """The pruning that suits the starter model."""
    return method_for(load_policy(STARTER / "erase_policy.json"))


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    folder = STARTER / "samples"
    return [
        Sample(Image.open(folder / entry["image"]).convert("RGB"), turn["question"], turn["answer"])
        for entry in json.loads((folder / "samples.json").read_text())
        for turn in entry["turns"]
    ]
