"""What `pruning()` refuses instead of being wrong or leaving tokens unpruned."""

from functools import partial

import pytest
import torch
from erase_cases import CELLS, HALF, IMAGE_TOKEN, noise_image, prompt_ids, stock_inputs
from slow_cases import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    inputs_for,
    prompt_for,
    tiles_for,
    tiny_internvl,
    tiny_qwen2_5_vl,
    tiny_qwen3_vl,
)
from transformers import DynamicCache, GenerationConfig, Qwen2VLImageProcessorPil, StaticCache

import erase
from erase.methods import method_for

POLICIES = {"qwen2_5_vl": erase.preset("qwen2.5-vl-7b"), "qwen3_vl": erase.preset("qwen3-vl-8b-budget")}
POLICY = POLICIES["qwen2_5_vl"]

IMAGENET = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}

by_call = pytest.mark.parametrize("call", ["generate", "forward"])


@pytest.fixture(params=POLICIES)
def name(request):
    return request.param


@pytest.fixture
def model(golden, name):
    return golden(name)


@pytest.fixture
def policy(name):
    return POLICIES[name]


@pytest.fixture
def inputs(name):
    return inputs_of(name, (4, 5))


@pytest.fixture
def pruned(model, policy):
    with erase.pruning(model, policy, **HALF) as trace:
        yield model
    assert trace.calls == []


def inputs_of(name, *sizes):
    images = [noise_image(*size, seed=seed, cell=CELLS[name]) for seed, size in enumerate(sizes, start=3)]
    return stock_inputs(prompt_ids(images, cell=CELLS[name]), images, CELLS[name])


def method_of(model, call):
    return model if call == "forward" else partial(model.generate, max_new_tokens=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 2}, "beam search"),
        ({"do_sample": True, "num_return_sequences": 2}, "several return sequences"),
        ({"prompt_lookup_num_tokens": 3}, "prompt-lookup"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"cache_implementation": "quantized"}, "cache_implementation='quantized'"),
        ({"cache_implementation": "offloaded"}, "cache_implementation='offloaded'"),
        ({"prefill_chunk_size": 8}, "prefill chunking"),
        ({"use_cache": False}, "without a cache"),
        ({"guidance_scale": 1.5}, "guidance"),
        ({"output_attentions": True}, "attentions"),
        ({"output_hidden_states": True}, "hidden states"),
        ({"custom_generate": "somewhere/else"}, "custom generation loop"),
    ],
)
def test_a_generation_mode_that_cannot_be_pruned_is_named(pruned, inputs, settings, message):
    with pytest.raises(erase.UnsupportedError, match=message):
        pruned.generate(**inputs, max_new_tokens=3, **settings)


def test_modes_are_found_in_every_place_generate_takes_them_from(pruned, inputs):
    with pytest.raises(erase.UnsupportedError, match="beam search"):
        pruned.generate(**inputs, generation_config=GenerationConfig(num_beams=2, max_new_tokens=3))
    pruned.generation_config.num_beams = 4
    try:
        with pytest.raises(erase.UnsupportedError, match="beam search"):
            pruned.generate(**inputs, max_new_tokens=3)
    finally:
        pruned.generation_config.num_beams = None
    with pytest.raises(erase.UnsupportedError, match="assisted decoding"):
        pruned.generate(**inputs, max_new_tokens=3, assistant_model=tiny_qwen2_5_vl(2))


@by_call
def test_missing_or_wrong_token_types_are_refused(pruned, inputs, call):
    run = method_of(pruned, call)
    types = inputs.pop("mm_token_type_ids")
    with pytest.raises(erase.UnsupportedError, match="mm_token_type_ids is missing"):
        run(**inputs)
    with pytest.raises(erase.InputError, match="exactly where"):
        run(**inputs, mm_token_type_ids=torch.zeros_like(types))


@by_call
@pytest.mark.parametrize("missing", ["pixel_values", "image_grid_thw"])
def test_image_tokens_without_their_image_are_refused(pruned, inputs, call, missing):
    del inputs[missing]
    with pytest.raises(erase.InputError, match=f"{missing} is missing"):
        method_of(pruned, call)(**inputs)


