"""Files that long jobs go on from."""

import json

import pytest

from erase.journal import Journal


def test_lines_are_there_again_and_a_half_written_one_is_cut_off(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    assert journal.lines == []
    journal.begin({"format": 1})
    journal.append({"n": 1})
    journal.close()
    path.write_bytes(path.read_bytes() + b'{"n": 2')
    again = Journal(path)
    assert again.lines == [{"format": 1}, {"n": 1}]
    again.begin({"format": 2})
    again.append({"n": 3})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"format": 1}, {"n": 1}, {"n": 3}]
    again.close()


def test_restarting_forgets_everything_and_a_damaged_line_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"format": 1}\nno json\n')
    with pytest.raises(ValueError, match="Expecting value"):
        Journal(path)
    assert Journal(path, restart=True).lines == []
    assert not path.exists()


def test_a_file_that_is_being_written_is_not_opened_again(tmp_path):
    path = tmp_path / "journal.jsonl"
    first = Journal(path)
    first.begin({"format": 1})
    with pytest.raises(BlockingIOError):
        Journal(path).begin({"format": 1})
    first.append({"n": 1})
    first.close()
    again = Journal(path)
    again.begin({"format": 1})
    assert again.lines == [{"format": 1}, {"n": 1}]
    again.close()
