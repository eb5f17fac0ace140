"""A batch is its prompts one by one: any padding, any images, any pruning beside each other, any way to go on."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from batch_cases import (
    BINNED,
    BUILDERS,
    DEPTH,
    Prompt,
    assert_same_trace,
    inputs_of,
    normalisation,
    padded,
    prompts,
    pruned,
    tiny,
    vision_of,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from slow_erase import kind_of
from torch import Tensor

import erase
from erase.attention import vision_attention
from erase.methods.none import NoPruning

CLOSE = {"rtol": 0, "atol": 1e-4}
STEPS = 4
GREEDY = {"max_new_tokens": STEPS, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}

kinds = st.sampled_from(list(BUILDERS))
attentions = st.sampled_from(["sdpa", "eager"])
sides = st.sampled_from(["left", "right"])
batches = st.lists(prompts(), min_size=2, max_size=4)
new_words = st.lists(st.integers(3, 140), min_size=1, max_size=4)
# In InternVL, padding inside an image would make two images of it.
kinds_and_sides = st.tuples(kinds, sides) | st.tuples(st.sampled_from(["qwen2_5_vl", "qwen3_vl"]), st.just("anywhere"))
by_kind = pytest.mark.parametrize("kind", BUILDERS)
some = settings(max_examples=25, deadline=None, derandomize=True)

MIXTURE = [
    Prompt("binned", ((3, 4), (1, 2)), before=3, between=2, after=9, seed=1),
    Prompt("budget", ((2, 3),), before=0, between=0, after=4, seed=2),
    Prompt("none", ((2, 2),), before=1, between=0, after=2, seed=3),
    Prompt("pairs", ((1, 4), (3, 3)), before=5, between=0, after=1, seed=4),
    Prompt("tight", (), before=4, between=0, after=3, seed=5),
]

WORDS = [[40, 41], [42], [43, 44, 45], [46], [47, 48]]


def assert_same_answers(one: Tensor, other: Tensor) -> None:
    """Greedy logits [steps, vocabulary] agree as far as they saw the same tokens."""
    for mine, yours in zip(one, other, strict=True):
        torch.testing.assert_close(mine, yours, **CLOSE)
        first, second = yours.topk(2).values
        if mine.argmax() != yours.argmax():
            assert first - second < CLOSE["atol"]
            return


def steps_of(output) -> Tensor:
    """[prompts, steps, vocabulary]"""
    return torch.stack(output.logits, dim=1)


@some
@given(kind=kinds, attention=attentions, batch=batches)
def test_generate_answers_a_batch_as_its_prompts_alone(kind, attention, batch):
    model = tiny(kind, attention)
    with pruned(model, batch) as trace:
        inputs = inputs_of(model, batch)
        together = model.generate(**inputs, **GREEDY)
    (call,) = trace.calls
    for number, prompt in enumerate(batch):
        with pruned(model, [prompt]) as own:
            alone = model.generate(**inputs_of(model, [prompt]), **GREEDY)
        assert_same_trace(call.prompts[number], own.calls[0].prompts[0])
        assert_same_answers(steps_of(together)[number], steps_of(alone)[0])
    assert_cache_holds(together.past_key_values, call, inputs, STEPS - 1)


def assert_cache_holds(cache, call, inputs: dict[str, Tensor], answered: int) -> None:
    """Tensors are as long as the longest prompt that a layer holds, and the logical length is that of the text."""
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] + answered
    longest = [max(lengths) for lengths in zip(*(prompt.cache_lengths for prompt in call.prompts), strict=True)]
    if not cache.is_pruned:
        assert all(prompt.retention == (1.0, 1.0) for prompt in call.prompts)
        longest = [inputs["input_ids"].shape[1]] * DEPTH
    assert cache.cache_lengths() == tuple(length + answered for length in longest)
    for layer, length in zip(cache.layers, longest, strict=True):
        for states in (layer.keys, layer.values):
            assert states.shape[0] == len(call.prompts)
            assert states.shape[2] == length + answered


@some
@given(kind_and_side=kinds_and_sides, attention=attentions, batch=batches)
def test_a_forward_call_has_logits_for_text_and_what_was_kept(kind_and_side, attention, batch):
    kind, side = kind_and_side
    # Without any image the stock Qwens count padding in their positions.
    assume(side != "anywhere" or any(prompt.sizes for prompt in batch))
    model = tiny(kind, attention)
    inputs = inputs_of(model, batch, side)
    with torch.no_grad(), pruned(model, batch) as trace:
        output = model(**inputs)
    (call,) = trace.calls
    untouched = all(prompt.retention == (1.0, 1.0) for prompt in call.prompts)
    for number, prompt in enumerate(batch):
        valid = inputs["attention_mask"][number] == 1
        with torch.no_grad(), pruned(model, [prompt]) as own:
            alone = model(**inputs_of(model, [prompt])).logits[0]
        mine = output.logits[number]
        assert_same_trace(call.prompts[number], own.calls[0].prompts[0])
        torch.testing.assert_close(mine[valid], alone, equal_nan=True, **CLOSE)
        assert mine[~valid].isnan().all() or untouched
        lost = alone.isnan().all(dim=1)
        vision = vision_of(inputs)[number][valid]
        assert not alone[~lost].isnan().any()
        assert not lost[~vision].any()
        kept = (
            own.calls[0].prompts[0].cuts[-1].kept if own.calls[0].prompts[0].cuts else call.prompts[number].stage1_kept
        )
        assert (~lost[vision]).nonzero().squeeze(1).tolist() == kept.tolist()
        assert all(image.kept.numel() for image in call.prompts[number].images)


@some
@given(
    kind_and_side=kinds_and_sides,
    attention=attentions,
    turns=st.lists(st.tuples(sides, st.lists(new_words, min_size=4, max_size=4)), min_size=1, max_size=3),
    batch=batches.filter(lambda batch: any(prompt.sizes for prompt in batch)),
)
def test_a_returned_cache_takes_more_tokens_by_hand(kind_and_side, attention, batch, turns):
    kind, side = kind_and_side
    model = tiny(kind, attention)
    inputs = inputs_of(model, batch, side)
    with torch.no_grad(), pruned(model, batch) as trace:
        together = continued(model, inputs, [(own, words[: len(batch)]) for own, words in turns])
    assert len(trace.calls) == 1
    for number, prompt in enumerate(batch):
        with torch.no_grad(), pruned(model, [prompt]):
            alone = continued(model, inputs_of(model, [prompt]), [(own, [words[number]]) for own, words in turns])
        for mine, yours in zip(together, alone, strict=True):
            torch.testing.assert_close(mine[number], yours[0], **CLOSE)


def continued(model, inputs: dict[str, Tensor], turns) -> list[list[Tensor]]:
    """Per turn and prompt the logits of its new tokens."""
    mask, results = inputs["attention_mask"], []
    output = model(**inputs, **text_positions(model, mask, mask.shape[1]))
    for side, words in turns:
        tokens, new = padded([torch.tensor(row) for row in words], side)
        mask = torch.cat([mask, new], dim=1)
        own = text_positions(model, mask, tokens.shape[1])
        output = model(input_ids=tokens, attention_mask=mask, past_key_values=output.past_key_values, **own)
        results.append([logits[valid == 1] for logits, valid in zip(output.logits, new, strict=True)])
    return results


def text_positions(model, mask: Tensor, new: int) -> dict[str, Tensor]:
    """InternVL counts padding in its positions unless it is told better; the Qwens look at the mask themselves."""
    return {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, -new:]} if kind_of(model) == "internvl" else {}


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    kind=kinds,
    attention=attentions,
    batch=batches,
    words=st.lists(new_words, min_size=4, max_size=4),
    whole=st.booleans(),
)
def test_generate_continues_a_conversation(kind, attention, batch, words, whole):
    model, length = tiny(kind, attention), min(map(len, words))
    with pruned(model, batch) as trace:
        together = second_turn(model, batch, torch.tensor([row[:length] for row in words[: len(batch)]]), whole)
    assert len(trace.calls) == 1
    for number, prompt in enumerate(batch):
        with pruned(model, [prompt]):
            alone = second_turn(model, [prompt], torch.tensor([words[number][:length]]), whole)
        assert_same_answers(steps_of(together)[number], steps_of(alone)[0])


def second_turn(model, batch: list[Prompt], question: Tensor, whole: bool):
    inputs = inputs_of(model, batch)
    # One fixed token as the first answer, so that both ways put the same second question.
    first = model.generate(**inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True)
    text = torch.cat([inputs["input_ids"], torch.full((len(batch), 1), 77), question], dim=1)
    mask = torch.cat(
        [inputs["attention_mask"], torch.ones(len(batch), 1 + question.shape[1], dtype=torch.int64)], dim=1
    )
    return model.generate(
        input_ids=text if whole else text[:, inputs["input_ids"].shape[1] :],
        attention_mask=mask,
        past_key_values=first.past_key_values,
        **GREEDY,
    )


@by_kind
def test_prompts_that_end_early_leave_the_others_alone(kind, monkeypatch):
    model = tiny(kind)
    with pruned(model, MIXTURE):
        endless = model.generate(**inputs_of(model, MIXTURE), max_new_tokens=8, do_sample=False)[:, -8:]
    ends = sorted({int(endless[0, 1]), int(endless[1, 3]), int(endless[4, 0])})
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
    with pruned(model, MIXTURE):
        together = model.generate(**inputs_of(model, MIXTURE), max_new_tokens=8, do_sample=False)
    width = together.shape[1] - inputs_of(model, MIXTURE)["input_ids"].shape[1]
    stopped = set()
    for number, prompt in enumerate(MIXTURE):
        with pruned(model, [prompt]):
            inputs = inputs_of(model, [prompt])
            alone = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        answer = together[number, -width:].tolist()
        assert answer[: len(alone)] == alone.tolist()
        assert set(answer[len(alone) :]) <= {model.generation_config.pad_token_id}
        stopped.add(len(alone))
    assert len(stopped) > 1


@by_kind
def test_sampling_follows_its_seed_however_often_the_trace_is_read(kind):
    model = tiny(kind)
    sampled = {"max_new_tokens": 6, "do_sample": True, "temperature": 0.8, "top_p": 0.9}
    seen = []

    def look(_ids: Tensor, scores: Tensor) -> Tensor:
        seen.append([prompt.retention for call in trace.calls for prompt in call.prompts])
        return scores

    answers = []
    for processors in ([], [look]):
        with pruned(model, MIXTURE) as trace:
            torch.manual_seed(11)
            answers.append(model.generate(**inputs_of(model, MIXTURE), **sampled, logits_processor=processors))
    assert torch.equal(*answers)
    assert len(seen) == 6
    assert all(len(retentions) == len(MIXTURE) for retentions in seen)


@by_kind
def test_pruning_draws_no_random_numbers(kind):
    model = tiny(kind)
    with pruned(model, MIXTURE):
        torch.manual_seed(11)
        model.generate(**inputs_of(model, MIXTURE), max_new_tokens=2, do_sample=False)
        after = torch.rand(1)
    torch.manual_seed(11)
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@by_kind
def test_half_precision_has_no_nan_where_there_is_a_token(kind, attention, dtype):
    model = copy.deepcopy(tiny(kind, attention)).to(dtype)
    check_live_rows(model, dtype)


@by_kind
def test_autocast_changes_nothing_but_precision(kind):
    with torch.autocast("cpu", torch.bfloat16):
        check_live_rows(tiny(kind), torch.float32)


def test_autocast_leaves_the_ranking_in_float32():
    query, key = torch.randn(4, 9, 8), torch.randn(2, 20, 8)
    rows, columns = torch.arange(11, 20), torch.arange(2, 9)
    expected = vision_attention(query, key, rows, columns, scale=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vision_attention(query, key, rows, columns, scale=0.3), expected)


def check_live_rows(model, dtype: torch.dtype) -> None:
    for side in ("left", "right"):
        inputs = inputs_of(model, MIXTURE, side)
        inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
        with torch.no_grad(), pruned(model, MIXTURE) as trace:
            logits = model(**inputs).logits
            if side == "left":
                assert not steps_of(model.generate(**inputs, **GREEDY)).isnan().any()
        for number, prompt in enumerate(trace.calls[0].prompts):
            text = (inputs["attention_mask"][number] == 1) & ~vision_of(inputs)[number]
            alive = text.clone()
            kept = prompt.cuts[-1].kept if prompt.cuts else prompt.stage1_kept
            alive[vision_of(inputs)[number].nonzero().squeeze(1)[kept]] = True
            assert not logits[number, alive].isnan().any()
            assert logits[number, ~alive].isnan().all()


@by_kind
def test_gradients_and_inference_mode_change_nothing(kind):
    model, inputs = tiny(kind), inputs_of(tiny(kind), MIXTURE)
    results = []
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode(), pruned(model, MIXTURE):
            results.append(model(**inputs).logits.detach().clone())
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, equal_nan=True, rtol=0, atol=1e-6)


@by_kind
def test_calls_of_several_threads_do_not_mix(kind):
    model = tiny(kind)
    own = [inputs_of(model, [prompt]) for prompt in (MIXTURE[0], MIXTURE[0], MIXTURE[1], MIXTURE[4])]
    with erase.pruning(model, BINNED, **normalisation(model)) as trace:
        expected = [model.generate(**inputs, max_new_tokens=12, do_sample=False) for inputs in own]
        with ThreadPoolExecutor(len(own)) as pool:
            calls = [pool.submit(model.generate, **inputs, max_new_tokens=12, do_sample=False) for inputs in own * 2]
        for call, answer in zip(calls, expected * 2, strict=True):
            assert torch.equal(call.result(), answer)
    assert len(trace.calls) == 3 * len(own)


class Halved(NoPruning):
    """Keeps every token, and changes what it is given instead of making something new."""

    def postencode(self, features, preselection):
        return features.mul_(0.5)


class HalvedElsewhere(NoPruning):
    def postencode(self, features, preselection):
        return features * 0.5


@by_kind
def test_features_that_a_method_changes_in_place_are_taken(kind):
    model, inputs = tiny(kind), inputs_of(tiny(kind), MIXTURE[:1])
    logits = []
    for method in (Halved(), HalvedElsewhere(), None):
        with torch.no_grad(), erase.pruning(model, method, **normalisation(model)):
            logits.append(model(**inputs).logits)
    assert torch.equal(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2], **CLOSE)


@by_kind
def test_a_cache_can_be_copied_and_continued_twice(kind):
    model = tiny(kind)
    with torch.no_grad(), pruned(model, MIXTURE):
        inputs = inputs_of(model, MIXTURE)
        cache = model(**inputs).past_key_values
        fork = copy.deepcopy(cache)
        step = {
            "input_ids": torch.full((len(MIXTURE), 2), 50),
            "attention_mask": torch.cat([inputs["attention_mask"], torch.ones(len(MIXTURE), 2, dtype=torch.int64)], 1),
        }
        first = model(**step, past_key_values=cache).logits
        second = model(**step, past_key_values=fork).logits
    assert torch.equal(first, second)


def fed(model, cache, mask: Tensor, words: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Logits of new tokens, and the mask with them."""
    tokens = torch.tensor(words)
    mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
    return model(input_ids=tokens, attention_mask=mask, past_key_values=cache).logits, mask


