"""Loading a vision-language model with its tokenizer and image processor, safely: safetensors only, no remote code."""

from __future__ import annotations

import hashlib
import re
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

# Not from the top: in 5.17 that name refuses to work without torchvision, which the PIL backend does not need.
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from erase.errors import UnsupportedError
from erase.models import SUPPORTED, VisionLanguageAdapter, adapter_for
from erase.models.normalisation import normalisation

DEMO = "demo"
POLICY_FILE = "erase_policy.json"
BINS_FILE = "erase_bins.json"
DEMO_FOLDER = Path(__file__).parent.parent / "demo"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOCK = 2**20
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelLoadError(UnsupportedError):
    """The model cannot be loaded; the message says what was expected."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run, in evaluation mode, with what turns images and text into its inputs."""

    name: str
    revision: str
    model: Any
    adapter: VisionLanguageAdapter
    tokenizer: Any
    """Encodes the chat template and decodes answers."""
    text_tokenizer: Any
    """Encodes what users write: control tokens are text to it. A copy, since tokenizers keep that choice as state."""
    image_processor: Any
    policy_file: Path | None
    """`erase_policy.json` beside a local model's weights: the pruning that suits it."""
    bins_file: Path | None = None
    """`erase_bins.json` there: revision 1 calibrated for this model, where another policy suits it better."""

    @property
    def default_policy(self) -> str:
        """Name of the policy for who names none: the model's own, else the one published for its architecture."""
        return self.name if self.policy_file else self.adapter.default_preset

    @property
    def own_policies(self) -> dict[str, Path]:
        """The policy files beside the weights, by the names that requests and options have for them."""
        files = {self.name: self.policy_file, f"{self.name}-bins": self.bins_file}
        return {name: file for name, file in files.items() if file is not None}

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
    source: str = DEMO,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    weights: bool = True,
) -> LoadedModel:
    """Load the bundled demo model (`demo`), a local folder or a hub id pinned to a commit.

    `device` auto takes CUDA where there is one; `dtype` auto is bfloat16 on CUDA and float32 on CPU. Without `weights`
    the model is built from its configuration on the meta device: enough for images, stage 1 and planned cuts of a model
    of any size in a moment, but it cannot run, and a local one's `revision` is empty.

    Raises:
        ModelLoadError: no such folder, an unpinned hub id, an architecture without adapter, files that are missing,
            broken, incomplete or no safetensors, or an unusable device or dtype.
        UnsupportedError: a model that cannot be pruned although its architecture is known, or whose image processor
            does not let the images be recovered.
    """
    path = DEMO_FOLDER if source == DEMO else Path(source).expanduser()
    local = bool(source) and path.is_dir()
    if not local and (source.startswith((".", "/", "~")) or source.count("/") != 1):
        raise ModelLoadError(f"no model folder at {source!r}; expected a folder, a hub id ORG/NAME, or {DEMO!r}")
    if not local and not (revision and _COMMIT.fullmatch(revision)):
        raise ModelLoadError(
            f"{source!r} is no folder here, and a hub model needs a revision: the 40-digit hash of a commit"
        )
    options = {"trust_remote_code": False} | ({} if local else {"revision": revision})
    location = str(path) if local else source
    target = _device(device) if weights else torch.device("meta")
    try:
        config = AutoConfig.from_pretrained(location, **options)
        if config.model_type not in SUPPORTED:
            raise ModelLoadError(
                f"the model {source!r} has the architecture {config.model_type!r}; supported: {', '.join(SUPPORTED)}"
            )
        settings = {"dtype": _dtype(dtype, target), "attn_implementation": "sdpa"}
        if weights:
            model = _with_weights(source, location, settings | options).to(target)
        else:
            with target:
                model = AutoModelForImageTextToText.from_config(config, **settings)
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
        # The PIL backend, also where torchvision is installed: the same pixels on every machine.
        image_processor = AutoImageProcessor.from_pretrained(location, backend="pil", **options)
        normalisation(image_processor)  # an unusable one is refused now, not with the first image
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelLoadError(f"cannot load the model {source!r}: {error}") from error
    if tokenizer.chat_template is None:
        raise ModelLoadError(f"the tokenizer of {source!r} has no chat template, so questions cannot be put to it")
    model.eval().requires_grad_(False)
    policy_file, bins_file = (
        path / name if local and (path / name).is_file() else None for name in (POLICY_FILE, BINS_FILE)
    )
    return LoadedModel(
        name=source if source == DEMO or not local else path.resolve().name,
        revision=str(revision) if not local else fingerprint(path) if weights else "",
        model=model,
        adapter=adapter_for(model),
        tokenizer=tokenizer,
        text_tokenizer=deepcopy(tokenizer),
        image_processor=image_processor,
        policy_file=policy_file,
        bins_file=bins_file,
    )


def _with_weights(source: str, location: str, settings: dict[str, Any]) -> Any:
    model, loading = AutoModelForImageTextToText.from_pretrained(
        location, use_safetensors=True, output_loading_info=True, **settings
    )
    if missing := sorted(loading["missing_keys"]):
        raise ModelLoadError(f"the weights of {source!r} are incomplete: {len(missing)} missing, first {missing[0]}")
    return model


def fingerprint(folder: Path) -> str:
    """Name of a local model's content: a hash of its files, but for its policies, which say nothing about the model.

    A file above 512 MiB is sampled, one MiB of each of its 512 parts, to keep starts short.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.name in {POLICY_FILE, BINS_FILE} or file.suffix not in {".json", ".jinja", ".safetensors", ".txt"}:
            continue
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            for start in range(0, size, max(_BLOCK, size // 512)):
                stream.seek(start)
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()[:16]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ModelLoadError(f"unknown device {name!r}; expected auto, cpu, cuda or cuda:N") from None
    if device.type not in {"cpu", "cuda"}:
        raise ModelLoadError(f"unsupported device {name!r}; expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelLoadError(
            f"device {name!r} was asked for, but PyTorch finds {torch.cuda.device_count()} CUDA devices here"
        )
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise ModelLoadError(f"unknown dtype {name!r}; expected auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]
