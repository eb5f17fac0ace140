"""New sequences between admission and their first token: their images, then their layers, a slice at a time."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from erase.engine.attention import Attention
from erase.engine.cache import CachePool
from erase.engine.images import Encoding, FeatureCache
from erase.engine.prefill import Prefill
from erase.engine.running import RunningSequence
from erase.models.loading import LoadedModel


class PrefillStage:
    """Sequences that are prefilled together. `run` until it is done, then `finish`.

    Decoding goes on between slices: how finely they cut is one layer of the vision encoder or of the decoder.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        attention: Attention,
        pool: CachePool,
        features: FeatureCache,
        entries: list[RunningSequence],
        tokens_at_once: int,
    ) -> None:
        self.entries = entries
        self._loaded = loaded
        self._attention = attention
        self._caches = [entry.take_cache(pool) for entry in entries]
        images = [entry.sequence.prompt.images for entry in entries]
        watched = [entry.sequence.method.sees_encoder_attention for entry in entries]
        self._encoding = Encoding(loaded.adapter, images, watched, features, loaded.device, tokens_at_once)
        self._prefill: Prefill | None = None
        self._admitted = self._encoded = time.monotonic()

    def run(self, seconds: float, *, sharing: bool) -> bool:
        """Go on for about so long; whether it is done.

        When `sharing` the device with sequences that decode, every layer is waited for, so that the time holds.
        """
        started = time.monotonic()
        while not self._done:
            before = time.monotonic()
            self._run_layer()
            if sharing:
                self._synchronize()
            now = time.monotonic()
            if now - started + (now - before) / 2 > seconds:
                break
        return self._done

    def finish(self) -> Tensor:
        """Hand the prompts over to their sequences; the logits behind each [sequences, vocabulary]."""
        assert self._prefill is not None, "not done yet"  # noqa: S101
        logits = self._prefill.logits()
        self._synchronize()
        for entry, prompt in zip(self.entries, self._prefill.prompts, strict=True):
            entry.prefilled(prompt, admitted=self._admitted, encoded=self._encoded)
        return logits

    @property
    def _done(self) -> bool:
        return self._prefill is not None and self._prefill.layers_left == 0

    def _run_layer(self) -> None:
        if not self._encoding.done:
            self._encoding.run_layer()
        elif self._prefill is None:
            self._synchronize()
            self._encoded = time.monotonic()
            sequences = [entry.sequence for entry in self.entries]
            features = self._encoding.features()
            adapter, device = self._loaded.adapter, self._loaded.device
            self._prefill = Prefill(adapter, self._attention, sequences, features, self._caches, device)
        else:
            self._prefill.run_layer()

    def _synchronize(self) -> None:
        """Wait for the GPU, so that times are true."""
        if self._loaded.device.type == "cuda":
            torch.cuda.synchronize(self._loaded.device)
