from pathlib import Path

import pytest
import torch

from bench.demo_model.network import TrainingNetwork
from bench.demo_model.tokenizer import save_tokenizer
from bench.demo_model.train import build
from tests.bench.tiny import TINY


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return folder


@pytest.fixture
def network(tokenizer_folder) -> TrainingNetwork:
    """Random weights everywhere, also where training starts at zero."""
    torch.manual_seed(0)
    network = build(TINY, tokenizer_folder).eval()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim >= 2:
                weight.normal_(0, 0.1)
    return network
