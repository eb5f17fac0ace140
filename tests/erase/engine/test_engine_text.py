"""Text from tokens as they come."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from erase.engine.text import TextStream

CHARACTERS = "abc ä漢👍🏽é\u0301\n"


@pytest.fixture(scope="module")
def by_byte():
    """One token per byte and some that span characters, so most characters span tokens."""
    return byte_level_tokenizer()


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    merges = []
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    for text in ("ab", "漢", "a漢"):
        letters_of_text = spelled(text)[0][0]
        for end in range(2, len(letters_of_text)):  # all but the last byte of a character
            merged = letters_of_text[:end]
            if merged not in vocabulary:
                merges.append((letters_of_text[: end - 1], letters_of_text[end - 1]))
                vocabulary[merged] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.add_special_tokens({"additional_special_tokens": ["<|hidden|>"]})
    return fast


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def stream(tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    """Deltas as the engine would send them: it stops pushing at a stop string."""
    text = TextStream(tokenizer, stop)
    deltas = []
    for token in ids:
        deltas.append(text.push(token))
        if text.stopped:
            break
    deltas.append(text.finish())
    return deltas, text


@given(text=st.text(CHARACTERS, max_size=20))
def test_the_deltas_add_up_to_the_text(by_byte, text):
    deltas, end = stream(by_byte, ids_of(by_byte, text))
    assert "".join(deltas) == end.text == text
    assert not end.stopped


@given(text=st.text(CHARACTERS, min_size=1, max_size=12))
def test_no_delta_shows_half_a_character(by_byte, text):
    deltas, _ = stream(by_byte, ids_of(by_byte, text))
    assert all("\ufffd" not in delta for delta in deltas)
    assert all(text.startswith(shown) for shown in accumulate(deltas))


@given(text=st.text(CHARACTERS, min_size=1, max_size=12), cut=st.integers(1, 60))
def test_an_answer_cut_inside_a_character_reads_like_the_tokenizer_reads_it(by_byte, text, cut):
    ids = ids_of(by_byte, text)[:cut]
    deltas, end = stream(by_byte, ids)
    assert "".join(deltas) == end.text == by_byte.decode(ids)


@given(ids=st.lists(st.integers(0, 261), max_size=25))
def test_bytes_that_are_no_text_read_like_the_tokenizer_reads_them(by_byte, ids):
    deltas, end = stream(by_byte, ids)
    assert "".join(deltas) == end.text == by_byte.decode(ids, skip_special_tokens=True)


@given(text=st.text("abä漢", max_size=16), stop=st.text("abä漢", min_size=1, max_size=4))
def test_text_ends_before_the_first_stop_string(by_byte, text, stop):
    deltas, end = stream(by_byte, ids_of(by_byte, text), (stop,))
    assert end.text == text.split(stop)[0]
    assert "".join(deltas) == end.text
    assert end.stopped == (stop in text)


@given(
    text=st.text("abä", max_size=16),
    stops=st.lists(st.text("abä", min_size=1, max_size=4), min_size=1, max_size=4).map(tuple),
)
def test_with_several_stop_strings_nothing_of_any_is_ever_shown(by_byte, text, stops):
    deltas, end = stream(by_byte, ids_of(by_byte, text), stops)
    assert "".join(deltas) == end.text
    assert text.startswith(end.text)
    assert not any(stop in end.text for stop in stops)
    assert end.stopped == any(stop in text for stop in stops)


def test_a_possible_stop_string_is_shown_when_it_turns_out_to_be_none(by_byte):
    deltas, _ = stream(by_byte, ids_of(by_byte, "caca!"), ("cab", "ac?"))
    assert deltas == ["", "", "c", "a", "ca!", ""]
    deltas, _ = stream(by_byte, ids_of(by_byte, "ca"), ("cab",))
    assert deltas == ["", "", "ca"]


def test_the_longest_possible_stop_string_is_held_back(by_byte):
    text = TextStream(by_byte, ("ccca", "ca!"))
    assert [text.push(token) for token in ids_of(by_byte, "cccc")] == ["", "", "", "c"]


def test_control_tokens_show_nothing(by_byte):
    hidden = by_byte.convert_tokens_to_ids("<|hidden|>")
    ids = ids_of(by_byte, "cä")
    deltas, end = stream(by_byte, [hidden, *ids[:2], hidden, *ids[2:], hidden, hidden])
    assert "".join(deltas) == end.text
    assert "hidden" not in end.text


def test_words_keep_their_spaces_also_behind_control_tokens():
    vocabulary = {"\u2581one": 0, "\u2581two": 1, "<|hidden|>": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|hidden|>"))
    tokenizer.decoder = decoders.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.add_special_tokens({"additional_special_tokens": ["<|hidden|>"]})
    deltas, end = stream(fast, [2, 0, 2, 2, 1, 2, 1])
    assert end.text == "".join(deltas) == "one two two"
