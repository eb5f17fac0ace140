"""The bundled question that shows a fresh stack at work."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import httpx


def samples_folder() -> Path:
    """Folder of the demo model's images; found without importing the library, which would load torch."""
    spec = importlib.util.find_spec("erase")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package erase is not installed")
    return Path(spec.origin).parent / "demo" / "samples"


@cache
def first_sample() -> tuple[Path, str]:
    """The image and the question that `samples.json` begins with."""
    folder = samples_folder()
    samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    first = next(sample for sample in samples if sample["turns"])
    return folder / first["image"], first["turns"][0]["question"]


def ask_sample(client: httpx.Client) -> dict[str, Any]:
    """Ask the bundled question; the answer object. Raises `httpx.HTTPError` when there is none."""
    image, question = first_sample()
    reply = client.post(
        "/v1/ask",
        files={"image": (image.name, image.read_bytes(), "image/png")},
        data={"prompt": question},
        timeout=120,
    )
    reply.raise_for_status()
    answer: dict[str, Any] = reply.json()
    return answer


def describe(answer: dict[str, Any]) -> str:
    """The answer with what pruning saved, for the terminal."""
    image, question = first_sample()
    tokens, times = answer["usage"]["vision_tokens"], answer["timings_ms"]
    phases = ", ".join(f"{name} {times[name]:.0f}" for name in ("queue", "preprocess", "encode", "prefill", "decode"))
    return f"""
  question         {question}  ({image.name})
  answer           {answer["answer"]}
  vision tokens    {tokens["input"]} in, {tokens["after_stage1"]} into the decoder, {tokens["kept"]} kept
  token reduction  {answer["usage"]["token_reduction"]:.0%} averaged over layers (policy {answer["pruning"]["policy"]})
  time             {times["total"]:.0f} ms, of these {phases}"""
