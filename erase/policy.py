"""Policies: what to prune, as plain data that validates itself and travels as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from erase.errors import PolicyError

Scoring = Literal["reference", "exact"]
SCORINGS: tuple[Scoring, ...] = ("reference", "exact")
Measure = Literal["final", "layer_average"]


@dataclass(frozen=True)
class BinnedPolicy:
    """Revision 1 of ERASE: complexity bins decide how much stage 1 keeps and where stage 2 cuts.

    Args:
        thresholds: strictly descending complexities in nats that separate the bins.
        stage1_retention: fraction of an image's vision tokens that stage 1 keeps, one per bin (thresholds + 1), each
            in (0, 1].
        final_retention: fraction of the prompt's vision tokens left after stage 2, in (0, 1]; 1 prunes nothing.
        layers: decoder layers run before the (shallow, deep) cut; None takes the architecture's.
        scoring: "reference" takes stage 2's queries as the published numbers did, "exact" the layer's true queries.

    Raises:
        PolicyError: a value is out of its range.
    """

    thresholds: tuple[float, ...]
    stage1_retention: tuple[float, ...]
    final_retention: float
    layers: tuple[int, int] | None = None
    scoring: Scoring = "reference"

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", _numbers("thresholds", self.thresholds))
        object.__setattr__(self, "stage1_retention", _numbers("stage1_retention", self.stage1_retention))
        object.__setattr__(self, "final_retention", _fraction("final_retention", self.final_retention))
        object.__setattr__(self, "layers", _layer_pair(self.layers))
        if any(low >= high for high, low in zip(self.thresholds, self.thresholds[1:], strict=False)):
            raise PolicyError(f"thresholds must be strictly descending, got {self.thresholds}")
        if len(self.stage1_retention) != len(self.thresholds) + 1:
            raise PolicyError(
                f"stage1_retention must have one value per bin, {len(self.thresholds) + 1} for "
                f"{len(self.thresholds)} thresholds, got {len(self.stage1_retention)}"
            )
        for value in self.stage1_retention:
            _fraction("stage1_retention", value)
        _check_scoring(self.scoring)

    @property
    def retention(self) -> float:
        """The dial: the fraction of vision tokens that is left at the end."""
        return self.final_retention

    @property
    def measure(self) -> Measure:
        """Which of a prompt's retentions the dial asks for."""
        return "final"

    def with_retention(self, retention: float) -> "BinnedPolicy":
        """The same policy with another final retention; a lower one never keeps more, in either stage."""
        return replace(self, final_retention=retention)


@dataclass(frozen=True)
class BudgetPolicy:
    """Revision 2 of ERASE: one budget averaged over all decoder layers, no tuning per model.

    Args:
        retention: fraction of the prompt's vision tokens to run with, averaged over layers, in (0, 1]; 1 prunes none.
        late_retention: fraction of the early cut's survivors that the late cut keeps, in (0, 1]; raised where the
            budget leaves more.
        cue_weight: weight, at least 0, of the pixels' cues (edges, entropy) beside attention at the early cut.
        edge_tau: in [0, 1); a pixel is an edge if its Sobel magnitude exceeds (1 - edge_tau) times the median grey.
        layers: decoder layers run before the (early, late) cut; None takes the architecture's.
        scoring: "reference" takes stage 2's queries as the published numbers did, "exact" the layer's true queries.

    Raises:
        PolicyError: a value is out of its range.
    """

    retention: float
    late_retention: float = 0.3
    cue_weight: float = 0.2
    edge_tau: float = 0.45
    layers: tuple[int, int] | None = None
    scoring: Scoring = "reference"

    def __post_init__(self) -> None:
        object.__setattr__(self, "retention", _fraction("retention", self.retention))
        object.__setattr__(self, "late_retention", _fraction("late_retention", self.late_retention))
        object.__setattr__(self, "cue_weight", _number("cue_weight", self.cue_weight))
        object.__setattr__(self, "edge_tau", _edge_tau(self.edge_tau))
        object.__setattr__(self, "layers", _layer_pair(self.layers, ("early", "late")))
        if self.cue_weight < 0.0:
            raise PolicyError(f"cue_weight must be at least 0, got {self.cue_weight}")
        if self.layers and self.layers[0] == self.layers[1]:
            raise PolicyError(f"layers must satisfy early < late, got {self.layers}")
        _check_scoring(self.scoring)

    @property
    def measure(self) -> Measure:
        """Which of a prompt's retentions the dial asks for."""
        return "layer_average"

    def with_retention(self, retention: float) -> "BudgetPolicy":
        """The same policy with another budget; a lower one never keeps more, in any layer."""
        return replace(self, retention=retention)


@dataclass(frozen=True)
class DistinctPolicy:
    """Beyond both revisions: what repeats is dropped before the decoder, the question decides late.

    Args:
        retention: fraction of the prompt's vision tokens to run with, averaged over layers, in (0, 1]; 1 prunes none.
        late_retention: fraction of the tokens entering the decoder that the late cut keeps, in (0, 1]; raised where the
            budget leaves more.
        edge_tau: as in `BudgetPolicy`, whose stage 1 this is.
        late_layer: decoder layers run before the late cut, at least 1; None takes the architecture's.
        scoring: "exact" takes the late cut's queries as the layer does, "reference" as the published numbers did.

    Raises:
        PolicyError: a value is out of its range.
    """

    retention: float
    late_retention: float = 0.5
    edge_tau: float = 0.45
    late_layer: int | None = None
    scoring: Scoring = "exact"

    def __post_init__(self) -> None:
        object.__setattr__(self, "retention", _fraction("retention", self.retention))
        object.__setattr__(self, "late_retention", _fraction("late_retention", self.late_retention))
        object.__setattr__(self, "edge_tau", _edge_tau(self.edge_tau))
        if self.late_layer is not None and (type(self.late_layer) is not int or self.late_layer < 1):
            raise PolicyError(f"late_layer must be a whole number of at least 1 or None, got {self.late_layer!r}")
        _check_scoring(self.scoring)

    @property
    def measure(self) -> Measure:
        """Which of a prompt's retentions the dial asks for."""
        return "layer_average"

    def with_retention(self, retention: float) -> "DistinctPolicy":
        """The same policy with another budget; a lower one never keeps more, in any layer."""
        return replace(self, retention=retention)


