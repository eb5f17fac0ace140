"""Right answers: stock `generate`, `pruning()` and the engine agree; resumed and scored answers, too."""

import pytest
import torch
from engine_cases import again, alone, ask, collect, results, running, stock_inputs_for

import erase
from erase import load_policy
from erase.methods import method_for
from tests.starter import STARTER

GREEDY = {"max_new_tokens": 16, "do_sample": False}


def test_unpruned_the_engine_answers_like_stock_generate(demo, samples):
    with running(demo) as engine:
        answers = results(engine, [ask(demo, s.question, [s.image], max_tokens=16) for s in samples])
    for sample, answer in zip(samples, answers, strict=True):
        inputs = stock_inputs_for(demo, sample.question, [sample.image])
        stock = demo.model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
        assert answer.tokens == tuple(stock.tolist())


@pytest.mark.parametrize("number", [0, 2], ids=["text only", "two images"])
def test_unpruned_prompts_of_other_shapes_are_answered_like_stock_generate(endless, samples, number):
    images = [sample.image for sample in samples[:6:3]][:number]
    (answer,) = alone(endless, [ask(endless, "what shape is shown ?", images, max_tokens=16)])
    inputs = stock_inputs_for(endless, "what shape is shown ?", images)
    stock = endless.model.generate(**inputs, **GREEDY, eos_token_id=None, pad_token_id=0)
    assert answer.tokens == tuple(stock[0, inputs["input_ids"].shape[1] :].tolist())


def test_the_models_own_policy_answers_every_sample_right(demo, samples, pruned):
    with running(demo) as engine:
        answers = results(engine, [ask(demo, s.question, [s.image], method=pruned) for s in samples])
    assert [answer.text for answer in answers] == [sample.answer for sample in samples]
    assert all(answer.finish_reason == "stop" for answer in answers)


@pytest.mark.parametrize(
    "policy",
    [load_policy(STARTER / "erase_policy.json"), erase.BudgetPolicy(0.3), erase.BudgetPolicy(0.02), None],
    ids=["revision 1", "revision 2", "spent budget", "none"],
)
def test_the_engine_and_pruning_keep_and_say_the_same(demo, samples, policy):
    prompts = [(s.question, [s.image]) for s in samples[::2]]
    prompts += [("what is room ?", [samples[0].image, samples[3].image]), ("what is speed ?", [])]
    with running(demo) as engine:
        method = method_for(policy)
        answers = results(engine, [ask(demo, *prompt, method=method, max_tokens=16) for prompt in prompts])
    for (question, images), answer in zip(prompts, answers, strict=True):
        inputs = stock_inputs_for(demo, question, images)
        with erase.pruning(demo.model, policy, demo.image_processor) as trace:
            tokens = demo.model.generate(**inputs, **GREEDY)[0, inputs["input_ids"].shape[1] :]
        assert answer.tokens == tuple(tokens.tolist())
        prompt = trace.calls[0].prompts[0]
        assert answer.kept.tolist() == (prompt.cuts[-1].kept if prompt.cuts else prompt.stage1_kept).tolist()
        assert answer.cache_lengths == prompt.cache_lengths


GREEDY_ANSWER = {}
SAMPLED_ANSWER = {"temperature": 1.5, "top_p": 0.9, "seed": 11}


@pytest.mark.parametrize("sampling", [GREEDY_ANSWER, SAMPLED_ANSWER], ids=["greedy", "sampled"])
@pytest.mark.parametrize("attempt", [1, 2], ids=["beside others", "alone"])
def test_an_answer_resumed_anywhere_is_the_same_and_emits_only_what_is_new(endless, samples, pruned, sampling, attempt):
    question = ask(endless, samples[0].question, [samples[0].image], method=pruned, max_tokens=9, **sampling)
    with running(endless) as engine:
        handle = engine.submit(question)
        events = list(handle.events())
        whole = handle.result()
        prefixes = [whole.tokens[:split] for split in range(1, 10)]
        handles = [engine.submit(again(question, forced_prefix=prefix, attempt=attempt)) for prefix in prefixes]
        for split, resumed in enumerate(handles, start=1):
            ids, text = collect(resumed)
            assert tuple(ids) == whole.tokens[split:]
            assert text == "".join(event.text for event in events[split:])
            assert (resumed.result().tokens, resumed.result().text) == (whole.tokens, whole.text)
            assert resumed.result().finish_reason == whole.finish_reason == "length"


