"""A byte-level BPE tokenizer with Qwen's special tokens and chat format, made for the generator's questions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from erase.synthetic import colours, shapes, words

VOCABULARY = 1536
# The order is Qwen2.5's; the chat format and the vision tokens are what Qwen2.5-VL's processor looks for by name.
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SYSTEM = "You are a helpful assistant."
# A run of letters with the sign before it, one digit, or a run of other signs: digits stay single, as in Qwen2.5.
_PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How the generator's families ask; the words that fill them in come from the generator's lists.
_PHRASES = """
What is the total? What is the price of milk? What is the value of east? What is sales for paris? What is the date?
Which item costs 4.20? Which category is highest? Which category is lowest? Which category has the value 40?
What is the title? What is the heading? What color is the bar of east? What color is the line? What is the unit?
What color is the star? What shape is red? What is the shape of the blue object? What color is the background?
What color is the left half? What color is the biggest shape? What color is the smallest shape?
How many circles are there? How many red objects are there? How many objects are there? How many users are there?
What shape is left of the star? What shape is right of the star? What shape is above the star?
What shape is below the star? What shape is in the top left corner? What shape is in the bottom right corner?
What shape is in the middle? What does the sign say? What does the red sign say? What does the text say?
What is the number on the blue sign? What is the number? What is the license plate? What is the code?
What does the sign on the left say? What does the sign at the top say? What color is the sign that says hotel?
What color is the sign with the number 12? What number is under hotel? What word is on the white sign?
What is written in the image? What is the red word? What is the blue number? What is the green code? What is the word?
What word is at the top? What word is at the bottom? What number is on the left? What code is on the right?
What is the number next to the tree? What percentage is sales? What color is the panel with the fish? What is step 2?
What is the share of east? What icon is in the red panel? What is the label of the arrow? What is under the icon?
Which month is the largest? What is the smallest slice? Who is the customer? How much is the total? What text is there?
"""
_REPEATS = 30


_CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' or 'image' in part or 'image_url' in part -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif part['type'] == 'video' or 'video' in part -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif 'text' in part -%}
{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The demo model's tokenizer; the same every time, since its corpus is fixed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        additional_special_tokens=list(SPECIAL[3:]),
        chat_template=_CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=8192,
    )


def save_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json, its configuration, and the chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save_pretrained(folder)


def _corpus() -> Iterator[str]:
    for _ in range(_REPEATS):
        yield from _PHRASES.split("? ")
        yield f"system\n{SYSTEM}\nuser\nassistant\n"
    for name in ("LABELS", "GOODS", "CATEGORIES", "SIGNS", "NAMES", "CITIES", "FACTS"):
        for word in getattr(words, name):
            yield word
            yield f"the {word}?"
    for word in (*colours.NAMES, *shapes.NAMES):
        for _ in range(_REPEATS // 5):
            yield word
            yield f"the {word} {word}s?"
