"""Benchmarks as TSV files with images in base64."""

import base64
import io

import pytest
from PIL import Image

from erase import InputError
from erase.evaluation import load_table
from erase.evaluation.suites import SUITES, tables_of


def encoded(colour: str) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(stream, format="JPEG")
    return base64.b64encode(stream.getvalue()).decode()


def written(tmp_path, *lines, header=("index", "image", "question", "answer")):
    file = tmp_path / "set.tsv"
    file.write_text("\n".join("\t".join(line) for line in (header, *lines)) + "\n", encoding="utf-8")
    return file


def test_lines_become_records_and_images_files(tmp_path):
    file = written(
        tmp_path,
        ("1", encoded("red"), "What is it?", "red"),
        ("a/2", "1", "And now?", "['red', 'Red']"),
        ("3", encoded("blue"), "Now?", '["blue"]'),
    )
    records = load_table(file, tmp_path / "images", "anls")
    assert [record.answers for record in records] == [("red",), ("red", "Red"), ("blue",)]
    assert [record.name for record in records] == ["1", "a/2", "3"]
    assert {record.metric for record in records} == {"anls"}
    assert records[0].images == records[1].images != records[2].images
    assert len(list((tmp_path / "images").iterdir())) == 2
    with Image.open(records[0].images[0]) as image:
        assert image.size == (40, 30)
    assert load_table(file, tmp_path / "images", "anls") == records


def test_another_table_has_its_own_images(tmp_path):
    first = load_table(written(tmp_path, ("1", encoded("red"), "What?", "red")), tmp_path / "images")
    second = load_table(written(tmp_path, ("1", encoded("blue"), "What?", "blue")), tmp_path / "images")
    assert first[0].images != second[0].images
    again = load_table(written(tmp_path, ("7", encoded("red"), "And?", "red")), tmp_path / "images")
    assert again[0].images == first[0].images


def test_images_are_those_that_every_other_command_sees(tmp_path):
    def as_text(image, **options):
        stream = io.BytesIO()
        image.save(stream, **options)
        return base64.b64encode(stream.getvalue()).decode()

    turned = Image.Exif()
    turned[0x0112] = 6
    lines = [
        ("1", as_text(Image.new("RGB", (60, 30)), format="JPEG", exif=turned), "?", "a"),
        ("2", as_text(Image.new("RGBA", (40, 40)), format="PNG"), "?", "a"),
        ("3", as_text(Image.new("I;16", (40, 40), 30_000), format="PNG"), "?", "a"),
    ]
    seen = []
    for record in load_table(written(tmp_path, *lines), tmp_path / "images"):
        with Image.open(record.images[0]) as image:
            seen.append((image.mode, image.size, image.getpixel((5, 5))[0]))
    assert seen == [("RGB", (30, 60), 0), ("RGB", (40, 40), 255), ("RGB", (40, 40), 117)]


@pytest.mark.parametrize(("metric", "rule"), [("contains", "exact"), ("words", "exact"), ("anls", "anls")])
def test_a_letter_is_not_looked_for_in_a_sentence(tmp_path, metric, rule):
    header = ("index", "image", "question", "answer", "A", "B")
    lines = [("1", encoded("red"), "Colour?", "A", "red", "blue"), ("2", "1", "Colour?", "red", "", "")]
    first, second = load_table(written(tmp_path, *lines, header=header), tmp_path / "images", metric)
    assert (first.metric, second.metric) == (rule, metric)


def test_only_lists_of_texts_are_several_answers(tmp_path):
    texts = ["[57, 63]", '["a", null]', "[{[]:1}]"]
    lines = [(str(number), encoded("red"), "?", text) for number, text in enumerate(texts)]
    records = load_table(written(tmp_path, *lines), tmp_path / "images", ending="In one word.")
    assert [record.answers for record in records] == [(text,) for text in texts]
    assert records[0].question == "?\nIn one word."


def test_choices_follow_the_question_and_categories_are_groups(tmp_path):
    header = ("index", "image", "question", "answer", "A", "B", "category")
    file = written(tmp_path, ("1", encoded("red"), "Colour?", "B", "blue", "red", "colours"), header=header)
    (record,) = load_table(file, tmp_path / "images")
    assert record.question.splitlines()[:3] == ["Colour?", "A. blue", "B. red"]
    assert (record.answers, record.group) == (("B", "B.", "(B)", "B. red", "red"), "colours")


@pytest.mark.parametrize(
    ("lines", "header", "message"),
    [
        ([], ("index", "image", "question", "answer"), "holds no lines"),
        ([("1", "x", "?")], ("index", "image", "question"), "no column answer"),
        ([("1", "%%%", "?", "a")], ("index", "image", "question", "answer"), "line 2: the image"),
        ([("1", base64.b64encode(b"no image").decode() * 9, "?", "a")], None, "line 2: the image"),
        ([("1", "@", "?", " ")], None, "must not be empty"),
        ([("1",)], None, "line 2: the image"),
        ([("1", "\u00e9" * 80, "?", "a")], None, "line 2: the image"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, lines, header, message):
    lines = [tuple(encoded("red") if cell == "@" else cell for cell in line) for line in lines]
    file = written(tmp_path, *lines, header=header or ("index", "image", "question", "answer"))
    with pytest.raises(InputError, match=message):
        load_table(file, tmp_path / "images")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match="cannot read the table"):
        load_table(tmp_path / "none.tsv", tmp_path / "images")


def test_a_suite_names_the_files_it_lacks(tmp_path):
    names = list(SUITES["paper"].tables)
    for name in names[1:]:
        (tmp_path / f"{name}.tsv").touch()
    with pytest.raises(InputError, match=rf"lacks {names[0]}\.tsv of"):
        tables_of("paper", tmp_path)
    (tmp_path / f"{names[0]}.tsv").touch()
    assert [path.stem for path in tables_of("paper", tmp_path)] == names
