"""Model architectures: one file each, chosen by what the model is."""

from torch import nn

from erase.errors import UnsupportedError
from erase.models.qwen2_5_vl import Qwen2_5_VL

SUPPORTED = {Qwen2_5_VL.model_type: Qwen2_5_VL}


def adapter_for(model: nn.Module) -> Qwen2_5_VL:
    """The adapter of the model's architecture.

    Raises:
        UnsupportedError: no adapter knows this model; the message names those that exist.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    adapter = SUPPORTED.get(model_type) if isinstance(model_type, str) else None
    if adapter is None:
        raise UnsupportedError(
            f"{type(model).__name__} (model_type {model_type!r}) cannot be pruned; supported: "
            + ", ".join(f"{cls.class_name} (model_type {name!r})" for name, cls in SUPPORTED.items())
        )
    return adapter(model)
