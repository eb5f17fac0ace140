"""Qwen3-VL of any size: DeepStack adds vision features to the first decoder layers' outputs."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from erase.models.qwen_vl import QwenVL


class Qwen3VL(QwenVL):
    """The shallow cut comes after the DeepStack layers; revision 1's published scores used a layer's output."""

    model_type = "qwen3_vl"
    model_class = Qwen3VLForConditionalGeneration
    default_preset = "qwen3-vl-8b"
    shallow_cut = 4
    binned_queries = "output"

    def deep_features(self, call: Mapping[str, Any]) -> tuple[Tensor, ...]:
        return tuple(call.get("deepstack_visual_embeds") or ())
