"""Packed prefill and steps against the padded decoder behind `pruning()`, for any preselection and any cuts."""

from functools import partial

import pytest
import torch
from engine_cases import Packed, ask, bare, bare_sequence
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_cases import mixed_image, prompt_for, tiles_for, tiny_internvl, tiny_qwen2_5_vl, tiny_qwen3_vl

from erase.methods.base import Cut, ImageSelection, Method, Preselection
from erase.rows import PromptRows
from erase.stock import host
from erase.stock.cache import PrunedCache

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
        packed = Packed(adapter, sequences)
        later = packed.step([ANSWER] * len(sequences)).split(len(ANSWER))
        expected_rows, expected_lengths, expected = padded(adapter, sequences, packed.features)
    for number, prompt in enumerate(packed.prompts):
        assert [(cut.layer, cut.kept.tolist()) for cut in prompt.rows.done] == [
            (cut.layer, cut.kept.tolist()) for cut in expected_rows[number].done
        ]
        assert packed.lengths[number] == expected_lengths[number]
        own = torch.cat([packed.logits[number : number + 1], later[number]])
        torch.testing.assert_close(own, expected[number], rtol=0, atol=1e-4)


def test_tokens_fed_together_or_one_by_one_give_the_same_logits(demo, samples):
    answer = (57, 58, 45, 60)
    sequences = [ask(demo, "what is speed ?", [samples[0].image.resize((112, 84))])]
    packed, other = Packed(demo.adapter, sequences), Packed(demo.adapter, sequences)
    together = packed.step([answer])
    singly = [other.step([(token,)], number) for number, token in enumerate(answer)]
    torch.testing.assert_close(together, torch.cat(singly), rtol=0, atol=1e-4)
    assert packed.prompts[0].cache.lengths == other.prompts[0].cache.lengths