@by_call
def test_inputs_that_cannot_be_pruned_are_refused(pruned, inputs, call):
    run = method_of(pruned, call)
    length = inputs["input_ids"].shape[1]
    cases = [
        ("video", {"pixel_values_videos": inputs["pixel_values"], "video_grid_thw": inputs["image_grid_thw"]}),
        ("StaticCache", {"past_key_values": StaticCache(config=pruned.config.text_config, max_cache_len=99)}),
        ("DynamicCache", {"past_key_values": DynamicCache(config=pruned.config.text_config)}),
        ("inputs_embeds", {"inputs_embeds": torch.zeros(1, length, 64)}),
        ("prepared attention mask", {"attention_mask": torch.zeros(1, 1, length, length)}),
        ("prepared attention mask", {"attention_mask": {"full_attention": None}}),
    ]
    for message, change in cases:
        with pytest.raises(erase.UnsupportedError, match=message):
            run(**inputs | change)


def test_a_forward_call_cannot_ask_for_what_pruning_destroys(pruned, inputs):
    for message, change in [
        ("labels", {"labels": inputs["input_ids"]}),
        ("output_attentions", {"output_attentions": True}),
        ("output_hidden_states", {"output_hidden_states": True}),
    ]:
        with pytest.raises(erase.UnsupportedError, match=message):
            pruned(**inputs | change)


def test_a_prompt_that_ends_with_its_image_is_refused(pruned, name):
    images = [noise_image(3, 3, seed=1, cell=CELLS[name])]
    ids = prompt_ids(images, after=0, cell=CELLS[name])[:, :-1]
    with pytest.raises(erase.UnsupportedError, match="text must follow"):
        pruned(**stock_inputs(ids, images, CELLS[name]))


def test_a_cache_filled_outside_is_refused(model, policy, inputs):
    cache = model(**inputs).past_key_values
    token = torch.tensor([[5]])
    with erase.pruning(model, policy, **HALF):
        with pytest.raises(erase.UnsupportedError, match="filled outside"):
            model(input_ids=token, past_key_values=cache)
        with pytest.raises(erase.UnsupportedError, match="filled outside"):
            model.generate(input_ids=token, past_key_values=cache, max_new_tokens=2)


def test_a_continued_cache_takes_no_images(model, policy, inputs):
    with erase.pruning(model, policy, **HALF):
        cache = model(**inputs).past_key_values
        both = torch.cat([inputs["input_ids"], inputs["input_ids"]], 1)
        with pytest.raises(erase.UnsupportedError, match="cannot take images"):
            model.generate(input_ids=both, past_key_values=cache, max_new_tokens=2)
        with pytest.raises(erase.UnsupportedError, match="cannot take images"):
            model(**inputs | {"past_key_values": cache})
        with pytest.raises(erase.UnsupportedError, match="cannot take images"):
            model(input_ids=torch.tensor([[5, IMAGE_TOKEN]]), past_key_values=cache)
        with pytest.raises(erase.UnsupportedError, match="beam search"):
            model.generate(input_ids=torch.tensor([[5]]), past_key_values=cache, num_beams=2, max_new_tokens=2)


def test_features_encoded_outside_carry_no_pixels(model, policy, inputs):
    features = {"image": model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])}
    del inputs["pixel_values"]
    with erase.pruning(model, policy, **HALF):
        for run in (model, model.generate):
            with pytest.raises(erase.UnsupportedError, match="carry no pixels"):
                run(**inputs, mm_encoder_outputs=features)


@by_call
def test_a_mask_that_is_no_padding_mask_is_refused(pruned, inputs, call):
    length = inputs["input_ids"].shape[1]
    over_image = torch.ones(1, length, dtype=torch.int64)
    over_image[0, int((inputs["input_ids"][0] == IMAGE_TOKEN).nonzero()[3])] = 0
    for message, mask in [
        ("0 at image tokens", over_image),
        (rf"must be \[1, {length}\] like input_ids", torch.ones(1, length + 2, dtype=torch.int64)),
        (rf"must be \[1, {length}\] like input_ids", torch.ones(2, length, dtype=torch.int64)),
    ]:
        with pytest.raises(erase.InputError, match=message):
            method_of(pruned, call)(**inputs | {"attention_mask": mask})


