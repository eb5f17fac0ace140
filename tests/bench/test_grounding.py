"""Which cells a token is about, and what the training makes of it: attention, measured and taught."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from bench.demo_model.data import Collator, fitted, render
from bench.demo_model.grounding import Grounds, grounded, of_token
from bench.demo_model.network import Looks
from bench.demo_model.recipe import Head, Phase
from bench.demo_model.train import losses, make_optimizers
from erase import synthetic
from erase.synthetic.sample import Box, Mark, Question, Sample
from tests.bench.tiny import TINY, stock_inputs

LOOKING = replace(
    TINY,
    looks={
        "beside": (Head(0, 0),),
        "asking": (Head(1, 0),),
        "recalling": (Head(1, 1),),
        "answering": (Head(2, 1), Head(3, 0)),
    },
)


def written(text: str, left: float, top: float) -> tuple[list[Mark], Box]:
    """Marks of a text with letters 10 pixels wide and 20 high, spaces left out, and the box around it."""
    marks = [
        Mark("glyph", letter, Box(left + 10 * place, top, left + 10 * place + 10, top + 20))
        for place, letter in enumerate(text)
        if letter != " "
    ]
    return marks, Box(left, top, left + 10 * len(text), top + 20)


def page(*texts: tuple[str, float, float], things: tuple[Mark, ...] = ()) -> tuple[Sample, list[Box]]:
    lines = [written(*text) for text in texts]
    marks = tuple(mark for some, _ in lines for mark in some)
    return Sample("page", "documents", Image.new("RGB", (112, 112)), (), marks + things), [box for _, box in lines]


def spelled(sample: Sample, question: Question) -> tuple[dict[str, set], dict[str, set]]:
    """Each grounded piece of question and answer with its points."""
    grounds = grounded(sample, question)
    found: tuple[dict[str, set], dict[str, set]] = ({}, {})
    texts = (question.text, question.answer)
    for one, text, many in zip(found, texts, (grounds.asked, grounds.answered), strict=True):
        for piece in many:
            one.setdefault(text[slice(*piece.span)], set()).add(piece.point)
    return found


class TestGrounding:
    def test_letters_of_a_label_and_digits_of_its_value_point_at_their_glyphs(self):
        sample, (label, value, _) = page(("Tax:", 0, 0), ("47", 60, 0), ("93", 60, 30))
        asked, answered = spelled(sample, Question("What is the tax?", "47", (label, value), "field"))
        assert asked == {"t": {(5, 10)}, "a": {(15, 10)}, "x": {(25, 10)}}
        assert answered == {"4": {(65, 10)}, "7": {(75, 10)}}

    def test_only_evidence_counts(self):
        sample, (_, value, _) = page(("tax", 0, 0), ("47", 60, 0), ("47", 60, 30))
        asked, answered = spelled(sample, Question("What is the tax?", "47", (value,), "field"))
        assert asked == {}
        assert answered == {"4": {(65, 10)}, "7": {(75, 10)}}

    def test_a_label_inside_another_word_is_not_named(self):
        sample, (label,) = page(("at", 0, 0))
        assert grounded(sample, Question("What does Kate say?", "hello", (label,), "field")) == Grounds((), ())

    def test_labels_of_two_words_are_found(self):
        sample, (label,) = page(("New York", 0, 0))
        question = Question("What is the value of new york?", "8", (label,), "value")
        points = of_token(grounded(sample, question).asked, (21, 24))
        assert points == [(5, 10), (15, 10), (25, 10)]

    def test_a_number_of_its_own_comes_before_one_that_only_contains_it(self):
        sample, boxes = page(("10", 0, 0), ("1", 0, 30), ("100", 0, 60))
        _, answered = spelled(sample, Question("What is the value of east?", "1", tuple(boxes), "value"))
        assert answered == {"1": {(5, 40)}}
        _, answered = spelled(sample, Question("What is the value of east?", "00", tuple(boxes), "value"))
        assert answered == {"0": {(15, 70), (25, 70)}}

    def test_names_of_shapes_icons_and_colours_point_at_these(self):
        things = (Mark("shape", "star", Box(0, 0, 40, 40)), Mark("colour", "red", Box(60, 60, 80, 80)))
        sample, _ = page(things=things)
        question = Question("What color is the star?", "red", (Box(0, 0, 90, 90),), "color")
        assert spelled(sample, question) == ({"star": {(20, 20)}}, {"red": {(70, 70)}})

    @pytest.mark.parametrize(
        ("text", "kind", "words"),
        [
            ("What word is at the top?", "place", {"top"}),
            ("What does the sign on the left say?", "place", {"left"}),
            ("What word is in the bottom right corner?", "corner", {"bottom", "right"}),
        ],
    )
    def test_words_for_a_place_point_at_what_stands_there(self, text, kind, words):
        sample, (box, _) = page(("ab", 0, 0), ("cd", 60, 60))
        asked, answered = spelled(sample, Question(text, "ab", (box,), kind))
        assert asked == {word: {(5, 10), (15, 10)} for word in words}
        assert answered == {"a": {(5, 10)}, "b": {(15, 10)}}
        assert spelled(sample, Question(text, "ab", (box,), "read"))[0] == {}

    def test_what_is_counted_is_all_that_a_word_names(self):
        found = 0
        for index in range(60):
            sample = synthetic.sample("general", "train", index, size=(336, 336))
            for question in sample.questions:
                grounds = grounded(sample, question)
                assert grounds.counted == (question.kind == "count")
                if grounds.counted:
                    assert len({one.point for one in grounds.asked}) == int(question.answer), question.text
                    (word,) = {question.text[slice(*one.span)] for one in grounds.asked}
                    assert word in question.text.split()[2]
                    found += 1
        assert found > 20

    def test_where_nothing_is_named_everything_is_counted(self):
        things = (Mark("shape", "star", Box(0, 0, 40, 40)), Mark("shape", "moon", Box(60, 60, 80, 80)))
        sample, _ = page(things=things)
        question = Question("How many objects are there?", "2", tuple(thing.box for thing in things), "count")
        assert spelled(sample, question) == ({"objects": {(20, 20), (70, 70)}}, {})

    def test_a_value_is_linked_to_the_label_beside_it_and_to_the_one_above_it(self):
        sample, boxes = page(("h", 60, 0), ("r", 0, 40), ("5", 62, 42))
        grounds = grounded(sample, Question("What is the h for r?", "5", tuple(boxes), "cell"))
        assert sorted(grounds.links()) == [((5, 50), (67, 52), True), ((65, 10), (67, 52), False)]

    @pytest.mark.parametrize("kind", ["value", "at_value"])
    @pytest.mark.parametrize(
        ("bar", "name", "number", "links"),
        [
            (Box(40, 30, 60, 80), (45, 84), (0, 20), [((50, 30), (5, 30), True), ((50, 94), (50, 30), False)]),
            (Box(30, 40, 90, 60), (0, 40), (85, 80), [((5, 50), (90, 50), True), ((90, 50), (90, 90), False)]),
        ],
        ids=["upright", "lying"],
    )
    def test_the_tip_of_a_bar_leads_from_its_name_to_the_axis_and_back(self, bar, name, number, links, kind):
        sample, (label, tick, zero) = page(
            ("r", *name), ("4", *number), ("0", 100, 100), things=(Mark("colour", "red", bar),)
        )
        evidence = (bar, label, tick, zero)
        question = Question("What is the value of r?", "4", evidence, "value")
        if kind == "at_value":
            question = Question("Which category has the value 4?", "r", evidence, "at_value")
        found = list(grounded(sample, question).links())
        assert sorted((*sorted(pair), beside) for *pair, beside in found) == sorted(
            (*sorted(pair), beside) for *pair, beside in links
        )

    def test_a_value_that_is_printed_needs_no_tip(self):
        bar = Box(40, 30, 60, 80)
        sample, boxes = page(("r", 45, 84), ("4", 45, 5), things=(Mark("colour", "red", bar),))
        question = Question("What is the value of r?", "4", (bar, *boxes), "value")
        assert list(grounded(sample, question).links()) == [((50, 94), (50, 15), False)]

    def test_highest_and_lowest_point_at_the_tips_of_these_bars(self):
        found: dict[str, int] = {}
        for index in range(60):
            sample = synthetic.sample("charts", "train", index, size=(336, 336))
            for question in sample.questions:
                grounds = grounded(sample, question)
                if question.kind in ("highest", "lowest") and grounds.asked:
                    (word,) = grounds.asked
                    assert question.text[slice(*word.span)] == question.kind
                    bars = [
                        box
                        for box in question.evidence
                        if any(mark.kind != "glyph" and mark.box == box for mark in sample.marks)
                    ]
                    lying = word.point[0] == question.evidence[word.box].right
                    lengths = [bar.right if lying else -bar.top for bar in bars]
                    most = max(lengths) if question.kind == "highest" else min(lengths)
                    assert (word.point[0] if lying else -word.point[1]) == most
                    kind = "lying" if lying else "upright"
                    found[kind] = found.get(kind, 0) + 1
        assert found["lying"] > 20
        assert found["upright"] > 20

    def test_slices_have_no_tip(self):
        key, name, figure, part = Box(60, 0, 70, 10), ("r", 75, 0), ("70%", 90, 0), Box(10, 10, 30, 30)
        other = (Box(60, 30, 70, 40), ("s", 75, 30), ("30%", 90, 30), Box(10, 40, 30, 60))
        things = tuple(Mark("colour", "red", box) for box in (key, part, other[0], other[3]))
        sample, (r, seventy, s, thirty) = page(name, figure, other[1], other[2], things=things)
        evidence = (key, r, seventy, part, other[0], s, thirty, other[3])
        assert grounded(sample, Question("Which category is highest?", "r", evidence, "highest")).asked == ()

    def test_every_lookup_of_the_generator_is_grounded_on_both_sides(self):
        missing = []
        for family, kinds in (("documents", {"cell", "field", "which"}), ("charts", {"value", "at_value"})):
            for index in range(25):
                sample = synthetic.sample(family, "train", index, size=(336, 336))
                for question in sample.questions:
                    grounds = grounded(sample, question)
                    if question.kind in kinds and not (grounds.asked and grounds.answered):
                        missing.append((sample.name, question.text))
        assert missing == []

    def test_a_resized_image_has_its_evidence_where_it_is_drawn(self):
        sample, (label, value) = page(("tax", 0, 0), ("47", 60, 0))
        sample = replace(sample, questions=(Question("What is the tax?", "47", (label, value), "field"),))
        resized = fitted(sample, 8, 2)  # from 112 x 112 pixels to 224 x 56
        assert resized.image.size == (224, 56)
        assert resized.questions[0].evidence == (Box(0, 0, 60, 10), Box(120, 0, 160, 10))
        asked, answered = spelled(resized, resized.questions[0])
        assert asked == {"t": {(10, 5)}, "a": {(30, 5)}, "x": {(50, 5)}}
        assert answered == {"4": {(130, 5)}, "7": {(150, 5)}}


class TestPairs:
    def test_positions_of_tokens_come_with_their_cells(self, tokenizer_folder):
        sample, (label, value) = page(("east", 0, 0), ("47", 60, 60))
        question = Question("What is the value of east?", "47", (label, value), "value")
        collator = Collator(tokenizer_folder)
        batch = collator.batch([sample], [[question, question]])
        tokens = batch.tokens[0].tolist()
        (east,) = collator.tokenizer.encode(" east", add_special_tokens=False).ids
        four, seven = collator.tokenizer.encode("47", add_special_tokens=False).ids
        first, second = (place for place, token in enumerate(tokens) if token == east)
        start = batch.image_start
        places = [place for place, token in enumerate(batch.targets[0].tolist()) if token in (four, seven)]
        # glyphs of 10 pixels in rows of four cells of 28: e and a lie in the first, s and t in the second, 4 and 7 in
        # the third of the third row
        label, value = [start, start + 1], start + 2 * 4 + 2
        assert batch.looks["asking"].tolist() == [[0, word, cell] for word in (first, second) for cell in label]
        assert batch.looks["finding"].tolist() == [[0, word, value] for word in (first, second)]
        assert batch.looks["recalling"].tolist() == [[0, place, first] for place in places[:2]] + [
            [0, place, second] for place in places[2:]
        ]
        assert batch.looks["answering"].tolist() == [[0, place, value] for place in places]
        assert len(places) == 4

    def test_a_value_looks_at_its_labels_and_a_label_that_comes_later_at_its_value(self, tokenizer_folder):
        collator = Collator(tokenizer_folder)
        start = len(collator.chat.before_image)
        sample, boxes = page(("h", 70, 0), ("r", 0, 70), ("5", 72, 70))
        batch = collator.batch([sample], [[Question("What is the h for r?", "5", tuple(boxes), "cell")]])
        head, row, value = start + 2, start + 2 * 4, start + 2 * 4 + 2
        assert batch.looks["beside"].tolist() == [[0, value, row]]
        assert batch.looks["above"].tolist() == [[0, value, head]]
        assert {place for _, _, place in batch.looks["answering"].tolist()} == {value}
        # a bar's name stands below its value: it knows both
        sample, boxes = page(("5", 70, 0), ("r", 70, 70))
        batch = collator.batch([sample], [[Question("What is the value of r?", "5", tuple(boxes), "value")]])
        assert batch.looks["above"].tolist() == [[0, start + 2 * 4 + 2, start + 2]]
        for kind in ("finding", "answering"):
            assert {place for _, _, place in batch.looks[kind].tolist()} == {start + 2, start + 2 * 4 + 2}

    def test_a_word_looks_at_all_that_it_counts_and_at_the_first_token(self, tokenizer_folder):
        things = tuple(
            Mark("shape", name, Box(x, 60, x + 20, 80)) for name, x in (("star", 0), ("star", 60), ("moon", 90))
        )
        sample, _ = page(things=things)
        question = Question("How many stars are there?", "2", tuple(thing.box for thing in things[:2]), "count")
        collator = Collator(tokenizer_folder)
        batch = collator.batch([sample], [[question]])
        offsets = collator.tokenizer.encode(question.text, add_special_tokens=False).offsets
        begin = batch.image_start + 4 * 4 + len(collator.chat.after_image)
        words = [begin + number for number, (start, end) in enumerate(offsets) if start < 13 and end > 9]
        cells = [batch.image_start + 2 * 4, batch.image_start + 2 * 4 + 2]
        assert words
        assert batch.looks["counting"].tolist() == [[0, word, place] for word in words for place in (0, *cells)]
        answer = batch.targets[0].tolist().index(collator.tokenizer.encode("2", add_special_tokens=False).ids[0])
        assert batch.looks["recalling"].tolist() == [[0, answer, word] for word in words]
        assert len(batch.looks["answering"]) == 0

    def test_cells_of_a_table_look_at_their_names_whoever_is_asked_about(self, tokenizer_folder):
        samples = (render("documents", "train", index, 12, 12, Random(index)) for index in range(40))
        sample = next(one for one in samples if any(len(question.evidence) == 3 for question in one.questions))
        looks = Collator(tokenizer_folder).batch([sample], [[]]).looks
        assert len(looks["beside"])
        assert len(looks["above"])


class TestLooks:
    def test_they_are_the_attention_of_the_stock_model(self, network, tokenizer_folder, tmp_path):
        (sample,) = (render("documents", "train", 3, 6, 4, Random(3)),)
        question = next(one for one in sample.questions if list(grounded(sample, one).links()))
        batch = Collator(tokenizer_folder).batch([sample], [[question]])
        looks = Looks(LOOKING.looks)
        with torch.no_grad():
            network.answer(batch, network.look(batch), looks)
        attentions = stock_attentions(network.model, tokenizer_folder, sample, question, tmp_path)

        def missed(kind: str) -> float:
            cells: dict[int, list[int]] = {}
            for _, place, seen in batch.looks[kind].tolist():
                cells.setdefault(place, []).append(seen)
            means = [
                torch.stack([-attentions[layer][0, head, place, at].sum().log() for place, at in cells.items()]).mean()
                for layer, head in LOOKING.looks[kind]
            ]
            return float(torch.stack(means).mean())

        losses = {kind: float(loss) for kind, loss in looks.losses().items()}
        assert {"asking", "recalling", "answering"} <= set(losses) <= set(LOOKING.looks)
        assert losses == pytest.approx({kind: missed(kind) for kind in losses}, abs=1e-4)

    def test_what_is_counted_should_get_equal_shares(self, network, tokenizer_folder, tmp_path):
        samples = (synthetic.sample("general", "train", index, size=(168, 168)) for index in range(40))
        sample, question = next(
            (one, question)
            for one in samples
            for question in one.questions
            if question.kind == "count" and question.answer == "4"
        )
        batch = Collator(tokenizer_folder).batch([sample], [[question]])
        heads = (Head(1, 1), Head(3, 0))
        looks = Looks({"counting": heads})
        with torch.no_grad():
            network.answer(batch, network.look(batch), looks)
        attentions = stock_attentions(network.model, tokenizer_folder, sample, question, tmp_path)
        (word,) = set(batch.looks["counting"][:, 1].tolist())
        places = batch.looks["counting"][:, 2]
        assert len(places) == 5
        wanted = torch.full((5,), 0.2)
        off = [
            (wanted * (wanted / attentions[layer][0, head, word, places]).log()).sum().item() for layer, head in heads
        ]
        assert looks.losses()["counting"].item() == pytest.approx(sum(off) / 2, abs=1e-4)

    def test_without_heads_or_pairs_nothing_is_missed(self, network, tokenizer_folder):
        sample = replace(render("general", "train", 3, 6, 4, Random(3)), marks=())
        batch = Collator(tokenizer_folder).batch([sample], [sample.questions[:2]])
        for looks in (Looks({}), Looks(LOOKING.looks)):
            network.answer(batch, network.look(batch), looks)
            assert looks.losses() == {}

    def test_heads_learn_to_look_where_they_are_told(self, network, tokenizer_folder):
        samples = [render("documents", "train", number, 6, 6, Random(number), crowd=0.2) for number in range(4)]
        batch = Collator(tokenizer_folder).batch(samples, [sample.questions[:3] for sample in samples])
        phase = Phase(1.0, (36, 36), 1.0, frozen=True)
        optimizers = make_optimizers(network, LOOKING)
        found = []
        for _ in range(30):
            loss = losses(network, batch, phase, LOOKING)
            found.append({kind: float(look.detach()) for kind, look in loss.looks.items()})
            loss.total().backward()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = 3e-3
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        assert set(found[0]) == set(LOOKING.looks)
        assert all(found[-1][kind] < 0.7 * found[0][kind] for kind in found[0])


def stock_attentions(
    model: torch.nn.Module, folder: Path, sample: Sample, question: Question, kept: Path
) -> tuple[torch.Tensor, ...]:
    """(1, heads, L, L) per layer from the stock classes, asked with the right answer behind the question."""
    model.save_pretrained(kept)
    stock = AutoModelForImageTextToText.from_pretrained(kept, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return stock(**stock_inputs(folder, sample, question), output_attentions=True).attentions
