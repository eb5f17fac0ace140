"""Peak memory of a prefill, measured: pruning never needs more than the stock model does."""

import weakref
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from batch_cases import BUILDERS, Prompt, inputs_of, normalisation, tiny
from erase_cases import IMAGE_TOKEN
from slow_cases import golden_settings, inputs_for, prompt_for, without_end
from slow_erase import cell_of, kind_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

import erase


@dataclass(eq=False)
class Memory(TorchDispatchMode):
    """Bytes of all tensors made inside, as long as anything refers to them; and their shapes."""

    alive: int = 0
    peak: int = 0
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    known: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {
            tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)
        }
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.count(tensor, given)
        return result

    def count(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known or key in given:
            return
        size = storage.nbytes()
        self.known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        self.shapes.add(tuple(tensor.shape))
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


TEXT = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 160,
    "max_position_embeddings": 4096,
    "initializer_range": 0.05,
}
KEEPS_ALL = erase.BinnedPolicy(thresholds=(0.5, 0.1), stage1_retention=(1.0, 1.0, 1.0), final_retention=0.25)
KEEPS_MOST = erase.BinnedPolicy(thresholds=(0.5, 0.1), stage1_retention=(0.85, 0.8, 0.8), final_retention=0.25)
KEEPS_LITTLE = erase.BinnedPolicy(thresholds=(7.0, 6.0), stage1_retention=(0.5, 0.4, 0.4), final_retention=0.25)
POLICIES = {
    "deep": KEEPS_ALL,
    "shallow": KEEPS_LITTLE,
    "budget": erase.BudgetPolicy(retention=0.25),
    "late budget": erase.BudgetPolicy(retention=0.25, late_retention=0.1, layers=(5, 7)),
}


@pytest.fixture(scope="module", params=BUILDERS)
def model(request):
    torch.manual_seed(0)
    if request.param == "internvl":
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = InternVLConfig(
            text_config=TEXT | {"model_type": "qwen2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            vision_config=vision | {"image_size": (448, 448), "patch_size": (14, 14)},
            image_token_id=IMAGE_TOKEN,
            image_seq_length=256,
            tie_word_embeddings=False,
            attn_implementation="sdpa",
        )
        return without_end(InternVLForConditionalGeneration(config))
    settings = golden_settings(request.param, 8)
    settings["text_config"] |= TEXT
    settings["vision_config"]["out_hidden_size"] = TEXT["hidden_size"]
    if request.param == "qwen2_5_vl":
        settings["text_config"]["rope_scaling"]["mrope_section"] = [4, 6, 6]
        settings["text_config"]["layer_types"] = ["full_attention"] * 8
        return without_end(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**settings, attn_implementation="sdpa")))
    return without_end(Qwen3VLForConditionalGeneration(Qwen3VLConfig(**settings, attn_implementation="sdpa")))


def pages(model) -> list[Tensor]:
    """About 1,500 vision tokens: paper with noise on it, more and more from page to page."""
    cell, generator = cell_of(model), torch.Generator().manual_seed(0)
    shape = (448, 448) if kind_of(model) == "internvl" else (10 * cell, 25 * cell)
    images = [(240 - 20 * page * torch.rand(1, 3, *shape, generator=generator)).to(torch.uint8) for page in range(6)]
    return [torch.cat(images)] if kind_of(model) == "internvl" else images


def inputs_for_pages(model, question: int) -> dict[str, Tensor]:
    images, settings = pages(model), normalisation(model)
    ids = prompt_for(model, images, after=question)
    return inputs_for(model, ids, images, settings["image_mean"], settings["image_std"])


def prefill(model, inputs: dict[str, Tensor], way: str) -> None:
    if way == "generate":
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    else:
        model(**inputs, logits_to_keep=1, use_cache=way == "forward")


@cache
def stock(model, question: int, way: str = "forward") -> Memory:
    inputs, memory = inputs_for_pages(model, question), Memory()
    with torch.no_grad(), memory:
        prefill(model, inputs, way)
    return memory


def pruned(model, question: int, policy, way: str = "forward") -> tuple[Memory, set[int]]:
    """And how many rows the layers ran with or were cut to."""
    inputs, memory = inputs_for_pages(model, question), Memory()
    with torch.no_grad(), erase.pruning(model, policy, **normalisation(model)) as trace, memory:
        prefill(model, inputs, way)
    ((prompt,),) = (call.prompts for call in trace.calls)
    assert prompt.cuts
    text = inputs["input_ids"].shape[1] - prompt.tokens
    counts = prompt.tokens, prompt.stage1_kept.numel(), *(cut.kept.numel() for cut in prompt.cuts)
    return memory, {text + count for count in counts}


def squares(memory: Memory, rows: set[int]) -> list[tuple[int, ...]]:
    """Tensors that have a row and a column for every token."""
    return [shape for shape in memory.shapes if len(shape) > 1 and {*shape[-2:]} <= rows]


@pytest.mark.parametrize("question", [40, 1200])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_pruned_prefill_peaks_no_higher_than_the_stock_one(model, policy, question):
    memory, rows = pruned(model, question, policy)
    assert memory.peak <= stock(model, question).peak
    assert not squares(memory, rows)


@pytest.mark.parametrize("way", ["without a cache", "generate"])
@pytest.mark.parametrize("policy", [KEEPS_MOST, POLICIES["budget"]], ids=["deep", "budget"])
def test_neither_does_one_without_a_cache_or_in_generate(model, policy, way):
    memory, rows = pruned(model, 40, policy, way)
    assert memory.peak <= stock(model, 40, way).peak
    assert not squares(memory, rows)


def test_the_measurement_sees_a_map_of_all_tokens():
    model, memory = tiny("qwen2_5_vl", "eager"), Memory()
    inputs = inputs_of(model, [Prompt("none", ((4, 4),), before=3, between=0, after=9, seed=0)])
    with torch.no_grad(), memory:
        model(**inputs)
    length = inputs["input_ids"].shape[1]
    assert squares(memory, {length})
    assert memory.peak > 4 * length**2 * model.config.text_config.num_attention_heads
    assert memory.alive == 0
