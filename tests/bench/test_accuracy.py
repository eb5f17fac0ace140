"""The command behind the accuracy tables, on tiny ones."""

import argparse
import json
import os
import signal
import sys
import threading

import pytest

from bench import accuracy
from bench.accuracy import TABLES, Table
from bench.other_renderer import KINDS, draw
from bench.report import BenchmarkError, run_main
from erase.errors import EraseError
from erase.models.loading import fingerprint
from erase.synthetic.generate import FAMILIES, sample
from tests.starter import STARTER
from tests.system.deployment import until

BROKEN = [sys.executable, "-m", "erase", "inspect", "no-image.png", "--model"]
SLEEPING = [sys.executable, "-c", "import time; time.sleep(60)"]
TINY = Table("tiny", (64, 66), 1, (0.5,), "erase-distinct,erase-2-exact,fastv")


def test_tables_have_as_many_questions_as_they_promise():
    large = [table for table in TABLES if table.tokens[0] >= 1000]
    assert [table.name for table in large] == ["headline", "retentions", "other-renderer"]
    assert {value for table in large for value in table.retentions} == {0.5, 0.25, 0.15, 0.1}
    assert len({table.size for table in large}) == 1  # they share their answers
    drawn = [draw(kind, number) for kind in KINDS for number in range(TABLES[-1].images)]
    assert sum(len(page.turns) for page in drawn) >= 400
    # Drawing all generated images takes minutes; some of each family tell how many questions an image has.
    some = [sample(family, "test", number, tokens=TABLES[0].tokens) for family in FAMILIES for number in range(5)]
    per_family = sum(len(one.questions) for one in some) / 5
    assert per_family * TABLES[0].images >= 1000
    assert all(per_family * table.images >= 400 for table in TABLES)


def test_parts_side_by_side_make_a_table_and_a_plot(tmp_path, capfd):
    command = ["--model", str(STARTER), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy, "TABLES", (TINY,))
        assert accuracy.main([*command, "--tables", "tiny", "--parts", "2"]) == 0
        first = capfd.readouterr().out
        assert accuracy.main([*command, "--tables", "tiny", "--parts", "1"]) == 0
    answers = tmp_path / "work" / "answers" / f"{TINY.size}-{fingerprint(STARTER)}"
    assert capfd.readouterr().out == first
    assert "| erase-distinct |" in first
    results = json.loads((tmp_path / "out" / "tiny.json").read_text())
    assert {line["name"] for line in results["lines"]} == {"erase-2-exact", "erase-distinct", "fastv"}
    assert results["against"] == "erase-distinct"
    assert (tmp_path / "out" / "tiny.png").stat().st_size > 5000
    counts = [len((answers / f"answers-{number}-of-2.jsonl").read_text().splitlines()) for number in (1, 2)]
    assert min(counts) > 40
    assert accuracy._mark("demo") != accuracy._mark(str(STARTER)) == fingerprint(STARTER)
    assert accuracy._mark("someone/model") == "model"
    assert not (answers / "answers.jsonl").exists() or len((answers / "answers.jsonl").read_text().splitlines()) == 1


def test_a_part_that_fails_is_told_with_its_reason(tmp_path):
    with pytest.raises(BenchmarkError, match=r"part 2 failed with 1\n(.|\n)*no-model"):
        accuracy._run([SLEEPING, [*BROKEN, str(tmp_path / "no-model")]], tmp_path)


def test_a_table_of_a_model_that_is_not_there_fails(tmp_path):
    with pytest.raises(BenchmarkError, match=r"part \d failed with 1"):
        accuracy.make(TINY, str(tmp_path / "no-model"), tmp_path, tmp_path / "out", parts=2)


def test_a_terminated_benchmark_ends_its_parts(tmp_path):
    file = tmp_path / "pid"
    part = f"import os, pathlib, time; pathlib.Path({str(file)!r}).write_text(str(os.getpid())); time.sleep(60)"

    def terminated():
        until(lambda: file.exists() and file.read_text(), what="the start of the part")
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminated).start()
    run = accuracy._run
    assert run_main(lambda _: run([[sys.executable, "-c", part]], tmp_path), argparse.Namespace(), EraseError) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)


def test_an_unknown_table_is_refused(capsys):
    with pytest.raises(SystemExit):
        accuracy.main(["--tables", "huge"])
    assert "there is no huge; known: headline, retentions" in capsys.readouterr().err
