"""Packed prefill and steps against the padded decoder behind `pruning()`, for any preselection and any cuts."""

from functools import partial

import pytest
import torch
from engine_cases import ask, bare, bare_sequence
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_cases import mixed_image, prompt_for, tiles_for, tiny_internvl, tiny_qwen2_5_vl, tiny_qwen3_vl

from erase.engine.cache import SequenceCache, attend
from erase.engine.prefill import StepRows, encode_images, prefill, step
from erase.methods.base import Cut, ImageSelection, Method, Preselection
from erase.rows import PromptRows
from erase.stock import host
from erase.stock.cache import PrunedCache

CPU = torch.device("cpu")
DEPTH = 8
ANSWER = (57, 58, 45)


class Scripted(Method):
    """Keeps what it was told to keep, and ranks by what it was told to rank by."""

    name = "scripted"

    def __init__(self, kept: list[list[bool]], cuts: tuple[Cut, ...], source: str, queries: str) -> None:
        self.kept, self.planned, self.source, self.queries = kept, cuts, source, queries

    def preselect(self, images):
        return Preselection(
            tuple(
                ImageSelection(
                    tokens=image.tokens,
                    kept=torch.tensor(kept[: image.tokens]).nonzero().squeeze(1),
                    entropy=torch.zeros(image.tokens),
                    complexity=0.0,
                    bin=None,
                    grid=image.grid,
                )
                for image, kept in zip(images, self.kept, strict=True)
            )
        )

    def cuts(self, preselection, architecture):
        return self.planned

    def query_source(self, architecture):
        return self.source

    def score(self, context):
        return context.attention(self.queries)


@st.composite
def scripts(draw):
    """For two images of at most 12 tokens; stage 1 may drop an image entirely, cuts may keep the older caches."""
    kept = [draw(st.lists(st.booleans(), min_size=12, max_size=12)) for _ in range(2)]
    left = sum(map(sum, kept))
    cuts = []
    for layer in sorted(draw(st.sets(st.integers(1, DEPTH - 1), max_size=3))):
        left = draw(st.integers(0, left))
        cuts.append(Cut(layer, left, draw(st.booleans())))
    source = draw(st.sampled_from(["input", "normed_input", "output"]))
    return Scripted(kept, tuple(cuts), source, draw(st.sampled_from(["question", "last"])))


prompts = st.tuples(scripts(), st.integers(0, 5), st.integers(1, 7))  # method, text before and after the images


BUILDERS = {
    "qwen2_5_vl": tiny_qwen2_5_vl,
    "qwen3_vl": tiny_qwen3_vl,
    "internvl": partial(tiny_internvl, side=56),
}


@pytest.fixture(scope="module", params=BUILDERS)
def loaded(request):
    return bare(BUILDERS[request.param](DEPTH))


@pytest.fixture(scope="module")
def two_images(loaded):
    if loaded.adapter.model_type == "internvl":
        return [tiles_for(loaded.model, 3), tiles_for(loaded.model, 1, seed=1)]
    return [mixed_image(*size, loaded.adapter.cell, seed=seed) for seed, size in enumerate([(3, 4), (2, 3)])]


def padded(adapter, sequences, features):
    """Of each prompt the kept tokens, cache lengths and logits after it and after each token of the answer."""
    longest = max(len(sequence.prompt.tokens) for sequence in sequences)
    places = [torch.arange(longest - len(sequence.prompt.tokens), longest) for sequence in sequences]
    embeddings = torch.zeros(len(sequences), longest, adapter.text_config.hidden_size)
    positions = torch.zeros(adapter.position_axes, len(sequences), longest, dtype=torch.int64)
    rows = []
    for number, (sequence, own) in enumerate(zip(sequences, places, strict=True)):
        embeddings[number, own] = adapter.embed_tokens(sequence.prompt.tokens)
        positions[:, number, own] = sequence.prompt.positions
        cuts = sequence.method.cuts(sequence.preselection, adapter.architecture)
        is_vision = sequence.prompt.tokens == adapter.image_token_id
        rows.append(PromptRows(sequence.method, sequence.preselection, cuts, is_vision))
    cache = PrunedCache(adapter.text_config)
    hidden, lengths = host.prefill(
        adapter,
        rows,
        embeddings=embeddings,
        features=[
            sequence.method.postencode(feature.tokens, sequence.preselection)
            for sequence, feature in zip(sequences, features, strict=True)
        ],
        deep=[feature.deep for feature in features],
        positions=positions,
        places=places,
        cache=cache,
    )
    steps = [hidden[:, -1:]]
    for number, token in enumerate(ANSWER):
        new = torch.full((len(sequences), 1), token)
        after = torch.tensor([[sequence.prompt.next_position + number] for sequence in sequences])
        after = after.expand(adapter.position_axes, -1, -1)
        steps.append(host.decode(adapter, adapter.embed_tokens(new), after, torch.ones_like(new).bool(), cache))
    return rows, lengths, adapter.lm_head(torch.cat(steps, dim=1))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(prompts, min_size=1, max_size=3))
