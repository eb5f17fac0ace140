"""Prompts with few vision tokens: below the engine's minimum stage 2 is left out, and the result says so."""

import pytest
from engine_cases import ask, results, running, same

import erase
from erase.methods import method_for


def test_below_the_minimum_what_repeats_is_still_dropped_before_the_decoder(demo, samples):
    method = method_for(erase.DistinctPolicy(0.1))
    sequence = ask(demo, samples[0].question, [samples[0].image], method=method)
    first, late = method.plan(sequence.preselection, demo.adapter.architecture)
    with running(demo, min_vision_tokens=10_000) as engine:
        (answer,) = results(engine, [sequence])
    assert first.keep > late.keep
    assert len(answer.entered) == len(answer.kept) == first.keep < len(sequence.preselection.kept)
    assert answer.stage2_skipped


@pytest.fixture(scope="module", params=[erase.BudgetPolicy(0.1), erase.preset("qwen2.5-vl-7b")], ids=["budget", "bins"])
def method(request):
    return method_for(request.param)


def test_at_the_minimum_all_is_pruned_as_without_one(demo, samples, method):
    sequence = ask(demo, samples[0].question, [samples[0].image], method=method)
    with running(demo, min_vision_tokens=sequence.preselection.tokens) as engine:
        (at_minimum,) = results(engine, [sequence])
    with running(demo, min_vision_tokens=0) as engine:
        (without,) = results(engine, [sequence])
    assert same(at_minimum, without)
    assert at_minimum.cuts
    assert not at_minimum.stage2_skipped


def test_below_the_minimum_only_stage_1_prunes(demo, samples, method):
    sequence = ask(demo, samples[0].question, [samples[0].image], method=method)
    before, kept = sequence.preselection.tokens, sequence.preselection.kept
    assert len(kept) < before
    with running(demo, min_vision_tokens=before + 1) as engine:
        (answer,) = results(engine, [sequence])
    assert answer.stage2_skipped
    assert answer.cuts == ()
    assert answer.kept.tolist() == kept.tolist()
    assert set(answer.cache_lengths) == {len(sequence.prompt.tokens) - before + len(kept)}


def test_the_images_of_a_prompt_count_together(demo, samples, method):
    images = [sample.image for sample in samples[:2]]
    sequence = ask(demo, samples[0].question, images, method=method)
    with running(demo, min_vision_tokens=sequence.preselection.tokens) as engine:
        (answer,) = results(engine, [sequence])
    assert not answer.stage2_skipped


def test_where_nothing_would_be_cut_nothing_is_reported(demo, samples):
    with running(demo, min_vision_tokens=10_000) as engine:
        answers = results(engine, [ask(demo, samples[0].question, [samples[0].image]), ask(demo, "what is speed ?")])
    assert not any(answer.stage2_skipped for answer in answers)
