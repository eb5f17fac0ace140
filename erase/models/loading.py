"""Loading a vision-language model with its tokenizer and image processor, safely: safetensors only, no remote code."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from erase.errors import UnsupportedError
from erase.models import adapter_for
from erase.models.qwen2_5_vl import Qwen2_5_VL

DEMO = "demo"
DEMO_FOLDER = Path(__file__).parent.parent / "demo"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelLoadError(UnsupportedError):
    """The model cannot be loaded; the message says what was expected."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, in evaluation mode, with what turns images and text into its inputs."""

    name: str
    revision: str
    model: Any
    adapter: Qwen2_5_VL
    tokenizer: Any
    image_processor: Any
    policy_file: Path | None
    """`erase_policy.json` beside a local model's weights: the pruning that suits it."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    @property
    def context_length(self) -> int:
        """Longest sequence in tokens, unpruned prompt and answer together."""
        return int(self.model.config.get_text_config().max_position_embeddings)

    @property
    def eos_tokens(self) -> frozenset[int]:
        """Tokens that end an answer."""
        eos = self.model.generation_config.eos_token_id
        return frozenset([eos] if isinstance(eos, int) else eos or [])


def load_model(
    source: str = DEMO, *, revision: str | None = None, device: str = "auto", dtype: str = "auto"
) -> LoadedModel:
    """Load the bundled demo model (`demo`), a local folder or a hub id pinned to a commit.

    `device` auto takes CUDA where there is one; `dtype` auto is bfloat16 on CUDA and float32 on CPU.

    Raises:
        ModelLoadError: no such folder, an unpinned hub id, no safetensors, or an unusable device or dtype.
        UnsupportedError: an architecture that cannot be pruned.
    """
    path = DEMO_FOLDER if source == DEMO else Path(source).expanduser()
    local = path.is_dir()
    if not local and (source.startswith((".", "/", "~")) or source.count("/") != 1):
        raise ModelLoadError(f"no model folder at {source!r}; expected a folder, a hub id ORG/NAME, or {DEMO!r}")
    if not local and not (revision and _COMMIT.fullmatch(revision)):
        raise ModelLoadError(f"the hub model {source!r} needs a revision: the 40-digit hash of a commit")
    options = {"trust_remote_code": False} | ({} if local else {"revision": revision})
    location = str(path) if local else source
    target = _device(device)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            location, dtype=_dtype(dtype, target), use_safetensors=True, attn_implementation="sdpa", **options
        )
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
        # The PIL backend, also where torchvision is installed: the same pixels on every machine.
        image_processor = AutoImageProcessor.from_pretrained(location, backend="pil", **options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(f"cannot load the model {source!r}: {error}") from error
    model.eval().requires_grad_(False).to(target)
    policy_file = path / "erase_policy.json" if local else None
    return LoadedModel(
        name=source if source == DEMO or not local else path.resolve().name,
        revision=fingerprint(path) if local else str(revision),
        model=model,
        adapter=adapter_for(model),
        tokenizer=tokenizer,
        image_processor=image_processor,
        policy_file=policy_file if policy_file and policy_file.is_file() else None,
    )


def fingerprint(folder: Path) -> str:
    """Name of a local model's content: a hash of its small files, and of size, head and tail of its weights."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix not in {".json", ".jinja", ".safetensors", ".txt"}:
            continue
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(2**20))
            stream.seek(max(0, size - 2**20))
            digest.update(stream.read())
    return digest.hexdigest()[:16]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelLoadError(f"unknown device {name!r}; expected auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError(f"device {name!r} was asked for, but PyTorch finds no CUDA device here")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise ModelLoadError(f"unknown dtype {name!r}; expected auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]
