"""`with erase.pruning(model, policy)`: stock transformers calls, fewer vision tokens."""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from erase.cutting import cut_before_layers
from erase.errors import InputError, UnsupportedError
from erase.flops import decoder_costs
from erase.methods import method_for
from erase.methods.base import EncodedPrompt, EncoderAttention, Method, Preselection
from erase.models import VisionLanguageAdapter, adapter_for
from erase.models.normalisation import normalisation
from erase.policy import Policy
from erase.rows import PromptRows
from erase.stock import checks, host
from erase.stock.cache import PrunedCache
from erase.stock.compat import CACHE
from erase.stock.patching import exclusive, patched
from erase.trace import CallTrace, Trace, prompt_trace


@contextmanager
def pruning(
    model: nn.Module,
    policy: Policy | Method | Sequence[Policy | Method | None] | None,
    processor: Any | None = None,
    image_mean: Sequence[float] | float | None = None,
    image_std: Sequence[float] | float | None = None,
) -> Iterator[Trace]:
    """Prunes the vision tokens of every `model.generate(**inputs)` and `model(**inputs)` inside the `with`.

    Any batch is welcome: padding, several images of any size per prompt, prompts without images, which run as ever. A
    forward call returns logits of the unpruned length, NaN in the rows of dropped tokens and padding. The model is
    untouched afterwards, also after an exception.

    Args:
        model: a Qwen2.5-VL, Qwen3-VL or InternVL for conditional generation.
        policy: what to prune, or a method of your own; None prunes nothing and still traces; a list has one entry per
            prompt of every call.
        processor: the model's processor or image processor, asked how pixels were normalised.
        image_mean: mean that the pixels were normalised with, one or per channel; instead of a processor.
        image_std: standard deviation, likewise.

    Yields:
        The trace, which grows by one call per prefilled `generate` or forward call.

    Raises:
        UnsupportedError: at the start for a model, inside for an input or a generation mode that cannot be pruned
            correctly; the message names it.
        InputError: the normalisation is unknown, or tensors are missing or do not fit each other.
    """
    adapter = adapter_for(model)
    mean, std = normalisation(processor, image_mean, image_std)
    methods = tuple(map(method_for, policy)) if isinstance(policy, Sequence) else method_for(policy)
    session = _Session(adapter, methods, mean, std)
    with ExitStack() as stack:
        stack.enter_context(exclusive(adapter.inner))
        for module, name, replacement in (
            (adapter.model, "generate", session.generate),
            (adapter.model, "forward", session.forward),
            (adapter.inner, "forward", session.inner_forward),
            (adapter.inner, "get_image_features", session.image_features),
            (adapter.language_model, "forward", session.decoder_forward),
        ):
            stack.enter_context(patched(module, name, session.in_turn(replacement)))
        yield session.trace


