"""Methods of one model instance replaced for a while, by one context at a time."""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from torch import nn

from erase.errors import UnsupportedError
from erase.stock.compat import with_installed_cache_name, with_one_cache_name

_pruned_models: "WeakSet[nn.Module]" = WeakSet()
_pruned_models_lock = threading.Lock()


@contextmanager
def exclusive(inner: nn.Module) -> Iterator[None]:
    """Holds a model for one context; nested and concurrent ones are refused.

    Raises:
        UnsupportedError: it is held already.
    """
    with _pruned_models_lock:
        if inner in _pruned_models:
            raise UnsupportedError("this model is already inside a pruning() context; nested ones are not supported")
        _pruned_models.add(inner)
    try:
        yield
    finally:
        with _pruned_models_lock:
            _pruned_models.discard(inner)


@contextmanager
def patched(
    module: nn.Module, name: str, replacement: Callable[[Callable[..., Any], dict[str, Any]], Any]
) -> Iterator[None]:
    """Puts `replacement(original, call)` before a method of this one instance, `call` being its arguments by name."""
    original = getattr(module, name)
    parameters = tuple(inspect.signature(original).parameters)
    own = module.__dict__.get(name)

    def renaming(**call: Any) -> Any:
        return original(**with_installed_cache_name(call))

    @functools.wraps(original)  # `generate` inspects signatures
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return replacement(renaming, with_one_cache_name(dict(zip(parameters, args, strict=False)) | kwargs))

    setattr(module, name, replaced)
    try:
        yield
    finally:
        if own is None:
            delattr(module, name)
        else:
            setattr(module, name, own)
