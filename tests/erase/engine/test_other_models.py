"""Qwen3-VL and InternVL from a folder, through loading, prompts and the engine, against stock `generate`."""

import json
import shutil
from pathlib import Path

import pytest
import slow_cases
import torch
from engine_cases import running
from PIL import Image

import erase
from erase.engine import SamplingParams, Sequence
from erase.methods import method_for
from erase.models.loading import LoadedModel, load_model
from erase.models.prompt import generate_inputs, prepare_images, prepare_prompt
from tests.starter import STARTER

IDS = {"image_token_id": 4, "vision_start_token_id": 3, "vision_end_token_id": 5, "video_token_id": 127}
QUESTION = "what is page ?"
POLICIES = {
    "none": None,
    "binned": erase.BinnedPolicy(thresholds=(0.5,), stage1_retention=(0.75, 0.6), final_retention=0.3),
    "budget": erase.BudgetPolicy(retention=0.3),
    "distinct": erase.DistinctPolicy(retention=0.3),
}


def save_model(folder: Path, model) -> None:
    """A model's folder with the starter model's tokenizer."""
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json"):
        shutil.copy(STARTER / name, folder / name)


def change(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("qwen3")
    settings = slow_cases.golden_settings("qwen3_vl", 8) | IDS
    settings["text_config"] |= {"vocab_size": 128}
    config = slow_cases.Qwen3VLConfig(**settings)
    save_model(folder, slow_cases.randomised(slow_cases.Qwen3VLForConditionalGeneration, config))
    change(folder / "preprocessor_config.json", patch_size=16)
    return load_model(str(folder))


@pytest.fixture(scope="session")
def internvl(tmp_path_factory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("internvl")
    config = slow_cases.tiny_internvl(8, side=56).config
    config.image_token_id = IDS["image_token_id"]
    save_model(folder, slow_cases.randomised(slow_cases.InternVLForConditionalGeneration, config))
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "GotOcr2ImageProcessor",
                "size": {"height": 56, "width": 56},
                "min_patches": 1,
                "max_patches": 6,
                "image_mean": slow_cases.IMAGENET_MEAN,
                "image_std": slow_cases.IMAGENET_STD,
            }
        )
    )
    change(
        folder / "tokenizer_config.json",
        extra_special_tokens={
            "start_image_token": "<|vision_start|>",
            "end_image_token": "<|vision_end|>",
            "context_image_token": "<|image_pad|>",
        },
    )
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>"))
    return load_model(str(folder))


@pytest.fixture(params=["qwen3", "internvl"])
def loaded(request) -> LoadedModel:
    return request.getfixturevalue(request.param)


@pytest.fixture
def pictures() -> list[Image.Image]:
    samples = [Image.open(STARTER / "samples" / f"sample-{number}.png") for number in (0, 3)]
    return [samples[0], samples[1].resize((300, 120))]


def sequence_for(loaded: LoadedModel, policy: erase.policy.Policy | None, pictures: list[Image.Image]) -> Sequence:
    method = method_for(policy)
    images = prepare_images(loaded, pictures)
    prompt = prepare_prompt(loaded, QUESTION, images)
    selection = method.preselect([image.pixels for image in images])
    return Sequence(f"{method.name} of {len(pictures)}", prompt, method, selection, SamplingParams(max_tokens=5))


@pytest.mark.parametrize("policy", list(POLICIES.values()), ids=list(POLICIES))
def test_the_engine_answers_as_pruned_generate(loaded, pictures, policy):
    groups = [pictures, pictures[:1], []]
    with running(loaded) as engine:
        handles = [engine.submit(sequence_for(loaded, policy, group)) for group in groups]
        results = [handle.result() for handle in handles]
    inputs = generate_inputs(loaded, [(QUESTION, group) for group in groups])
    with erase.pruning(loaded.model, policy, processor=loaded.image_processor) as trace:
        output = loaded.model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    for result, prompt, tokens in zip(results, trace.calls[0].prompts, output[:, -5:], strict=True):
        assert list(result.tokens) == tokens[: len(result.tokens)].tolist()
        assert result.cache_lengths == prompt.cache_lengths
        assert torch.equal(result.kept, prompt.cuts[-1].kept if prompt.cuts else prompt.stage1_kept)


def test_an_internvl_image_is_tiles_and_a_thumbnail(internvl, pictures):
    square, wide = prepare_images(internvl, pictures)
    assert square.pixels.grid[0] in (1, 5)
    tiles, height, width = wide.pixels.grid
    assert (height, width) == (2, 2)
    assert tiles > 2
    assert [len(group) for group in wide.pixels.groups] == [tiles - 1, 1]
    assert wide.tokens == 4 * tiles
    prompt = prepare_prompt(internvl, QUESTION, [wide])
    is_image = (prompt.tokens == IDS["image_token_id"]).nonzero().squeeze(1)
    assert torch.equal(is_image, torch.arange(is_image[0], is_image[0] + wide.tokens))
    assert prompt.tokens[is_image[0] - 1] == IDS["vision_start_token_id"]
    assert prompt.tokens[is_image[-1] + 1] == IDS["vision_end_token_id"]
