"""`with erase.pruning(model, policy)`: stock transformers calls, fewer vision tokens."""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from erase import checks, host
from erase.cache import PrunedCache
from erase.cells import cells_from_pixel_values
from erase.errors import InputError, UnsupportedError
from erase.methods import method_for
from erase.methods.base import Method, Preselection
from erase.models import adapter_for
from erase.models.qwen2_5_vl import Qwen2_5_VL
from erase.policy import Policy
from erase.trace import CallTrace, PromptTrace, Trace

_pruned_models: "WeakSet[nn.Module]" = WeakSet()
_pruned_models_lock = threading.Lock()


@contextmanager
def pruning(
    model: nn.Module,
    policy: Policy | None,
    processor: Any | None = None,
    image_mean: Sequence[float] | float | None = None,
    image_std: Sequence[float] | float | None = None,
) -> Iterator[Trace]:
    """Prunes the vision tokens of every `model.generate(**inputs)` and `model(**inputs)` inside the `with`.

    A forward call returns logits of the unpruned length, NaN in the rows of dropped tokens. The model is untouched
    afterwards, also after an exception. Prompts without images run as ever.

    Args:
        model: a Qwen2_5_VLForConditionalGeneration.
        policy: what to prune; None prunes nothing and still traces.
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
    mean, std = _normalisation(processor, image_mean, image_std)
    session = _Session(adapter, method_for(policy), mean, std)
    with ExitStack() as stack:
        stack.enter_context(_exclusive(adapter.inner))
        for module, name, replacement in (
            (adapter.model, "generate", session.generate),
            (adapter.model, "forward", session.forward),
            (adapter.inner, "forward", session.inner_forward),
            (adapter.inner, "get_image_features", session.image_features),
            (adapter.language_model, "forward", session.decoder_forward),
        ):
            stack.enter_context(_patched(module, name, replacement))
        yield session.trace


class _Session:
    """One `with`: the replacements of the model's methods and what they hand each other during a call."""

    def __init__(self, adapter: Qwen2_5_VL, method: Method, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.adapter = adapter
        self.method = method
        self.mean = mean
        self.std = std
        self.trace = Trace()
        self._encoded: tuple[Any, Preselection] | None = None
        self._vision: Tensor | None = None
        self._stock_mode = False

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
            checks.require_plain_image_prompt(call, vision)
            checks.require_pixels(call)
        elif refusal is not None:
            return self._text_in_stock_mode(original, call, input_ids)
        if refusal is not None:
            raise UnsupportedError(refusal)
        if cache is None:
            # `generate` refuses a cache beside a named implementation, even beside the one it would take anyway.
            named = self._generation_setting(call, "cache_implementation") is not None
            call = call | {"past_key_values": self._new_cache()} | ({"cache_implementation": None} if named else {})
        try:
            return original(**call)
        finally:
            self._encoded = None

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
            return self._text_prompt(original, call)
        checks.require_plain_image_prompt(call, vision)
        features = (call.get("mm_encoder_outputs") or {}).get("image")
        if features is None:
            checks.require_pixels(call)
        elif self._encoded is None or self._encoded[0] is not features:
            raise UnsupportedError("image features encoded outside pruning() carry no pixels; pass pixel_values")
        self._vision = vision[0]
        try:
            return original(**call)
        finally:
            self._vision = self._encoded = None

    def image_features(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        output = original(**call)
        cells = cells_from_pixel_values(
            call["pixel_values"],
            call["image_grid_thw"],
            patch_size=self.adapter.patch_size,
            merge_size=self.adapter.merge_size,
            temporal_patch_size=self.adapter.temporal_patch_size,
            image_mean=self.mean,
            image_std=self.std,
        )
        self._encoded = output, self.method.preselect([image.cpu() for image in cells])
        return output

    def decoder_forward(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
        cache = call.get("past_key_values")
        if self._vision is not None and self._encoded is not None:
            return self._image_prompt(original, call, self._vision, self._encoded[1])
        if isinstance(cache, PrunedCache) and cache.is_pruned:
            self._refuse_captured_outputs(call)
            hidden = host.decode(self.adapter, call["inputs_embeds"], _positions(call["position_ids"]), cache)
            return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache)
        return original(**call)

    def _image_prompt(
        self, original: Callable[..., Any], call: dict[str, Any], vision: Tensor, preselection: Preselection
    ) -> Any:
        embeddings = call["inputs_embeds"]
        cuts = self.method.cuts(preselection, self.adapter.architecture)
        encoded = embeddings[0, vision]
        features = self.method.postencode(encoded, preselection)
        use_cache = self._uses_cache(call)
        if features is encoded and not cuts:
            if use_cache and call.get("past_key_values") is None:
                call = call | {"past_key_values": self._new_cache()}
            output = original(**call)
            lengths = (embeddings.shape[1],) * self.adapter.depth
            self._record(host.prompt_trace(preselection, (), (), lengths, self.adapter.depth))
            return output
        self._refuse_captured_outputs(call)
        checks.require_text_at_the_end(vision)
        given = call.get("past_key_values")
        cache = given if isinstance(given, PrunedCache) else self._new_cache()
        hidden, prompt = host.prefill(
            self.adapter,
            self.method,
            preselection,
            cuts,
            embeddings=embeddings,
            features=features,
            positions=_positions(call["position_ids"]),
            vision=vision,
            cache=cache,
        )
        self._record(prompt)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=cache if use_cache else None)

    def _text_prompt(self, original: Callable[..., Any], call: dict[str, Any]) -> Any:
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
        self._record(*(host.prompt_trace(nothing, (), (), (int(valid),) * depth, depth) for valid in lengths))

    def _record(self, *prompts: PromptTrace) -> None:
        self.trace.calls.append(CallTrace(prompts))

    def _new_cache(self) -> PrunedCache:
        return PrunedCache(self.adapter.language_model.config)

    def _uses_cache(self, call: dict[str, Any]) -> bool:
        asked = call.get("use_cache")
        return bool(self.adapter.language_model.config.use_cache if asked is None else asked)

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
            if call.get(name, getattr(self.adapter.language_model.config, name, False)):
                raise UnsupportedError(f"{name} cannot be combined with pruning: layers run with different tokens")


def _normalisation(
    processor: Any | None, mean: Sequence[float] | float | None, std: Sequence[float] | float | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel that turned pixels in 0..1 into `pixel_values`."""
    images = getattr(processor, "image_processor", processor)
    if images is not None and (mean is None or std is None):
        if not getattr(images, "do_rescale", True) or abs(getattr(images, "rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
            raise UnsupportedError("the processor must rescale pixels by 1/255, or the images cannot be recovered")
        normalises = getattr(images, "do_normalize", True)
        mean = (getattr(images, "image_mean", None) if normalises else 0.0) if mean is None else mean
        std = (getattr(images, "image_std", None) if normalises else 1.0) if std is None else std
    if mean is None or std is None:
        raise InputError(
            "how pixel_values were normalised is unknown; pass processor= (the model's processor or image processor) "
            "or both image_mean= and image_std="
        )
    return _channels("image_mean", mean), _channels("image_std", std)


def _channels(name: str, values: Sequence[float] | float) -> tuple[float, ...]:
    channels = (float(values),) * 3 if isinstance(values, int | float) else tuple(float(value) for value in values)
    if len(channels) != 3:
        raise InputError(f"{name} must be one number or one per channel (3), got {len(channels)}")
    return channels


def _filled(cache: Any | None) -> bool:
    return cache is not None and cache.get_seq_length() > 0


def _uncached(input_ids: Tensor | None, cache: Any) -> Tensor | None:
    """Of a continued text, the tokens that the cache has not seen; callers pass either those alone or all."""
    seen = cache.get_seq_length()
    return input_ids if input_ids is None or input_ids.shape[1] <= seen else input_ids[:, seen:]


def _positions(position_ids: Tensor) -> Tensor:
    """(t, h, w) positions [3, B, n], without the text positions that `generate` puts in front."""
    return position_ids.expand(3, *position_ids.shape) if position_ids.ndim == 2 else position_ids[-3:]


@contextmanager
def _exclusive(inner: nn.Module) -> Iterator[None]:
    with _pruned_models_lock:
        if inner in _pruned_models:
            raise UnsupportedError("this model is already inside a pruning() context; nested ones are not supported")
        _pruned_models.add(inner)
    try:
        yield
    finally:
        with _pruned_models_lock:
            _pruned_models.discard(inner)


@contextmanager
def _patched(
    module: nn.Module, name: str, replacement: Callable[[Callable[..., Any], dict[str, Any]], Any]
) -> Iterator[None]:
    """Puts `replacement(original, call)` before a method of this one instance, `call` being its arguments by name."""
    original = getattr(module, name)
    parameters = tuple(inspect.signature(original).parameters)
    own = module.__dict__.get(name)

    @functools.wraps(original)  # `generate` inspects signatures
    def patched(*args: Any, **kwargs: Any) -> Any:
        return replacement(original, dict(zip(parameters, args, strict=False)) | kwargs)

    setattr(module, name, patched)
    try:
        yield
    finally:
        if own is None:
            delattr(module, name)
        else:
            setattr(module, name, own)