def test_packed_prompts_follow_the_padded_decoder(loaded, two_images, batch):
    adapter = loaded.adapter
    sequences = [
        bare_sequence(loaded, prompt_for(loaded.model, two_images, before=before, after=after), two_images, method)
        for method, before, after in batch
    ]
    with torch.inference_mode():
        features = encode_images(adapter, sequences, CPU)
        packed, logits = prefill(adapter, sequences, features, CPU)
        lengths = [prompt.cache.lengths for prompt in packed]
        for prompt in packed:
            prompt.cache.reserve(len(ANSWER))
        rows = [StepRows(p.cache, ANSWER, s.prompt.next_position) for p, s in zip(packed, sequences, strict=True)]
        later = step(adapter, rows, CPU).split(len(ANSWER))
        expected_rows, expected_lengths, expected = padded(adapter, sequences, features)
    for number, prompt in enumerate(packed):
        assert [(cut.layer, cut.kept.tolist()) for cut in prompt.rows.done] == [
            (cut.layer, cut.kept.tolist()) for cut in expected_rows[number].done
        ]
        assert lengths[number] == expected_lengths[number]
        own = torch.cat([logits[number : number + 1], later[number]])
        torch.testing.assert_close(own, expected[number], rtol=0, atol=1e-4)


def test_tokens_fed_together_or_one_by_one_give_the_same_logits(demo, samples):
    adapter, answer = demo.adapter, (57, 58, 45, 60)
    sequences = [ask(demo, "what is speed ?", [samples[0].image.resize((112, 84))])] * 2
    prompts, _ = prefill(adapter, sequences, encode_images(adapter, sequences, CPU), CPU)
    for prompt in prompts:
        prompt.cache.reserve(len(answer))
    start = sequences[0].prompt.next_position
    together = step(adapter, [StepRows(prompts[0].cache, answer, start)], CPU)
    singly = [step(adapter, [StepRows(prompts[1].cache, (t,), start + n)], CPU) for n, t in enumerate(answer)]
    torch.testing.assert_close(together, torch.cat(singly), rtol=0, atol=1e-4)
    assert prompts[0].cache.lengths == prompts[1].cache.lengths


def test_rows_of_a_failed_step_do_not_count():
    cache = SequenceCache(1)
    rows = torch.arange(6.0).view(1, 3, 2)
    cache.store(0, rows, rows)
    cache.reserve(2)
    new = torch.full((1, 1, 2), 9.0)
    cache.append(0, new, new)
    assert cache.lengths == (3,)
    keys, _ = cache.append(0, new + 1, new + 1)
    cache.commit(1)
    assert cache.lengths == (4,)
    assert torch.equal(keys, torch.cat([rows, new + 1], 1))
    assert torch.equal(cache.keys(0), keys)


def test_dropped_rows_are_gone_and_the_others_keep_their_order():
    cache = SequenceCache(2)
    for layer, length in ((0, 5), (1, 3)):
        rows = torch.arange(length * 2.0).view(1, length, 2)
        cache.store(layer, rows, -rows)
    cache.keep_rows(0, torch.tensor([1, 4]))
    assert cache.lengths == (2, 3)
    assert (cache.length(0), cache.length(1)) == (2, 3)
    assert cache.keys(0)[0].tolist() == [[2.0, 3.0], [8.0, 9.0]]
    cache.reserve(3)
    assert cache.keys(0)[0].tolist() == [[2.0, 3.0], [8.0, 9.0]]


@given(st.integers(1, 5), st.integers(0, 6), st.sampled_from([(4, 4), (4, 2), (4, 1)]))
def test_the_last_rows_attend_to_everything_up_to_themselves(rows, before, heads):
    torch.manual_seed(rows * 10 + before)
    query_heads, key_heads = heads
    keys = rows + before
    query, key, value = (
        torch.randn(n, length, 8) for n, length in ((query_heads, rows), (key_heads, keys), (key_heads, keys))
    )
    own = attend(query, key, value, 0.3)
    key, value = (part.repeat_interleave(query_heads // key_heads, 0) for part in (key, value))
    scores = query @ key.transpose(1, 2) * 0.3
    scores[:, torch.arange(keys) > torch.arange(rows).unsqueeze(1) + before] = float("-inf")
    torch.testing.assert_close(own, scores.softmax(-1) @ value)
