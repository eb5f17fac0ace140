"""`pruning()` inside stock transformers calls."""

import threading

import pytest
import torch
from erase_cases import IMAGE_TOKEN, noise_image, prompt_ids, stock_inputs
from transformers import DynamicCache, Qwen2VLImageProcessorPil

import erase
from erase.cache import PrunedCache

HALF = {"image_mean": 0.5, "image_std": 0.5}
POLICY = erase.preset("qwen2.5-vl-7b")
GREEDY = {"max_new_tokens": 5, "do_sample": False}
LOGITS = GREEDY | {"return_dict_in_generate": True, "output_logits": True}


@pytest.fixture
def model(golden_model):
    return golden_model


@pytest.fixture
def inputs():
    images = [noise_image(5, 6, seed=3), noise_image(4, 4, seed=4)]
    return stock_inputs(prompt_ids(images), images)


@pytest.fixture
def text():
    ids = prompt_ids([], before=12, after=0)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": torch.zeros_like(ids)}


def state_of(model):
    modules = (model, model.model, model.model.language_model)
    return [{name: value for name, value in module.__dict__.items() if callable(value)} for module in modules]


@pytest.mark.parametrize("policy", [POLICY.with_retention(1.0), None], ids=["retention 1", "no policy"])
def test_retention_1_gives_exactly_the_stock_logits(model, inputs, policy):
    stock = model.generate(**inputs, **LOGITS)
    stock_forward = model(**inputs)
    with erase.pruning(model, policy, **HALF) as trace:
        output = model.generate(**inputs, **LOGITS)
        forward = model(**inputs)
    assert torch.equal(torch.cat(output.logits), torch.cat(stock.logits))
    assert torch.equal(forward.logits, stock_forward.logits)
    for call in trace.calls:
        (prompt,) = call.prompts
        assert prompt.stage1_kept.tolist() == list(range(46))
        assert prompt.cuts == ()
        assert prompt.cache_lengths == (inputs["input_ids"].shape[1],) * 28
        assert prompt.retention == (1.0, 1.0)


def test_a_forward_call_gives_the_logits_that_generate_starts_from(model, inputs):
    with erase.pruning(model, POLICY, **HALF) as trace:
        generated = model.generate(**inputs, **LOGITS)
        forward = model(**inputs)
        uncached = model(**inputs, use_cache=False)
    torch.testing.assert_close(forward.logits[:, -1], generated.logits[0])
    torch.testing.assert_close(uncached.logits[:, -1], generated.logits[0])
    assert uncached.past_key_values is None
    assert len(trace.calls) == 3
    assert len({call.prompts[0].cache_lengths for call in trace.calls}) == 1


def test_text_survives_and_dropped_tokens_have_no_logits(model, inputs):
    with erase.pruning(model, POLICY, **HALF) as trace:
        logits = model(**inputs).logits[0]
    lost = logits.isnan().all(dim=1)
    vision = inputs["input_ids"][0] == IMAGE_TOKEN
    kept = trace.calls[0].prompts[0].cuts[-1].kept
    assert not lost[~vision].any()
    assert not logits[~lost].isnan().any()
    assert (~lost[vision]).nonzero().squeeze(1).tolist() == kept.tolist()


def test_the_cache_is_short_and_counts_the_whole_prompt(model, inputs):
    with erase.pruning(model, POLICY, **HALF) as trace:
        output = model.generate(**inputs, **LOGITS)
    length = inputs["input_ids"].shape[1]
    (prompt,) = trace.calls[0].prompts
    assert output.past_key_values.get_seq_length() == length + 4
    assert output.past_key_values.cache_lengths() == tuple(held + 4 for held in prompt.cache_lengths)
    assert prompt.cache_lengths == (length - 46 + len(prompt.cuts[-1].kept),) * 28
    assert prompt.retention.final == int(46 * 0.25) / 46
    assert prompt.retention.final < prompt.retention.layer_average < 1


def test_the_trace_says_what_each_image_looked_like(model, inputs):
    with erase.pruning(model, POLICY, **HALF) as trace:
        model(**inputs)
    (prompt,) = trace.calls[0].prompts
    first, second = prompt.images
    assert (first.tokens, second.tokens, prompt.tokens) == (30, 16, 46)
    assert first.entropy.shape == (30,)
    assert first.bin in range(4)
    assert prompt.stage1_kept.tolist() == first.kept.tolist() + [30 + index for index in second.kept.tolist()]
    cut = prompt.cuts[0]
    layer, kept = cut
    assert layer == cut.layer
    assert set(kept.tolist()) <= set(prompt.stage1_kept.tolist())


def test_decoding_by_hand_follows_generate(model, inputs):
    with erase.pruning(model, POLICY, **HALF):
        generated = model.generate(**inputs, **LOGITS)
        output = model(**inputs)
        for step in range(1, 5):
            token = output.logits[:, -1:].argmax(-1)
            output = model(input_ids=token, past_key_values=output.past_key_values)
            torch.testing.assert_close(output.logits[:, -1], generated.logits[step])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("whole_text", [True, False], ids=["whole text", "new tokens only"])
def test_a_returned_cache_continues_as_if_it_had_been_fed_token_by_token(
    model, random_model, attention, whole_text, inputs
):
    model = model if attention == "sdpa" else random_model(6, "eager")
    more = prompt_ids([], before=4, after=0, seed=9)
    with erase.pruning(model, POLICY, **HALF) as trace:
        output = model(**inputs)
        for token in more[0]:
            output = model(input_ids=token.view(1, 1), past_key_values=output.past_key_values)
        cache = model(**inputs).past_key_values
        ids = torch.cat([inputs["input_ids"], more], 1)
        continued = model.generate(
            input_ids=ids if whole_text else more,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            **LOGITS,
        )
    torch.testing.assert_close(continued.logits[0], output.logits[:, -1], rtol=0, atol=1e-4)
    assert len(trace.calls) == 2


