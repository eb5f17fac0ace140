"""Revision 1 against the recorded behaviour of the authors' code."""

import pytest
import torch
from erase_cases import MANIFEST, GoldenCase, cells_of, load_case, load_golden_model

import erase
from erase.methods import method_for

HALF = {"image_mean": 0.5, "image_std": 0.5}


def test_stage_1_keeps_the_recorded_cells(golden_case):
    policy = erase.BinnedPolicy(**golden_case.entry["policy"])
    selection = method_for(policy).preselect([cells_of(image) for image in golden_case.images])
    assert torch.equal(selection.kept, golden_case.tensors["stage1_kept"])
    for index, image in enumerate(selection.images):
        torch.testing.assert_close(image.entropy, golden_case.tensors[f"entropy_{index}"], rtol=0, atol=1e-4)
        assert image.complexity == pytest.approx(golden_case.entry["entropy_median"][index], abs=1e-4)


def test_generate_reproduces_the_recorded_run(golden_model, golden_case):
    check_run(golden_model, golden_case)


@pytest.mark.parametrize("index", [0, 5], ids=["shallow cut", "deep cut and two images"])
def test_eager_attention_gives_the_same_run(index):
    check_run(load_golden_model("eager"), load_case(MANIFEST[index]))


def check_run(model, case: GoldenCase):
    policy = erase.BinnedPolicy(**case.entry["policy"])
    with erase.pruning(model, policy, **HALF) as trace:
        output = model.generate(
            **case.inputs, max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    assert torch.equal(output.sequences[0, -8:], case.tensors["generated"])
    torch.testing.assert_close(torch.cat(output.logits), case.tensors["logits"], rtol=0, atol=1e-4)
    (call,) = trace.calls
    (prompt,) = call.prompts
    assert torch.equal(prompt.stage1_kept, case.tensors["stage1_kept"])
    (cut,) = prompt.cuts
    assert cut.layer == case.entry["prune_layer"] + 1
    assert torch.equal(cut.kept, case.tensors["stage2_kept"])
    assert list(prompt.cache_lengths) == case.entry["cache_lengths"]


def test_without_pruning_the_stock_logits_are_recorded_too(golden_model, golden_case):
    with erase.pruning(golden_model, None, **HALF):
        output = golden_model.generate(
            **golden_case.inputs, max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    torch.testing.assert_close(torch.cat(output.logits), golden_case.tensors["unpruned_logits"], rtol=0, atol=1e-4)
