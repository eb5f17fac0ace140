"""The command behind the accuracy tables, on tiny ones."""

import json

import pytest

from bench import accuracy
from bench.accuracy import TABLES, Table
from bench.report import BenchmarkError
from tests.starter import STARTER

TINY = Table("tiny", (64, 66), 1, (0.5,), "erase-distinct,erase-2-exact,fastv")


def test_tables_have_as_many_questions_as_they_promise():
    large = [table for table in TABLES if table.tokens[0] >= 1000]
    assert [table.name for table in large] == ["headline", "retentions", "other-renderer"]
    assert {value for table in large for value in table.retentions} == {0.5, 0.25, 0.15, 0.1, 0.05}
    assert len({table.size for table in large}) == 1  # they share their answers


def test_parts_side_by_side_make_a_table_and_a_plot(tmp_path, capfd):
    command = ["--model", str(STARTER), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "TABLES", (TINY,))
        assert accuracy.main([*command, "--tables", "tiny", "--parts", "2"]) == 0
        first = capfd.readouterr().out
        assert accuracy.main([*command, "--tables", "tiny", "--parts", "1"]) == 0
    answers = tmp_path / "work" / "answers" / TINY.size
    assert capfd.readouterr().out == first
    assert "| erase-distinct |" in first
    results = json.loads((tmp_path / "out" / "tiny.json").read_text())
    assert {line["name"] for line in results["lines"]} == {"erase-2-exact", "erase-distinct", "fastv"}
    assert results["against"] == "erase-distinct"
    assert (tmp_path / "out" / "tiny.png").stat().st_size > 5000
    counts = [len((answers / f"answers-{number}-of-2.jsonl").read_text().splitlines()) for number in (1, 2)]
    assert min(counts) > 40
    assert not (answers / "answers.jsonl").exists() or len((answers / "answers.jsonl").read_text().splitlines()) == 1


def test_a_part_that_fails_is_told_with_its_reason(tmp_path):
    with pytest.raises(BenchmarkError, match=r"part \d failed(.|\n)*"):
        accuracy.make(TINY, str(tmp_path / "no-model"), tmp_path, tmp_path / "out", parts=2)


def test_an_unknown_table_is_refused(capsys):
    with pytest.raises(SystemExit):
        accuracy.main(["--tables", "huge"])
    assert "there is no huge; known: headline, retentions" in capsys.readouterr().err