@by_kind
def test_a_cache_can_be_cropped_to_take_an_answer_back(kind):
    model, count = tiny(kind), len(MIXTURE)
    with torch.no_grad(), pruned(model, MIXTURE):
        inputs = inputs_of(model, MIXTURE)
        cache, mask = model(**inputs).past_key_values, inputs["attention_mask"]
        fresh = copy.deepcopy(cache)
        fed(model, cache, mask, [[50, 51, 52]] * count)
        cache.crop(-2)
        _, one = fed(model, fresh, mask, [[50]] * count)
        expected, _ = fed(model, fresh, one, [[60, 61]] * count)
        logits, _ = fed(model, cache, one, [[60, 61]] * count)
        assert cache.get_seq_length() == mask.shape[1] + 3
        for tokens in (1, -4):
            with pytest.raises(erase.UnsupportedError, match="can lose the 3 tokens"):
                cache.crop(tokens)
    torch.testing.assert_close(logits, expected, **CLOSE)


@by_kind
def test_prompts_of_a_cache_can_be_repeated_chosen_and_reordered(kind):
    model, count = tiny(kind), len(MIXTURE)
    words = [[50 + number, 70 + number] for number in range(2 * count)]
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad(), pruned(model, MIXTURE):
        inputs = inputs_of(model, MIXTURE)
        mask = inputs["attention_mask"]
        cache = model(**inputs, **text_positions(model, mask, mask.shape[1])).past_key_values
        deltas = getattr(model.model, "rope_deltas", None)
        for change, rows in (
            (lambda own: own.batch_repeat_interleave(2), torch.arange(count).repeat_interleave(2)),
            (lambda own: own.batch_select_indices(order[:3]), order[:3]),
            (lambda own: own.reorder_cache(order), order),
        ):
            own = copy.deepcopy(cache)
            change(own)
            logits = after_rows(model, own, mask, deltas, rows, words)
            for number, row in enumerate(rows):
                single = copy.deepcopy(cache)
                single.batch_select_indices(row[None])
                alone = after_rows(model, single, mask, deltas, row[None], words[number:])
                torch.testing.assert_close(logits[number], alone[0], **CLOSE)


