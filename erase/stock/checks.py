"""What `pruning()` refuses, because it would be wrong or would silently leave vision tokens unpruned."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from erase.errors import InputError, UnsupportedError
from erase.stock.cache import PrunedCache

_MODES: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("num_beams", (None, 1), "beam search"),
    ("num_beam_groups", (None, 1), "group beam search"),
    ("num_return_sequences", (None, 1), "several return sequences"),
    ("constraints", (None,), "constrained beam search"),
    ("force_words_ids", (None,), "constrained beam search"),
    ("penalty_alpha", (None, 0, 0.0), "contrastive search"),
    ("dola_layers", (None,), "DoLa decoding"),
    ("assistant_model", (None,), "assisted decoding"),
    ("prompt_lookup_num_tokens", (None,), "prompt-lookup decoding"),
    ("assistant_early_exit", (None,), "assisted decoding"),
    ("use_mtp", (None, False), "multi-token prediction"),
    ("guidance_scale", (None, 1, 1.0), "classifier-free guidance"),
    ("negative_prompt_ids", (None,), "negative prompts"),
    ("token_healing", (None, False), "token healing"),
    ("custom_generate", (None,), "a custom generation loop"),
    ("cache_implementation", (None, "dynamic"), "a static, quantized, offloaded or paged cache"),
    ("prefill_chunk_size", (None,), "prefill chunking"),
    ("use_cache", (None, True), "generation without a cache"),
    ("output_attentions", (None, False), "returning attentions"),
    ("output_hidden_states", (None, False), "returning hidden states"),
)


def generation_refusal(setting: Callable[[str], Any]) -> str | None:
    """Why these settings of `generate` cannot be combined with pruning, or None if they can."""
    for name, allowed, what in _MODES:
        value = setting(name)
        if not any(value is option or (type(value) is type(option) and value == option) for option in allowed):
            return f"{what} ({name}={_shown(value)}) cannot be combined with pruning; use greedy search or sampling"
    return None


def require_own_cache(cache: Any) -> None:
    """Refuses a cache that something else filled.

    Raises:
        UnsupportedError: `cache` holds tokens and is no `PrunedCache`.
    """
    if cache is not None and not isinstance(cache, PrunedCache) and cache.get_seq_length() > 0:
        raise UnsupportedError(
            f"past_key_values is a {type(cache).__name__} filled outside pruning(); continue a cache that generate "
            "returned inside it, or leave past_key_values out"
        )


def require_stills(call: Mapping[str, Any]) -> None:
    """Refuses video.

    Raises:
        UnsupportedError: the call carries pixels, a grid or features of a video.
    """
    encoded = call.get("mm_encoder_outputs") or {}
    if any(call.get(name) is not None for name in ("pixel_values_videos", "video_grid_thw")) or encoded.get("video"):
        raise UnsupportedError("video cannot be pruned; pass still images (pixel_values, image_grid_thw)")


def require_token_ids(call: Mapping[str, Any]) -> None:
    """Refuses prompts given as embeddings.

    Raises:
        UnsupportedError: the call carries inputs_embeds.
    """
    if call.get("inputs_embeds") is not None:
        raise UnsupportedError("inputs_embeds do not say which tokens are vision tokens; pass input_ids")


def require_pixels(call: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuses image tokens without their images.

    Raises:
        UnsupportedError: the features were made elsewhere.
        InputError: one of the arguments `names` that carry the images is missing.
    """
    if (call.get("mm_encoder_outputs") or {}).get("image") is not None:
        raise UnsupportedError("image features encoded outside pruning() carry no pixels; pass pixel_values")
    missing = [name for name in names if call.get(name) is None]
    if missing:
        raise InputError(f"input_ids has image tokens, but {' and '.join(missing)} is missing")


def require_no_new_images(call: Mapping[str, Any], vision: Tensor | None) -> None:
    """Refuses images in a text that continues a cache; `vision` says where its new tokens are image tokens.

    Raises:
        UnsupportedError: there are pixels, features or image tokens.
    """
    encoded = (call.get("mm_encoder_outputs") or {}).get("image")
    if call.get("pixel_values") is not None or encoded is not None or (vision is not None and bool(vision.any())):
        raise UnsupportedError(
            "a continued cache cannot take images; leave pixel_values out, or pass the whole prompt without a cache"
        )


def require_text_at_the_end(vision: Tensor) -> None:
    """Refuses a prompt [L] whose last token is a vision token: nothing could rank it and no logits would follow it.

    Raises:
        UnsupportedError: the prompt ends with a vision token.
    """
    if bool(vision[-1]):
        raise UnsupportedError("a prompt that ends with a vision token cannot be pruned: text must follow the images")


def token_places(call: Mapping[str, Any], vision: Tensor) -> list[Tensor]:
    """Where each prompt's tokens stand among its padding.

    Args:
        call: the arguments of `generate` or a forward call.
        vision: bool [B, L], where the image tokens are.

    Returns:
        Per prompt int64 [tokens], ascending.

    Raises:
        UnsupportedError: a mask that does more than to say what is padding.
        InputError: a mask of another shape, without any token, or with image tokens in the padding.
    """
    mask = call.get("attention_mask")
    if mask is None:
        return [torch.arange(vision.shape[1], device=vision.device) for _ in vision]
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        raise UnsupportedError("a prepared attention mask cannot be pruned; pass the tokenizer's [prompts, L] or none")
    if mask.shape != vision.shape:
        raise InputError(f"attention_mask must be {list(vision.shape)} like input_ids, got {list(mask.shape)}")
    valid = mask.to(vision.device) != 0
    if bool((vision & ~valid).any()):
        raise InputError("attention_mask is 0 at image tokens; it must be 0 at padding only")
    if not bool(valid.any(dim=1).all()):
        raise InputError("attention_mask is 0 everywhere in a prompt; every prompt needs at least one token")
    return [row.nonzero().squeeze(1) for row in valid]


def require_padding_on_the_left(places: Sequence[Tensor], length: int) -> None:
    """Refuses to generate behind padding, whose rows have no logits; `places` as from `token_places`, among `length`.

    Raises:
        UnsupportedError: a prompt does not end in the last column.
    """
    if any(int(own[-1]) != length - 1 for own in places):
        raise UnsupportedError("generate needs prompts padded on the left (padding_side='left'), not on the right")


def require_fresh_cache(call: Mapping[str, Any]) -> None:
    """Refuses a cache that cannot hold a pruned prompt.

    Raises:
        UnsupportedError: `past_key_values` is given and no `PrunedCache`.
    """
    cache = call.get("past_key_values")
    if cache is not None and not isinstance(cache, PrunedCache):
        raise UnsupportedError(
            f"past_key_values is a {type(cache).__name__}, which cannot hold a pruned prompt; leave it out"
        )


def require_attention_implementation(name: str | None) -> None:
    """Refuses attention that takes its masks another way.

    Raises:
        UnsupportedError: paged or flexible attention.
    """
    if name is not None and (name.startswith("paged") or name == "flex_attention"):
        raise UnsupportedError(
            f"attention implementation {name!r} cannot be pruned; use eager, sdpa or flash attention"
        )


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float | bool) else type(value).__name__
