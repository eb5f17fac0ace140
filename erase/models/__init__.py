"""Model architectures: one file each, chosen by what the model is."""

from torch import nn

from erase.errors import UnsupportedError
from erase.models.base import VisionLanguageAdapter
from erase.models.internvl import InternVL
from erase.models.qwen2_5_vl import Qwen2_5_VL
from erase.models.qwen3_vl import Qwen3VL

__all__ = ["SUPPORTED", "VisionLanguageAdapter", "adapter_for"]

SUPPORTED: dict[str, type[VisionLanguageAdapter]] = {cls.model_type: cls for cls in (Qwen2_5_VL, Qwen3VL, InternVL)}


def adapter_for(model: nn.Module) -> VisionLanguageAdapter:
    """The adapter of the model's architecture.

    Raises:
        UnsupportedError: no adapter knows this model; the message names those that exist.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    adapter = SUPPORTED.get(model_type) if isinstance(model_type, str) else None
    if adapter is None:
        raise UnsupportedError(
            f"{type(model).__name__} (model_type {model_type!r}) cannot be pruned; supported: "
            + ", ".join(f"{cls.model_class.__name__} (model_type {name!r})" for name, cls in SUPPORTED.items())
        )
    return adapter(model)
