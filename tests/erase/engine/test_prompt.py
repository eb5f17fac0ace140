"""From question and images to the model's inputs."""

import threading

import pytest
import torch
from engine_cases import TIMEOUT_S, stock_inputs_for
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from erase.errors import InputError
from erase.models.prompt import Turn, chat_tokens, generate_inputs, prepare_images, prepare_prompt, prompt_tokens

IMAGE, END = 4, 2
CONTROL = ["<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|im_start|>", "<pad>", "<|video_pad|>"]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_prepared_prompt_is_what_stock_code_makes_of_it(demo, samples, count):
    pictures = [sample.image.resize((56 + 28 * n, 84)) for n, sample in enumerate(samples[:count])]
    images = prepare_images(demo, pictures)
    prompt = prepare_prompt(demo, "what is speed ?", images)
    stock = stock_inputs_for(demo, "what is speed ?", pictures)
    assert torch.equal(prompt.tokens, stock["input_ids"][0])
    if count:
        assert torch.equal(torch.cat([image.pixel_values for image in images]), stock["pixel_values"])
        assert [list(image.grid_thw) for image in images] == stock["image_grid_thw"].tolist()
        positions, delta = demo.model.model.get_rope_index(
            stock["input_ids"], mm_token_type_ids=stock["mm_token_type_ids"], image_grid_thw=stock["image_grid_thw"]
        )
        assert torch.equal(prompt.positions, positions[:, 0])
        assert prompt.next_position == len(prompt.tokens) + int(delta)
    else:
        assert prompt.positions.tolist() == [list(range(len(prompt.tokens)))] * 3
        assert prompt.next_position == len(prompt.tokens)


def test_a_conversation_is_what_the_template_makes_of_it(demo):
    turns = [
        Turn("system", ("what is ", "speed ?")),
        Turn("user", ("what", None, " is ", None, "", "size ?")),
        Turn("assistant", ("12",)),
        Turn("user", ("page ?",)),
    ]
    messages = [
        {"role": "system", "content": "what is speed ?"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what"},
                {"type": "image"},
                {"type": "text", "text": " is "},
                {"type": "image"},
                {"type": "text", "text": "size ?"},
            ],
        },
        {"role": "assistant", "content": "12"},
        {"role": "user", "content": "page ?"},
    ]
    text = demo.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    expected = demo.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert chat_tokens(demo, turns, [1, 1]).tolist() == expected


def test_each_placeholder_becomes_as_many_tokens_as_its_image_has(demo):
    tokens = prompt_tokens(demo, "what is speed ?", [3, 1, 2]).tolist()
    runs = "".join("i" if token == IMAGE else "." for token in tokens)
    assert [len(run) for run in runs.split(".") if run] == [3, 1, 2]
    assert [token for token in tokens if token != IMAGE] == [
        token for token in prompt_tokens(demo, "what is speed ?", [1, 1, 1]).tolist() if token != IMAGE
    ]


@given(
    pieces=st.lists(st.sampled_from([*CONTROL, "what", " ", "?", "|", "<", "\n"]), max_size=8),
    images=st.lists(st.integers(1, 5), max_size=3),
)
@settings(deadline=None)
def test_control_tokens_in_a_question_are_only_text(demo, pieces, images):
    plain = prompt_tokens(demo, "", images)
    tokens = prompt_tokens(demo, "".join(pieces), images)
    control = demo.tokenizer.convert_tokens_to_ids(CONTROL)
    for token in control:
        assert int((tokens == token).sum()) == int((plain == token).sum())
    assert int((tokens == IMAGE).sum()) == sum(images)


def test_control_tokens_stay_text_when_many_threads_prepare_prompts(demo):
    question = "what is speed ? <|im_end|> <|image_pad|>"
    expected = prompt_tokens(demo, question, [4]).tolist()
    assert expected.count(IMAGE) == 4
    wrong = []
    start = threading.Barrier(5)

    def prepare() -> None:
        start.wait(TIMEOUT_S)
        try:
            for _ in range(150):
                if prompt_tokens(demo, question, [4]).tolist() != expected:
                    wrong.append("other tokens")
                if demo.tokenizer.decode([57, 58]) != "01":
                    wrong.append("other text")
        except BaseException as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=prepare) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert wrong == []


def test_a_template_that_does_not_show_every_image_is_refused(demo, monkeypatch):
    monkeypatch.setattr(demo.tokenizer, "chat_template", "{{ messages[0]['content'][-1]['text'] }}")
    assert prompt_tokens(demo, "what ?", []).tolist() == [8, 14]
    with pytest.raises(InputError, match="every image"):
        prompt_tokens(demo, "what ?", [2])
    monkeypatch.setattr(demo.tokenizer, "chat_template", "hello")
    with pytest.raises(InputError, match="does not show every message"):
        prompt_tokens(demo, "what ?", [])


@pytest.mark.parametrize("size", [(1, 1), (200, 1), (1, 200), (28, 28), (300, 200), (1000, 30)], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
def test_any_image_becomes_pixels_patches_and_tokens_that_fit(demo, size, mode):
    (image,) = prepare_images(demo, [Image.new(mode, size)])
    time, height, width = image.grid_thw
    assert time == 1
    assert image.cell_grid == (height // 2, width // 2)
    assert image.pixels.grid == (1, *image.cell_grid)
    assert image.tokens == image.cell_grid[0] * image.cell_grid[1] == image.pixels.tokens
    assert image.pixel_size == (width * 14, height * 14)
    assert image.pixel_values.shape[0] == height * width
    assert image.pixels.tiles.shape == (1, 3, height * 14, width * 14)
    assert image.pixels.tiles.dtype == torch.uint8


def test_the_pixels_are_those_that_the_model_sees(demo, samples):
    picture = samples[0].image.resize((84, 56))
    (image,) = prepare_images(demo, [picture])
    assert image.pixel_size == (84, 56)
    pixels = torch.tensor(list(picture.get_flattened_data()), dtype=torch.uint8).view(56, 84, 3)
    assert torch.equal(image.pixels.tiles[0], pixels.permute(2, 0, 1))


def test_an_image_that_is_too_narrow_is_refused(demo):
    with pytest.raises(InputError, match="300 x 1 pixels"):
        prepare_images(demo, [Image.new("RGB", (300, 1))])


def test_prompts_of_any_length_become_one_padded_batch_of_stock_inputs(demo, samples):
    wide = samples[3].image.resize((140, 84))
    prompts = [("what is speed ?", []), ("what is room ?", [samples[0].image, wide]), ("what ?", [wide])]
    batch = generate_inputs(demo, prompts)
    stock = [stock_inputs_for(demo, *prompt) for prompt in prompts]
    longest = max(own["input_ids"].shape[1] for own in stock)
    for number, own in enumerate(stock):
        length = own["input_ids"].shape[1]
        assert batch["attention_mask"][number].tolist() == [0] * (longest - length) + [1] * length
        for name in ("input_ids", "mm_token_type_ids"):
            assert torch.equal(batch[name][number, longest - length :], own[name][0])
    for name in ("pixel_values", "image_grid_thw"):
        assert torch.equal(batch[name], torch.cat([own[name] for own in stock if name in own]))


def test_a_batch_without_images_has_no_pixels(demo):
    assert set(generate_inputs(demo, [("what ?", [])])) == {"input_ids", "attention_mask", "mm_token_type_ids"}


def test_a_batch_of_no_prompts_is_refused(demo):
    with pytest.raises(InputError, match="at least one prompt"):
        generate_inputs(demo, [])
