"""What else is in the batch must not change an answer."""

import gc
import weakref

import pytest
from engine_cases import Recorder, again, alone, ask, collect, held, mixture, results, running, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erase.engine import CancelledError, Result
from erase.engine.stage import PrefillStage


@pytest.fixture
def sequences(endless, samples, pruned):
    return mixture(endless, samples, pruned)


@pytest.fixture(scope="module")
def expected_answers(demo, samples, pruned):
    """Every sequence of the mixture by itself; the pair is built once for all examples of a property."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo.model.generation_config, "eos_token_id", None)
        questions = mixture(demo, samples, pruned)
        return questions, alone(demo, questions)


def test_a_mixed_batch_gives_the_answers_of_one_by_one(endless, sequences, expected_answers):
    recorder = Recorder()
    with running(endless, recorder, max_running=len(sequences)) as engine:
        with held(engine, endless):
            handles = [engine.submit(sequence) for sequence in sequences]
        for handle, expected in zip(handles, expected_answers[1], strict=True):
            assert same(handle.result(), expected)
    assert ("prefill", len(sequences)) in recorder.steps
    assert ("decode", len(sequences)) in recorder.steps


def test_the_order_in_a_batch_changes_nothing(endless, sequences, expected_answers):
    with running(endless, max_running=len(sequences)) as engine:
        answers = results(engine, sequences[::-1])
    assert all(same(one, other) for one, other in zip(answers[::-1], expected_answers[1], strict=True))


arrivals = st.lists(
    st.tuples(
        st.integers(0, 9),  # which question of the mixture
        st.integers(0, 12),  # tokens to wait for before the next one arrives
        st.sampled_from([None, None, None, 0, 1, 4]),  # tokens after which it is cancelled
        st.sampled_from([1, 1, 1, 2]),  # attempt
    ),
    min_size=2,
    max_size=9,
)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrivals, st.integers(1, 5), st.sampled_from([1, 150, 10_000]))
def test_arrivals_and_cancels_change_no_answer(endless, expected_answers, plan, max_running, max_prefill_tokens):
    questions, expected = expected_answers
    recorder = Recorder()
    with running(endless, recorder, max_running=max_running, max_prefill_tokens=max_prefill_tokens) as engine:
        handles = []
        for index, wait, cancel_after, attempt in plan:
            handle = engine.submit(again(questions[index], attempt=attempt))
            handles.append(handle)
            events = handle.events()
            for _ in zip(range(min(wait, cancel_after or wait)), events, strict=False):
                pass
            if cancel_after is not None:
                handle.cancel()
        for (index, _, cancel_after, _), handle in zip(plan, handles, strict=True):
            try:
                assert same(handle.result(), expected[index])
            except CancelledError:
                assert cancel_after is not None
        recorder.wait_for_load(lambda load: load == (0, 0, 0.0))
    assert max(running for running, _, _ in recorder.loads) <= max_running
    assert max((batch for _, batch in recorder.steps), default=0) <= max_running


def test_the_same_seed_draws_the_same_tokens_beside_anything(endless, samples, pruned, sequences):
    image, question = samples[1].image, samples[1].question
    draws = [ask(endless, question, [image], temperature=2.0, seed=seed, max_tokens=12) for seed in (1, 2, 3)]
    expected = alone(endless, draws)
    with running(endless, max_running=5) as engine:
        answers = results(engine, [sequences[0], draws[0], sequences[1], draws[1], *sequences[2:7], draws[2]])
    mixed = [answers[1], answers[3], answers[9]]
    assert all(same(one, other) for one, other in zip(mixed, expected, strict=True))
    assert len({result.tokens for result in expected}) == 3


def test_an_event_per_token_arrives_and_their_texts_are_the_answer(endless, sequences):
    with running(endless) as engine:
        for handle in [engine.submit(sequence) for sequence in sequences]:
            ids, text = collect(handle)
            result = handle.result()
            assert tuple(ids) == result.tokens
            assert text == result.text


def test_everything_is_freed_when_all_have_ended(endless, sequences, monkeypatch):
    caches = []

    def watched(stage):
        caches.extend(weakref.ref(prompt.cache) for prompt in stage._prefill.prompts)
        return finish(stage)

    finish = PrefillStage.finish
    monkeypatch.setattr(PrefillStage, "finish", watched)
    recorder = Recorder()
    with running(endless, recorder, max_running=3) as engine:
        handles = [engine.submit(sequence) for sequence in sequences]
        next(handles[0].events())
        handles[0].cancel()
        handles[-1].cancel()
        for handle in handles:
            try:
                assert isinstance(handle.result(), Result)
            except CancelledError:
                assert handle.cancelled
        recorder.wait_for_load(lambda load: load == (0, 0, 0.0))
        gc.collect()
        assert len(caches) >= len(sequences) - 2
        assert [cache for cache in caches if cache() is not None] == []
    assert any(tokens > 0 for _, _, tokens in recorder.loads)


def test_the_cache_that_is_reported_is_what_the_running_sequences_hold(endless, sequences):
    recorder = Recorder()
    question = sequences[0]
    with running(endless, recorder) as engine:
        result = engine.submit(question).result()
        recorder.wait_for_load(lambda load: load == (0, 0, 0.0))
    start = sum(result.cache_lengths) / endless.adapter.depth
    # The first step of the loop decodes once, too; the last token is never computed.
    assert [load for load in recorder.loads if load[0]] == [(1, 0, start + 1 + step) for step in range(8)]


def test_pruning_shrinks_the_cache(demo, samples, pruned):
    sample = samples[0]
    questions = [ask(demo, sample.question, [sample.image], method=method) for method in (None, pruned)]
    whole, cut = alone(demo, questions)
    assert whole.cache_lengths == (len(questions[0].prompt.tokens),) * 8
    assert max(cut.cache_lengths) < min(whole.cache_lengths)
