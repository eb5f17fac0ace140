"""What the engine holds: the pool of caches shared by preemption, and features of images that were asked about."""

import math
import random
import time
from collections import Counter, deque
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from engine_cases import Packed, Recorder, again, alone, ask, held, mixture, results, running, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import erase
from erase.engine import CancelledError, ContextLengthError, DeadlineError, EngineError
from erase.engine.cache import CachePool
from erase.engine.images import FeatureCache
from erase.engine.running import RunningSequence
from erase.engine.text import TextStream
from erase.methods import method_for
from erase.methods.base import Method
from erase.models.base import VisionFeatures
from erase.models.prompt import prepare_images

CPU = torch.device("cpu")
ROOM = 8
LONG = 3 * ROOM


class Counting(Method):
    """Counts how often it is asked for scores."""

    name = "counting"

    def __init__(self, inner: Method) -> None:
        self.inner = inner
        self.scored = 0

    def preselect(self, images):
        return self.inner.preselect(images)

    def cuts(self, preselection, architecture):
        return self.inner.cuts(preselection, architecture)

    def score(self, context):
        self.scored += 1
        return self.inner.score(context)


@pytest.fixture(autouse=True)
def small_room(monkeypatch):
    """Answers outgrow their first room soon."""
    monkeypatch.setattr("erase.engine.running.FIRST_ROOM", ROOM)


