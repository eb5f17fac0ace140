"""ERASE: adaptive two-stage pruning of vision tokens."""

from importlib.metadata import PackageNotFoundError, version

from erase.errors import EraseError, InputError, PolicyError, UnsupportedError
from erase.policy import BinnedPolicy, BudgetPolicy, load_policy, save_policy
from erase.presets import preset, preset_names
from erase.pruning import pruning

__all__ = [
    "BinnedPolicy",
    "BudgetPolicy",
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
