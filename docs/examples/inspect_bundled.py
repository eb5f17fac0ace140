"""The bundled questions as an evaluation for Inspect (pip install inspect-ai openai).

    ERASE_BASE_URL=http://127.0.0.1:8000/v1 ERASE_API_KEY=none inspect eval docs/examples/inspect_bundled.py \
        --model openai-api/erase/demo --max-connections 8
"""

import json
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, GenerateConfig
from inspect_ai.scorer import exact
from inspect_ai.solver import generate

SAMPLES = Path(__file__).parents[2] / "erase" / "demo" / "samples"


@task
def bundled() -> Task:
    """Every bundled question, one image each; right when the answer is the expected one."""
    samples = [
        Sample(
            input=[
                ChatMessageUser(
                    content=[ContentImage(image=str(SAMPLES / entry["image"])), ContentText(text=turn["question"])]
                )
            ],
            target=turn["answer"],
        )
        for entry in json.loads((SAMPLES / "samples.json").read_text())
        for turn in entry["turns"]
    ]
    config = GenerateConfig(temperature=0, max_tokens=16)
    return Task(dataset=MemoryDataset(samples), solver=generate(), scorer=exact(), config=config)
