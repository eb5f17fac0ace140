"""Qwen2.5-VL of any size."""

from collections.abc import Generator

from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from erase.models.base import VisionFeatures
from erase.models.qwen2_5_vision import encode_steps
from erase.models.qwen_vl import QwenVL


class Qwen2_5_VL(QwenVL):  # noqa: N801 - the architecture's name
    """Cuts after 2, 17 and 19 of 28 layers, or after 2, 22 and 24 of 36."""

    model_type = "qwen2_5_vl"
    model_class = Qwen2_5_VLForConditionalGeneration
    default_preset = "qwen2.5-vl-7b"
    may_drop_all = True
    shows_encoder_attention = True

    def encode_steps(
        self, pixel_values: Tensor, grids: Tensor, *, with_attention: bool = False
    ) -> Generator[None, None, tuple[VisionFeatures, ...]]:
        merge = self.config.vision_config.spatial_merge_size
        cells = [(height // merge, width // merge) for _, height, width in grids.tolist()]
        tokens, attention = yield from encode_steps(self.inner.visual, pixel_values, cells, with_attention)
        if not with_attention:
            return tuple(VisionFeatures(own) for own in tokens)
        return tuple(VisionFeatures(own, (), (seen,)) for own, seen in zip(tokens, attention, strict=True))
