"""What pruning needs of an architecture. An adapter finds the parts of a model; everything else works through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from erase.errors import InputError, UnsupportedError
from erase.methods.base import Architecture, EncoderAttention, Method, QuerySource
from erase.pixels.images import VisionImage
from erase.pixels.luma import BT601, Luma

DEEP_SHARE = 0.58
EARLY_CUT = 2
LATE_SHARE = 0.67


@dataclass(frozen=True, eq=False)
class VisionFeatures:
    """What the vision encoder made of one image, or of several in a row.

    `tokens` [tokens, d]; `deep` for DeepStack [tokens, d] per early decoder layer; `attention` per image, where it was
    asked for.
    """

    tokens: Tensor
    deep: tuple[Tensor, ...] = field(default=())
    attention: tuple[EncoderAttention, ...] = field(default=())


class VisionLanguageAdapter(ABC):
    """A model as the host of pruning sees it: a vision encoder and a decoder with rotary attention.

    The decoder's layers are pre-norm: `input_layernorm`, `self_attn` with `q_proj`, `k_proj`, `v_proj`, `o_proj` and
    perhaps `q_norm` and `k_norm` per head, `post_attention_layernorm`, `mlp`.

    Raises:
        UnsupportedError: another class of model, or a decoder that pruning does not fit.
    """

    model_type: ClassVar[str]
    model_class: ClassVar[type[nn.Module]]
    default_preset: ClassVar[str]
    """The published policy of this architecture."""
    luma: ClassVar[Luma] = BT601
    shallow_cut: ClassVar[int] = 2
    binned_queries: ClassVar[QuerySource] = "input"
    budget_queries: ClassVar[QuerySource] = "input"
    may_drop_all: ClassVar[bool] = False
    position_axes: ClassVar[int]
    """Rotary positions per token: 3 for (t, h, w), 1 for plain text positions."""
    pixel_inputs: ClassVar[tuple[str, ...]]
    """Arguments of a call that carry its images."""
    shows_encoder_attention: ClassVar[bool] = False
    """Whether `encode_steps` can tell what the vision encoder looked at."""
    cuts_tiles: ClassVar[bool] = False
    """Whether images are cut into tiles of one size, so that a smaller image need not have fewer tokens."""

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, self.model_class):
            raise UnsupportedError(f"expected a {self.model_class.__name__}, got a {type(model).__name__}")
        host: Any = model
        self.model: Any = host
        self.config: Any = host.config
        self.inner: Any = host.model
        self.language_model: Any = host.model.language_model
        self.layers: Any = host.model.language_model.layers
        self.lm_head: Any = host.lm_head
        self.embed_tokens: Any = host.model.language_model.embed_tokens
        self.image_token_id: int = host.config.image_token_id
        self.text_config: Any = host.model.language_model.config
        self.depth = len(self.layers)
        self._require_fitting_decoder()
        self.scale: float = self.layers[0].self_attn.scaling

    @property
    @abstractmethod
    def cell(self) -> int:
        """Pixels along each side of a vision token."""

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return int(self.layers[0].self_attn.head_dim)

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return int(self.layers[0].self_attn.k_proj.out_features) // self.head_dim

    @property
    def architecture(self) -> Architecture:
        """Depth L; default cuts after 2 (Qwen3-VL: 4) or 0.58 L + 1 layers (revision 1), 2 and 0.67 L (revision 2)."""
        last = self.depth - 1
        return Architecture(
            name=self.model_type,
            depth=self.depth,
            shallow=min(self.shallow_cut, last),
            deep=min(round(DEEP_SHARE * self.depth) + 1, last),
            early=min(EARLY_CUT, last),
            late=min(round(LATE_SHARE * self.depth), last),
            binned_queries=self.binned_queries,
            budget_queries=self.budget_queries,
            may_drop_all=self.may_drop_all,
        )

    @abstractmethod
    def images_of(
        self, call: Mapping[str, Any], vision: Tensor, mean: Sequence[float], std: Sequence[float]
    ) -> list[list[VisionImage]]:
        """The resized images of each prompt, from what stock transformers calls get.

        Args:
            call: the arguments `pixel_inputs` by name.
            vision: bool [B, L], where the prompts have vision tokens.
            mean: that the pixels were normalised with, per channel.
            std: likewise.

        Raises:
            InputError: images and prompts do not fit.
        """

    @abstractmethod
    def vision_images(
        self, pixel_values: Tensor, grids: Tensor, mean: Sequence[float], std: Sequence[float]
    ) -> list[VisionImage]:
        """The resized images behind `pixel_values` as the image processor makes them, concatenated.

        `grids` int [images, 3] counts patches along tiles or time, height and width.

        Raises:
            InputError: the tensors do not fit each other.
        """

    @abstractmethod
    def prepare_image(self, image_processor: Any, image: Any) -> tuple[Tensor, tuple[int, int, int]]:
        """A picture through the model's image processor: its `pixel_values`, and its patches as in `vision_images`."""

    def stock_inputs(self, input_ids: Tensor, pixel_values: Tensor | None, grids: Tensor | None) -> dict[str, Tensor]:
        """Arguments of stock `generate` beside `input_ids` [B, L] and its mask; images as in `vision_images`."""
        return {} if pixel_values is None else {"pixel_values": pixel_values}

    def image_span(self, tokenizer: Any, tokens: int) -> list[int]:
        """Token ids that stand for an image of so many vision tokens where the chat template has one image token."""
        return [self.image_token_id] * tokens

    def check_call(self, call: Mapping[str, Any], vision: Tensor) -> None:  # noqa: B027 - nothing to check is fine
        """Refuses prompts whose arguments do not fit each other or would silently give wrong positions.

        Looks at shapes only, before anything runs; absent pixels are not missed here. `vision` as in `images_of`.

        Raises:
            InputError: images and image tokens do not add up, or token types contradict them.
            UnsupportedError: token types are missing.
        """

    def deep_features(self, call: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """DeepStack features [vision tokens of all prompts, d] per early layer, from the decoder's arguments."""
        return ()

    @abstractmethod
    def encode_images(self, pixel_values: Tensor, grids: Tensor) -> tuple[VisionFeatures, ...]:
        """Vision encoder over several images; the arguments are those of `vision_images`."""

    def encode_steps(
        self, pixel_values: Tensor, grids: Tensor, *, with_attention: bool = False
    ) -> Generator[None, None, tuple[VisionFeatures, ...]]:
        """`encode_images` that pauses between the encoder's layers, where the architecture's encoder can.

        `with_attention`: the features also say what the encoder looked at; it must be one that shows that.
        """
        return self.encode_images(pixel_values, grids)
        yield

    def require_support(self, method: Method) -> None:
        """Refuses a method that this architecture has nothing for.

        Raises:
            UnsupportedError: the method looks at the encoder's attention, which this architecture does not show, or
                resizes images that this architecture cuts into tiles.
        """
        if method.image_scale != 1.0 and self.cuts_tiles:
            raise UnsupportedError(
                f"the method {method.name!r} resizes images, but models of type {self.model_type!r} cut them into tiles"
            )
        if method.sees_encoder_attention and not self.shows_encoder_attention:
            raise UnsupportedError(
                f"the method {method.name!r} looks at the attention inside the vision encoder, which is not shown for "
                f"models of type {self.model_type!r}"
            )

    @abstractmethod
    def positions(self, tokens: Tensor, is_image: Tensor, grids: Tensor | None) -> tuple[Tensor, int]:
        """Rotary positions [axes, n] of an unpruned prompt of `tokens` [n], and next position minus n.

        `is_image` marks image tokens with 1; `grids` [images, 3] are the images' patches.
        """

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, S, head_dim] for positions [axes, B, S], in the type of `hidden`."""
        cos, sin = self.language_model.rotary_emb(hidden, positions if self.position_axes > 1 else positions[0])
        return cos, sin

    def scoring_query(self, layer_index: int, hidden: Tensor, cos: Tensor, sin: Tensor, *, normed: bool) -> Tensor:
        """Rotated queries of stage 2 at one layer.

        Args:
            layer_index: 0-based, the last layer run before the cut.
            hidden: [Q, d], states of the query tokens.
            cos: [Q, head_dim], of the query tokens' positions.
            sin: [Q, head_dim].
            normed: whether the layer's input norm comes first, as in the layer itself.

        Returns:
            [query heads, Q, head_dim].
        """
        layer = self.layers[layer_index]
        if normed:
            hidden = layer.input_layernorm(hidden)
        return _rotate(self._heads(layer.self_attn, "q", hidden), cos, sin)

    def project(self, layer_index: int, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values, of a layer's input rows [R, d]: each [heads, R, head_dim]."""
        layer = self.layers[layer_index]
        normed = layer.input_layernorm(hidden)
        query, key, value = (self._heads(layer.self_attn, name, normed) for name in "qkv")
        return _rotate(query, cos, sin), _rotate(key, cos, sin), value

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

    @staticmethod
    def _heads(attention: Any, name: str, hidden: Tensor) -> Tensor:
        """[heads, R, head_dim] of one projection, normalised per head where the model does that."""
        states = getattr(attention, f"{name}_proj")(hidden).view(len(hidden), -1, attention.head_dim)
        norm = getattr(attention, f"{name}_norm", None)
        heads: Tensor = states if norm is None else norm(states)
        return heads.transpose(0, 1)

    def _require_fitting_decoder(self) -> None:
        if self.depth < 2:
            raise UnsupportedError("a decoder of one layer has no layer to cut before")
        if any(kind != "full_attention" for kind in getattr(self.text_config, "layer_types", None) or ()):
            raise UnsupportedError("sliding-window layers cannot be pruned: a window counts tokens that are gone")
        layer = self.layers[0]
        parts = ("input_layernorm", "post_attention_layernorm", "mlp", "self_attn")
        projections = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling")
        missing = [name for name in parts if not hasattr(layer, name)]
        missing += [name for name in projections if not hasattr(getattr(layer, "self_attn", None), name)]
        if missing:
            raise UnsupportedError(
                f"the decoder {type(self.language_model).__name__} cannot be pruned: its layers have no "
                + ", ".join(missing)
            )