BASELINES = (
    "cdpruner",
    "divprune",
    "downsample",
    "fastv",
    "holov",
    "pooling",
    "prumerge",
    "pyramiddrop",
    "random",
    "sparsevlm",
    "visionzip",
    "vispruner",
    "vscan",
)
"""Other training-free methods, see `erase.methods.baselines`."""


@dataclass(frozen=True)
class BaselinePolicy:
    """Another method than ERASE, to compare with.

    Args:
        method: one of `BASELINES`.
        retention: fraction of the prompt's vision tokens to keep, in (0, 1]; 1 prunes none.
        measure: what `retention` counts: the tokens left at the end, or those run with, averaged over layers.
        seed: of methods that draw.

    Raises:
        PolicyError: a value is out of its range.
    """

    method: str
    retention: float
    measure: Measure = "final"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in BASELINES:
            raise PolicyError(f"method must be one of {', '.join(BASELINES)}, got {self.method!r}")
        object.__setattr__(self, "retention", _fraction("retention", self.retention))
        if self.measure not in ("final", "layer_average"):
            raise PolicyError(f"measure must be final or layer_average, got {self.measure!r}")
        if type(self.seed) is not int or self.seed < 0:
            raise PolicyError(f"seed must be a whole number of at least 0, got {self.seed!r}")

    def with_retention(self, retention: float) -> "BaselinePolicy":
        """The same method with another retention."""
        return replace(self, retention=retention)


Policy = BinnedPolicy | BudgetPolicy | DistinctPolicy | BaselinePolicy
_KINDS: dict[str, type[Policy]] = {
    "binned": BinnedPolicy,
    "budget": BudgetPolicy,
    "distinct": DistinctPolicy,
    "baseline": BaselinePolicy,
}


def policy_to_dict(policy: Policy) -> dict[str, Any]:
    """The policy as JSON-safe data; its `kind` says which class reads it back."""
    kind = next(name for name, cls in _KINDS.items() if type(policy) is cls)
    return {"kind": kind, **asdict(policy)}


def policy_from_dict(data: Mapping[str, Any]) -> Policy:
    """The policy that `policy_to_dict` described.

    Raises:
        PolicyError: an unknown kind, an unknown or missing key, or a value out of range.
    """
    if not isinstance(data, Mapping):
        raise PolicyError(f"a policy must be a JSON object, got {type(data).__name__}")
    settings = dict(data)
    kind = settings.pop("kind", None)
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise PolicyError(f"the policy's kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    known = {field.name for field in fields(cls)}
    unknown = sorted(str(key) for key in settings if key not in known)
    if unknown:
        raise PolicyError(f"unknown keys in a {kind} policy: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    try:
        return cls(**settings)
    except TypeError as error:
        raise PolicyError(f"incomplete {kind} policy: {error}") from None


def load_policy(path: str | Path) -> Policy:
    """Reads a policy from a JSON file.

    Raises:
        PolicyError: the file cannot be read, is no JSON, or describes no valid policy.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyError(f"cannot read the policy file {path}: {error.strerror}") from error
    except ValueError as error:
        raise PolicyError(f"the policy file {path} is not JSON: {error}") from error
    return policy_from_dict(data)


def save_policy(policy: Policy, path: str | Path) -> None:
    """Writes the policy to a JSON file that `load_policy` reads."""
    Path(path).write_text(json.dumps(policy_to_dict(policy), indent=2) + "\n", encoding="utf-8")


def _number(name: str, value: object) -> float:
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):  # a whole number beyond all floats
            number = float(value)
    if not math.isfinite(number):
        raise PolicyError(f"{name} must be a finite number, got {value!r}")
    return number


def _numbers(name: str, values: object) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise PolicyError(f"{name} must be a list of numbers, got {values!r}")
    return tuple(_number(name, value) for value in values)


def _fraction(name: str, value: object) -> float:
    number = _number(name, value)
    if not 0.0 < number <= 1.0:
        raise PolicyError(f"{name} must be above 0 and at most 1, got {number}")
    return number


def _edge_tau(value: object) -> float:
    number = _number("edge_tau", value)
    if not 0.0 <= number < 1.0:
        raise PolicyError(f"edge_tau must be at least 0 and below 1, got {number}")
    return number


def _check_scoring(scoring: object) -> None:
    if scoring not in SCORINGS:
        raise PolicyError(f"scoring must be one of {', '.join(SCORINGS)}, got {scoring!r}")


def _layer_pair(layers: object, names: tuple[str, str] = ("shallow", "deep")) -> tuple[int, int] | None:
    if layers is None:
        return None
    if not isinstance(layers, Sequence) or len(layers) != 2 or any(type(layer) is not int for layer in layers):
        raise PolicyError(f"layers must be two whole numbers ({', '.join(names)}) or None, got {layers!r}")
    first, second = layers
    if not 1 <= first <= second:
        raise PolicyError(f"layers must satisfy 1 <= {names[0]} <= {names[1]}, got {(first, second)}")
    return first, second
