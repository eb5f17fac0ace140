"""A few megabytes of a training that is not finished: the vision encoder in bfloat16, and how far it has come.

A checkpoint holds optimizers, too, and stays on its machine. As long as only the encoder has been trained (phases with
`cells_only`), this is enough to go on elsewhere, with optimizers that start afresh.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bench.demo_model.network import TrainingNetwork
from bench.demo_model.train import CHECKPOINT, Progress

_TRAINED = ("model.model.visual.", "cells.")


def keep(run: Path, file: Path) -> None:
    """Write what is kept of the run's checkpoint into `file`."""
    state = torch.load(run / CHECKPOINT, map_location="cpu", weights_only=True)
    weights = {
        name: weight.bfloat16().contiguous() for name, weight in state["network"].items() if name.startswith(_TRAINED)
    }
    save_file(weights, file, metadata={"progress": json.dumps(asdict(Progress(**state["progress"])))})


def take_up(file: Path, network: TrainingNetwork) -> Progress:
    """Load what was kept into the network; how far the training had come. Raises ValueError if it does not fit."""
    own = network.state_dict()
    with safe_open(file, "pt") as kept:
        names = set(kept.keys())
        if names != {name for name in own if name.startswith(_TRAINED)}:
            raise ValueError(f"{file} was kept from another network")
        for name in names:
            own[name].copy_(kept.get_tensor(name))
        return Progress(**json.loads(kept.metadata()["progress"]))
