"""The policies that a model's users know by name: its own, the published ones, and files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from erase.errors import PolicyError
from erase.models.loading import LoadedModel
from erase.policy import Policy, load_policy
from erase.presets import preset, preset_names


def known_policies(loaded: LoadedModel) -> dict[str, Policy]:
    """The model's own policies and the presets; of two with one name it is the model's."""
    own = {name: load_policy(file) for name, file in loaded.own_policies.items()}
    return own | {name: preset(name) for name in preset_names() if name not in own}


def find_policy(name: str, loaded: LoadedModel, also: Sequence[str] = ()) -> Policy:
    """The policy with this name, or in the file with this path; `also` are names that the caller knows itself.

    Raises:
        PolicyError: there is neither, or the file cannot be used.
    """
    own = loaded.own_policies
    if name in own:
        return load_policy(own[name])
    if name in preset_names():
        return preset(name)
    if not Path(name).is_file():
        names = ", ".join([*also, *own, *preset_names()])
        raise PolicyError(f"there is no policy {name!r}: expected {names} or the path of a policy file")
    return load_policy(name)
