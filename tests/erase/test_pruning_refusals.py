"""What `pruning()` refuses instead of being wrong or leaving tokens unpruned."""

import pytest
import torch
from erase_cases import IMAGE_TOKEN, noise_image, prompt_ids, stock_inputs
from transformers import DynamicCache, GenerationConfig, Qwen2VLImageProcessorPil, StaticCache

import erase

HALF = {"image_mean": 0.5, "image_std": 0.5}
POLICY = erase.preset("qwen2.5-vl-7b")


@pytest.fixture
def inputs():
    images = [noise_image(4, 5, seed=3)]
    return stock_inputs(prompt_ids(images), images)


@pytest.fixture
def pruned(golden_model):
    with erase.pruning(golden_model, POLICY, **HALF) as trace:
        yield golden_model
    assert trace.calls == []


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


def test_modes_are_found_in_every_place_generate_takes_them_from(pruned, inputs, random_model):
    with pytest.raises(erase.UnsupportedError, match="beam search"):
        pruned.generate(**inputs, generation_config=GenerationConfig(num_beams=2, max_new_tokens=3))
    pruned.generation_config.num_beams = 4
    try:
        with pytest.raises(erase.UnsupportedError, match="beam search"):
            pruned.generate(**inputs, max_new_tokens=3)
    finally:
        pruned.generation_config.num_beams = None
    with pytest.raises(erase.UnsupportedError, match="assisted decoding"):
        pruned.generate(**inputs, max_new_tokens=3, assistant_model=random_model(2))


@pytest.mark.parametrize("call", ["generate", "forward"])
def test_missing_or_wrong_token_types_are_refused(pruned, inputs, call):
    run = pruned if call == "forward" else pruned.generate
    types = inputs.pop("mm_token_type_ids")
    with pytest.raises(erase.UnsupportedError, match="mm_token_type_ids is missing"):
        run(**inputs)
    with pytest.raises(erase.InputError, match="exactly where"):
        run(**inputs, mm_token_type_ids=torch.zeros_like(types))


@pytest.mark.parametrize("call", ["generate", "forward"])
@pytest.mark.parametrize("name", ["pixel_values", "image_grid_thw"])
def test_image_tokens_without_their_image_are_refused(pruned, inputs, call, name):
    del inputs[name]
    with pytest.raises(erase.InputError, match=f"{name} is missing"):
        (pruned if call == "forward" else pruned.generate)(**inputs)


@pytest.mark.parametrize("call", ["generate", "forward"])
def test_inputs_that_cannot_be_pruned_are_refused(pruned, inputs, call):
    run = pruned if call == "forward" else pruned.generate
    length = inputs["input_ids"].shape[1]
    cases = [
        ("batch of 2", {name: inputs[name].repeat(2, 1) for name in ("input_ids", "attention_mask")}),
        ("video", {"pixel_values_videos": inputs["pixel_values"], "video_grid_thw": inputs["image_grid_thw"]}),
        ("padded", {"attention_mask": torch.tensor([[0] * 2 + [1] * (length - 2)])}),
        ("StaticCache", {"past_key_values": StaticCache(config=pruned.config.text_config, max_cache_len=99)}),
        ("DynamicCache", {"past_key_values": DynamicCache(config=pruned.config.text_config)}),
        ("inputs_embeds", {"inputs_embeds": torch.zeros(1, length, 64)}),
    ]
    for message, change in cases:
        with pytest.raises(erase.UnsupportedError, match=message):
            run(**inputs | change)


def test_a_forward_call_cannot_ask_for_what_pruning_destroys(pruned, inputs):
    for message, change in [
        ("labels", {"labels": inputs["input_ids"]}),
        ("output_attentions", {"output_attentions": True}),
        ("output_hidden_states", {"output_hidden_states": True}),
        ("prepared attention mask", {"attention_mask": torch.zeros(1, 1, 4, 4)}),
        ("prepared attention mask", {"attention_mask": {"full_attention": None}}),
    ]:
        with pytest.raises(erase.UnsupportedError, match=message):
            pruned(**inputs | change)


def test_a_prompt_that_ends_with_its_image_is_refused(pruned):
    images = [noise_image(3, 3, seed=1)]
    ids = prompt_ids(images, after=0)[:, :-1]
    with pytest.raises(erase.UnsupportedError, match="text must follow"):
        pruned(**stock_inputs(ids, images))


def test_a_cache_filled_outside_is_refused(golden_model, inputs):
    cache = golden_model(**inputs).past_key_values
    token = torch.tensor([[5]])
    with erase.pruning(golden_model, POLICY, **HALF):
        with pytest.raises(erase.UnsupportedError, match="filled outside"):
            golden_model(input_ids=token, past_key_values=cache)
        with pytest.raises(erase.UnsupportedError, match="filled outside"):
            golden_model.generate(input_ids=token, past_key_values=cache, max_new_tokens=2)


def test_a_continued_cache_takes_no_images(golden_model, inputs):
    with erase.pruning(golden_model, POLICY, **HALF):
        cache = golden_model(**inputs).past_key_values
        both = torch.cat([inputs["input_ids"], inputs["input_ids"]], 1)
        with pytest.raises(erase.UnsupportedError, match="cannot take images"):
            golden_model.generate(input_ids=both, past_key_values=cache, max_new_tokens=2)
        with pytest.raises(erase.UnsupportedError, match="cannot take images"):
            golden_model(**inputs | {"past_key_values": cache})
        with pytest.raises(erase.UnsupportedError, match="cannot take images"):
            golden_model(input_ids=torch.tensor([[5, IMAGE_TOKEN]]), past_key_values=cache)
        with pytest.raises(erase.UnsupportedError, match="beam search"):
            golden_model.generate(input_ids=torch.tensor([[5]]), past_key_values=cache, num_beams=2, max_new_tokens=2)


def test_features_encoded_outside_carry_no_pixels(golden_model, inputs):
    features = {"image": golden_model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])}
    del inputs["pixel_values"]
    with erase.pruning(golden_model, POLICY, **HALF):
        for run in (golden_model, golden_model.generate):
            with pytest.raises(erase.UnsupportedError, match="carry no pixels"):
                run(**inputs, mm_encoder_outputs=features)


def test_models_that_no_adapter_knows_are_refused(golden_model, random_model):
    with (
        pytest.raises(erase.UnsupportedError, match="supported: Qwen2_5_VLForConditionalGeneration"),
        erase.pruning(torch.nn.Linear(2, 2), POLICY, **HALF),
    ):
        pass
    with (
        pytest.raises(erase.UnsupportedError, match="got a Qwen2_5_VLModel"),
        erase.pruning(golden_model.model, POLICY, **HALF),
    ):
        pass
    with pytest.raises(erase.UnsupportedError, match="one layer"), erase.pruning(random_model(1), POLICY, **HALF):
        pass


def test_an_unknown_normalisation_is_refused(golden_model):
    processor = Qwen2VLImageProcessorPil(do_rescale=False)
    for settings in ({}, {"image_mean": 0.5}, {"image_mean": [0.5], "image_std": 0.5}, {"processor": object()}):
        with (
            pytest.raises(erase.InputError, match=r"image_mean|image_std"),
            erase.pruning(golden_model, POLICY, **settings),
        ):
            pass
    with pytest.raises(erase.UnsupportedError, match="1/255"), erase.pruning(golden_model, POLICY, processor=processor):
        pass
