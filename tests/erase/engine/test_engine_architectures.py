"""The packed engine is `pruning()` in another form: same sets, cuts, caches and logits, whatever shares a prefill."""

import itertools
from functools import cache

import pytest
import torch
from batch_cases import BUILDERS, POLICIES, Prompt, inputs_of, prompts, pruned, tiny
from engine_cases import Packed, bare, bare_sequence, results, running
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from erase.engine import Sequence
from erase.engine.prefill import PackedPrompt
from erase.methods import method_for
from erase.models.loading import LoadedModel

STEPS = 4
CLOSE = {"rtol": 0, "atol": 1e-4}
by_kind = pytest.mark.parametrize("kind", BUILDERS)

ALL_METHODS = [
    Prompt(policy, sizes, before=number % 4, between=number % 3, after=1 + number, seed=number)
    for number, (policy, sizes) in enumerate(
        zip(POLICIES, [((3, 4),), ((2, 2), (1, 3)), (), ((3, 3), (3, 2), (1, 1))] * 3, strict=False)
    )
]


@cache
def loaded(kind: str) -> LoadedModel:
    return bare(tiny(kind))


def sequence_of(kind: str, prompt: Prompt, **others) -> Sequence:
    own, model = loaded(kind), tiny(kind)
    method = method_for(POLICIES[prompt.policy])
    return bare_sequence(own, prompt.ids(model)[None], prompt.images(model), method, max_tokens=STEPS, **others)


def packed(kind: str, batch: list[Prompt]) -> tuple[list[PackedPrompt], list[tuple[int, ...]], Tensor]:
    """All in one prefill and common greedy steps: prompts, cache lengths, logits [prompts, steps, vocabulary]."""
    done = Packed(loaded(kind).adapter, [sequence_of(kind, prompt) for prompt in batch])
    return done.prompts, done.lengths, done.greedy(STEPS)


def stock_call(kind: str, prompt: Prompt):
    """Trace and logits [steps, vocabulary] of the prompt in `pruning()`."""
    model = tiny(kind)
    with pruned(model, [prompt]) as trace:
        output = model.generate(
            **inputs_of(model, [prompt]),
            max_new_tokens=STEPS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    return trace.calls[0].prompts[0], torch.cat(output.logits)


def assert_same_run(prompt: PackedPrompt, lengths: tuple[int, ...], logits: Tensor, trace, expected: Tensor) -> None:
    assert prompt.sequence.preselection.kept.tolist() == trace.stage1_kept.tolist()
    own = [(cut.layer, cut.kept.tolist()) for cut in prompt.rows.done]
    assert own == [(cut.layer, cut.kept.tolist()) for cut in trace.cuts]
    assert lengths == trace.cache_lengths
    for mine, yours in zip(logits, expected, strict=True):
        torch.testing.assert_close(mine, yours, **CLOSE)
        if mine.argmax() != yours.argmax():
            first, second = yours.topk(2).values
            assert first - second < CLOSE["atol"]
            return


@settings(max_examples=20, deadline=None, derandomize=True)
@given(kind=st.sampled_from(list(BUILDERS)), batch=st.lists(prompts(), min_size=1, max_size=4))
def test_a_packed_prefill_is_its_prompts_in_pruning(kind, batch):
    for prompt, *own in zip(batch, *packed(kind, batch), strict=True):
        assert_same_run(*own, *stock_call(kind, prompt))


@by_kind
def test_all_methods_share_a_prefill_in_any_order(kind):
    expected = [stock_call(kind, prompt) for prompt in ALL_METHODS]
    assert len({trace.cache_lengths for trace, _ in expected}) > 5
    for order in (slice(None), slice(None, None, -1)):
        for *own, (trace, logits) in zip(*packed(kind, ALL_METHODS[order]), expected[order], strict=True):
            assert_same_run(*own, trace, logits)


@by_kind
def test_a_prompt_holds_nothing_of_its_neighbours_and_no_features_that_are_added(kind):
    more, held = [], []

    def look(prefill):
        for prompt in prefill.prompts:
            held.append(len(prompt.deep))
            for part in itertools.chain(*prompt.waiting.values()):
                more.append(part.untyped_storage().nbytes() - part.nbytes)

    Packed(loaded(kind).adapter, [sequence_of(kind, prompt) for prompt in ALL_METHODS], look=look)
    assert more
    assert not any(more)
    assert any(held) == (kind == "qwen3_vl")
    assert not any(held[-len(ALL_METHODS) :])


@pytest.mark.parametrize("limits", [{}, {"max_running": 3}, {"max_prefill_tokens": 150}], ids=str)
@by_kind
def test_submitted_sequences_answer_as_pruning_does(kind, limits):
    with running(loaded(kind), **limits) as engine:
        answers = results(engine, [sequence_of(kind, prompt) for prompt in ALL_METHODS])
    for prompt, result in zip(ALL_METHODS, answers, strict=True):
        trace, logits = stock_call(kind, prompt)
        first, second = logits.topk(2).values.T
        assert (first - second > CLOSE["atol"]).all()
        assert list(result.tokens) == logits.argmax(-1).tolist()
        assert result.kept.tolist() == (trace.cuts[-1].kept if trace.cuts else trace.stage1_kept).tolist()
        assert result.cache_lengths == trace.cache_lengths


@by_kind
def test_a_given_answer_is_as_likely_as_in_pruning(kind):
    model, answer = tiny(kind), (40, 9, 77, 120)
    with running(loaded(kind)) as engine:
        scored = results(engine, [sequence_of(kind, prompt, score_only=answer) for prompt in ALL_METHODS])
    for prompt, result in zip(ALL_METHODS, scored, strict=True):
        with torch.no_grad(), pruned(model, [prompt]):
            output = model(**inputs_of(model, [prompt]))
            after = model(input_ids=torch.tensor([answer[:-1]]), past_key_values=output.past_key_values)
        logits = torch.cat([output.logits[0, -1:], after.logits[0]])
        likelihood = logits.log_softmax(-1)[range(len(answer)), answer].sum()
        assert result.log_likelihood == pytest.approx(float(likelihood), abs=1e-4)
