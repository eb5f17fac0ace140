"""The image generator: the same from the same seed, frozen, fair, and never the same image in two splits."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path
from random import Random

import PIL
import pytest
from PIL import Image

from erase import synthetic
from erase.cli import main
from erase.errors import InputError
from erase.records import load_records
from erase.synthetic import colours, fonts, icons, shapes
from erase.synthetic.backgrounds import KINDS, ground
from erase.synthetic.canvas import Canvas
from erase.synthetic.dataset import write_dataset
from erase.synthetic.sheet import contact_sheet

FROZEN = Path(__file__).parents[1] / "data" / "synthetic-v1.json"
FAMILIES = list(synthetic.FAMILIES)
SIZES = [(224, 224), (388, 129), (129, 388), (500, 333), (1344, 1008)]
FROZEN_SAMPLES = 12


def fingerprint(sample: synthetic.Sample) -> dict[str, str]:
    """What is asked and where it stands, and the pixels, as two short hashes."""
    told = [(q.text, q.answer, q.kind, [_rounded(box) for box in q.evidence]) for q in sample.questions]
    drawn = [(mark.kind, mark.value, _rounded(mark.box)) for mark in sample.marks]
    return {
        "questions": hashlib.sha256(json.dumps([told, drawn]).encode()).hexdigest()[:16],
        "pixels": hashlib.sha256(sample.image.tobytes()).hexdigest()[:16],
    }


def _rounded(box: synthetic.Box) -> list[float]:
    return [round(side, 1) for side in astuple(box)]


def frozen_samples() -> dict[str, dict[str, str]]:
    """Fingerprints of a few samples of every family and split, of all sizes; test data was made by printing them."""
    chosen = [
        synthetic.sample(family, synthetic.SPLITS[index % 3], index, tokens=(64, 400 if index % 4 else 2304))
        for family in FAMILIES
        for index in range(FROZEN_SAMPLES)
    ]
    return {sample.name: fingerprint(sample) for sample in chosen}


class TestFrozen:
    def test_version_one_still_draws_and_asks_what_it_always_did(self):
        kept = json.loads(FROZEN.read_text())
        assert kept["version"] == synthetic.VERSION
        made = frozen_samples()
        assert {name: one["questions"] for name, one in made.items()} == {
            name: one["questions"] for name, one in kept["samples"].items()
        }
        if kept["pillow"] != PIL.__version__:
            pytest.skip(f"pixels were recorded with Pillow {kept['pillow']}, this is {PIL.__version__}")
        assert made == kept["samples"]

    def test_another_process_with_another_hash_seed_draws_the_same(self):
        code = """
import hashlib
from erase import synthetic
for family in synthetic.FAMILIES:
    sample = synthetic.sample(family, "test", 3, size=(300, 200))
    print(hashlib.sha256(sample.image.tobytes() + repr(sample.questions).encode()).hexdigest())
