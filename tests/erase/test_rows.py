"""A prompt's rows through stage 1 and cuts, against plain lists."""

import torch
from erase_cases import noise_image, vision_image
from hypothesis import given
from hypothesis import strategies as st

from erase.methods.base import Cut, ImageSelection, Preselection
from erase.methods.none import NoPruning
from erase.rows import TEXT, PromptRows


def selection(kept, tokens):
    return Preselection(
        (ImageSelection(tokens, torch.tensor(kept, dtype=torch.int64), torch.zeros(tokens), 0.0, None, (1, 1, tokens)),)
    )


def rows_of(is_vision, kept, cuts=()):
    return PromptRows(NoPruning(), selection(kept, sum(is_vision)), cuts, torch.tensor(is_vision, dtype=torch.bool))


@st.composite
def prompts(draw):
    """Where vision tokens lie, which of them stage 1 keeps, and what each of three cuts chooses among those left."""
    is_vision = draw(st.lists(st.booleans(), min_size=1, max_size=25))
    subset = st.lists(st.booleans(), min_size=25, max_size=25)
    kept = [index for index, stays in zip(range(sum(is_vision)), draw(subset), strict=False) if stays]
    return is_vision, kept, draw(st.lists(subset, min_size=3, max_size=3))


def chosen_of(left, subset):
    return [place for place, stays in zip(range(len(left)), subset, strict=False) if stays]


@given(prompts())
def test_rows_are_text_and_the_vision_tokens_that_are_left(prompt):
    is_vision, left, subsets = prompt
    places = [place for place, vision in enumerate(is_vision) if vision]
    cuts = [Cut(number + 1, 0, prune_cache=False) for number in range(3)]
    rows = rows_of(is_vision, left, cuts)
    for number in range(4):
        alive = [place for place, vision in enumerate(is_vision) if not vision or places.index(place) in left]
        assert rows.index.tolist() == alive
        assert rows.rows == len(alive)
        assert rows.length == len(is_vision)
        assert rows.survivors.tolist() == left
        assert [alive[row] for row in rows.columns] == [places[number] for number in left]
        asking = [place for place, vision in enumerate(is_vision) if not vision and place > min(places, default=99)]
        assert [alive[row] for row in rows.queries] == asking
        if number == 3:
            break
        assert rows.next_cut is cuts[number]
        chosen = chosen_of(left, subsets[number])
        left = [left[place] for place in chosen]
        stayed = rows.keep(cuts[number], torch.tensor(chosen, dtype=torch.int64))
        assert [alive[row] for row in stayed] == rows.index.tolist()
    assert rows.next_cut is None
    assert [cut.layer for cut in rows.done] == [1, 2, 3]
    assert rows.done[-1].kept.tolist() == left


@given(prompts(), st.lists(st.booleans(), min_size=3, max_size=3))
def test_a_cache_holds_what_its_layer_ran_with_until_a_cut_prunes_it(prompt, prunes):
    is_vision, left, subsets = prompt
    cuts = [Cut(number + 1, 0, own) for number, own in enumerate(prunes)]
    rows = rows_of(is_vision, left, cuts)
    text = len(is_vision) - sum(is_vision)
    held = []
    for cut, subset in zip(cuts, subsets, strict=True):
        rows.ran_layer()
        held.append(set(left))
        chosen = chosen_of(left, subset)
        before = [sorted(layer) for layer in held]
        left = [left[place] for place in chosen]
        rows.keep(cut, torch.tensor(chosen, dtype=torch.int64))
        for layer, cached in enumerate(before):
            vision = [place for place, own in enumerate(is_vision) if own]
            alive = [place for place, own in enumerate(is_vision) if not own or vision.index(place) in cached]
            assert [alive[row] for row in rows.cached_rows(layer)] == rows.index.tolist()
        if cut.prune_cache:
            rows.forget_dropped()
            held = [set(left) for _ in held]
        assert rows.cached_lengths == tuple(text + len(layer) for layer in held)


def test_text_before_the_first_vision_token_never_asks_even_when_that_token_is_gone():
    rows = rows_of([False, True, False, True, False], kept=[1])
    assert rows.index.tolist() == [0, 2, 3, 4]
    assert rows.vision.tolist() == [TEXT, TEXT, 1, TEXT]
    assert rows.queries.tolist() == [1, 3]


def test_a_prompt_without_images_asks_nothing():
    rows = rows_of([False] * 4, kept=[])
    assert (rows.queries.tolist(), rows.columns.tolist(), rows.rows) == ([], [], 4)


def test_cuts_that_lose_nothing_are_recorded():
    image = vision_image(noise_image(1, 3))
    rows = PromptRows(
        NoPruning(),
        NoPruning().preselect([image]),
        (Cut(2, 3, prune_cache=True), Cut(5, 7, prune_cache=False)),
        torch.tensor([False, True, True, True, False]),
    )
    rows.make_idle_cuts()
    assert [(cut.layer, cut.kept.tolist()) for cut in rows.done] == [(2, [0, 1, 2]), (5, [0, 1, 2])]
    assert rows.next_cut is None
