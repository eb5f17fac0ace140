"""Images from matplotlib: the same every time, of the promised sizes, with evidence where the answers stand."""

import hashlib

import pytest
from PIL import Image

from bench import other_renderer
from bench.other_renderer import CELL, CELLS, KINDS, draw
from erase.records import load_records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("other") / "images"
    assert other_renderer.main([str(made), "--images", "2"]) == 0
    return made


def test_images_have_the_promised_sizes_and_evidence_inside(folder):
    records = load_records(folder)
    assert {record.group for record in records} == set(KINDS)
    assert len({record.images for record in records}) == 2 * len(KINDS)
    for record in records:
        with Image.open(record.images[0]) as image:
            width, height = image.size
        assert (width % CELL, height % CELL) == (0, 0)
        assert CELLS[0] <= width * height / CELL**2 <= CELLS[1]
        assert record.evidence
        for left, top, right, bottom in record.evidence:
            assert -1 <= left < right <= width + 1
            assert -1 <= top < bottom <= height + 1


def test_evidence_holds_what_is_asked_for(folder):
    for record in load_records(folder):
        with Image.open(record.images[0]) as image:
            for box in record.evidence:
                inside = image.convert("L").crop(tuple(round(side) for side in box))
                assert inside.getextrema()[1] - inside.getextrema()[0] > 20, record


def test_an_image_is_always_the_same(folder, tmp_path):
    assert other_renderer.main([str(tmp_path / "again"), "--images", "1"]) == 0
    for kind in KINDS:
        ours, theirs = ((root / f"{kind}-0.png").read_bytes() for root in (folder, tmp_path / "again"))
        assert hashlib.sha256(ours).hexdigest() == hashlib.sha256(theirs).hexdigest()


def test_answers_of_charts_are_their_largest_and_smallest_values():
    for number in range(3):
        turns = {question: answer for question, answer, _ in draw("bars", number).turns}
        values = {
            question.removeprefix("What is the value of ")[:-1]: int(answer)
            for question, answer in turns.items()
            if question.startswith("What is the value of ")
        }
        assert turns["Which category is highest?"] == max(values, key=values.get)
        assert turns["Which category is lowest?"] == min(values, key=values.get)


def test_a_folder_that_holds_something_is_refused(folder, capsys):
    assert other_renderer.main([str(folder)]) == 1
    assert "expected a new or empty folder" in capsys.readouterr().err
