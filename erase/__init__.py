"""ERASE: adaptive two-stage pruning of vision tokens."""

import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import TYPE_CHECKING, Any

from erase.errors import EraseError, InputError, PolicyError, UnsupportedError
from erase.policy import BinnedPolicy, BudgetPolicy, load_policy, save_policy
from erase.presets import preset, preset_names

if TYPE_CHECKING:
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


class _Package(ModuleType):
    """Imports torch when `erase.pruning` is first used, so that policies and `erase --help` do without.

    A property and not a module's `__getattr__`: importing the submodule of that name would take the function's place.
    """

    @property
    def pruning(self) -> Any:
        from erase.pruning import pruning

        return pruning

    @pruning.setter
    def pruning(self, submodule: ModuleType) -> None: ...


sys.modules[__name__].__class__ = _Package
