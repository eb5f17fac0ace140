"""`pruning()` inside stock transformers calls: revision 1 on Qwen2.5-VL and revision 2 on Qwen3-VL."""

import copy
import threading

import pytest
import torch
from erase_cases import CELLS, HALF, IMAGE_TOKEN, noise_image, prompt_ids, stock_inputs, vision_image
from slow_cases import tiny_qwen2_5_vl
from transformers import DynamicCache, Qwen2VLImageProcessorPil

import erase
from erase.methods import method_for
from erase.stock.cache import PrunedCache

POLICIES = {"qwen2_5_vl": erase.preset("qwen2.5-vl-7b"), "qwen3_vl": erase.preset("qwen3-vl-8b-budget")}
SIZES = [(5, 6), (4, 4)]
GREEDY = {"max_new_tokens": 5, "do_sample": False}
LOGITS = GREEDY | {"return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(params=POLICIES)
def name(request):
    return request.param


@pytest.fixture
def policy(name):
    return POLICIES[name]


@pytest.fixture
def model(golden, name):
    return golden(name)


@pytest.fixture
def inputs(name):
    return inputs_of(name)


@pytest.fixture
def text():
    ids = prompt_ids([], before=12, after=0)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": torch.zeros_like(ids)}


def images_of(name):
    return [noise_image(*size, seed=seed, cell=CELLS[name]) for seed, size in enumerate(SIZES, start=3)]


def inputs_of(name):
    images = images_of(name)
    return stock_inputs(prompt_ids(images, cell=CELLS[name]), images, CELLS[name])


def state_of(model):
    modules = (model, model.model, model.model.language_model)
    return [{name: value for name, value in module.__dict__.items() if callable(value)} for module in modules]


def test_a_forward_call_gives_the_logits_that_generate_starts_from(model, policy, inputs):
    with erase.pruning(model, policy, **HALF) as trace:
        generated = model.generate(**inputs, **LOGITS)
        forward = model(**inputs)
        uncached = model(**inputs, use_cache=False)
    torch.testing.assert_close(forward.logits[:, -1], generated.logits[0])
    torch.testing.assert_close(uncached.logits[:, -1], generated.logits[0])
    assert uncached.past_key_values is None
    assert len(trace.calls) == 3
    assert len({call.prompts[0].cache_lengths for call in trace.calls}) == 1


def test_text_survives_and_dropped_tokens_have_no_logits(model, policy, inputs):
    with erase.pruning(model, policy, **HALF) as trace:
        logits = model(**inputs).logits[0]
    lost = logits.isnan().all(dim=1)
    vision = inputs["input_ids"][0] == IMAGE_TOKEN
    kept = trace.calls[0].prompts[0].cuts[-1].kept
    assert not lost[~vision].any()
    assert not logits[~lost].isnan().any()
    assert (~lost[vision]).nonzero().squeeze(1).tolist() == kept.tolist()


def test_the_cache_is_short_and_counts_the_whole_prompt(model, policy, inputs):
    with erase.pruning(model, policy, **HALF) as trace:
        output = model.generate(**inputs, **LOGITS)
    length = inputs["input_ids"].shape[1]
    (prompt,) = trace.calls[0].prompts
    assert output.past_key_values.get_seq_length() == length + 4
    assert output.past_key_values.cache_lengths() == tuple(held + 4 for held in prompt.cache_lengths)


def test_revision_1_leaves_all_layers_one_cache_length(golden):
    model, inputs = golden("qwen2_5_vl"), inputs_of("qwen2_5_vl")
    with erase.pruning(model, POLICIES["qwen2_5_vl"], **HALF) as trace:
        model(**inputs)
    (prompt,) = trace.calls[0].prompts
    text = inputs["input_ids"].shape[1] - 46
    assert prompt.cache_lengths == (text + int(46 * 0.25),) * 28
    assert len(prompt.cuts[-1].kept) == int(46 * 0.25)


def test_revision_2_leaves_every_layer_what_it_ran_with(golden):
    model, inputs = golden("qwen3_vl"), inputs_of("qwen3_vl")
    with erase.pruning(model, POLICIES["qwen3_vl"], **HALF) as trace:
        model(**inputs)
    (prompt,) = trace.calls[0].prompts
    text = inputs["input_ids"].shape[1] - 46
    early, late = (len(cut.kept) for cut in prompt.cuts)
    assert [cut.layer for cut in prompt.cuts] == [2, 24]
    assert len(prompt.stage1_kept) > early > late
    assert prompt.cache_lengths == tuple(
        text + count for count in (len(prompt.stage1_kept),) * 2 + (early,) * 22 + (late,) * 12
    )
    assert prompt.retention.layer_average == (sum(prompt.cache_lengths) - 36 * text) / (46 * 36)


@pytest.mark.parametrize(("name", "left"), [("qwen2_5_vl", 0), ("qwen3_vl", 1)])
def test_a_budget_that_is_spent_at_once_leaves_text_and_what_the_model_insists_on(golden, name, left):
    model, inputs = golden(name), inputs_of(name)
    with erase.pruning(model, erase.BudgetPolicy(0.01), **HALF) as trace:
        output = model.generate(**inputs, **LOGITS)
    (prompt,) = trace.calls[0].prompts
    assert [len(cut.kept) for cut in prompt.cuts] == [left, left]
    assert prompt.cache_lengths[-1] == inputs["input_ids"].shape[1] - 46 + left
    assert prompt.achieved > prompt.requested
    assert not torch.cat(output.logits).isnan().any()


@pytest.mark.parametrize("retention", [0.1, 0.25, 0.5, 0.9])
def test_the_trace_tells_what_was_asked_for_and_what_came_out(model, policy, inputs, retention):
    with erase.pruning(model, policy.with_retention(retention), **HALF) as trace:
        model(**inputs)
    (prompt,) = trace.calls[0].prompts
    assert prompt.requested == retention
    assert prompt.measure == policy.measure
    last = prompt.cuts[-1].kept if prompt.cuts else prompt.stage1_kept
    assert prompt.retention.final == len(last) / 46
    assert prompt.achieved == getattr(prompt.retention, policy.measure)
    assert prompt.retention.final <= prompt.retention.layer_average <= len(prompt.stage1_kept) / 46
    assert prompt.achieved <= retention


def test_an_unpruned_run_asks_for_nothing(model, inputs):
    with erase.pruning(model, None, **HALF) as trace:
        model(**inputs)
    (prompt,) = trace.calls[0].prompts
    assert (prompt.method, prompt.requested, prompt.achieved) == ("none", None, 1.0)


@pytest.mark.parametrize("wrong", ["qwen2.5-vl-7b", 0.25, ["qwen2.5-vl-7b"], {"retention": 0.25}], ids=str)
def test_what_is_neither_policy_nor_method_is_refused(golden, wrong):
    with pytest.raises(erase.PolicyError, match=r"erase\.preset"), erase.pruning(golden("qwen3_vl"), wrong, **HALF):
        pass


def test_a_method_can_stand_where_a_policy_does(model, policy, inputs):
    kept = []
    for pruned_by in (policy, method_for(policy), [policy], (method_for(policy),)):
        with erase.pruning(model, pruned_by, **HALF) as trace:
            model(**inputs)
        kept.append([cut.kept.tolist() for cut in trace.calls[0].prompts[0].cuts])
    assert all(own == kept[0] for own in kept)


def test_the_trace_says_what_each_image_looked_like(model, policy, inputs):
    with erase.pruning(model, policy, **HALF) as trace:
        model(**inputs)
    (prompt,) = trace.calls[0].prompts
    first, second = prompt.images
    assert (first.tokens, second.tokens, prompt.tokens) == (30, 16, 46)
    assert first.entropy.shape == (30,)
    assert (first.grid, second.grid) == ((1, 5, 6), (1, 4, 4))
    assert (first.bin in range(4)) == (policy.measure == "final")
    assert prompt.stage1_kept.tolist() == first.kept.tolist() + [30 + index for index in second.kept.tolist()]
    cut = prompt.cuts[0]
    layer, kept = cut
    assert layer == cut.layer
    assert set(kept.tolist()) <= set(prompt.stage1_kept.tolist())


def test_decoding_by_hand_follows_generate(model, policy, inputs):
    with erase.pruning(model, policy, **HALF):
        generated = model.generate(**inputs, **LOGITS)
        output = model(**inputs)
        for step in range(1, 5):
            token = output.logits[:, -1:].argmax(-1)
            output = model(input_ids=token, past_key_values=output.past_key_values)
            torch.testing.assert_close(output.logits[:, -1], generated.logits[step])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("whole_text", [True, False], ids=["whole text", "new tokens only"])
def test_a_returned_cache_continues_as_if_it_had_been_fed_token_by_token(
    golden, name, attention, whole_text, policy, inputs
):
    model = golden(name, attention)
    more = prompt_ids([], before=4, after=0, seed=9)
    with erase.pruning(model, policy, **HALF) as trace:
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


def test_several_calls_agree_and_sampling_follows_its_seed(model, policy, inputs):
    sampled = {"max_new_tokens": 6, "do_sample": True, "temperature": 0.9, "top_p": 0.9}
    with erase.pruning(model, policy, **HALF) as trace:
        greedy = [model.generate(**inputs, **GREEDY) for _ in range(2)]
        torch.manual_seed(5)
        first = model.generate(**inputs, **sampled)
        torch.manual_seed(5)
        second = model.generate(**inputs, **sampled)
    assert torch.equal(*greedy)
    assert torch.equal(first, second)
    assert len(trace.calls) == 4


def test_prompts_without_images_run_as_ever(model, policy, inputs, text):
    batch = {"input_ids": text["input_ids"].repeat(2, 1), "attention_mask": torch.ones(2, 12, dtype=torch.int64)}
    batch["attention_mask"][1, :3] = 0
    stock = [model.generate(**prompt, **LOGITS).logits for prompt in (text, batch)]
    beams = model.generate(**text, max_new_tokens=4, num_beams=3)
    with erase.pruning(model, policy, **HALF) as trace:
        model.generate(**inputs, **GREEDY)
        pruned = [model.generate(**prompt, **LOGITS).logits for prompt in (text, batch)]
        assert torch.equal(model.generate(**text, max_new_tokens=4, num_beams=3), beams)
    for one, other in zip(stock, pruned, strict=True):
        assert torch.equal(torch.cat(one), torch.cat(other))
    assert len(trace.calls) == 4
    single, padded = trace.calls[1].prompts, trace.calls[2].prompts
    assert (single[0].images, single[0].retention) == ((), (1.0, 1.0))
    assert single[0].cache_lengths == (12,) * len(model.model.language_model.layers)
    assert [prompt.cache_lengths[0] for prompt in padded] == [12, 9]


def test_a_named_dynamic_cache_is_the_default_one(model, policy, inputs):
    with erase.pruning(model, policy, **HALF):
        plain = model.generate(**inputs, **LOGITS)
        named = model.generate(**inputs, **LOGITS, cache_implementation="dynamic")
    assert torch.equal(torch.cat(plain.logits), torch.cat(named.logits))
    assert isinstance(named.past_key_values, PrunedCache)


def test_the_processor_says_how_pixels_were_normalised(model, policy, inputs):
    processor = Qwen2VLImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)

    class Whole:
        image_processor = processor

    traces = []
    for settings in (HALF, {"processor": processor}, {"processor": Whole()}, {"processor": Whole(), **HALF}):
        with erase.pruning(model, policy, **settings) as trace:
            model(**inputs)
        traces.append(trace.calls[0].prompts[0])
    assert len({prompt.images[0].complexity for prompt in traces}) == 1
    assert len({tuple(prompt.cuts[0].kept.tolist()) for prompt in traces}) == 1


