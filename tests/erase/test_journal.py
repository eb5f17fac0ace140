"""Files that long jobs go on from."""

import fcntl
import json

import pytest

from erase import EraseError
from erase.journal import Journal, whole_lines


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
    again = Journal(path, restart=True)
    assert again.lines == []
    again.begin({"format": 2})
    again.close()
    assert path.read_text() == '{"format": 2}\n'


@pytest.mark.parametrize("restart", [False, True])
def test_a_file_that_is_being_written_is_not_opened_again(tmp_path, restart):
    path = tmp_path / "journal.jsonl"
    first = Journal(path)
    first.begin({"format": 1})
    with pytest.raises(EraseError, match=r"another process is writing .*journal\.jsonl"):
        Journal(path, restart=restart)
    first.append({"n": 1})
    assert whole_lines(path) == [{"format": 1}, {"n": 1}]
    first.close()
    again = Journal(path)
    again.begin({"format": 1})
    assert again.lines == [{"format": 1}, {"n": 1}]
    again.close()


def test_two_that_open_it_at_once_lose_nothing(tmp_path):
    path = tmp_path / "journal.jsonl"
    first = Journal(path)  # opened, not begun
    with pytest.raises(EraseError):
        Journal(path)
    first.begin({"format": 1})
    first.remove()
    assert not path.exists()
    Journal(path).close()


def test_a_file_deleted_between_opening_and_locking_is_opened_anew(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    real, deleted = fcntl.flock, []

    def late(file, how):
        real(file, how)
        if not deleted:
            deleted.append(path.unlink())

    monkeypatch.setattr(fcntl, "flock", late)
    journal = Journal(path)
    journal.begin({"format": 1})
    assert whole_lines(path) == [{"format": 1}]
    journal.close()
