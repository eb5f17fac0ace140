"""Where supported transformers versions differ: 5.24 renamed the argument `past_key_values` to `cache`."""

import inspect
from collections.abc import Mapping
from typing import Any

from transformers.masking_utils import create_causal_mask

CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
"""What the installed transformers calls the key/value cache, as an argument and in outputs."""


def with_one_cache_name(call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call with the cache under its old name, under which everything here looks for it."""
    renamed = dict(call)
    if "cache" in renamed and renamed.get("past_key_values") is None:
        renamed["past_key_values"] = renamed.pop("cache")
    return renamed


def with_installed_cache_name(call: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call with the cache under the name that the installed transformers knows."""
    renamed = dict(call)
    if "past_key_values" in renamed:
        renamed[CACHE] = renamed.pop("past_key_values")
    return renamed
