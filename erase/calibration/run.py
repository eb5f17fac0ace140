"""A calibration from records to a policy: ask without pruning, try points, keep the best, and check it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from erase.calibration.answers import Examiner, StageOneMethod, examiner
from erase.calibration.progress import ProgressFile, Tried, Unpruned, identity_of
from erase.calibration.search import (
    Point,
    Search,
    bin_shares,
    deployed_policy,
    kept_counts,
    objective,
    optimizer_package,
    stage1_policy,
    suggest,
)
from erase.errors import InputError
from erase.methods import method_for
from erase.methods.none import NoPruning
from erase.models.loading import LoadedModel
from erase.policy import BinnedPolicy, save_policy
from erase.records import Record


@dataclass(frozen=True)
class Step:
    """How far a calibration is: records asked without pruning, points tried, or records asked with the policy found."""

    phase: Literal["unpruned", "search", "check"]
    done: int
    total: int
    best: float | None = None
    """The highest objective so far."""


@dataclass(frozen=True)
class Calibration:
    """The policy found, and how it did on the records that the unpruned model answers right."""

    policy: BinnedPolicy
    objective: float
    iteration: int
    """Which point it was, from 1."""
    records: int
    answered: int
    """Records that the unpruned model answers right: those that everything below is about."""
    accuracy: float
    """Fraction still answered right with stage 1 alone."""
    mean_retention: float
    """Vision tokens that stage 1 keeps of all images together, as a fraction."""
    shares: tuple[float, ...]
    """Fraction of the images in each bin, most complex first."""
    final_accuracy: float
    """Fraction still answered right with the policy as saved, stage 2 included."""


def calibrate(
    loaded: LoadedModel,
    records: Sequence[Record],
    out: Path,
    search: Search | None = None,
    *,
    final_retention: float = 0.25,
    restart: bool = False,
    progress: Callable[[Step], None] = lambda step: None,
) -> Calibration:
    """Search the bins of a `BinnedPolicy` for a model and save it.

    Everything found out is appended to `OUT.progress.jsonl` at once. Interrupted and called again, or called with more
    iterations, it goes on from there and ends where an uninterrupted call ends.

    Args:
        loaded: the model.
        records: questions with their answers.
        out: file for the policy; its folder exists.
        search: how to search; the paper's settings by default.
        final_retention: of the policy that is saved; the search runs stage 1 alone and does not depend on it.
        restart: forget earlier progress.
        progress: told of every record and point.

    Raises:
        EraseError: bayesian-optimization is missing, or the progress is that of another calibration.
        InputError: no record is answered right without pruning, or one cannot be asked at all.
        PolicyError: `final_retention` is out of its range.
    """
    search = search or Search()
    optimizer_package()
    deployed_policy((1.0,), final_retention)  # refuses a wrong retention before hours of work, not after
    found = ProgressFile(progress_path(out), identity_of(loaded, records, search), restart=restart)
    try:
        with examiner(loaded, records) as asking:
            _ask_unpruned(asking, found, len(records), progress)
            run = _Run(asking, found, search)
            run.try_points(progress)
            result = run.result(final_retention, progress)
    finally:
        found.close()
    save_policy(result.policy, out)
    return result


def progress_path(out: Path) -> Path:
    """Where a calibration that writes its policy to `out` keeps its progress."""
    return out.with_name(f"{out.name}.progress.jsonl")


def _ask_unpruned(asking: Examiner, found: ProgressFile, records: int, progress: Callable[[Step], None]) -> None:
    method = NoPruning()
    progress(Step("unpruned", len(found.unpruned), records))
    for marked in asking.ask((record, method) for record in range(records) if record not in found.unpruned):
        found.add_unpruned(marked.record, Unpruned(marked.right, marked.images))
        progress(Step("unpruned", len(found.unpruned), records))


class _Run:
    """The search over the records that the unpruned model answers right."""

    def __init__(self, asking: Examiner, found: ProgressFile, search: Search) -> None:
        self._asking = asking
        self._found = found
        self._search = search
        self._records = sorted(record for record, unpruned in found.unpruned.items() if unpruned.right)
        self._images = [image for record in self._records for image in found.unpruned[record].images]
        if not self._records:
            raise InputError(
                f"the unpruned model answers none of the {len(found.unpruned)} questions exactly as wanted, so there "
                "is nothing to calibrate on: ask for short answers, and list every acceptable one"
            )

    @property
    def tried(self) -> list[Tried]:
        """Points of this search; an earlier one may have gone on longer."""
        return self._found.tried[: self._search.iterations]

    def try_points(self, progress: Callable[[Step], None]) -> None:
        total = self._search.iterations
        while True:
            values = [tried.objective for tried in self.tried]
            progress(Step("search", len(values), total, max(values, default=None)))
            if len(values) == total:
                return
            point = suggest(self._search, [tried.point for tried in self.tried], values)
            self._found.add_tried(self._try(point))

    def result(self, final_retention: float, progress: Callable[[Step], None]) -> Calibration:
        best = max(self.tried, key=lambda tried: tried.objective)
        stage1, policy = stage1_policy(best.point), deployed_policy(best.point, final_retention)
        return Calibration(
            policy=policy,
            objective=best.objective,
            iteration=self.tried.index(best) + 1,
            records=len(self._found.unpruned),
            answered=len(self._records),
            accuracy=best.accuracy,
            mean_retention=sum(kept_counts(self._images, stage1)) / sum(image.tokens for image in self._images),
            shares=bin_shares(self._images, stage1),
            final_accuracy=self._check(policy, progress),
        )

    def _try(self, point: Point) -> Tried:
        policy = stage1_policy(point)
        method = StageOneMethod(policy)
        counts = {record: kept_counts(self._found.unpruned[record].images, policy) for record in self._records}
        unknown = [record for record, kept in counts.items() if (record, kept) not in self._found.answers]
        for marked in self._asking.ask((record, method) for record in unknown):
            self._found.add_answer(marked.record, counts[marked.record], right=marked.right)
        accuracy = sum(self._found.answers[item] for item in counts.items()) / len(counts)
        shares = bin_shares(self._images, policy)
        return Tried(point, accuracy, objective(accuracy, shares, policy.stage1_retention, self._search.weight))

    def _check(self, policy: BinnedPolicy, progress: Callable[[Step], None]) -> float:
        method, total, right = method_for(policy), len(self._records), 0
        for done, marked in enumerate(self._asking.ask((record, method) for record in self._records), 1):
            right += marked.right
            progress(Step("check", done, total))
        return right / total
