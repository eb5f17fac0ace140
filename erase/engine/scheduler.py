"""Which waiting sequences join next: first come, first served within each priority and the engine's limits. Pure."""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass, field

from erase.engine.sequence import Priority

PRIORITIES: tuple[Priority, ...] = ("interactive", "batch")


@dataclass(frozen=True)
class Candidate:
    """What admission needs to know of a sequence.

    `pruned_length` is how many of its tokens enter the decoder, `cache_rows` what it takes of the pool of caches at
    first; `alone` says that it must share the engine with nobody.
    """

    pruned_length: int
    cache_rows: int = 0
    alone: bool = False


@dataclass(frozen=True)
class Budget:
    """What may still be taken: sequences, prompt tokens in one prefill, rows of the pool of caches."""

    sequences: int
    prefill_tokens: int
    cache_rows: int


def admit(waiting: List[Candidate], running: List[Candidate], budget: Budget) -> int:
    """How many sequences from the front of `waiting` to prefill in the next step.

    Nobody is overtaken, so nobody starves. A prompt longer than the budget of a prefill is prefilled on its own. A
    sequence that runs alone waits until nothing runs, and nothing joins it: a second attempt must not take neighbours
    down with it.
    """
    if any(candidate.alone for candidate in running):
        return 0
    admitted = tokens = rows = 0
    for candidate in waiting:
        if candidate.alone:
            return 1 if not running and admitted == 0 else admitted
        tokens += candidate.pruned_length
        rows += candidate.cache_rows
        if admitted == budget.sequences or (admitted and tokens > budget.prefill_tokens) or rows > budget.cache_rows:
            break
        admitted += 1
    return admitted


@dataclass
class Shares:
    """Shares the prefill between the priorities: while both wait, each gets its share of the prompt tokens.

    `interactive` is its share, above 0 and below 1.
    """

    interactive: float = 0.8
    _served: dict[Priority, float] = field(default_factory=lambda: dict.fromkeys(PRIORITIES, 0.0))
    """Tokens over share. Who waits keeps what is owed to it, also while nobody else waits for a moment."""

    def next(self, waiting: List[Priority]) -> Priority:
        """Whose turn it is, out of the priorities that wait (at least one). An idle one saves nothing up."""
        turn = min(waiting, key=lambda priority: self._served[priority])
        for priority in PRIORITIES:
            if priority not in waiting:
                self._served[priority] = max(self._served[priority], self._served[turn])
        return turn

    def served(self, priority: Priority, tokens: int) -> None:
        """So many prompt tokens of a priority were admitted."""
        self._served[priority] += tokens / self._share(priority)

    def _share(self, priority: Priority) -> float:
        return self.interactive if priority == "interactive" else 1 - self.interactive
