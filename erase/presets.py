"""Published policies by name."""

from erase.errors import PolicyError
from erase.policy import BinnedPolicy, Policy

_PRESETS: dict[str, Policy] = {
    "qwen2.5-vl-7b": BinnedPolicy(
        thresholds=(1.6904912034377264, 1.3471717001563197, 1.1718597959685415),
        stage1_retention=(0.8267523535511546, 0.751410400727526, 0.49466854974609853, 0.4033912240039451),
        final_retention=0.25,
    ),
}


def preset_names() -> tuple[str, ...]:
    """The names that `preset` knows, sorted."""
    return tuple(sorted(_PRESETS))


def preset(name: str, retention: float | None = None) -> Policy:
    """The published policy of that name, its one dial turned to `retention` where given.

    The dial is the final retention. Thresholds and stage-1 retentions stay as published, except that stage 1 never
    keeps less than the final retention, so a lower dial never keeps more.

    Raises:
        PolicyError: the name is unknown, or the retention not in (0, 1].
    """
    policy = _PRESETS.get(name)
    if policy is None:
        raise PolicyError(f"unknown preset {name!r}; known: {', '.join(preset_names())}")
    return policy if retention is None else policy.with_retention(retention)