@by_call
def test_a_prompt_of_padding_only_is_refused(pruned, inputs, call):
    ids = torch.cat([inputs["input_ids"], torch.zeros_like(inputs["input_ids"])])
    mask = torch.ones_like(ids)
    mask[1] = 0
    batch = inputs | {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == IMAGE_TOKEN).int()}
    with pytest.raises(erase.InputError, match="0 everywhere in a prompt"):
        method_of(pruned, call)(**batch)


def test_nothing_is_generated_behind_padding_on_the_right(pruned, inputs):
    ids = torch.nn.functional.pad(inputs["input_ids"], (0, 3))
    padded = inputs | {"input_ids": ids, "mm_token_type_ids": (ids == IMAGE_TOKEN).int()}
    padded["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 3))
    with pytest.raises(erase.UnsupportedError, match="padding_side='left'"):
        pruned.generate(**padded, max_new_tokens=2)


@by_call
@pytest.mark.parametrize("attention", ["flex_attention", "paged|sdpa"])
def test_attention_that_takes_other_masks_is_refused(pruned, inputs, call, attention, monkeypatch):
    monkeypatch.setattr(pruned.model.language_model.config, "_attn_implementation", attention)
    with pytest.raises(erase.UnsupportedError, match=rf"'{attention.replace('|', '.')}' cannot be pruned"):
        method_of(pruned, call)(**inputs)


@by_call
@pytest.mark.parametrize("count", [0, 2, 3])
def test_a_list_of_policies_has_one_for_every_prompt(model, policy, inputs, call, count):
    text = prompt_ids([], before=9, after=0)
    with erase.pruning(model, [policy, None, method_for(policy)][:count], **HALF) as trace:
        for given in (inputs, {"input_ids": text, "mm_token_type_ids": torch.zeros_like(text)}):
            with pytest.raises(erase.InputError, match=f"given {count} policies, but this call has 1 prompts"):
                method_of(model, call)(**given)
    assert trace.calls == []


@by_call
def test_images_and_image_tokens_must_add_up(pruned, name, call):
    one, two = inputs_of(name, (4, 5)), inputs_of(name, (4, 5), (2, 3))
    smaller = inputs_of(name, (4, 4))

    def refused(message, prompt, pictures):
        given = prompt | {key: pictures[key] for key in ("pixel_values", "image_grid_thw")}
        with pytest.raises(erase.InputError, match=message):
            method_of(pruned, call)(**given)

    refused("prompt 0 has 26 image tokens, but its images make 20 vision tokens", two, one)
    refused("1 of 2 images have no image tokens", one, two)
    refused("prompt 0 has 16 image tokens, but its images make 20 vision tokens", smaller, one)
    refused("prompt 0 has 20 image tokens, but its images make 16 vision tokens", one, smaller)
    refused("pixel_values must be", one, one | {"image_grid_thw": two["image_grid_thw"]})
    refused("in the order of the prompt", two, inputs_of(name, (2, 3), (4, 5)))


@by_call
def test_images_must_add_up_prompt_by_prompt(pruned, name, call):
    # Both prompts together have as many image tokens as both images, but each has one of the other's.
    images = [noise_image(2, 3, cell=CELLS[name]), noise_image(2, 2, cell=CELLS[name])]
    batch = stock_inputs(prompt_ids(images[:1], after=9, cell=CELLS[name]), images, CELLS[name])
    ids = torch.cat([batch["input_ids"], batch["input_ids"]])
    ids[0, 4], ids[1, 4:6], ids[1, 6] = 9, 9, IMAGE_TOKEN
    batch |= {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == IMAGE_TOKEN).int()}
    with pytest.raises(erase.InputError, match="prompt 0 has 5 image tokens, but its images make 6"):
        method_of(pruned, call)(**batch)


class TestInternVL:
    @pytest.fixture
    def internvl(self):
        return tiny_internvl(4)

    @pytest.fixture
    def internvl_inputs(self, internvl):
        images = [tiles_for(internvl, 3), tiles_for(internvl, 1, seed=1)]
        return inputs_for(internvl, prompt_for(internvl, images, between=2), images, IMAGENET_MEAN, IMAGENET_STD)

    @by_call
    @pytest.mark.parametrize(
        ("message", "change"),
        [
            (r"must be tiles .* of 16 vision tokens", lambda pixels: pixels[:, :, :84, :84]),
            (
                r"must be tiles .* of 16 vision tokens",
                lambda pixels: pixels[:, :, :, :56].repeat(1, 1, 2, 1)[:, :, :-1],
            ),
            (r"must be tiles .* of 16 vision tokens", lambda pixels: pixels.flatten(1)),
            (r"must be \[4, 3, height, width\] for these image tokens, got \[3,", lambda pixels: pixels[:3]),
            (
                r"must be \[4, 3, height, width\] for these image tokens, got \[8,",
                lambda pixels: pixels.repeat(2, 1, 1, 1),
            ),
        ],
        ids=["small tiles", "half cells", "no tiles", "too few", "too many"],
    )
    def test_tiles_that_do_not_fit_are_refused(self, internvl, internvl_inputs, call, message, change):
        given = internvl_inputs | {"pixel_values": change(internvl_inputs["pixel_values"])}
        with (
            erase.pruning(internvl, erase.BudgetPolicy(0.25), **IMAGENET) as trace,
            pytest.raises(erase.InputError, match=message),
        ):
            method_of(internvl, call)(**given)
        assert trace.calls == []

    @by_call
    def test_a_run_of_image_tokens_is_whole_tiles(self, internvl, internvl_inputs, call):
        ids = internvl_inputs["input_ids"].clone()
        ids[0, (ids[0] == IMAGE_TOKEN).nonzero()[7]] = 9
        with (
            erase.pruning(internvl, erase.BudgetPolicy(0.25), **IMAGENET),
            pytest.raises(erase.InputError, match="multiple of a tile's 16 tokens"),
        ):
            method_of(internvl, call)(**internvl_inputs | {"input_ids": ids})

    @by_call
    def test_image_tokens_without_pixels_are_refused(self, internvl, internvl_inputs, call):
        del internvl_inputs["pixel_values"]
        with (
            erase.pruning(internvl, erase.BudgetPolicy(0.25), **IMAGENET),
            pytest.raises(erase.InputError, match="pixel_values is missing"),
        ):
            method_of(internvl, call)(**internvl_inputs)


def test_models_that_no_adapter_knows_are_refused(golden):
    every = r"Qwen2_5_VLForCond.* \(model_type 'qwen2_5_vl'\), Qwen3VLForCond.*, InternVLForCond.*"
    for model, message in [
        (torch.nn.Linear(2, 2), f"Linear .* cannot be pruned; supported: {every}"),
        (golden("qwen2_5_vl").model, "expected a Qwen2_5_VLForConditionalGeneration, got a Qwen2_5_VLModel"),
        (golden("qwen3_vl").model, "expected a Qwen3VLForConditionalGeneration, got a Qwen3VLModel"),
    ]:
        with pytest.raises(erase.UnsupportedError, match=message), erase.pruning(model, POLICY, **HALF):
            pass


@pytest.mark.parametrize("build", [tiny_qwen2_5_vl, tiny_qwen3_vl, tiny_internvl])
def test_decoders_that_pruning_does_not_fit_are_refused(build):
    def refused(message, model):
        with pytest.raises(erase.UnsupportedError, match=message), erase.pruning(model, POLICY, **HALF):
            pass

    refused("one layer", build(1))
    sliding, other = build(2), build(2)
    sliding.model.language_model.config.layer_types = ["full_attention", "sliding_attention"]
    refused("sliding-window", sliding)
    other.model.language_model.layers[0].self_attn = torch.nn.Identity()
    refused("its layers have no q_proj, k_proj, v_proj, o_proj", other)


def test_an_unknown_normalisation_is_refused(golden):
    model, processor = golden("qwen2_5_vl"), Qwen2VLImageProcessorPil(do_rescale=False)
    for settings in ({}, {"image_mean": 0.5}, {"image_mean": [0.5], "image_std": 0.5}, {"processor": object()}):
        with (
            pytest.raises(erase.InputError, match=r"image_mean|image_std"),
            erase.pruning(model, POLICY, **settings),
        ):
            pass
    with pytest.raises(erase.UnsupportedError, match="1/255"), erase.pruning(model, POLICY, processor=processor):
        pass