"""
        outputs = {
            subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("1", "2")
        }
        assert len(outputs) == 1


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    @pytest.mark.parametrize("size", SIZES)
    def test_evidence_lies_in_the_image_and_every_question_has_one_short_answer(self, family, size):
        for index in range(2 if max(size) > 1000 else 15):
            sample = synthetic.sample(family, "train", index, size=size)
            assert sample.image.size == size
            assert sample.image.mode == "RGB"
            assert 1 <= len(sample.questions) <= 10
            assert len({question.text for question in sample.questions}) == len(sample.questions)
            image = synthetic.Box(0, 0, *size)
            for question in sample.questions:
                assert question.text.endswith("?")
                assert 1 <= len(question.answer) <= 14
                assert question.evidence
                assert all(box.within(image.grown(4)) for box in question.evidence), question

    def test_a_crowded_image_asks_no_less_than_an_empty_one(self, family):
        def asked(crowd: float) -> int:
            samples = (synthetic.sample(family, "train", index, size=(448, 448), crowd=crowd) for index in range(12))
            return sum(len(sample.questions) for sample in samples)

        assert asked(0.0) < asked(1.0)

    def test_no_answer_is_worth_guessing(self, family):
        answers: dict[str, list[str]] = {}
        for index in range(80):
            for question in synthetic.sample(family, "train", index, size=(336, 336)).questions:
                answers.setdefault(question.kind, []).append(question.answer)
        for kind, given in answers.items():
            if len(given) >= 40:
                commonest = max(given.count(answer) for answer in given)
                assert commonest <= 0.35 * len(given), kind

    def test_the_splits_share_no_image(self, family):
        seen = {
            split: {
                fingerprint(synthetic.sample(family, split, index, size=(224, 168)))["pixels"] for index in range(80)
            }
            for split in synthetic.SPLITS
        }
        assert all(len(pixels) == 80 for pixels in seen.values())
        assert not seen["train"] & (seen["validation"] | seen["test"])
        assert not seen["validation"] & seen["test"]


class TestSizes:
    def test_drawn_sizes_keep_tokens_and_aspect_ratio_in_range(self):
        rng = Random(0)
        for _ in range(2000):
            width, height = synthetic.random_size(rng, 64, 2304)
            assert 60 <= width * height / 28**2 <= 2320
            assert 1 / 3.1 <= width / height <= 3.1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("letters", "train", 0), "no family 'letters'"),
            (("ocr", "dev", 0), "no split 'dev'"),
            (("ocr", "train", -1), "must not be negative"),
        ],
    )
    def test_what_does_not_exist_is_told(self, arguments, message):
        with pytest.raises(InputError, match=message):
            synthetic.sample(*arguments)


class TestCanvas:
    def test_marks_stand_where_the_ink_is(self):
        canvas = Canvas(300, 120, 20, Random(0))
        canvas.text(20, 30, "K7 x", "sans", 40, (0, 0, 0), colour_name="black")
        glyphs = [mark for mark in canvas.marks if mark.kind == "glyph"]
        assert [mark.value for mark in glyphs] == ["K", "7", "x"]
        assert [mark.value for mark in canvas.marks if mark.kind == "colour"] == ["black"] * 3
        for mark in glyphs:
            inside = canvas.image.crop(tuple(round(side) for side in astuple(mark.box))).convert("L")
            assert inside.getextrema()[0] < 60

    @pytest.mark.parametrize("angle", [-70, -15, 15, 40, 90])
    def test_turned_text_stays_inside_its_marks(self, angle):
        canvas = Canvas(400, 400, 20, Random(0))
        canvas.text(120, 180, "turned", "mono", 40, (0, 0, 0), angle=angle)
        inked = Image.eval(canvas.image.convert("L"), lambda value: 255 - value).getbbox()
        marks = [mark.box for mark in canvas.marks]
        assert min(box.left for box in marks) - 4 <= inked[0]
        assert max(box.right for box in marks) + 4 >= inked[2]
        assert min(box.top for box in marks) - 4 <= inked[1]
        assert max(box.bottom for box in marks) + 4 >= inked[3]

    @pytest.mark.parametrize("name", shapes.NAMES)
    def test_every_shape_fills_its_box_and_no_more(self, name):
        canvas = Canvas(200, 200, 20, Random(0))
        box = canvas.shape(name, 100, 100, 60, (0, 0, 0), colour_name="black")
        inked = Image.eval(canvas.image.convert("L"), lambda value: 255 - value).getbbox()
        assert synthetic.Box(*inked).within(box.grown(2))
        assert (inked[2] - inked[0]) > 80
        assert {(mark.kind, mark.value) for mark in canvas.marks} == {("shape", name), ("colour", "black")}

    def test_icons_differ_from_each_other(self):
        drawn = set()
        for name in icons.NAMES:
            canvas = Canvas(64, 64, 20, Random(0))
            icons.draw_icon(canvas, name, 32, 32, 28, (0, 0, 0))
            drawn.add(canvas.image.resize((8, 8)).tobytes())
        assert len(drawn) == len(icons.NAMES)

    def test_shades_of_a_colour_stay_nearest_to_it(self):
        rng = Random(0)
        for name in colours.NAMES:
            for _ in range(200):
                shade = colours.shade(name, rng)
                distances = {
                    other: sum((a - b) ** 2 for a, b in zip(shade, rgb, strict=True))
                    for other, rgb in colours.NAMED.items()
                }
                assert min(distances, key=distances.__getitem__) == name

    def test_every_face_has_every_printable_character(self):
        for name in fonts.NAMES:
            face = fonts.font(name, 40)
            missing = face.getmask("\u0416").getbbox()
            for character in map(chr, range(0x21, 0x7F)):
                assert face.getmask(character).getbbox() is not None, (name, character, missing)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_ground_without_contrast_is_flat(self, kind):
        canvas = Canvas(120, 80, 20, Random(3))
        flat = ground(kind, 120, 80, canvas.noise(), contrast=0.0)
        assert max(high - low for low, high in flat.getextrema()) <= 1
        full = ground(kind, 120, 80, canvas.noise(), contrast=1.0)
        assert full.size == (120, 80)
        assert max(high - low for low, high in full.getextrema()) > 8


class TestDataset:
    def test_a_written_folder_is_read_as_records(self, tmp_path):
        made = list(write_dataset(tmp_path / "set", "test", 2, families=["ocr", "charts"], tokens=(64, 120)))
        records = load_records(tmp_path / "set")
        asked = [(question.text, (question.answer,)) for sample in made for question in sample.questions]
        assert [(record.question, record.answers) for record in records] == asked
        with Image.open(records[0].images[0]) as image:
            assert image.tobytes() == made[0].image.tobytes()

    def test_lines_carry_family_metric_split_version_and_evidence(self, tmp_path):
        (made,) = write_dataset(tmp_path / "set", "test", 1, families=["documents"], tokens=(64, 120), first=7)
        line = json.loads((tmp_path / "set" / "records.jsonl").read_text())
        assert (line["name"], line["family"], line["metric"]) == ("documents-test-7", "documents", "anls")
        assert (line["split"], line["version"]) == ("test", 1)
        turn, question = line["turns"][0], made.questions[0]
        assert turn["kind"] == question.kind
        assert turn["evidence"] == [_rounded(box) for box in question.evidence]

    def test_the_smallest_images_all_have_questions(self, tmp_path):
        list(write_dataset(tmp_path / "set", "test", 8, tokens=(36, 36)))
        assert len(load_records(tmp_path / "set")) >= 6 * 8

    def test_a_folder_with_something_in_it_is_left_alone(self, tmp_path):
        (tmp_path / "mine.txt").write_text("precious")
        with pytest.raises(InputError, match="exists already"):
            list(write_dataset(tmp_path, "test", 1))
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_the_command_writes_images_records_and_sheets(self, tmp_path, capsys):
        folder = tmp_path / "set"
        arguments = ["synthesize", str(folder), "--images", "2", "--families", "general,ocr", "--tokens", "64", "90"]
        assert main([*arguments, "--split", "test", "--sheets"]) == 0
        assert "general 2 images" in " ".join(capsys.readouterr().out.split())
        assert len(load_records(folder)) >= 4
        assert {path.name for path in folder.glob("sheet-*.png")} == {"sheet-general.png", "sheet-ocr.png"}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--split", "dev"], "no split 'dev'"),
            (["--families", "ocr,ocr"], "different ones"),
            (["--tokens", "4", "9"], "from 36 to 5184"),
            (["--tokens", "6000", "8000"], "from 36 to 5184"),
            (["--families", "ocr,letters"], "no family 'letters'"),
            (["--images", "0"], "images must be at least 1"),
            (["--tokens", "90", "64"], "two ascending numbers"),
        ],
    )
    def test_the_command_tells_what_is_wrong(self, tmp_path, capsys, arguments, message):
        assert main(["synthesize", str(tmp_path / "set"), *arguments]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "set" / "records.jsonl").exists() or not list((tmp_path / "set" / "images").iterdir())

    def test_a_contact_sheet_has_a_tile_per_sample(self):
        samples = [synthetic.sample("general", "train", index, size=(224, 224)) for index in range(7)]
        one, seven = contact_sheet(samples[:1], columns=3), contact_sheet(samples, columns=3)
        assert seven.height == 3 * one.height
        assert seven.width == one.width