def after_rows(model, cache, mask: Tensor, deltas: Tensor | None, rows: Tensor, words: list[list[int]]) -> Tensor:
    """Logits of new words after these prompts of a batch; the Qwens keep offsets of positions beside the cache."""
    if deltas is not None:
        model.model.rope_deltas = deltas[rows]
    tokens = torch.tensor(words[: len(rows)])
    mask = torch.cat([mask[rows], torch.ones_like(tokens)], dim=1)
    own = text_positions(model, mask, tokens.shape[1])
    return model(input_ids=tokens, attention_mask=mask, past_key_values=cache, **own).logits


def spread_over(model, folder, places):
    """The model with some layers off its device, as `from_pretrained(device_map=...)` loads it."""
    model.save_pretrained(folder / "model")
    device_map = {"model.visual" if hasattr(model.model, "visual") else "model.vision_tower": "cpu", "lm_head": "cpu"}
    if hasattr(model.model, "multi_modal_projector"):
        device_map["model.multi_modal_projector"] = "cpu"
    device_map |= {f"model.language_model.{name}": "cpu" for name in ("embed_tokens", "norm", "rotary_emb")}
    device_map |= {f"model.language_model.layers.{layer}": places(layer) for layer in range(DEPTH)}
    spread = (
        type(model)
        .from_pretrained(
            folder / "model", device_map=device_map, offload_folder=folder / "offload", attn_implementation="sdpa"
        )
        .eval()
    )
    spread.generation_config = model.generation_config
    return spread


@by_kind
def test_a_model_spread_over_cpu_and_disk_answers_the_same(kind, tmp_path):
    plain = tiny(kind)
    spread = spread_over(plain, tmp_path, lambda layer: "disk" if layer % 2 else "cpu")
    assert any(parameter.device.type == "meta" for parameter in spread.parameters())
    answers, by_hand, traces = [], [], []
    for model in (plain, spread):
        with torch.no_grad(), pruned(model, MIXTURE) as trace:
            answers.append(steps_of(model.generate(**inputs_of(model, MIXTURE), **GREEDY)))
            by_hand.append(continued(model, inputs_of(model, MIXTURE, "right"), [("left", WORDS), ("right", WORDS)]))
        traces.append([prompt for call in trace.calls for prompt in call.prompts])
    for one, other in zip(*traces, strict=True):
        assert_same_trace(one, other)
    torch.testing.assert_close(*answers, rtol=0, atol=1e-6)
    torch.testing.assert_close(*by_hand, rtol=0, atol=1e-6)
