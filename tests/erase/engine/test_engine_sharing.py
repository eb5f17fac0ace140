"""Who gets the engine's time: decoding goes on beside long prefills, priorities have their shares."""

import pytest
from engine_cases import Recorder, alone, ask, held, mixture, results, running, same

from erase.engine import EngineLimits
from erase.engine import limits as limits_module
from erase.errors import InputError


def test_decoding_goes_on_while_others_prefill(endless, samples):
    """A prefill that others wait beside is cut into slices of a layer or more."""
    recorder = Recorder()
    big = samples[0].image.resize((672, 672))
    with running(endless, recorder, prefill_share=0.01) as engine:
        first = engine.submit(ask(endless, samples[0].question, [samples[0].image], max_tokens=400))
        next(first.events())
        before = len(recorder.steps)
        engine.submit(ask(endless, samples[0].question, [big], max_tokens=1)).result()
        steps = recorder.steps[before:]
        first.cancel()
    assert ("prefill", 1) in steps
    layers = endless.adapter.depth + len(endless.model.model.visual.blocks)
    assert steps.index(("prefill", 1)) >= layers / 2


def test_slices_change_no_answer(endless, samples, pruned):
    questions = mixture(endless, samples, pruned)
    expected = alone(endless, questions)
    for share in (0.01, 0.99):
        with running(endless, prefill_share=share, max_prefill_tokens=100) as engine:
            assert all(same(one, other) for one, other in zip(results(engine, questions), expected, strict=True))


def test_a_sequence_cancelled_in_the_middle_of_a_shared_prefill_leaves_its_neighbours_alone(endless, samples):
    recorder = Recorder()
    questions = [ask(endless, sample.question, [sample.image], max_tokens=5) for sample in samples[1:4]]
    expected = alone(endless, questions)
    with running(endless, recorder, prefill_share=0.001) as engine:
        talker = engine.submit(ask(endless, samples[0].question, [samples[0].image], max_tokens=2000))
        next(talker.events())
        handles = [engine.submit(question) for question in questions]
        recorder.wait_for_load(lambda load: load[1] == 0 and load[0] > 1)
        handles[1].cancel()
        for number in (0, 2):
            assert same(handles[number].result(), expected[number])
        talker.cancel()
        recorder.wait_for_load(lambda load: load == (0, 0, 0.0))
        assert engine._pool.used == 0


def test_batch_work_neither_starves_nor_holds_up_the_others(endless, samples):
    order = []
    question = ask(endless, "what is speed ?", max_tokens=2)
    tokens = len(question.prompt.tokens)

    class Watching(Recorder):
        def stepped(self, phase, batch):
            super().stepped(phase, batch)
            if phase == "prefill":
                order.append(engine._running[-1].sequence.priority)

    with running(endless, Watching(), max_running=2, max_prefill_tokens=tokens, interactive_share=0.75) as engine:
        with held(engine, endless):
            handles = [
                engine.submit(ask(endless, "what is speed ?", max_tokens=2, priority=priority))
                for priority in ["batch"] * 8 + ["interactive"] * 24
            ]
        for handle in handles:
            handle.result()
    order = order[1:]  # the first held the engine
    assert order[:24].count("interactive") in (17, 18, 19)
    assert order.index("interactive") <= 1


def test_a_deterministic_engine_computes_every_sequence_by_itself(endless, samples, pruned):
    questions = mixture(endless, samples, pruned)
    expected = alone(endless, questions)
    recorder = Recorder()
    with running(endless, recorder, deterministic=True) as engine:
        assert all(same(one, other) for one, other in zip(results(engine, questions), expected, strict=True))
    assert {batch for _, batch in recorder.steps} == {1}
    assert max(running for running, _, _ in recorder.loads) > 1


@pytest.mark.parametrize(("limit", "rows"), [("max", None), ("4096000", 1_024_000)], ids=["no limit", "a container"])
def test_the_pool_of_caches_fits_into_the_container(demo, tmp_path, monkeypatch, limit, rows):
    file = tmp_path / "memory.max"
    file.write_text(limit)
    monkeypatch.setattr(limits_module, "_CONTAINER_LIMIT", file)
    adapter = demo.adapter
    row = 2 * adapter.key_heads * adapter.head_dim * 4
    needed = 8 * demo.context_length * adapter.depth
    assert EngineLimits().pool_rows(demo, demo.context_length) == (needed if rows is None else rows // row)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_prefill_tokens": 0},
        {"cache_tokens": 0},
        {"feature_cache_bytes": -1},
        {"min_vision_tokens": -1},
        {"prefill_share": 1.0},
    ],
    ids=str,
)
def test_limits_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        EngineLimits(**wrong)
