"""Qwen2.5-VL: where its parts are, and how its queries are made."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from erase.errors import UnsupportedError
from erase.methods.base import Architecture
from erase.policy import Scoring

SHALLOW_CUT = 2
DEEP_CUT_SHARE = 0.58


class Qwen2_5_VL:  # noqa: N801 - the architecture's name
    """A Qwen2.5-VL model as the host of pruning sees it.

    Raises:
        UnsupportedError: another class of model, or a decoder that pruning does not fit.
    """

    model_type = "qwen2_5_vl"
    class_name = "Qwen2_5_VLForConditionalGeneration"

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, Qwen2_5_VLForConditionalGeneration):
            raise UnsupportedError(f"expected a {self.class_name}, got a {type(model).__name__}")
        self.model: Any = model
        self.config: Any = self.model.config
        self.inner: Any = self.model.model
        self.language_model: Any = self.inner.language_model
        self.layers: Any = self.language_model.layers
        self.lm_head: Any = self.model.lm_head
        self.embed_tokens: Any = self.language_model.embed_tokens
        self.image_token_id: int = self.config.image_token_id
        vision = self.config.vision_config
        self.patch_size: int = vision.patch_size
        self.merge_size: int = vision.spatial_merge_size
        self.temporal_patch_size: int = vision.temporal_patch_size
        self.cell = self.patch_size * self.merge_size
        self.depth = len(self.layers)
        self.scale: float = self.layers[0].self_attn.scaling
        if self.depth < 2:
            raise UnsupportedError("a decoder of one layer has no layer to cut before")
        if any(kind != "full_attention" for kind in self.language_model.config.layer_types):
            raise UnsupportedError("sliding-window layers cannot be pruned: a window counts tokens that are gone")

    @property
    def architecture(self) -> Architecture:
        """Depth and default cuts: after 2 layers, and after 17 of 28 or 22 of 36."""
        last = self.depth - 1
        deep = round(DEEP_CUT_SHARE * self.depth) + 1
        return Architecture(self.model_type, self.depth, min(SHALLOW_CUT, last), min(deep, last))

    def rotary(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, S, head_dim] for (t, h, w) positions [3, B, S], in the type of `hidden`."""
        cos, sin = self.language_model.rotary_emb(hidden, position_ids)
        return cos, sin

    def scoring_query(
        self, layer_index: int, layer_input: Tensor, cos: Tensor, sin: Tensor, scoring: Scoring
    ) -> Tensor:
        """Rotated queries of stage 2 at one layer.

        Args:
            layer_index: 0-based, the last layer run before the cut.
            layer_input: [Q, d], that layer's input hidden states of the query tokens.
            cos: [Q, head_dim], of the query tokens' positions.
            sin: [Q, head_dim].
            scoring: "reference" projects the input as it is, "exact" after the layer's input norm, as the layer does.

        Returns:
            [query heads, Q, head_dim].
        """
        layer = self.layers[layer_index]
        if scoring == "exact":
            layer_input = layer.input_layernorm(layer_input)
        attention = layer.self_attn
        query: Tensor = attention.q_proj(layer_input).view(layer_input.shape[0], -1, attention.head_dim).transpose(0, 1)
        return query * cos + _rotate_half(query) * sin

    def positions(self, tokens: Tensor, is_image: Tensor, grids: Tensor | None) -> tuple[Tensor, int]:
        """Rotary positions [3, n] of an unpruned prompt of `tokens` [n], and next position minus n.

        `is_image` marks image tokens with 1; `grids` [images, 3] are the images' patches along (t, h, w).
        """
        if grids is None:
            return torch.arange(len(tokens)).expand(3, -1), 0
        positions, delta = self.inner.get_rope_index(
            tokens.unsqueeze(0), mm_token_type_ids=is_image.unsqueeze(0), image_grid_thw=grids
        )
        return positions[:, 0], int(delta)

    def encode_images(self, pixel_values: Tensor, grids: Tensor) -> tuple[Tensor, ...]:
        """Vision encoder over the patches of several images [patches, p], grids [images, 3]: [tokens, d] of each."""
        output = self.inner.get_image_features(pixel_values, grids, return_dict=True)
        return tuple(output.pooler_output)

    def project(self, layer_index: int, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, of a layer's input rows [R, d]: each [heads, R, head_dim]."""
        layer = self.layers[layer_index]
        attention = layer.self_attn
        normed = layer.input_layernorm(hidden)
        query, key, value = (
            projection(normed).view(len(hidden), -1, attention.head_dim).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        return query * cos + _rotate_half(query) * sin, key * cos + _rotate_half(key) * sin, value

    def finish_layer(self, layer_index: int, hidden: Tensor, attended: Tensor) -> Tensor:
        """The layer's output rows [R, d] from its input and what its heads attended to [heads, R, head_dim]."""
        layer = self.layers[layer_index]
        hidden = hidden + layer.self_attn.o_proj(attended.transpose(0, 1).reshape(len(hidden), -1))
        out: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and vocabulary projection of rows [R, d]: [R, vocabulary]."""
        out: Tensor = self.lm_head(self.language_model.norm(hidden))
        return out


def _rotate_half(states: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