class _Session:
    """One `with`: the replacements of the model's methods and what they hand each other during a call."""

    def __init__(
        self,
        adapter: VisionLanguageAdapter,
        methods: Method | tuple[Method, ...],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.adapter = adapter
        self.methods = methods
        self.mean = mean
        self.std = std
        self.costs = decoder_costs(adapter.text_config)
        self.trace = Trace()
        self._encoded: tuple[Any, dict[str, Any]] | None = None
        self._generating = False
        self._batch: _Batch | None = None
        self._stock_mode = False
        self._lock = threading.RLock()

    def in_turn(self, replacement: Callable[..., Any]) -> Callable[..., Any]:
        """Calls of several threads run one after the other, as replacements of one call share this object."""

        def waiting(original: Callable[..., Any], call: dict[str, Any]) -> Any:
            with self._lock:
                return replacement(original, call)

        return waiting

    def generate(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        checks.require_stills(call)
        checks.require_token_ids(call)
        cache = call.get("past_key_values")
        checks.require_own_cache(cache)
        input_ids = call["input_ids"] if call.get("input_ids") is not None else call.get("inputs")
        refusal = checks.generation_refusal(functools.partial(self._generation_setting, call))
        if _filled(cache):
            checks.require_no_new_images(call, self._vision_of(_uncached(input_ids, cache)))
        elif (vision := self._vision_of(input_ids)) is not None and bool(vision.any()):
            self._require_image_prompts(call, vision)
            checks.require_pixels(call, self.adapter.pixel_inputs)
        elif refusal is not None:
            return self._text_in_stock_mode(original, call, input_ids)
        if refusal is not None:
            raise UnsupportedError(refusal)
        if cache is None:
            # `generate` refuses a cache beside a named implementation, even beside the one it would take anyway.
            named = self._generation_setting(call, "cache_implementation") is not None
            call = call | {"past_key_values": self._new_cache()} | ({"cache_implementation": None} if named else {})
        self._generating = True
        try:
            return original(**call)
        finally:
            self._encoded, self._generating = None, False

    def forward(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        if call.get("labels") is not None:
            raise UnsupportedError("labels cannot be combined with pruning: dropped tokens have no logits")
        return original(**call)

    def inner_forward(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        if self._stock_mode:
            return original(**call)
        checks.require_stills(call)
        checks.require_token_ids(call)
        cache, input_ids = call.get("past_key_values"), call.get("input_ids")
        if input_ids is None:
            return original(**call)
        checks.require_own_cache(cache)
        if _filled(cache):
            # A decode step is not searched for image tokens: that would wait for the device at every step.
            checks.require_no_new_images(call, self._vision_of(input_ids) if input_ids.shape[1] > 1 else None)
            return original(**call)
        vision = input_ids == self.adapter.image_token_id
        if not bool(vision.any()):
            return self._text_prompts(original, call)
        places = self._require_image_prompts(call, vision)
        features = (call.get("mm_encoder_outputs") or {}).get("image")
        if features is None:
            checks.require_pixels(call, self.adapter.pixel_inputs)
        elif self._encoded is None or not (self._generating or self._encoded[0] is features):
            # What `generate` encoded may arrive as a copy, where hooks move a spread model's arguments.
            raise UnsupportedError("image features encoded outside pruning() carry no pixels; pass pixel_values")
        pixels = call if features is None or self._encoded is None else self._encoded[1]
        methods = self._methods_for(len(vision))
        for method in methods:
            if method.image_scale != 1.0:
                raise UnsupportedError(f"the method {method.name!r} resizes images: do that before the processor")
            self.adapter.require_support(method)
        selections = self._preselect(methods, pixels, vision)
        self._batch = _Batch(vision, places, methods, selections, self._attention(methods, pixels, selections))
        try:
            return original(**call)
        finally:
            self._batch = self._encoded = None

    def image_features(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        output = original(**call)
        self._encoded = output, {name: call.get(name) for name in self.adapter.pixel_inputs}
        return output

    def decoder_forward(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        cache = call.get("past_key_values")
        if self._batch is not None:
            return self._image_prompts(original, call, self._batch)
        positions, length = call.get("position_ids"), call["inputs_embeds"].shape[1]
        if positions is not None and positions.shape[-1] > length:
            # Given a mask of the whole text, the Qwens number the whole text and not only its new tokens.
            call = call | {"position_ids": positions[..., -length:]}
        if isinstance(cache, PrunedCache) and cache.is_pruned:
            self._refuse_captured_outputs(call)
            embeddings = call["inputs_embeds"]
            hidden = host.decode(
                self.adapter,
                embeddings,
                self._positions(call),
                _new_tokens(call.get("attention_mask"), embeddings),
                cache,
            )
            return _decoder_output(hidden, cache)
        return original(**call)

    def _preselect(self, methods: Sequence[Method], pixels: dict[str, Any], vision: Tensor) -> list[Preselection]:
        """Stage 1 of every prompt; the images that it looks at are gone afterwards."""
        images = self.adapter.images_of(pixels, vision, self.mean, self.std)
        return [method.preselect(own) for method, own in zip(methods, images, strict=True)]

    def _attention(
        self, methods: Sequence[Method], pixels: dict[str, Any], selections: Sequence[Preselection]
    ) -> list[tuple[EncoderAttention, ...]]:
        """What the encoder looks at in the images of each prompt whose method asks; that runs it once more."""
        if not any(method.sees_encoder_attention for method in methods):
            return [()] * len(methods)
        values, grids = (pixels[name] for name in self.adapter.pixel_inputs)
        steps = self.adapter.encode_steps(values, grids, with_attention=True)
        with torch.no_grad():
            try:
                while True:
                    next(steps)
            except StopIteration as end:
                seen = iter([own for features in end.value for own in features.attention])
        return [tuple(next(seen) for _ in selection.images) for selection in selections]

    def _image_prompts(self, original: Callable[..., Any], call: dict[str, Any], batch: "_Batch") -> Any:
        embeddings = call["inputs_embeds"]
        prompts, touched = [], False
        for number, (places, method, selection) in enumerate(
            zip(batch.places, batch.methods, batch.selections, strict=True)
        ):
            is_vision = batch.vision[number, places]
            cuts = method.plan(selection, self.adapter.architecture)
            rows = PromptRows(method, selection, cuts, is_vision)
            prompts.append(rows)
            if method.sees_features:
                rows.encoded = EncodedPrompt(
                    embeddings[number, batch.vision[number]],
                    functools.partial(embeddings[number].__getitem__, places[rows.index[rows.queries]]),
                    batch.attention[number],
                )
            left = selection.kept.numel()
            own_features = type(method).postencode is not Method.postencode
            if own_features or left < selection.tokens or any(cut.keep < left for cut in cuts):
                checks.require_text_at_the_end(is_vision)
                touched = True
        use_cache = self._uses_cache(call)
        if not touched:
            if use_cache and call.get("past_key_values") is None:
                call = call | {"past_key_values": self._new_cache()}
            output = original(**call)
            for prompt in prompts:
                prompt.make_idle_cuts()
            self._record(prompts, [(len(places),) * self.adapter.depth for places in batch.places])
            return output
        self._refuse_captured_outputs(call)
        if self._generating:
            checks.require_padding_on_the_left(batch.places, embeddings.shape[1])
        given = call.get("past_key_values")
        cache = given if isinstance(given, PrunedCache) else self._new_cache() if use_cache else None
        counts = [selection.tokens for selection in batch.selections]
        deep = [torch.split(layer, counts) for layer in self.adapter.deep_features(call)]
        hidden, lengths = host.prefill(
            self.adapter,
            prompts,
            embeddings=embeddings,
            features=self._entering(prompts, batch, embeddings),
            deep=[[layer[number] for layer in deep] for number in range(len(prompts))],
            positions=self._positions(call),
            places=batch.places,
            cache=cache,
        )
        self._record(prompts, lengths)
        return _decoder_output(hidden, cache if use_cache else None)

    @staticmethod
    def _entering(prompts: Sequence[PromptRows], batch: "_Batch", embeddings: Tensor) -> Iterator[Tensor]:
        """What each prompt's decoder starts from; made one by one unless a cut before it must come first."""

        def entering(number: int) -> Tensor:
            prompt = prompts[number]
            features = prompt.method.postencode(embeddings[number, batch.vision[number]], prompt.preselection)
            return cut_before_layers(prompt, features)

        at_once = {
            number: entering(number)
            for number, prompt in enumerate(prompts)
            if prompt.next_cut is not None and prompt.next_cut.after_layers == 0
        }
        return (at_once[number] if number in at_once else entering(number) for number in range(len(prompts)))

    def _text_prompts(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        if call.get("past_key_values") is None and self._uses_cache(call):
            call = call | {"past_key_values": self._new_cache()}
        output = original(**call)
        self._record_text(call["input_ids"], call.get("attention_mask"))
        return output

    def _text_in_stock_mode(self, original: Callable[..., Any], call: dict[str, Any], input_ids: Tensor | None) -> Any:
        if input_ids is not None:
            self._record_text(input_ids, call.get("attention_mask"))
        self._stock_mode = True
        try:
            return original(**call)
        finally:
            self._stock_mode = False

    def _record_text(self, input_ids: Tensor, attention_mask: Any) -> None:
        rows, length = input_ids.shape
        padded = isinstance(attention_mask, Tensor) and attention_mask.ndim == 2
        lengths = attention_mask.sum(dim=1).tolist() if padded else [length] * rows
        nothing, depth = Preselection(()), self.adapter.depth
        methods = self._methods_for(rows)
        self.trace.calls.append(
            CallTrace(
                tuple(
                    prompt_trace(method, nothing, (), (int(valid),) * depth, int(valid), self.costs)
                    for method, valid in zip(methods, lengths, strict=True)
                )
            )
        )

    def _record(self, prompts: Sequence[PromptRows], lengths: Sequence[tuple[int, ...]]) -> None:
        self.trace.calls.append(
            CallTrace(
                tuple(
                    prompt_trace(
                        prompt.method,
                        prompt.preselection,
                        prompt.done,
                        held,
                        prompt.length - prompt.preselection.tokens,
                        self.costs,
                    )
                    for prompt, held in zip(prompts, lengths, strict=True)
                )
            )
        )

    def _methods_for(self, prompts: int) -> tuple[Method, ...]:
        if isinstance(self.methods, Method):
            return (self.methods,) * prompts
        if len(self.methods) != prompts:
            raise InputError(f"pruning() was given {len(self.methods)} policies, but this call has {prompts} prompts")
        return self.methods

    def _require_image_prompts(self, call: dict[str, Any], vision: Tensor) -> list[Tensor]:
        checks.require_attention_implementation(self.adapter.text_config._attn_implementation)
        checks.require_fresh_cache(call)
        self.adapter.check_call(call, vision)
        return checks.token_places(call, vision)

    def _positions(self, call: dict[str, Any]) -> Tensor:
        """int64 [axes, B, n], without the text positions that `generate` puts in front of (t, h, w)."""
        embeddings, positions = call["inputs_embeds"], call.get("position_ids")
        batch, length, _ = embeddings.shape
        axes = self.adapter.position_axes
        if positions is None:
            cache = call.get("past_key_values")
            start = 0 if cache is None else cache.get_seq_length()
            positions = torch.arange(start, start + length, device=embeddings.device).unsqueeze(0)
        if positions.ndim == 2:
            positions = positions.unsqueeze(0)
        return positions[-axes:].expand(axes, batch, length)

    def _new_cache(self) -> PrunedCache:
        return PrunedCache(self.adapter.text_config)

    def _uses_cache(self, call: dict[str, Any]) -> bool:
        asked = call.get("use_cache")
        return bool(self.adapter.text_config.use_cache if asked is None else asked)

    def _vision_of(self, input_ids: Tensor | None) -> Tensor | None:
        return None if input_ids is None else input_ids == self.adapter.image_token_id

    def _generation_setting(self, call: dict[str, Any], name: str) -> Any:
        if name in call:
            return call[name]
        for config in (call.get("generation_config"), self.adapter.model.generation_config):
            if (value := getattr(config, name, None)) is not None:
                return value
        return None

    def _refuse_captured_outputs(self, call: dict[str, Any]) -> None:
        for name in ("output_attentions", "output_hidden_states"):
            if call.get(name, getattr(self.adapter.text_config, name, False)):
                raise UnsupportedError(f"{name} cannot be combined with pruning: layers run with different tokens")


@dataclass(eq=False)
class _Batch:
    """The prompts of one forward call.

    bool [B, L] vision tokens, places of all tokens, methods and their stage 1, and what the encoder looked at in each
    image.
    """

    vision: Tensor
    places: list[Tensor]
    methods: tuple[Method, ...]
    selections: list[Preselection]
    attention: list[tuple[EncoderAttention, ...]]


def _filled(cache: Any | None) -> bool:
    return cache is not None and cache.get_seq_length() > 0


def _uncached(input_ids: Tensor | None, cache: Any) -> Tensor | None:
    """Of a continued text, the tokens that the cache has not seen; callers pass either those alone or all."""
    seen = cache.get_seq_length()
    return input_ids if input_ids is None or input_ids.shape[1] <= seen else input_ids[:, seen:]


def _decoder_output(hidden: Tensor, cache: PrunedCache | None) -> Any:
    return BaseModelOutputWithPast(last_hidden_state=hidden, **{CACHE: cache})


def _new_tokens(attention_mask: Any, embeddings: Tensor) -> Tensor:
    """bool [B, n]: which of the new rows are tokens and not padding."""
    batch, length, _ = embeddings.shape
    if attention_mask is None:
        return torch.ones(batch, length, dtype=torch.bool, device=embeddings.device)
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2 or attention_mask.shape[1] < length:
        raise UnsupportedError("a prepared attention mask cannot be pruned; pass the tokenizer's [prompts, L] or none")
    return attention_mask[:, -length:] != 0