def image_runs(vision: Tensor) -> list[list[int]]:
    """Lengths of the runs of image tokens in each prompt; `vision` is bool [B, L]."""
    return [[len(list(run)) for is_image, run in groupby(row) if is_image] for row in vision.tolist()]


def share_out(tokens: Sequence[int], runs: Sequence[Sequence[int]]) -> list[int]:
    """How many images each prompt gets, in order, so that their vision tokens add up to what the prompt has.

    Args:
        tokens: vision tokens of each image.
        runs: lengths of the runs of image tokens in each prompt; images without text between them share one.

    Raises:
        InputError: they do not add up, or stand in another order.
    """
    shares: list[int] = []
    first = 0
    for prompt, lengths in enumerate(runs):
        end, count = first, sum(lengths)
        while end < len(tokens) and sum(tokens[first:end]) < count:
            end += 1
        if (given := sum(tokens[first:end])) != count:
            raise InputError(f"prompt {prompt} has {count} image tokens, but its images make {given} vision tokens")
        if end - first == len(lengths) and list(tokens[first:end]) != list(lengths):
            raise InputError(
                f"prompt {prompt} has images of {', '.join(map(str, tokens[first:end]))} vision tokens, but runs of "
                f"{', '.join(map(str, lengths))} image tokens: give the images in the order of the prompt"
            )
        shares.append(end - first)
        first = end
    if first < len(tokens):
        raise InputError(f"{len(tokens) - first} of {len(tokens)} images have no image tokens in any prompt")
    return shares


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin
