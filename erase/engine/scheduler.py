"""Which waiting sequences join next: first come, first served, within the engine's limits. Pure."""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """What admission needs to know of a sequence: its pruned prompt length, and whether it must run alone."""

    pruned_length: int
    alone: bool = False


def admit(waiting: List[Candidate], running: List[Candidate], max_running: int, max_prefill_tokens: int) -> int:
    """How many sequences from the front of `waiting` to prefill in the next step.

    Nobody is overtaken, so nobody starves. A prompt longer than `max_prefill_tokens` is prefilled on its own. A
    sequence that runs alone waits until nothing runs, and nothing joins it: a second attempt must not take
    neighbours down with it.
    """
    if any(candidate.alone for candidate in running):
        return 0
    admitted = tokens = 0
    for candidate in waiting:
        if candidate.alone:
            return 1 if not running and admitted == 0 else admitted
        tokens += candidate.pruned_length
        if len(running) + admitted == max_running or (admitted and tokens > max_prefill_tokens):
            break
        admitted += 1
    return admitted