@pytest.fixture(scope="module")
def long_answers(demo, samples, pruned):
    """Sequences whose answers outgrow their first room, and each one's answer by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo.model.generation_config, "eos_token_id", None)
        questions = [again(question, max_tokens=LONG) for question in mixture(demo, samples, pruned)[:5]]
        return questions, alone(demo, questions)


def tokens_needed(question, answer):
    """Cache tokens of a sequence at its end, averaged over layers."""
    return sum(answer.cache_lengths) / len(answer.cache_lengths) + LONG


def test_sequences_that_outgrow_the_pool_take_turns_and_answer_as_alone(endless, long_answers):
    questions, expected = long_answers
    capacity = round(max(map(tokens_needed, questions, expected))) + ROOM
    recorder = Recorder()
    with running(endless, recorder, cache_tokens=capacity) as engine:
        with held(engine, endless):
            handles = [engine.submit(question) for question in questions]
        assert all(same(handle.result(), answer) for handle, answer in zip(handles, expected, strict=True))
        recorder.wait_for_load(lambda load: load == (0, 0, 0.0))
        assert engine._pool.used == 0
    assert recorder.preemptions > 0
    assert max(tokens for _, _, tokens in recorder.loads) <= capacity


def test_a_preempted_sequence_keeps_the_vision_tokens_it_kept_without_scoring_again(endless, samples, pruned):
    method = Counting(pruned)
    sample = samples[0]
    questions = [ask(endless, sample.question, [sample.image], method=method, max_tokens=LONG) for _ in range(3)]
    (expected,) = alone(endless, questions[:1])
    cuts = method.scored
    prompt = tokens_needed(questions[0], expected) - LONG
    capacity = round(2 * (prompt + ROOM)) + 4  # two may begin, and only one can end
    recorder = Recorder()
    with running(endless, recorder, cache_tokens=capacity) as engine:
        with held(engine, endless):
            handles = [engine.submit(question) for question in questions]
        assert all(same(handle.result(), expected) for handle in handles)
    assert recorder.preemptions > 0
    assert method.scored == (1 + len(questions)) * cuts


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([None, None, 0, 5, 13])), min_size=2, max_size=6),
    st.integers(0, 100),
)
def test_cancels_under_preemption_change_no_answer_and_leak_nothing(endless, long_answers, plan, spare):
    questions, expected = long_answers
    capacity = round(max(map(tokens_needed, questions, expected))) + spare
    recorder = Recorder()
    with running(endless, recorder, cache_tokens=capacity) as engine:
        handles = [engine.submit(again(questions[index])) for index, _ in plan]
        for handle, (_, cancel_after) in zip(handles, plan, strict=True):
            if cancel_after is not None:
                for _ in zip(range(cancel_after), handle.events(), strict=False):
                    pass
                handle.cancel()
        for handle, (index, cancel_after) in zip(handles, plan, strict=True):
            try:
                assert same(handle.result(), expected[index])
            except CancelledError:
                assert cancel_after is not None
        recorder.wait_for_load(lambda load: load == (0, 0, 0.0))
        assert engine._pool.used == 0


def test_a_long_run_of_arrivals_cancels_and_deadlines_leaks_nothing(endless, long_answers):
    questions, expected = long_answers
    rng = random.Random(1)
    capacity = round(max(map(tokens_needed, questions, expected))) + 2 * ROOM
    recorder = Recorder()
    ends = Counter()
    with running(endless, recorder, cache_tokens=capacity, prefill_share=0.3, max_running=4) as engine:
        pending = deque()
        for _ in range(150):
            index = rng.randrange(len(questions))
            late = rng.random() < 0.1
            handle = engine.submit(
                again(
                    questions[index],
                    priority=rng.choice(("interactive", "batch")),
                    attempt=1 + (rng.random() < 0.05),
                    deadline=time.monotonic() + 0.05 if late else None,
                )
            )
            pending.append((handle, index))
            if rng.random() < 0.15:
                rng.choice(pending)[0].cancel()
            while len(pending) > 12:
                handle, index = pending.popleft()
                try:
                    assert same(handle.result(), expected[index])
                    ends["answered"] += 1
                except (CancelledError, DeadlineError) as end:
                    ends[type(end).__name__] += 1
        for handle, _ in pending:
            handle.cancel()
        recorder.wait_for_load(lambda load: load == (0, 0, 0.0))
        assert engine._pool.used == 0
    assert recorder.preemptions > 0
    assert ends["answered"] > 60
    assert ends["CancelledError"] > 0


def test_a_sequence_that_could_never_fit_into_the_pool_is_refused_at_once(endless, samples):
    question = ask(endless, samples[0].question, [samples[0].image], max_tokens=10)
    tokens = len(question.prompt.tokens) + 10
    with running(endless, cache_tokens=tokens) as engine:
        assert engine.cache_capacity == tokens
        assert len(engine.submit(question).result().tokens) == 10
        with pytest.raises(ContextLengthError, match=f"take {tokens + 1} tokens of cache, but there are {tokens}"):
            engine.submit(again(question, max_tokens=11))


def test_pruning_lets_more_sequences_run_in_the_same_cache(endless, samples, pruned):
    question, image = samples[0].question, samples[0].image.resize((448, 448))
    most = {}
    for method in (None, pruned):
        recorder = Recorder()
        questions = [ask(endless, question, [image], method=method, max_tokens=8) for _ in range(12)]
        with running(endless, recorder, cache_tokens=700, max_running=12, max_prefill_tokens=10_000) as engine:
            with held(engine, endless):
                handles = [engine.submit(question) for question in questions]
            for handle in handles:
                handle.result()
        most[method] = max(count for count, _, _ in recorder.loads)
    assert most[pruned] >= 2 * most[None] > 0


def test_an_image_is_encoded_once_however_often_it_is_asked_about(endless, samples, pruned, monkeypatch):
    encoded = []
    real = endless.adapter.encode_steps
    monkeypatch.setattr(
        endless.adapter,
        "encode_steps",
        lambda pixels, grids, **how: encoded.append(len(grids)) or real(pixels, grids, **how),
    )
    one, two = samples[0], samples[3]
    assert one.image.tobytes() != two.image.tobytes()
    questions = [
        ask(endless, one.question, [one.image], max_tokens=6),
        ask(endless, one.question, [two.image, one.image], method=pruned, max_tokens=6),
        ask(endless, two.question, [one.image, one.image], max_tokens=6),
    ]
    expected = [alone(endless, [question])[0] for question in questions]
    assert encoded == [1, 2, 1]
    encoded.clear()
    recorder = Recorder()
    with running(endless, recorder) as engine:
        assert all(same(answer, own) for answer, own in zip(results(engine, questions * 2), expected * 2, strict=True))
    assert sum(encoded) == 2
    assert recorder.lookups[1] == 2


def test_images_that_differ_in_one_pixel_or_in_their_shape_are_different(demo, samples):
    image = samples[0].image.convert("RGB").resize((168, 112))
    changed = image.copy()
    red, green, blue = changed.getpixel((50, 50))
    changed.putpixel((50, 50), (red ^ 1, green, blue))
    turned = image.resize((112, 168))
    digests = [one.digest for one in prepare_images(demo, [image, changed, turned, image.copy()])]
    assert len(set(digests[:3])) == 3
    assert digests[3] == digests[0]


def test_the_feature_cache_forgets_what_was_not_used_for_longest():
    def features(value):
        return VisionFeatures(torch.full((10, 1), value), (torch.full((10, 1), value),))

    size = 2 * 10 * 4
    cache = FeatureCache(3 * size)
    for name in "abc":
        cache.put(name, features(float(ord(name))))
    assert cache.get("a") is not None
    cache.put("d", features(0.0))
    assert cache.get("b") is None
    assert [float(cache.get(name).tokens[0]) for name in "acd"] == [97.0, 99.0, 0.0]
    assert cache.bytes == 3 * size
    cache.put("huge", VisionFeatures(torch.zeros(1000)))
    assert cache.get("huge") is None
    assert (cache.hits, cache.misses) == (4, 2)


def test_features_that_are_kept_do_not_hold_on_to_those_of_their_neighbours():
    together = torch.zeros(1000, 4)
    cache = FeatureCache(10**6)
    cache.put("part", VisionFeatures(together[:2]))
    assert cache.get("part").tokens.untyped_storage().nbytes() == 2 * 4 * 4


def test_a_second_run_from_frozen_cuts_is_the_first_run(demo, samples, pruned):
    questions = mixture(demo, samples, pruned)
    first = Packed(demo.adapter, questions)
    second = Packed(
        demo.adapter,
        [again(question, frozen_cuts=prompt.done) for question, prompt in zip(questions, first.prompts, strict=True)],
    )
    assert torch.equal(first.logits, second.logits)
    assert any(prompt.done for prompt in first.prompts)


def test_the_oldest_is_never_preempted_not_even_while_the_youngest_are_prefilled(endless, long_answers, monkeypatch):
    (first, second), expected = long_answers[0][:2], long_answers[1][:2]
    prompts = [sum(answer.cache_lengths) / len(answer.cache_lengths) for answer in expected]
    preempted = []
    stock = RunningSequence.preempted
    monkeypatch.setattr(RunningSequence, "preempted", lambda self: preempted.append(self.sequence.id) or stock(self))
    monkeypatch.setattr("erase.engine.running.FIRST_ROOM", 2)
    capacity = math.ceil(sum(prompts)) + 2 * 2 + 1  # the older one needs more while the younger is prefilled
    with running(endless, cache_tokens=capacity, prefill_share=0.01) as engine:
        older = engine.submit(first)
        next(older.events())
        younger = engine.submit(second)
        assert same(older.result(), expected[0])
        assert same(younger.result(), expected[1])
    assert first.id not in preempted


def test_a_preempted_sequence_waits_anew_and_only_its_own_priority_waits(endless, long_answers):
    entry = RunningSequence(long_answers[0][0], TextStream(endless.tokenizer, ()), endless.adapter.architecture)
    entry.waits_since -= 100
    entry.take_cache(CachePool(10_000, endless.adapter.key_heads, endless.adapter.head_dim, torch.float32, CPU))
    entry._prompt = SimpleNamespace(done=(), cache=entry._cache)
    entry.preempted()
    assert time.monotonic() - entry.waits_since < 10
    with running(endless) as engine:
        with held(engine, endless):
            handle = engine.submit(ask(endless, "what ?", max_tokens=1, priority="batch"))
            time.sleep(0.02)
            assert engine.waits_for("batch") >= 0.02
            assert engine.waits_for("interactive") == 0.0
        handle.result()


def test_a_cache_that_cannot_grow_for_want_of_memory_fails_its_sequence_alone(endless, long_answers, monkeypatch):
    questions, expected = long_answers
    stock = RunningSequence.grow_cache

    def grow_cache(self):
        if self.sequence is questions[1] and len(self.tokens) > 3:
            raise MemoryError
        return stock(self)

    monkeypatch.setattr(RunningSequence, "grow_cache", grow_cache)
    with running(endless) as engine:
        handles = [engine.submit(question) for question in questions]
        with pytest.raises(EngineError) as caught:
            handles[1].result()
        assert "MemoryError" in caught.value.reason
        for handle, answer in zip(handles[2:], expected[2:], strict=True):
            assert same(handle.result(), answer)
        assert engine.alive


def test_with_little_text_a_quarter_of_the_vision_tokens_lets_three_times_as_many_share_the_cache(endless, samples):
    image = samples[0].image.resize((28 * 24, 28 * 12))
    policy = replace(erase.preset("qwen2.5-vl-7b", retention=0.25), layers=(1, 5))
    most = {}
    for name, method in (("unpruned", method_for(None)), ("pruned", method_for(policy))):
        sequences = [ask(endless, "what is ?", [image], method=method, max_tokens=8) for _ in range(16)]
        vision, text = sequences[0].preselection.tokens, len(sequences[0].prompt.tokens) + 8
        assert vision >= 8 * (text - vision)
        recorder = Recorder()
        with running(endless, recorder, max_running=16, max_prefill_tokens=10**6, cache_tokens=2 * text) as engine:
            with held(engine, endless):
                handles = [engine.submit(sequence) for sequence in sequences]
            for handle in handles:
                handle.result()
        most[name] = max(load[0] for load in recorder.loads)
    assert most["unpruned"] == 2
    assert most["pruned"] >= 3 * most["unpruned"]