def test_the_model_is_untouched_afterwards(model, policy, inputs):
    before, stock = state_of(model), model.generate(**inputs, **LOGITS)
    with erase.pruning(model, policy, **HALF):
        assert state_of(model) != before
        model.generate(**inputs, **GREEDY)
    assert state_of(model) == before
    after = model.generate(**inputs, **LOGITS)
    assert torch.equal(torch.cat(stock.logits), torch.cat(after.logits))
    assert type(after.past_key_values) is DynamicCache


def test_the_model_is_untouched_after_an_exception(model, policy, inputs):
    before = state_of(model)
    layer = model.model.language_model.layers[3]
    handle = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    try:
        with pytest.raises(RuntimeError, match="out of memory"), erase.pruning(model, policy, **HALF):
            model.generate(**inputs, **GREEDY)
    finally:
        handle.remove()
    assert state_of(model) == before
    with erase.pruning(model, policy, **HALF) as trace:
        model.generate(**inputs, **GREEDY)
    assert len(trace.calls) == 1


def test_an_own_forward_of_an_instance_comes_back(model, policy, inputs):
    calls = []
    stock = model.model.forward
    model.model.forward = lambda *args, **kwargs: (calls.append(1), stock(*args, **kwargs))[1]
    try:
        own = model.model.forward
        with erase.pruning(model, policy, **HALF):
            model(**inputs)
        assert model.model.forward is own
        assert calls == [1]
    finally:
        del model.model.forward


def test_nested_and_concurrent_contexts_on_one_model_are_refused(model, policy, inputs):
    errors = []

    def enter():
        try:
            with erase.pruning(model, policy, **HALF):
                pass
        except erase.UnsupportedError as error:
            errors.append(error)

    with erase.pruning(model, policy, **HALF) as trace:
        enter()
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        with erase.pruning(tiny_qwen2_5_vl(4), POLICIES["qwen2_5_vl"], **HALF):
            pass
        model(**inputs)
    assert len(errors) == 2
    assert len(trace.calls) == 1
    with erase.pruning(model, policy, **HALF):
        pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_run(golden, name, policy, inputs, dtype):
    model = copy.deepcopy(golden(name)).to(dtype)
    with erase.pruning(model, policy, **HALF) as trace:
        output = model.generate(**inputs | {"pixel_values": inputs["pixel_values"].to(dtype)}, **LOGITS)
    assert not torch.cat(output.logits).isnan().any()
    (prompt,) = trace.calls[0].prompts
    expected = method_for(policy).preselect([vision_image(image, CELLS[name]) for image in images_of(name)])
    assert torch.equal(prompt.stage1_kept, expected.kept)
