"""Policies by name: the published ones, and our own."""

from erase.errors import PolicyError
from erase.policy import BinnedPolicy, BudgetPolicy, DistinctPolicy, Policy

# Revision 1 was tuned per model, revision 2 has the same settings for all. Published dials: 0.25 for revision 1, and
# 0.25, 0.35 and 0.45 for revision 2.
_PRESETS: dict[str, Policy] = {
    "distinct": DistinctPolicy(retention=0.25),
    "qwen2.5-vl-7b": BinnedPolicy(
        thresholds=(1.6904912034377264, 1.3471717001563197, 1.1718597959685415),
        stage1_retention=(0.8267523535511546, 0.751410400727526, 0.49466854974609853, 0.4033912240039451),
        final_retention=0.25,
    ),
    "qwen2.5-vl-7b-budget": BudgetPolicy(retention=0.25),
    "qwen3-vl-8b": BinnedPolicy(
        thresholds=(1.6102664561128828, 0.2269265653651543, 0.05622356759744964),
        stage1_retention=(0.8450338604820039, 0.7763170296713962, 0.7573556106689442, 0.19399401785935438),
        final_retention=0.25,
    ),
    "qwen3-vl-8b-budget": BudgetPolicy(retention=0.25),
    "internvl3-8b-budget": BudgetPolicy(retention=0.25, scoring="exact"),
}


def preset_names() -> tuple[str, ...]:
    """The names that `preset` knows, sorted."""
    return tuple(sorted(_PRESETS))


def preset(name: str, retention: float | None = None) -> Policy:
    """The policy of that name, its one dial turned to `retention` where given.

    Names without a suffix are revision 1, whose dial is the final retention: thresholds and stage-1 retentions stay as
    published, except that stage 1 never keeps less than the final retention. Names with `-budget` are revision 2,
    whose dial is the retention averaged over the decoder's layers: stage 1 keeps what the image needs, and the cuts
    keep what the budget leaves. `distinct` is ours, for every model, with revision 2's dial. A lower dial never keeps
    more. What a prompt asked for and what it got stand in its trace (`requested`, `achieved`).

    Raises:
        PolicyError: the name is unknown, or the retention not in (0, 1].
    """
    policy = _PRESETS.get(name)
    if policy is None:
        raise PolicyError(f"unknown preset {name!r}; known: {', '.join(preset_names())}")
    return policy if retention is None else policy.with_retention(retention)
