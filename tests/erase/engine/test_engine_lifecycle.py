"""How sequences end when they do not answer, and what that does to their neighbours."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from engine_cases import TIMEOUT_S, Failing, Gate, Recorder, again, alone, ask, collect, held, mixture, running, same

from erase.engine import (
    CancelledError,
    ContextLengthError,
    DeadlineError,
    Engine,
    EngineError,
    EngineLimits,
    EngineStoppedError,
    SamplingParams,
)
from erase.engine import answers as answers_module
from erase.engine import engine as engine_module
from erase.engine import stage as stage_module
from erase.engine.stage import PrefillStage
from erase.errors import InputError


class Clock(SimpleNamespace):
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(engine_module, "time", clock)
    return clock


@pytest.fixture
def long(endless, samples, pruned):
    """An answer that takes thousands of steps."""
    return ask(endless, samples[0].question, [samples[0].image], method=pruned, max_tokens=3000)


@pytest.fixture
def neighbours(endless, samples, pruned):
    """Three sequences and their answers."""
    questions = mixture(endless, samples, pruned)[:3]
    return list(zip(questions, alone(endless, questions), strict=True))


def test_a_running_sequence_can_be_cancelled(endless, long):
    with running(endless) as engine:
        handle = engine.submit(long)
        next(handle.events())
        handle.cancel()
        with pytest.raises(CancelledError):
            handle.result()
        assert engine.alive


def test_a_waiting_sequence_can_be_cancelled_without_ever_running(endless, long):
    recorder = Recorder()
    with running(endless, recorder, max_running=1) as engine:
        first, second = engine.submit(long), engine.submit(long)
        next(first.events())
        second.cancel()
        with pytest.raises(CancelledError):
            second.result()
        first.cancel()
    assert recorder.steps.count(("prefill", 1)) == 1


def test_cancelling_an_ended_sequence_is_harmless(endless):
    with running(endless) as engine:
        handle = engine.submit(ask(endless, "what ?", max_tokens=2))
        result = handle.result()
        handle.cancel()
        assert handle.result() is result


def test_a_sequence_that_waits_past_its_deadline_never_runs(endless, clock):
    recorder = Recorder()
    with running(endless, recorder) as engine:
        with held(engine, endless):
            late = engine.submit(ask(endless, "what ?", deadline=clock.now + 5))
            clock.now += 6
        with pytest.raises(DeadlineError):
            late.result()
    assert recorder.steps == [("prefill", 1)]


def test_a_running_sequence_ends_at_its_deadline(endless, long, clock):
    with running(endless) as engine:
        handle = engine.submit(again(long, deadline=clock.now + 5))
        next(handle.events())
        clock.now += 6
        with pytest.raises(DeadlineError):
            handle.result()


def test_a_second_attempt_never_shares_a_step_and_nobody_overtakes_it(endless, samples):
    recorder = Recorder()
    question = ask(endless, samples[0].question, [samples[0].image], max_tokens=7)
    batches = [(3, 1), (1, 2), (2, 1)]  # sequences, attempt
    with running(endless, recorder) as engine:
        with held(engine, endless):
            handles = [engine.submit(again(question, attempt=attempt)) for n, attempt in batches for _ in range(n)]
        answers = [handle.result() for handle in handles]
    expected = [("prefill", 1)]
    for size, _ in batches:
        expected += [("prefill", size), *[("decode", size)] * 6]
    assert recorder.steps == expected
    assert all(same(answer, answers[0]) for answer in answers)


def test_stopping_ends_running_and_waiting_sequences(endless, long):
    recorder = Recorder()
    with running(endless, recorder, max_running=1) as engine:
        handles = [engine.submit(long) for _ in range(3)]
        next(handles[0].events())
        engine.stop()
        for handle in handles:
            with pytest.raises(EngineStoppedError):
                handle.result()
        assert recorder.loads[-1] == (0, 0, 0.0)
        assert not engine.alive
        with pytest.raises(EngineStoppedError):
            engine.submit(long)
        engine.stop()


def test_an_engine_that_was_never_started_takes_nothing_and_can_be_stopped(demo):
    engine = Engine(demo)
    with pytest.raises(EngineStoppedError):
        engine.submit(ask(demo, "what ?"))
    engine.stop()
    assert not engine.alive


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_dies_is_not_alive_and_ends_what_it_holds(endless, long):
    class Broken(Recorder):
        def stepped(self, phase: str, batch: int) -> None:
            raise MemoryError(phase)

    engine = Engine(endless, EngineLimits(max_running=1), Broken())
    engine.start()
    handles = []
    try:
        handles += [engine.submit(long) for _ in range(3)]
    except EngineStoppedError:
        assert handles
    for handle in handles:
        with pytest.raises(EngineStoppedError):
            handle.result()
    assert not engine.alive
    with pytest.raises(EngineStoppedError):
        engine.submit(long)
    engine.stop()


def test_an_engine_that_was_idle_for_long_has_not_stalled(endless, clock):
    gate = Gate()
    with running(endless) as engine:
        clock.now += 1000
        assert engine.stalled_for == 0
        handle = engine.submit(ask(endless, "?", method=gate, max_tokens=1))
        assert gate.reached.wait(TIMEOUT_S)
        assert engine.stalled_for == 0
        clock.now += 50
        assert engine.stalled_for == 50
        gate.opened.set()
        handle.result()


@pytest.fixture
def slow_layers(endless, clock, monkeypatch):
    """Every layer of the decoder takes a minute; a function to call in each can be added."""
    adapter, called = endless.adapter, []
    finish = adapter.finish_layer

    def slow(*arguments):
        clock.now += 60
        for call in called:
            call()
        return finish(*arguments)

    monkeypatch.setattr(stage_module, "time", clock)
    monkeypatch.setattr(adapter, "finish_layer", slow)
    return called


def test_a_long_prefill_is_no_stall(endless, samples, slow_layers):
    stalls = []
    with running(endless) as engine:
        slow_layers.append(lambda: stalls.append(engine.stalled_for))
        engine.submit(ask(endless, samples[0].question, [samples[0].image], max_tokens=1)).result()
    assert len(stalls) == endless.adapter.depth
    assert max(stalls) <= 60


def test_a_prefill_that_nobody_needs_any_more_ends_early(endless, samples, slow_layers):
    ran = []
    with running(endless) as engine:
        slow_layers.append(lambda: ran.append(handle.cancel()))
        handle = engine.submit(ask(endless, samples[0].question, [samples[0].image], max_tokens=1))
        with pytest.raises(CancelledError):
            handle.result()
    assert len(ran) == 1


def test_a_long_prefill_one_by_one_after_a_failure_is_no_stall_either(
    endless, samples, pruned, slow_layers, neighbours
):
    stalls = []
    culprit = ask(endless, samples[0].question, [samples[0].image], method=Failing(pruned))
    with running(endless) as engine:
        slow_layers.append(lambda: engine._stage and stalls.append(engine.stalled_for))
        with held(engine, endless):
            handles = [engine.submit(sequence) for sequence in (culprit, *(one for one, _ in neighbours))]
        with pytest.raises(EngineError):
            handles[0].result()
        for handle, (_, expected) in zip(handles[1:], neighbours, strict=True):
            assert same(handle.result(), expected)
    assert len(stalls) > 2 * endless.adapter.depth
    assert max(stalls) <= 60


def test_prompt_and_answer_must_fit_into_the_context(endless):
    question = ask(endless, "what is speed ?", max_tokens=10)
    room = len(question.prompt.tokens) + 10
    with running(endless, context_length=room) as engine:
        assert engine.context_length == room
        assert len(engine.submit(question).result().tokens) == 10
        with pytest.raises(ContextLengthError, match=f"up to 11 more.*the context holds {room}"):
            engine.submit(again(question, max_tokens=11))
        scored = engine.submit(again(question, max_tokens=11, score_only=(57,) * 10))
        assert scored.result().log_likelihood is not None
        with pytest.raises(ContextLengthError):
            engine.submit(again(question, score_only=(57,) * 11))
    assert Engine(endless, EngineLimits(context_length=10**9)).context_length == endless.context_length


def test_a_sequence_that_fails_in_a_packed_prefill_fails_alone(endless, samples, pruned, neighbours):
    recorder = Recorder()
    culprit = ask(endless, samples[0].question, [samples[0].image], method=Failing(pruned))
    with running(endless, recorder) as engine:
        with held(engine, endless):
            bad = engine.submit(culprit)
            good = [engine.submit(question) for question, _ in neighbours]
        with pytest.raises(EngineError, match=r"^prefill failed$") as caught:
            bad.result()
        assert "ArithmeticError" in caught.value.reason
        for handle, (_, expected) in zip(good, neighbours, strict=True):
            assert same(handle.result(), expected)
        recorder.wait_for_load(lambda load: load == (0, 0, 0.0))
        assert engine.alive


@pytest.mark.parametrize("number", [0, 2])
def test_a_sequence_whose_token_cannot_be_chosen_fails_alone(endless, neighbours, monkeypatch, number):
    def choose(logits, params, step):
        if params.seed == 666 and step == number:
            raise ArithmeticError("no token")
        return next_token(logits, params, step)

    next_token = answers_module.next_token
    monkeypatch.setattr(answers_module, "next_token", choose)
    with running(endless) as engine:
        with held(engine, endless):
            bad = engine.submit(ask(endless, "what ?", seed=666))
            good = [engine.submit(question) for question, _ in neighbours]
        ids, _ = collect(bad)
        with pytest.raises(EngineError, match=r"failed$") as caught:
            bad.result()
        assert "ArithmeticError: no token" in caught.value.reason
        assert len(ids) == number
        for handle, (_, expected) in zip(good, neighbours, strict=True):
            assert same(handle.result(), expected)


def test_a_step_that_fails_half_way_for_all_is_repeated_one_by_one(endless, neighbours, monkeypatch):
    failures = []

    def finish_layer(layer, hidden, attended):
        if layer == 5 and len(hidden) == len(neighbours) > len(failures):
            failures.append(layer)
            raise MemoryError("too many")
        return stock(layer, hidden, attended)

    stock = endless.adapter.finish_layer
    monkeypatch.setattr(endless.adapter, "finish_layer", finish_layer)
    recorder = Recorder()
    with running(endless, recorder) as engine:
        with held(engine, endless):
            good = [engine.submit(question) for question, _ in neighbours]
        for handle, (_, expected) in zip(good, neighbours, strict=True):
            assert same(handle.result(), expected)
    assert len(failures) == len(neighbours)
    assert recorder.steps.count(("decode", 1)) >= 3 * len(failures)


def test_a_token_that_cannot_become_text_fails_its_sequence_alone(endless, neighbours, monkeypatch):
    def decode(ids, **settings):
        if 666 in ids:
            raise OverflowError("no such token")
        return stock(ids, **settings)

    stock = endless.tokenizer.decode
    monkeypatch.setattr(endless.tokenizer, "decode", decode)
    with running(endless) as engine:
        bad = engine.submit(ask(endless, "what ?", forced_prefix=(57, 666)))
        good = [engine.submit(question) for question, _ in neighbours]
        with pytest.raises(EngineError) as caught:
            bad.result()
        assert "OverflowError" in caught.value.reason
        for handle, (_, expected) in zip(good, neighbours, strict=True):
            assert same(handle.result(), expected)


def test_a_prefill_that_cannot_begin_together_begins_one_by_one(endless, neighbours, monkeypatch):
    refused = []

    class Stage(PrefillStage):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            if len(self.entries) > 1 or self.entries[0].sequence.sampling.seed == 666:
                refused.append(len(self.entries))
                raise MemoryError

    monkeypatch.setattr("erase.engine.engine.PrefillStage", Stage)
    with running(endless) as engine:
        with held(engine, endless):
            bad = engine.submit(ask(endless, "what ?", seed=666))
            good = [engine.submit(question) for question, _ in neighbours]
        with pytest.raises(EngineError, match=r"^prefill failed$") as caught:
            bad.result()
        assert "MemoryError" in caught.value.reason
        for handle, (_, expected) in zip(good, neighbours, strict=True):
            assert same(handle.result(), expected)
        assert engine._pool.used == 0
    assert max(refused) == len(neighbours) + 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_device_that_has_failed_ends_the_engine_and_no_sequence_is_blamed(endless, neighbours, monkeypatch, phase):
    broken = threading.Event()
    stock = endless.adapter.finish_layer

    def finish_layer(layer, hidden, attended):
        if broken.is_set():
            raise RuntimeError("the device is gone")
        return stock(layer, hidden, attended)

    def require_device(self):
        if broken.is_set():
            raise RuntimeError("the device is gone")

    monkeypatch.setattr(endless.adapter, "finish_layer", finish_layer)
    monkeypatch.setattr(Engine, "_require_device", require_device)
    with running(endless, max_running=2) as engine:
        gate = pytest.raises(EngineStoppedError) if phase == "prefill" else nullcontext()
        with gate, held(engine, endless):
            handles = [engine.submit(again(question, max_tokens=100)) for question, _ in neighbours]
            if phase == "prefill":
                broken.set()
        if phase == "decode":
            next(handles[0].events())
            broken.set()
        for handle in handles:
            with pytest.raises(EngineStoppedError):
                handle.result()
        assert not engine.alive


def test_errors_tell_clients_nothing_of_the_inside(endless, samples, pruned):
    with running(endless) as engine:
        handle = engine.submit(ask(endless, "what ?", [samples[0].image], method=Failing(pruned)))
        with pytest.raises(EngineError) as caught:
            handle.result()
    assert str(caught.value) == "prefill failed"
    assert caught.value.whole == f"prefill failed ({handle.sequence_id}, {Failing.name}: ArithmeticError: no scores)"


def test_several_threads_can_wait_for_one_result(endless):
    with running(endless) as engine:
        with held(engine, endless):
            handle = engine.submit(ask(endless, "what ?", max_tokens=3))
            outcomes = []
            threads = [threading.Thread(target=lambda: outcomes.append(handle.result())) for _ in range(3)]
            for thread in threads:
                thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
    assert len(outcomes) == 3
    assert len(set(map(id, outcomes))) == 1


def test_many_threads_can_submit_at_once(endless, neighbours):
    answers = {}

    def run(index: int) -> None:
        answers[index] = engine.submit(neighbours[index % 3][0]).result()

    with running(endless, max_running=3) as engine:
        threads = [threading.Thread(target=run, args=(index,)) for index in range(9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
    assert len(answers) == 9
    assert all(same(answer, neighbours[index % 3][1]) for index, answer in answers.items())


def test_a_prompt_longer_than_the_prefill_budget_runs_by_itself(endless, neighbours):
    recorder = Recorder()
    with running(endless, recorder, max_prefill_tokens=1) as engine:
        with held(engine, endless):
            handles = [engine.submit(question) for question, _ in neighbours]
        for handle, (_, expected) in zip(handles, neighbours, strict=True):
            assert same(handle.result(), expected)
    assert {batch for phase, batch in recorder.steps if phase == "prefill"} == {1}
    assert max(batch for phase, batch in recorder.steps if phase == "decode") == 3


def test_events_come_while_the_answer_is_still_being_made(endless, long):
    with running(endless) as engine:
        handle = engine.submit(long)
        events = handle.events()
        for _ in range(3):
            assert len(next(events).ids) == 1
        assert engine.alive
        handle.cancel()
        ids, _ = collect(handle)
        assert len(ids) < 2990


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"stop": ("", "x")},
    ],
    ids=str,
)
def test_sampling_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError, match="must"):
        SamplingParams(**wrong)


def test_an_engine_that_could_never_run_anything_is_refused():
    with pytest.raises(InputError, match="max_running"):
        EngineLimits(max_running=0)


def test_the_engine_computes_with_its_own_number_of_threads_and_nobody_else_with_it(endless, samples, pruned):
    class Counting(Recorder):
        threads = 0

        def stepped(self, phase, batch):
            self.threads = torch.get_num_threads()

    def of_a_new_thread() -> int:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(torch.get_num_threads).result()

    recorder = Counting()
    before = torch.get_num_threads()
    with running(endless, recorder, cpu_threads=before + 2) as engine:
        engine.submit(ask(endless, samples[0].question, [samples[0].image], method=pruned)).result()
        assert recorder.threads == before + 2
        assert torch.get_num_threads() == of_a_new_thread() == before
    assert torch.get_num_threads() == of_a_new_thread() == before


def test_an_engine_whose_thread_cannot_begin_does_not_keep_anybody_waiting(endless, monkeypatch):
    real = engine_module.use_threads

    def refuse(count: int) -> None:
        if threading.current_thread().name == "engine":
            raise RuntimeError("no threads left")
        real(count)

    monkeypatch.setattr(engine_module, "use_threads", refuse)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    engine = Engine(endless, EngineLimits())
    engine.start()
    engine._thread.join(TIMEOUT_S)
    assert not engine.alive


def test_a_stopped_engine_gives_its_memory_back_at_once(endless, samples, pruned):
    with running(endless) as engine:
        engine.submit(ask(endless, samples[0].question, [samples[0].image], method=pruned)).result()
        pool = weakref.ref(engine._pool)
    gc.disable()
    try:
        del engine
        assert pool() is None
    finally:
        gc.enable()
