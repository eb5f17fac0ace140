"""A method of one's own, in `pruning()` and in the engine."""

import pytest
import torch
from engine_cases import bare, bare_sequence, results, running, stock_prompt
from slow_cases import mixed_image, prompt_for, tiles_for, tiny_internvl, tiny_qwen2_5_vl, tiny_qwen3_vl

import erase
from erase.methods import method_for
from erase.methods.base import Cut, ImageSelection, Method, Preselection
from erase.policy import BASELINES, BaselinePolicy

BUILDERS = {"qwen2_5_vl": tiny_qwen2_5_vl, "qwen3_vl": tiny_qwen3_vl, "internvl": tiny_internvl}
DEPTH = 8
GREEDY = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}


class EverySecond(Method):
    """Every second token enters the decoder; what the last token looks at survives cuts after 2 and 5 layers."""

    name = "every-second"

    def __init__(self, first_prunes: bool, second_prunes: bool) -> None:
        self.first_prunes, self.second_prunes = first_prunes, second_prunes

    def preselect(self, images):
        return Preselection(
            tuple(
                ImageSelection(
                    image.tokens, torch.arange(0, image.tokens, 2), torch.zeros(image.tokens), 0.0, None, image.grid
                )
                for image in images
            )
        )

    def cuts(self, preselection, architecture):
        left = preselection.kept.numel()
        return (Cut(2, left // 2, self.first_prunes), Cut(5, left // 4, self.second_prunes))

    def score(self, context):
        return context.attention("last")


class Watching(Method):
    """Drops one token after `layer` layers and remembers the attention that it could have ranked by."""

    name = "watching"

    def __init__(self, layer: int) -> None:
        self.layer = layer
        self.seen = {}

    def preselect(self, images):
        return method_for(None).preselect(images)

    def cuts(self, preselection, architecture):
        return (Cut(self.layer, preselection.tokens - 1, prune_cache=False),)

    def score(self, context):
        self.seen = {queries: context.attention(queries) for queries in ("question", "last")}
        return context.attention()


@pytest.fixture(scope="module", params=BUILDERS)
def loaded(request):
    return bare(BUILDERS[request.param](DEPTH, "eager"))


@pytest.fixture(scope="module")
def images(loaded):
    if loaded.adapter.model_type == "internvl":
        return [tiles_for(loaded.model, 3), tiles_for(loaded.model, 1, seed=1)]
    return [mixed_image(*size, loaded.adapter.cell, seed=seed) for seed, size in enumerate([(4, 5), (3, 3)])]


@pytest.fixture(scope="module")
def prompt(loaded, images):
    return prompt_for(loaded.model, images, between=3)


@pytest.fixture(scope="module")
def inputs(loaded, images, prompt):
    return stock_prompt(loaded, prompt, images)


def pruned(loaded, inputs, method):
    pixels = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
    if loaded.adapter.model_type != "internvl":
        pixels = {"image_mean": 0.5, "image_std": 0.5}
    with erase.pruning(loaded.model, method, **pixels) as trace:
        output = loaded.model.generate(**inputs, **GREEDY)
    return output, trace.calls[0].prompts[0]


@pytest.mark.parametrize("first_prunes", [False, True], ids=["first keeps", "first prunes"])
@pytest.mark.parametrize("second_prunes", [False, True], ids=["second keeps", "second prunes"])
def test_every_cut_says_whether_the_older_caches_shrink_with_it(
    loaded, images, prompt, inputs, first_prunes, second_prunes
):
    method = EverySecond(first_prunes, second_prunes)
    output, trace = pruned(loaded, inputs, method)
    tokens = trace.tokens
    every_second = [index for image in trace.images for index in range(0, image.tokens, 2)]
    half, quarter = len(every_second) // 2, len(every_second) // 4
    after_two = half if first_prunes else len(every_second)
    text = prompt.shape[1] - tokens
    expected = [quarter] * DEPTH if second_prunes else [after_two] * 2 + [half] * 3 + [quarter] * 3
    assert trace.cache_lengths == tuple(text + count for count in expected)
    assert [(cut.layer, len(cut.kept)) for cut in trace.cuts] == [(2, half), (5, quarter)]
    assert trace.method == "every-second"
    assert (trace.requested, trace.retention.final) == (None, quarter / tokens)
    assert set(trace.cuts[1].kept.tolist()) < set(trace.cuts[0].kept.tolist()) < set(trace.stage1_kept.tolist())
    with running(loaded) as engine:
        sequences = [bare_sequence(loaded, prompt, images, own, max_tokens=4) for own in (method, method_for(None))]
        answer, _ = results(engine, sequences)
    assert answer.tokens == tuple(output.sequences[0, -4:].tolist())
    assert answer.kept.tolist() == trace.cuts[1].kept.tolist()
    assert answer.cache_lengths == trace.cache_lengths


@pytest.mark.parametrize("layer", [1, 4, 7])
def test_a_method_sees_the_attention_that_the_model_pays(loaded, images, prompt, inputs, layer):
    watching = Watching(layer)
    _, trace = pruned(loaded, inputs, watching)
    stock = loaded.model(**inputs, output_attentions=True).attentions[layer - 1][0].mean(0)  # (queries, keys)
    vision = prompt[0] == loaded.adapter.image_token_id
    asking = ~vision & (torch.arange(len(vision)) > int(vision.nonzero()[0]))
    expected = {"question": stock[asking].sum(0)[vision], "last": stock[-1, vision]}
    assert set(range(trace.tokens)) - set(trace.cuts[0].kept.tolist()) == {int(expected["question"].argmin())}
    torch.testing.assert_close(watching.seen, expected, rtol=0, atol=1e-5)
    with running(loaded) as engine:
        results(engine, [bare_sequence(loaded, prompt, images, watching)])
    torch.testing.assert_close(watching.seen, expected, rtol=0, atol=1e-5)


def test_a_method_may_merge_features_as_it_likes(loaded, images, prompt, inputs):
    class Mean(EverySecond):
        name = "mean"

        def postencode(self, features, preselection):
            return features.mean(0, keepdim=True).expand(preselection.kept.numel(), -1)

    logits = []
    for method in (Mean(True, True), EverySecond(True, True)):
        output, trace = pruned(loaded, inputs, method)
        with running(loaded) as engine:
            (answer,) = results(engine, [bare_sequence(loaded, prompt, images, method, max_tokens=4)])
        assert answer.tokens == tuple(output.sequences[0, -4:].tolist())
        assert answer.kept.tolist() == trace.cuts[1].kept.tolist()
        logits.append(output.logits[0])
    assert not torch.allclose(*logits, atol=1e-3)


@pytest.mark.parametrize("name", ["distinct", *sorted(set(BASELINES) - {"downsample"})])
def test_methods_that_look_at_features_answer_alike_in_pruning_and_in_the_engine(loaded, images, prompt, inputs, name):
    method = method_for(erase.preset(name, 0.2) if name == "distinct" else BaselinePolicy(name, 0.4))
    if method.sees_encoder_attention and not loaded.adapter.shows_encoder_attention:
        with pytest.raises(erase.UnsupportedError, match="attention inside the vision encoder"):
            pruned(loaded, inputs, method)
        with running(loaded) as engine, pytest.raises(erase.UnsupportedError, match=f"method '{name}'"):
            results(engine, [bare_sequence(loaded, prompt, images, method)])
        return
    output, trace = pruned(loaded, inputs, method)
    with running(loaded) as engine:
        others = [method_for(None), method]
        sequences = [bare_sequence(loaded, prompt, images, own, max_tokens=4) for own in (method, *others)]
        answer, whole, again = results(engine, sequences)
    assert answer.tokens == again.tokens == tuple(output.sequences[0, -4:].tolist())
    assert answer.kept.tolist() == again.kept.tolist() == trace.cuts[-1].kept.tolist()
    assert answer.cache_lengths == again.cache_lengths == trace.cache_lengths
    plan = method.plan(Preselection(trace.images), loaded.adapter.architecture)
    assert name != "distinct" or [cut.after_layers for cut in plan] == [0, loaded.adapter.architecture.late]
    assert [(cut.layer, len(cut.kept)) for cut in trace.cuts] == [(cut.after_layers, cut.keep) for cut in plan]
    assert len(whole.kept) == trace.tokens > len(answer.kept)


def test_where_stage_2_does_not_pay_cuts_before_the_decoder_are_still_made(loaded, images, prompt):
    method = method_for(BaselinePolicy("divprune", 0.4))
    sequence = bare_sequence(loaded, prompt, images, method)
    with running(loaded) as engine, running(loaded, min_vision_tokens=10**6) as careful:
        (plain,), (answer,) = results(engine, [sequence]), results(careful, [sequence])
    assert answer.kept.tolist() == plain.kept.tolist() == answer.entered.tolist()
    assert (answer.tokens, answer.stage2_skipped) == (plain.tokens, False)


def test_images_cannot_be_resized_behind_the_processor(loaded, inputs):
    with pytest.raises(erase.UnsupportedError, match="before the processor"):
        pruned(loaded, inputs, method_for(BaselinePolicy("downsample", 0.5)))