def test_several_calls_agree_and_sampling_follows_its_seed(model, inputs):
    sampled = {"max_new_tokens": 6, "do_sample": True, "temperature": 0.9, "top_p": 0.9}
    with erase.pruning(model, POLICY, **HALF) as trace:
        greedy = [model.generate(**inputs, **GREEDY) for _ in range(2)]
        torch.manual_seed(5)
        first = model.generate(**inputs, **sampled)
        torch.manual_seed(5)
        second = model.generate(**inputs, **sampled)
    assert torch.equal(*greedy)
    assert torch.equal(first, second)
    assert len(trace.calls) == 4


def test_prompts_without_images_run_as_ever(model, inputs, text):
    batch = {"input_ids": text["input_ids"].repeat(2, 1), "attention_mask": torch.ones(2, 12, dtype=torch.int64)}
    batch["attention_mask"][1, :3] = 0
    stock = [model.generate(**prompt, **LOGITS).logits for prompt in (text, batch)]
    beams = model.generate(**text, max_new_tokens=4, num_beams=3)
    with erase.pruning(model, POLICY, **HALF) as trace:
        model.generate(**inputs, **GREEDY)
        pruned = [model.generate(**prompt, **LOGITS).logits for prompt in (text, batch)]
        assert torch.equal(model.generate(**text, max_new_tokens=4, num_beams=3), beams)
    for one, other in zip(stock, pruned, strict=True):
        assert torch.equal(torch.cat(one), torch.cat(other))
    assert len(trace.calls) == 4
    single, padded = trace.calls[1].prompts, trace.calls[2].prompts
    assert (single[0].images, single[0].retention, single[0].cache_lengths) == ((), (1.0, 1.0), (12,) * 28)
    assert [prompt.cache_lengths[0] for prompt in padded] == [12, 9]


def test_a_named_dynamic_cache_is_the_default_one(model, inputs):
    with erase.pruning(model, POLICY, **HALF):
        plain = model.generate(**inputs, **LOGITS)
        named = model.generate(**inputs, **LOGITS, cache_implementation="dynamic")
    assert torch.equal(torch.cat(plain.logits), torch.cat(named.logits))
    assert isinstance(named.past_key_values, PrunedCache)


def test_the_processor_says_how_pixels_were_normalised(model, inputs):
    processor = Qwen2VLImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)

    class Whole:
        image_processor = processor

    traces = []
    for settings in (HALF, {"processor": processor}, {"processor": Whole()}, {"processor": Whole(), **HALF}):
        with erase.pruning(model, POLICY, **settings) as trace:
            model(**inputs)
        traces.append(trace.calls[0].prompts[0])
    assert len({prompt.images[0].complexity for prompt in traces}) == 1
    assert len({tuple(prompt.cuts[0].kept.tolist()) for prompt in traces}) == 1


def test_the_model_is_untouched_afterwards(model, inputs):
    before, stock = state_of(model), model.generate(**inputs, **LOGITS)
    with erase.pruning(model, POLICY, **HALF):
        assert state_of(model) != before
        model.generate(**inputs, **GREEDY)
    assert state_of(model) == before
    after = model.generate(**inputs, **LOGITS)
    assert torch.equal(torch.cat(stock.logits), torch.cat(after.logits))
    assert type(after.past_key_values) is DynamicCache


def test_the_model_is_untouched_after_an_exception(model, inputs):
    before = state_of(model)
    layer = model.model.language_model.layers[3]
    handle = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    try:
        with pytest.raises(RuntimeError, match="out of memory"), erase.pruning(model, POLICY, **HALF):
            model.generate(**inputs, **GREEDY)
    finally:
        handle.remove()
    assert state_of(model) == before
    with erase.pruning(model, POLICY, **HALF) as trace:
        model.generate(**inputs, **GREEDY)
    assert len(trace.calls) == 1


def test_an_own_forward_of_an_instance_comes_back(model, inputs):
    calls = []
    stock = model.model.forward
    model.model.forward = lambda *args, **kwargs: (calls.append(1), stock(*args, **kwargs))[1]
    try:
        own = model.model.forward
        with erase.pruning(model, POLICY, **HALF):
            model(**inputs)
        assert model.model.forward is own
        assert calls == [1]
    finally:
        del model.model.forward


def test_nested_and_concurrent_contexts_on_one_model_are_refused(model, random_model, inputs):
    errors = []

    def enter():
        try:
            with erase.pruning(model, POLICY, **HALF):
                pass
        except erase.UnsupportedError as error:
            errors.append(error)

    with erase.pruning(model, POLICY, **HALF) as trace:
        enter()
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        with erase.pruning(random_model(4), POLICY, **HALF):
            pass
        model(**inputs)
    assert len(errors) == 2
    assert len(trace.calls) == 1
    with erase.pruning(model, POLICY, **HALF):
        pass


def test_half_precision_models_run(random_model, inputs):
    model = random_model(8).to(torch.bfloat16)
    with erase.pruning(model, POLICY, **HALF) as trace:
        output = model.generate(**inputs | {"pixel_values": inputs["pixel_values"].bfloat16()}, **LOGITS)
    assert not torch.cat(output.logits).isnan().any()
    assert trace.calls[0].prompts[0].images[0].tokens == 30
