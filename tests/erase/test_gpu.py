"""What only a GPU can show: the same stage 1, the recorded runs, and 16-bit models. Skipped where there is none."""

from collections.abc import Iterator

import pytest
import torch
from erase_cases import HALF, MANIFEST, load_case
from slow_cases import IMAGENET_MEAN, IMAGENET_STD, inputs_for, prompt_for, tiles_for, tiny_internvl

import erase
from erase.methods import method_for
from erase.pixels.images import VisionImage
from erase.pixels.luma import BT601_UNIT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


@pytest.fixture(autouse=True)
def _whole_float32() -> Iterator[None]:
    """The patch embedding is a convolution, and those round to TF32 unless told not to."""
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = allowed


def pictures() -> list[torch.Tensor]:
    """Noise, print, flat and dark, uint8 [2, 3, 224, 448]."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (2, 3, 224, 448), generator=generator)
    strokes = torch.randint(0, 2, (2, 1, 56, 112), generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return [
        noise.byte(),
        (strokes * 255).expand(-1, 3, -1, -1).byte(),
        torch.full_like(noise, 200).byte(),
        noise.byte() // 40,
    ]


@pytest.mark.parametrize("policy", [erase.preset("qwen2.5-vl-7b"), erase.BudgetPolicy(0.25)], ids=["binned", "budget"])
@pytest.mark.parametrize("cell", [28, 32])
def test_stage_1_is_the_same_to_the_last_bit(policy, cell):
    for tiles in pictures():
        side = 4 * cell
        image = VisionImage(tiles[..., :side, :side].contiguous(), cell, BT601_UNIT, thumbnail=True)
        there = VisionImage(image.tiles.cuda(), cell, BT601_UNIT, thumbnail=True)
        ours, theirs = (method_for(policy).preselect([own]).images[0] for own in (image, there))
        assert torch.equal(ours.entropy, theirs.entropy)
        assert torch.equal(ours.kept, theirs.kept)
        if ours.edge_ratio is not None:
            assert torch.equal(ours.edge_ratio, theirs.edge_ratio)


@pytest.mark.parametrize("entry", MANIFEST, ids=[entry["name"] for entry in MANIFEST])
def test_the_recorded_runs(golden, entry):
    case = load_case(entry)
    model = golden(entry["model"]).cuda()
    try:
        inputs = {name: tensor.cuda() for name, tensor in case.inputs.items()}
        with erase.pruning(model, case.policy, **HALF) as trace:
            output = model.generate(**inputs, **STEPS)
    finally:
        model.cpu()
    (prompt,) = trace.calls[0].prompts
    assert torch.equal(prompt.stage1_kept, case.tensors["stage1_kept"])
    assert [(cut.layer, cut.kept.tolist()) for cut in prompt.cuts] == case.cuts
    assert list(prompt.cache_lengths) == entry["cache_lengths"]
    torch.testing.assert_close(torch.cat(output.logits).cpu(), case.tensors["logits"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit_batches_run(dtype):
    model = tiny_internvl(8).to("cuda", dtype)
    images = [tiles_for(model, 3), tiles_for(model, 1, seed=1)]
    inputs = inputs_for(model, prompt_for(model, images), images, IMAGENET_MEAN, IMAGENET_STD)
    inputs = {name: tensor.cuda() for name, tensor in inputs.items()}
    with erase.pruning(model, erase.BudgetPolicy(0.2), image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD) as trace:
        output = model.generate(**inputs, **STEPS)
    assert not torch.cat(output.logits).isnan().any()
    assert len(trace.calls[0].prompts[0].cuts) == 2
