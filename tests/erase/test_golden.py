"""Both revisions against the recorded behaviour of the authors' code, and of the stock model where nothing is cut."""

import pytest
import torch
from erase_cases import CELLS, HALF, MANIFEST, GoldenCase, load_case

import erase
from erase.methods import method_for

GREEDY = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
UNTOUCHED = (None, erase.BinnedPolicy((2.0, 1.0), (0.5, 0.4, 0.3), 1.0), erase.BudgetPolicy(retention=1.0))


def test_there_are_38_cases_of_two_models_and_two_revisions():
    kinds = [(entry["model"], entry["revision"]) for entry in MANIFEST]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        (model, revision): count for model in CELLS for revision, count in ((1, 9), (2, 10))
    }


def test_stage_1_keeps_the_recorded_cells(golden_case):
    selection = method_for(golden_case.policy).preselect(golden_case.vision_images)
    check_stage_1(golden_case, selection.kept, selection.images)


def test_generate_reproduces_the_recorded_run(golden, golden_case):
    check_run(golden(golden_case.entry["model"]), golden_case)


@pytest.mark.parametrize("index", [0, 5, 11, 16, 24, 32])
def test_eager_attention_gives_the_same_run(golden, index):
    case = load_case(MANIFEST[index])
    check_run(golden(case.entry["model"], "eager"), case)


def check_stage_1(case: GoldenCase, kept, images):
    assert torch.equal(kept, case.tensors["stage1_kept"])
    assert [image.tokens for image in images] == case.entry["image_tokens"]
    for index, image in enumerate(images):
        torch.testing.assert_close(image.entropy, case.tensors[f"entropy_{index}"], rtol=0, atol=1e-5)
        if case.entry["revision"] == 1:
            assert image.complexity == pytest.approx(case.entry["entropy_median"][index], abs=1e-5)
        else:
            torch.testing.assert_close(image.edge_ratio, case.tensors[f"edge_ratio_{index}"], rtol=0, atol=1e-6)


def check_run(model, case: GoldenCase):
    with erase.pruning(model, case.policy, **HALF) as trace:
        output = model.generate(**case.inputs, **GREEDY)
    assert torch.equal(output.sequences[0, -8:], case.tensors["generated"])
    torch.testing.assert_close(torch.cat(output.logits), case.tensors["logits"], rtol=0, atol=1e-4)
    (call,) = trace.calls
    (prompt,) = call.prompts
    check_stage_1(case, prompt.stage1_kept, prompt.images)
    assert [(cut.layer, cut.kept.tolist()) for cut in prompt.cuts] == case.cuts
    assert list(prompt.cache_lengths) == case.entry["cache_lengths"]


def test_where_nothing_is_pruned_the_stock_logits_come_bit_for_bit(golden, golden_case):
    model, inputs = golden(golden_case.entry["model"]), golden_case.inputs
    stock, stock_forward = model.generate(**inputs, **GREEDY), model(**inputs)
    torch.testing.assert_close(torch.cat(stock.logits), golden_case.tensors["unpruned_logits"], rtol=0, atol=1e-4)
    assert torch.equal(stock.sequences[0, -8:], golden_case.tensors["unpruned_generated"])
    for policy in UNTOUCHED:
        with erase.pruning(model, policy, **HALF) as trace:
            output, forward = model.generate(**inputs, **GREEDY), model(**inputs)
        assert torch.equal(torch.cat(output.logits), torch.cat(stock.logits))
        assert torch.equal(forward.logits, stock_forward.logits)
        for call in trace.calls:
            (prompt,) = call.prompts
            assert prompt.stage1_kept.tolist() == list(range(prompt.tokens))
            assert prompt.cuts == ()
            assert prompt.cache_lengths == (inputs["input_ids"].shape[1],) * len(golden_case.entry["cache_lengths"])
            assert prompt.retention == (1.0, 1.0)
