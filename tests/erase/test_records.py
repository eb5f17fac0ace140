"""Records: every form of the file, and what is wrong with a wrong one."""

import json

import pytest
from PIL import Image

from erase.errors import InputError
from erase.records import Record, load_records
from tests.starter import STARTER

GOOD = {"image": "a.png", "question": "what is page ?", "answer": "12"}


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "records"
    (inside / "more").mkdir(parents=True)
    (inside / "circle").symlink_to("circle")
    for place in (inside / "a.png", inside / "more" / "b.png", tmp_path / "outside.png"):
        Image.new("RGB", (28, 28)).save(place)
    return inside


def write(folder, *entries, name="records.jsonl"):
    (folder / name).write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))


def test_each_line_is_a_record_named_after_its_place(folder):
    write(folder, GOOD, GOOD | {"answer": ["twelve", "12"], "name": "second", "source": "ignored"})
    assert load_records(folder) == (
        Record("records.jsonl:1", (folder / "a.png",), "what is page ?", ("12",)),
        Record("second", (folder / "a.png",), "what is page ?", ("twelve", "12")),
    )


def test_a_record_may_have_several_images_also_in_folders_below(folder):
    write(folder, {"images": ["more/b.png", "a.png"], "question": "which ?", "answer": "b"})
    assert load_records(str(folder))[0].images == (folder / "more" / "b.png", folder / "a.png")


def test_empty_lines_and_a_byte_order_mark_do_no_harm(folder):
    (folder / "records.jsonl").write_text(f"\n{json.dumps(GOOD)}\n\n{json.dumps(GOOD)}", encoding="utf-8-sig")
    assert [record.name for record in load_records(folder)] == ["records.jsonl:2", "records.jsonl:4"]


def test_a_line_separator_inside_a_text_is_no_new_line(folder):
    (folder / "records.jsonl").write_text(json.dumps(GOOD | {"question": "a\u2028b"}, ensure_ascii=False))
    assert load_records(folder)[0].question == "a\u2028b"


def test_any_single_file_of_json_lines_will_do(folder):
    write(folder, GOOD, name="validation.jsonl")
    assert load_records(folder)[0].name == "validation.jsonl:1"
    write(folder, GOOD | {"name": "preferred"})
    assert load_records(folder)[0].name == "preferred"


def test_a_list_of_turns_gives_a_record_for_each():
    records = load_records(STARTER / "samples")
    assert len(records) == 24
    assert records[4] == Record(
        "samples.json:19/2", (STARTER / "samples" / "sample-1.png",), "what color is the square ?", ("purple",)
    )


def test_answers_are_compared_without_case_and_surrounding_space():
    record = Record("one", (), "?", ("Straße", " 12 "))
    assert all(record.accepts(answer) for answer in ("straße", "STRASSE\n", "12", "  12"))
    assert not any(record.accepts(answer) for answer in ("1 2", "12.", "", "street"))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["a.png"], "expected an object with image, question and answer, got list"),
        ({"question": "?", "answer": "1"}, "expected either image or images"),
        (GOOD | {"images": ["a.png"]}, "expected either image or images"),
        (GOOD | {"image": 3}, "image must be text"),
        ({"images": [], "question": "?", "answer": "1"}, "images must be text or a list of texts"),
        (GOOD | {"image": "b.png"}, "no image 'b.png' in the folder"),
        (GOOD | {"image": "more"}, "no image 'more' in the folder"),
        (GOOD | {"image": "a\0.png"}, "there can be no image"),
        (GOOD | {"image": "a" * 5000}, "there can be no image"),
        (GOOD | {"image": "circle"}, "there can be no image"),
        (GOOD | {"question": "\ud800"}, "question must be valid Unicode"),
        (GOOD | {"answer": ["1", "\udc00"]}, "answer must be valid Unicode"),
        (GOOD | {"image": "../outside.png"}, "'../outside.png' lies outside the folder"),
        (GOOD | {"image": "/etc/passwd"}, "lies outside the folder"),
        ({"image": "a.png", "answer": "1"}, "the key 'question' is missing"),
        ({"image": "a.png", "question": "?"}, "the key 'answer' is missing"),
        (GOOD | {"question": " "}, "question must be text that is not empty"),
        (GOOD | {"answer": 12}, "answer must be text that is not empty, got 12"),
        (GOOD | {"answer": ["12", 13]}, "answer must be text or a list of texts"),
        (GOOD | {"answer": []}, "answer must be text or a list of texts"),
        (GOOD | {"name": ""}, "name must be text"),
        ({"image": "a.png", "turns": []}, "turns must be a list of objects"),
        ({"image": "a.png", "turns": [{"question": "?"}]}, "the key 'answer' is missing"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(folder, entry, message):
    write(folder, GOOD, entry)
    with pytest.raises(InputError, match=r"records\.jsonl, line 2: ") as caught:
        load_records(folder)
    assert message in str(caught.value)
    (folder / "records.jsonl").unlink()
    (folder / "list.json").write_text(json.dumps([GOOD, entry], indent=1))
    with pytest.raises(InputError, match=r"list\.json, line 7: ") as caught:
        load_records(folder)
    assert message in str(caught.value)


@pytest.mark.skipif("not hasattr(__import__('os'), 'symlink')")
def test_a_link_out_of_the_folder_is_outside(folder):
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    write(folder, GOOD | {"image": "link.png"})
    with pytest.raises(InputError, match="outside the folder"):
        load_records(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no records; expected a file records.jsonl"),
        ({"records.jsonl": ""}, "holds no records"),
        ({"list.json": "[]"}, "holds no records"),
        ({"records.jsonl": '{"image":\n'}, r"records\.jsonl, line 1: not JSON"),
        ({"list.json": '[\n{"image": }]'}, r"list\.json, line 2: not JSON"),
        ({"records.jsonl": "[" * 200_000}, r"records\.jsonl, line 1: not JSON"),
        ({"list.json": "[" * 200_000}, r"list\.json: not JSON"),
        ({"list.json": "{}"}, r"list\.json, line 1: expected a list of records, got dict"),
        ({"a.jsonl": "", "b.jsonl": ""}, r"several record files \(a.jsonl, b.jsonl\); name the right one"),
        ({"a.json": "[]", "b.json": "[]"}, "several record files"),
    ],
)
def test_a_folder_without_usable_records_is_refused(folder, files, message):
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(InputError, match=message):
        load_records(folder)


def test_text_that_is_no_text_is_refused(folder):
    (folder / "records.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot read the records"):
        load_records(folder)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        load_records(tmp_path / "nowhere")
