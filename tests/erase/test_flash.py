"""The masks that pruning hands to flash attention, through transformers' own unpadding code.

The kernels need a GPU; here their two functions are torch references. Everything around them is the real thing.
"""

from typing import Any

import pytest
import slow_cases
import torch
from torch import Tensor
from transformers import modeling_flash_attention_utils

import erase

STEPS = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


def dense(
    query: Tensor, key: Tensor, value: Tensor, softmax_scale: float | None = None, causal: bool = False, **_: Any
):
    """[B, rows, heads, size], the causal mask aligned at the bottom right as flash attention 2 does."""
    rows, keys = query.shape[1], key.shape[1]
    mask = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows) if causal else None
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=softmax_scale, enable_gqa=True
    ).transpose(1, 2)


def packed(query: Tensor, key: Tensor, value: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **settings: Any):
    """[rows of all prompts, heads, size]."""
    calls.append(len(cu_seqlens_q) - 1)
    parts = []
    for number in range(len(cu_seqlens_q) - 1):
        rows = slice(cu_seqlens_q[number], cu_seqlens_q[number + 1])
        keys = slice(cu_seqlens_k[number], cu_seqlens_k[number + 1])
        parts.append(dense(query[rows][None], key[keys][None], value[keys][None], **settings)[0])
    return torch.cat(parts)


calls: list[int] = []


@pytest.fixture
def flash(monkeypatch):
    def functions(*_: Any, **__: Any):
        utils = modeling_flash_attention_utils
        return dense, packed, None, utils._pad_input, utils._unpad_input

    monkeypatch.setattr(modeling_flash_attention_utils, "_lazy_imports", functions)
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
    calls.clear()


def prompts_of(model) -> tuple[dict[str, Tensor], list]:
    """Three prompts of different lengths, the last without an image, padded on the left."""
    make = slow_cases.tiles_for if model.config.model_type == "internvl" else None
    images = [make(model, 3, seed=1)] if make else [slow_cases.clear_image(model, 4, 5, seed=1)]
    others = [make(model, 1, seed=2)] if make else [slow_cases.clear_image(model, 3, 3, seed=2)]
    mean, std = (slow_cases.IMAGENET_MEAN, slow_cases.IMAGENET_STD) if make else (0.5, 0.5)
    ids = [slow_cases.prompt_for(model, own, seed=n)[0] for n, own in enumerate([images, others, []])]
    longest = max(map(len, ids))
    padded = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in ids])
    inputs = slow_cases.inputs_for(model, padded, images + others, mean, std)
    inputs["attention_mask"] = torch.stack([torch.arange(longest) >= longest - len(row) for row in ids]).long()
    return inputs, [mean, std]


@pytest.mark.parametrize(
    "build",
    [slow_cases.tiny_qwen2_5_vl, slow_cases.tiny_qwen3_vl, slow_cases.tiny_internvl],
    ids=["qwen2.5", "qwen3", "internvl"],
)
def test_flash_attention_gives_what_sdpa_gives(flash, build):
    model = build(8)
    inputs, (mean, std) = prompts_of(model)
    binned = erase.BinnedPolicy(thresholds=(1.0,), stage1_retention=(0.8, 0.6), final_retention=0.3)
    for policies in ([binned, erase.BudgetPolicy(0.3), erase.DistinctPolicy(0.3)], [erase.BudgetPolicy(0.2)] * 3):
        logits = []
        for implementation in ("sdpa", "flash_attention_2"):
            model.model.language_model.config._attn_implementation = implementation
            with erase.pruning(model, policies, image_mean=mean, image_std=std) as trace:
                output = model.generate(**inputs, **STEPS)
            assert any(prompt.cuts for prompt in trace.calls[0].prompts)
            logits.append(torch.stack(output.logits))
        torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-4)
    assert set(calls) == {3}
