"""Packed prefill, compact cache and decode against the recorded behaviour of the authors' code."""

import pytest
import torch
from engine_cases import Packed, bare, golden_sequence, results, running
from erase_cases import CELLS, GoldenCase, cases_of

from erase.engine.prefill import PackedPrompt


@pytest.fixture(params=CELLS)
def name(request):
    return request.param


@pytest.fixture
def loaded(golden, name):
    return bare(golden(name))


@pytest.fixture
def cases(name):
    """Both revisions."""
    return cases_of(name)


def run(loaded, cases: list[GoldenCase]) -> tuple[list[PackedPrompt], list[tuple[int, ...]], torch.Tensor]:
    """All cases in one packed prefill and common steps: prompts, cache lengths, logits [cases, 8, vocabulary]."""
    packed = Packed(loaded.adapter, [golden_sequence(loaded, case) for case in cases])
    return packed.prompts, packed.lengths, packed.greedy(8)


def check(cases: list[GoldenCase], prompts, lengths, logits) -> None:
    for case, prompt, held, own in zip(cases, prompts, lengths, logits, strict=True):
        assert torch.equal(prompt.sequence.preselection.kept, case.tensors["stage1_kept"])
        assert [(cut.layer, cut.kept.tolist()) for cut in prompt.rows.done] == case.cuts
        assert list(held) == case.entry["cache_lengths"]
        assert prompt.cache.lengths == tuple(length + 7 for length in held)
        torch.testing.assert_close(own, case.tensors["logits"], rtol=0, atol=1e-4)
        assert torch.equal(own.argmax(-1), case.tensors["generated"])


def last_kept(case: GoldenCase) -> list[int]:
    return case.cuts[-1][1] if case.cuts else case.tensors["stage1_kept"].tolist()


def test_a_prompt_alone_reproduces_the_recorded_run(golden, golden_case):
    check([golden_case], *run(bare(golden(golden_case.entry["model"])), [golden_case]))


def test_all_prompts_of_both_revisions_packed_together_reproduce_their_recorded_runs(loaded, cases):
    assert {case.entry["revision"] for case in cases} == {1, 2}
    check(cases, *run(loaded, cases))
    mixed = cases[::-2] + cases[::2]
    check(mixed, *run(loaded, mixed))


@pytest.mark.parametrize("limits", [{}, {"max_running": 2}, {"max_prefill_tokens": 120}], ids=str)
def test_the_engine_reproduces_the_recorded_runs_however_it_batches_them(loaded, cases, limits):
    with running(loaded, **limits) as engine:
        for case, result in zip(cases, results(engine, [golden_sequence(loaded, case) for case in cases]), strict=True):
            assert list(result.tokens) == case.tensors["generated"].tolist()
            assert result.kept.tolist() == last_kept(case)
            assert [cut.after_layers for cut in result.cuts] == [layer for layer, _ in case.cuts]
            assert list(result.cache_lengths) == case.entry["cache_lengths"]
            assert result.finish_reason == "length"


@pytest.mark.parametrize("split", range(1, 8))
def test_recorded_answers_can_be_resumed_anywhere(loaded, cases, split):
    sequences = [
        golden_sequence(loaded, case, forced_prefix=tuple(case.tensors["generated"][:split].tolist())) for case in cases
    ]
    with running(loaded) as engine:
        for case, result in zip(cases, results(engine, sequences), strict=True):
            assert list(result.tokens) == case.tensors["generated"].tolist()
