"""What `pruning()` refuses, because it would be wrong or would silently leave vision tokens unpruned."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from erase.cache import PrunedCache
from erase.errors import InputError, UnsupportedError

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


def require_pixels(call: Mapping[str, Any]) -> None:
    """Refuses image tokens without their images.

    Raises:
        UnsupportedError: the features were made elsewhere.
        InputError: pixel_values or image_grid_thw is missing.
    """
    if (call.get("mm_encoder_outputs") or {}).get("image") is not None:
        raise UnsupportedError("image features encoded outside pruning() carry no pixels; pass pixel_values")
    missing = [name for name in ("pixel_values", "image_grid_thw") if call.get(name) is None]
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


def require_plain_image_prompt(call: Mapping[str, Any], vision: Tensor) -> None:
    """Refuses a prompt with images that cannot be pruned, or not correctly.

    Args:
        call: the arguments of `generate` or a forward call.
        vision: bool [B, L], where the image tokens are.

    Raises:
        UnsupportedError: several prompts, padding, a prepared mask, a foreign cache, no mm_token_type_ids.
        InputError: the tensors that say where the images are do not agree.
    """
    if vision.shape[0] != 1:
        raise UnsupportedError(
            f"a batch of {vision.shape[0]} prompts with images cannot be pruned yet; call once per prompt"
        )
    attention_mask = call.get("attention_mask")
    if attention_mask is not None:
        if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
            raise UnsupportedError("a prepared attention mask cannot be pruned; pass the tokenizer's [1, L] or none")
        if not bool(attention_mask.all()):
            raise UnsupportedError("a padded prompt cannot be pruned yet; pass the prompt without padding")
    cache = call.get("past_key_values")
    if cache is not None and not isinstance(cache, PrunedCache):
        raise UnsupportedError(
            f"past_key_values is a {type(cache).__name__}, which cannot hold a pruned prompt; leave it out"
        )
    token_types = call.get("mm_token_type_ids")
    if token_types is None:
        if call.get("position_ids") is None:
            raise UnsupportedError(
                "mm_token_type_ids is missing, so the model would give the image tokens text positions; pass it as the "
                "processor returns it (1 for image tokens, 0 for text)"
            )
    elif token_types.shape != vision.shape or not bool(torch.equal(token_types.to(vision.device) == 1, vision)):
        raise InputError("mm_token_type_ids must be 1 exactly where input_ids has image tokens")


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str | int | float | bool) else type(value).__name__
