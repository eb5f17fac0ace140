"""ERASE: adaptive two-stage pruning of vision tokens."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from erase.errors import EraseError, InputError, PolicyError, UnsupportedError
from erase.policy import BaselinePolicy, BinnedPolicy, BudgetPolicy, DistinctPolicy, load_policy, save_policy
from erase.presets import preset, preset_names

if TYPE_CHECKING:
    from erase.stock.context import pruning

__all__ = [
    "BaselinePolicy",
    "BinnedPolicy",
    "BudgetPolicy",
    "DistinctPolicy",
    "EraseError",
    "InputError",
    "PolicyError",
    "UnsupportedError",
    "load_policy",
    "preset",
    "preset_names",
    "pruning",
    "save_policy",
]

try:
    __version__ = version("erase-serve")
except PackageNotFoundError:
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    """Imports torch and transformers when `pruning` is first used, so that policies and `erase --help` do without."""
    if name != "pruning":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from erase.stock.context import pruning

    globals()["pruning"] = pruning
    return pruning