@pytest.mark.parametrize(
    ("stop", "text", "tokens"), [((), "428", 4), (("28",), "4", 3), (("8",), "42", 3)], ids=["end token", "28", "8"]
)
def test_a_prefix_that_ends_the_answer_ends_it_without_new_tokens(demo, samples, stop, text, tokens):
    sample = next(sample for sample in samples if sample.answer == "428")
    question = ask(demo, sample.question, [sample.image], stop=stop)
    with running(demo) as engine:
        whole = engine.submit(question).result()
        assert (whole.text, len(whole.tokens), whole.finish_reason) == (text, tokens, "stop")
        for split in range(1, tokens + 1):
            handle = engine.submit(again(question, forced_prefix=whole.tokens[:split]))
            ids, _ = collect(handle)
            assert tuple(ids) == whole.tokens[split:]
            assert (handle.result().text, handle.result().finish_reason) == (text, "stop")


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_the_score_of_a_given_answer_is_its_log_likelihood_under_the_stock_model(demo, samples, length, images):
    pictures = [sample.image for sample in samples[:6:3]][:images]
    answer = tuple(demo.tokenizer("428 star 05 . green", add_special_tokens=False)["input_ids"][:length])
    assert len(answer) == length
    inputs = stock_inputs_for(demo, samples[0].question, pictures)
    prompt = inputs["input_ids"].shape[1]
    ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], 1)
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs |= {"mm_token_type_ids": (ids == demo.adapter.image_token_id).int()}
    with torch.inference_mode():
        scores = demo.model(**inputs).logits[0, prompt - 1 : -1].log_softmax(-1)
    expected = float(scores[range(length), answer].sum())
    with running(demo) as engine:
        result, _ = results(
            engine, [ask(demo, samples[0].question, pictures, score_only=answer), ask(demo, "what is speed ?")]
        )
    assert result.log_likelihood == pytest.approx(expected, abs=1e-4)
    assert (result.tokens, result.text) == ((), "")


def test_the_score_under_pruning_is_that_of_the_pruned_run(endless, samples, pruned):
    policy = load_policy(STARTER / "erase_policy.json")
    sample = samples[1]
    inputs = stock_inputs_for(endless, sample.question, [sample.image])
    with erase.pruning(endless.model, policy, endless.image_processor):
        output = endless.model.generate(
            **inputs, **GREEDY | {"max_new_tokens": 5}, output_logits=True, return_dict_in_generate=True
        )
    answer = output.sequences[0, -5:]
    expected = float(torch.cat(output.logits).log_softmax(-1)[range(5), answer].sum())
    (result,) = alone(
        endless, [ask(endless, sample.question, [sample.image], method=pruned, score_only=tuple(answer.tolist()))]
    )
    assert result.log_likelihood == pytest.approx(expected, abs=1e-4)


def test_other_answers_have_no_score(demo, samples):
    (result,) = alone(demo, [ask(demo, samples[0].question, [samples[0].image])])
    assert result.log_likelihood is None


def test_max_tokens_cuts_an_answer_short(demo, samples):
    sample = next(sample for sample in samples if sample.answer == "428")
    for tokens in (1, 2, 3):
        (result,) = alone(demo, [ask(demo, sample.question, [sample.image], max_tokens=tokens)])
        assert (result.text, len(result.tokens), result.finish_reason) == ("428"[:tokens], tokens, "length")
    (result,) = alone(demo, [ask(demo, sample.question, [sample.image], max_tokens=4)])
    assert (result.text, len(result.tokens), result.finish_reason) == ("428", 4, "stop")


def test_a_possible_stop_string_is_held_back_until_it_is_decided(demo, samples):
    sample = next(sample for sample in samples if sample.answer == "428")
    with running(demo) as engine:
        for stop, texts in ((("27",), ["4", "", "28", ""]), (("28",), ["4", "", ""]), (("4",), [""])):
            events = engine.submit(ask(demo, sample.question, [sample.image], stop=stop)).events()
            assert [event.text for event in events] == texts


def test_phases_add_up_to_the_time_until_the_first_token(demo, samples):
    (result,) = alone(demo, [ask(demo, samples[0].question, [samples[0].image])])
    times = result.times
    assert min(times.queue, times.encode, times.prefill, times.decode) >= 0
    assert times.queue + times.encode + times.prefill == pytest.approx(times.first_token)
