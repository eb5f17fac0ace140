"""One prompt on its way through the decoder: which of its tokens are still there. No model in sight."""

from collections.abc import Sequence

import torch
from torch import Tensor

from erase.methods.base import Cut, EncodedPrompt, Method, Preselection
from erase.trace import CutTrace

TEXT = -1


class PromptRows:
    """The rows of one prompt, shrinking with every cut.

    Its rows may be padded on the left or lie in one packed run with other prompts': everything here is counted from the
    prompt's own first row, so both forms share it.

    Args:
        method: how the prompt is pruned.
        preselection: the method's stage 1.
        cuts: the method's cuts.
        is_vision: bool [L], where the unpruned prompt has vision tokens.
        frozen: the cuts as they were made when the prompt ran before; made again, not chosen anew.
    """

    def __init__(
        self,
        method: Method,
        preselection: Preselection,
        cuts: Sequence[Cut],
        is_vision: Tensor,
        frozen: Sequence[CutTrace] = (),
    ) -> None:
        self.method = method
        self.preselection = preselection
        self.cuts = tuple(cuts)
        self.encoded: EncodedPrompt | None = None
        """What its cuts may look at, where its method asks for it."""
        self._frozen = tuple(frozen)
        self.done: list[CutTrace] = []
        """Cuts already made."""
        vision_rows = is_vision.nonzero().squeeze(1)
        stays = ~is_vision
        stays[vision_rows[preselection.kept.to(is_vision.device)]] = True
        numbers = torch.full(is_vision.shape, TEXT, device=is_vision.device)
        numbers[vision_rows] = torch.arange(len(vision_rows), device=is_vision.device)
        self.length = len(is_vision)
        """Rows of the unpruned prompt."""
        self.index = stays.nonzero().squeeze(1)
        """Per row its place in the unpruned prompt; int64 [rows], ascending."""
        self.vision = numbers[self.index]
        """Per row its number among the unpruned vision tokens, `TEXT` for a text token; int64 [rows]."""
        self._cached: list[Tensor] = []
        asks = torch.zeros_like(is_vision)
        if len(vision_rows):
            asks[vision_rows[0] :] = True
        self._asks = (asks & ~is_vision)[self.index]

    @property
    def rows(self) -> int:
        """Rows that are left."""
        return len(self.index)

    @property
    def columns(self) -> Tensor:
        """int64: rows of the vision tokens that are left."""
        return (self.vision != TEXT).nonzero().squeeze(1)

    @property
    def queries(self) -> Tensor:
        """int64: rows whose text may ask about an image, those after the first unpruned vision token."""
        return self._asks.nonzero().squeeze(1)

    @property
    def survivors(self) -> Tensor:
        """int64, sorted: vision tokens that are left, by their number among the unpruned ones."""
        return self.vision[self.vision != TEXT]

    @property
    def next_cut(self) -> Cut | None:
        """The next planned cut."""
        return self.cuts[len(self.done)] if len(self.done) < len(self.cuts) else None

    @property
    def frozen_choice(self) -> Tensor | None:
        """int64: what the next cut kept when the prompt ran before, as places among `survivors`; None if it did not."""
        if len(self.done) >= len(self._frozen):
            return None
        return torch.searchsorted(self.survivors, self._frozen[len(self.done)].kept.to(self.index.device))

    def ran_layer(self) -> None:
        """A layer has run, and cached keys and values of all rows."""
        self._cached.append(self.index)

    def keep(self, cut: Cut, chosen: Tensor) -> Tensor:
        """Make a cut.

        Args:
            cut: the next one.
            chosen: int64, the vision tokens that stay, as places among `survivors`.

        Returns:
            int64, ascending: the rows that stay.
        """
        stays = self.vision == TEXT
        stays[self.columns[chosen]] = True
        rows = stays.nonzero().squeeze(1)
        self.index, self.vision, self._asks = self.index[rows], self.vision[rows], self._asks[rows]
        self.done.append(CutTrace(cut.after_layers, self.survivors.cpu()))
        return rows

    def make_idle_cuts(self) -> None:
        """Record the cuts of a prompt that loses nothing."""
        self.done = [CutTrace(cut.after_layers, self.survivors.cpu()) for cut in self.cuts]

    @property
    def cached_lengths(self) -> tuple[int, ...]:
        """Rows that each layer run so far has cached."""
        return tuple(len(index) for index in self._cached)

    def cached_rows(self, layer: int) -> Tensor:
        """int64, ascending: of the rows that a layer has cached, those that are still there."""
        return torch.isin(self._cached[layer], self.index).nonzero().squeeze(1)

    def forget_dropped(self) -> None:
        """The caches of all layers run so far have lost the rows that were dropped."""
        self._cached = [self.index] * len(self._cached)
