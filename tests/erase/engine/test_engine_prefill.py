"""Packed prefill and steps against the one-prompt decoder behind `pruning()`, for any preselection and any cuts."""

import pytest
import torch
from engine_cases import ask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from erase import host
from erase.cache import PrunedCache
from erase.engine.cache import SequenceCache, attend
from erase.engine.prefill import StepRows, encode_images, prefill, step
from erase.methods.base import Cut, ImageSelection, Method, Preselection

CPU = torch.device("cpu")
DEPTH = 8


class Scripted(Method):
    """Keeps what it was told to keep."""

    name = "scripted"

    def __init__(self, kept: list[list[int]], cuts: tuple[Cut, ...], scoring: str) -> None:
        self.kept, self.planned, self.scoring = kept, cuts, scoring

    def preselect(self, images):
        return Preselection(
            tuple(
                ImageSelection(len(cells), torch.tensor(kept, dtype=torch.int64), torch.zeros(len(cells)), 0.0, None)
                for cells, kept in zip(images, self.kept, strict=True)
            )
        )

    def cuts(self, preselection, architecture):
        return self.planned


@st.composite
def scripts(draw):
    """Two images of 12 and 6 tokens; stage 1 may drop an image entirely, cuts may keep the older caches."""
    kept = [sorted(draw(st.sets(st.integers(0, tokens - 1)))) for tokens in (12, 6)]
    left = sum(map(len, kept))
    cuts = []
    for layer in sorted(draw(st.sets(st.integers(1, DEPTH - 1), max_size=3))):
        left = draw(st.integers(0, left))
        cuts.append(Cut(layer, left, draw(st.booleans())))
    return Scripted(kept, tuple(cuts), draw(st.sampled_from(["reference", "exact"])))


@pytest.fixture(scope="module")
def images(samples):
    return [samples[0].image.resize((112, 84)), samples[3].image.resize((84, 56))]


def one_by_one(demo, sequence, features, answer):
    """Kept tokens, lengths and logits after the prompt and after each token of `answer`."""
    adapter, prompt = demo.adapter, sequence.prompt
    vision = prompt.tokens == adapter.image_token_id
    embeddings = adapter.embed_tokens(prompt.tokens)
    embeddings[vision] = features
    cache = PrunedCache(adapter.language_model.config)
    hidden, trace = host.prefill(
        adapter,
        sequence.method,
        sequence.preselection,
        sequence.method.planned,
        embeddings=embeddings.unsqueeze(0),
        features=sequence.method.postencode(features, sequence.preselection),
        positions=prompt.positions.unsqueeze(1),
        vision=vision,
        cache=cache,
    )
    steps = [hidden[0, -1:]]
    for number, token in enumerate(answer):
        position = torch.full((3, 1, 1), prompt.next_position + number)
        steps.append(host.decode(adapter, adapter.embed_tokens(torch.tensor([[token]])), position, cache)[0])
    kept = trace.cuts[-1].kept if trace.cuts else trace.stage1_kept
    return kept, trace.cache_lengths, adapter.lm_head(torch.cat(steps))


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(scripts(), min_size=1, max_size=3))
def test_packed_prompts_follow_the_one_prompt_decoder(demo, images, methods):
    adapter, answer = demo.adapter, (57, 58, 45)
    sequences = [ask(demo, "what is speed ?", images, method=method) for method in methods]
    with torch.inference_mode():
        features = encode_images(adapter, sequences, CPU)
        prompts, logits = prefill(adapter, sequences, features, CPU)
        lengths = [prompt.cache.lengths for prompt in prompts]
        for prompt in prompts:
            prompt.cache.reserve(len(answer))
        rows = [StepRows(p.cache, answer, s.prompt.next_position) for p, s in zip(prompts, sequences, strict=True)]
        later = step(adapter, rows, CPU).split(len(answer))
        for number, sequence in enumerate(sequences):
            kept, expected_lengths, expected = one_by_one(demo, sequence, features[number], answer)
            vision = prompts[number].vision
            assert vision[vision >= 0].tolist() == kept.tolist()
            assert lengths[number] == expected_lengths
            own = torch.cat([logits[number : number + 1], later[number]])
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-4)


def test_tokens_fed_together_or_one_by_one_give_the_same_logits(demo, images):
    adapter, answer = demo.adapter, (57, 58, 45, 60)
    sequences = [ask(demo, "what is speed ?", images[:1])] * 2
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
