"""Fixtures: golden cases and the models that they were recorded with."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from erase_cases import MANIFEST, GoldenCase, load_case
from hypothesis import settings
from slow_cases import load_golden
from transformers import PreTrainedModel

# The first example may have to wait for a compiler, and every one for a busy machine.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Callable[..., PreTrainedModel]:
    """A golden model by name, loaded once per session and attention implementation."""
    return cache(load_golden)


@pytest.fixture(params=MANIFEST, ids=[entry["name"] for entry in MANIFEST])
def golden_case(request: pytest.FixtureRequest) -> GoldenCase:
    return load_case(request.param)
