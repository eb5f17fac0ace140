"""How an answer begins behind its prompt and grows token by token, until it ends."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from erase.engine.prefill import StepRows
from erase.engine.running import RunningSequence
from erase.engine.sampling import next_token
from erase.models.loading import LoadedModel


class Answers:
    """Gives running sequences their tokens; one that got its last has ended.

    Args:
        loaded: the model, for the ids that end an answer.
        compute: runs new tokens of one sequence; their logits [tokens, vocabulary].
        singly: whether given tokens are computed one at a time, as they were when they were chosen.
    """

    def __init__(self, loaded: LoadedModel, compute: Callable[[StepRows], Tensor], *, singly: bool) -> None:
        self._loaded = loaded
        self._compute = compute
        self._singly = singly

    def begin(self, entry: RunningSequence, logits: Tensor) -> None:
        """After prefill: take the first token, go on where an earlier one stopped, or score a given answer.

        `logits` [vocabulary] are those behind the prompt.
        """
        sequence = entry.sequence
        if sequence.score_only:
            entry.end(entry.result("stop", self._log_likelihood(entry, logits)))
        elif entry.tokens:
            self._compute_given(entry, tuple(entry.tokens))
        elif sequence.forced_prefix:
            self._replay(entry)
        else:
            self.choose(entry, logits)

    def choose(self, entry: RunningSequence, logits: Tensor) -> None:
        """Take the next token out of `logits` [vocabulary]."""
        self._advance(entry, next_token(logits, entry.sequence.sampling, len(entry.tokens)))

    def _replay(self, entry: RunningSequence) -> None:
        """Take over what an earlier attempt emitted, without emitting it again, and go on behind it."""
        prefix = entry.sequence.forced_prefix
        for token in prefix:
            self._advance(entry, token, emit=False)
            if entry.ended:
                return
        self._compute_given(entry, prefix)

    def _compute_given(self, entry: RunningSequence, tokens: tuple[int, ...]) -> None:
        """Fill the cache up to the last of the tokens, which the next step takes."""
        given = tokens[:-1]
        if self._singly:
            for number in range(len(given)):
                self._compute(entry.given_tokens(given[: number + 1], number))
        elif given:
            self._compute(entry.given_tokens(given))

    def _log_likelihood(self, entry: RunningSequence, first_logits: Tensor) -> float:
        answer = entry.sequence.score_only
        rows = [first_logits.unsqueeze(0)]
        if len(answer) > 1:
            rows.append(self._compute(entry.given_tokens(answer[:-1])))
        scores = torch.log_softmax(torch.cat(rows).float(), dim=-1)
        return float(scores[torch.arange(len(answer)), torch.tensor(answer)].sum())

    def _advance(self, entry: RunningSequence, token: int, *, emit: bool = True) -> None:
        """Add a token; deliver what it completes; end the sequence when it is the last."""
        event, reason = entry.advance(token, self._loaded.eos_tokens)
        if emit:
            entry.handle.put(event)
        if reason:
            entry.end(entry.result(reason))
