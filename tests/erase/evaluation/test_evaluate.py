"""Evaluations: equal budgets, every answer asked once, figures that can be checked by hand."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import erase
from erase import EraseError, InputError, PolicyError
from erase.asking import submit
from erase.engine import Engine, Sequence
from erase.evaluation import Contest, Contestant, Part, contest, evaluate, summarise
from erase.evaluation.answers import Answer, AnswerFile, model_key
from erase.evaluation.contestants import mean_retention, named_policy, turned
from erase.evaluation.report import markdown, plot, write_report
from erase.evaluation.run import evidence_cells
from erase.evaluation.summary import NONE
from erase.methods import method_for
from erase.metrics import METRICS
from erase.models.loading import load_model
from erase.models.prompt import prepare_images, prepare_prompt
from erase.pictures import open_picture
from erase.policy import BaselinePolicy, BinnedPolicy, BudgetPolicy
from erase.records import Record, load_records
from tests.starter import STARTER


@pytest.fixture(scope="module")
def loaded():
    return load_model(str(STARTER), device="cpu")


@pytest.fixture(scope="module")
def records():
    return load_records(STARTER / "samples")[:6]


@pytest.fixture(scope="module")
def images(loaded, records):
    paths = dict.fromkeys(record.images for record in records)
    return [[one.pixels for one in prepare_images(loaded, [open_picture(path) for path in own])] for own in paths]


class TestContests:
    def test_dials_are_turned_until_all_keep_as_much(self, loaded, images):
        architecture = loaded.adapter.architecture
        for measure, target in (("final", 0.3), ("layer_average", 0.5)):
            made = contest(["erase-1", "erase-2", "fastv", "divprune"], measure, target, loaded, images)
            assert made.absent == {}
            for one in made.contestants:
                kept = mean_retention(one.policy, measure, architecture, images)
                assert kept <= 1.04 * target
                assert kept >= 0.9 * target or one.name == "erase-2"  # its stage 1 may keep less than it might

    def test_equal_policies_are_asked_once(self, loaded, images):
        names = ["divprune", "random"]
        final = contest(names, "final", 0.3, loaded, images)
        average = contest(names, "layer_average", 0.3, loaded, images)
        assert [one.key for one in final.contestants] == [one.key for one in average.contestants]
        assert [one.name for one in final.contestants] == ["divprune", "random", "random", "random"]
        assert len({one.key for one in final.contestants}) == 4

    def test_who_cannot_keep_so_little_is_absent_with_the_reason(self, loaded, images):
        made = contest(["erase-1", "pyramiddrop", "random"], "layer_average", 0.2, loaded, images)
        assert {one.name for one in made.contestants} == {"random"}
        assert "least that its dial reaches" in made.absent["erase-1"]
        assert "cannot be reached" in made.absent["pyramiddrop"]

    def test_names(self, loaded, tmp_path):
        own = named_policy("erase-1-exact", loaded)
        assert isinstance(own, BinnedPolicy)
        assert own == replace(erase.load_policy(STARTER / "erase_policy.json"), scoring="exact")
        bins = erase.load_policy(STARTER / "erase_policy.json")
        assert named_policy("starter-model", loaded) == bins
        erase.save_policy(bins.with_retention(0.9), tmp_path / "own.json")
        with_bins = replace(loaded, policy_file=tmp_path / "own.json", bins_file=loaded.policy_file)
        assert named_policy("erase-1", with_bins) == named_policy("starter-model-bins", with_bins) == bins
        assert named_policy("starter-model", with_bins) == bins.with_retention(0.9)
        without = replace(loaded, policy_file=None)
        assert named_policy("erase-1", without) == erase.preset("qwen2.5-vl-7b")
        assert named_policy("erase-2", loaded) == BudgetPolicy(0.25)
        assert named_policy("qwen2.5-vl-7b", loaded) == erase.preset("qwen2.5-vl-7b")
        erase.save_policy(BudgetPolicy(0.7), tmp_path / "mine.json")
        assert named_policy(str(tmp_path / "mine.json"), loaded) == BudgetPolicy(0.7)
        with pytest.raises(PolicyError, match="there is no policy 'magic': expected erase-1, "):
            named_policy("magic", loaded)

    def test_a_policys_own_measure_needs_no_search(self, loaded, images):
        policy = turned(BudgetPolicy(0.9), "layer_average", 0.31, loaded.adapter.architecture, images)
        assert policy == BudgetPolicy(0.31)

    def test_a_policys_own_measure_may_be_out_of_reach_too(self, loaded, images):
        made = contest(["erase-2", "random"], "layer_average", 0.01, loaded, images)
        assert {one.name for one in made.contestants} == {"random"}
        assert "with its dial at 0.01 it keeps 0.0" in made.absent["erase-2"]


class TestAnswers:
    CONTESTANTS = (
        NONE,
        Contestant("half", BaselinePolicy("divprune", 0.5)),
        Contestant("same", BaselinePolicy("divprune", 0.5)),
    )

    def test_an_evaluation_that_was_stopped_goes_on_and_answers_the_same(self, loaded, records, tmp_path, monkeypatch):
        whole = evaluate(loaded, records, self.CONTESTANTS, tmp_path / "whole")
        assert len(whole) == 2 * len(records)
        file = tmp_path / "answers.jsonl"
        with pytest.raises(KeyboardInterrupt):
            evaluate(loaded, records, self.CONTESTANTS, tmp_path, progress=stop_after(5))
        lines = file.read_text().splitlines()
        assert len(lines) == 6
        file.write_text("\n".join(lines) + '\n{"record": 3, "pol')  # killed while it wrote
        asked = []
        submit = Engine.submit
        monkeypatch.setattr(Engine, "submit", lambda self, sequence: asked.append(1) or submit(self, sequence))
        assert evaluate(loaded, records, self.CONTESTANTS, tmp_path) == whole
        assert len(asked) == 2 * len(records) - 5
        for answer in whole.values():
            assert 0 < answer.layer_average <= 1
        assert whole[0, NONE.key].final == 1.0
        assert whole[0, self.CONTESTANTS[1].key].final == pytest.approx(0.5, abs=0.02)
        assert whole[0, NONE.key].score == 1.0

    def test_more_records_are_added_to_what_is_there(self, loaded, records, tmp_path):
        file = tmp_path / "answers.jsonl"
        few = evaluate(loaded, records[2:4], [NONE], tmp_path)
        more = evaluate(loaded, records[1:4], [NONE], tmp_path)
        assert {number: answer for (number, _), answer in more.items()}.keys() == {0, 1, 2}
        assert [more[number + 1, "none"] for number in range(2)] == [few[number, "none"] for number in range(2)]
        assert len(file.read_text().splitlines()) == 1 + 3

    def test_parts_make_the_whole(self, loaded, records, tmp_path, monkeypatch):
        whole = evaluate(loaded, records, [NONE], tmp_path / "whole")
        parts = [evaluate(loaded, records, [NONE], tmp_path, part=Part(number, 2)) for number in (1, 2)]
        assert parts[0].keys() & parts[1].keys() == set()
        assert parts[0] | parts[1] == whole
        images = [{records[number].images for number, _ in part} for part in parts]
        assert images[0] & images[1] == set()
        monkeypatch.setattr(Engine, "submit", lambda *_: pytest.fail("asked again"))
        assert evaluate(loaded, records, [NONE], tmp_path) == whole

    def test_starting_anew_forgets_all_parts_and_no_other_file(self, loaded, records, tmp_path):
        for part in (Part(1, 2), Part(2, 2)):
            evaluate(loaded, records[:2], [NONE], tmp_path, part=part)
        (tmp_path / "answers-of-mine.jsonl").write_text("no answers")
        evaluate(loaded, records[:1], [NONE], tmp_path)
        evaluate(loaded, records[:1], [NONE], tmp_path, restart=True)
        assert {path.name for path in tmp_path.iterdir()} == {"answers.jsonl", "answers-of-mine.jsonl"}
        assert (tmp_path / "answers-of-mine.jsonl").read_text() == "no answers"

    def test_two_processes_do_not_write_one_file(self, loaded, records, tmp_path):
        writer = AnswerFile(tmp_path, model_key(loaded), Part())
        with pytest.raises(EraseError, match=r"another process is writing .*answers\.jsonl"):
            evaluate(loaded, records[:1], [NONE], tmp_path)
        for part in (Part(), Part(1, 2)):
            with pytest.raises(EraseError, match=r"another process is writing .*answers\.jsonl"):
                evaluate(loaded, records[:1], [NONE], tmp_path, part=part, restart=True)
        with writer:
            writer.add("a question", "a policy", Answer("8", 1.0, 1.0, 1.0, None))
        assert len(evaluate(loaded, records[:1], [NONE], tmp_path)) == 1
        assert "a question" in (tmp_path / "answers.jsonl").read_text()

    def test_a_restart_beside_a_part_that_runs_deletes_nothing(self, loaded, records, tmp_path):
        for number in (1, 3):
            evaluate(loaded, records[:3], [NONE], tmp_path, part=Part(number, 3))
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with AnswerFile(tmp_path, model_key(loaded), Part(2, 3)):
            for part in (Part(3, 3), Part()):
                with pytest.raises(EraseError, match=r"another process is writing .*answers-2-of-3\.jsonl"):
                    evaluate(loaded, records[:3], [NONE], tmp_path, part=part, restart=True)
        after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        assert before.items() <= after.items()

    def test_answers_of_another_model_are_not_taken(self, loaded, records, tmp_path):
        file = tmp_path / "answers.jsonl"
        evaluate(loaded, records[:1], [NONE], tmp_path)
        other = replace(loaded, revision="another")
        with pytest.raises(EraseError, match="another model"):
            evaluate(other, records[:1], [NONE], tmp_path)
        evaluate(other, records[:1], [NONE], tmp_path, restart=True)
        file.write_text(file.read_text() + "{}\n")
        with pytest.raises(EraseError, match="damaged"):
            evaluate(other, records[:1], [NONE], tmp_path)

    def test_downsampling_counts_what_it_left_of_the_original(self, loaded, records, tmp_path):
        one = Contestant("smaller", BaselinePolicy("downsample", 0.5))
        answer = evaluate(loaded, records[:1], [one], tmp_path)[0, one.key]
        assert answer.final == answer.layer_average == pytest.approx(0.5, abs=0.12)
        assert answer.evidence is None

    def test_evidence_lies_in_the_cells_that_its_boxes_touch(self, loaded, records):
        (image,) = prepare_images(loaded, [open_picture(records[0].images[0])])
        rows, columns = image.cell_grid
        picture = (columns * 10, rows * 20)
        record = replace(records[0], evidence=((0.0, 0.0, 10.0, 20.0), (15.0, 30.0, 25.0, 40.0)))
        assert evidence_cells(record, picture, image).tolist() == [0, columns + 1, columns + 2]
        assert evidence_cells(replace(record, evidence=()), picture, image) is None

    @pytest.mark.parametrize(
        ("box", "cells"),
        [
            ((-60.0, 0.0, 15.0, 20.0), [(0, 0), (0, 1)]),
            ((10.0, 20.0, 10.0, 20.0), [(1, 1)]),
            ((10.0, 20.0, 10.0, 50.0), [(1, 1), (2, 1)]),
            ((-60.0, -60.0, -50.0, -50.0), []),
        ],
    )
    def test_evidence_may_reach_beyond_its_picture_or_have_no_width(self, loaded, records, box, cells):
        (image,) = prepare_images(loaded, [open_picture(records[0].images[0])])
        rows, columns = image.cell_grid
        picture = (columns * 10, rows * 20)
        found = evidence_cells(replace(records[0], evidence=(box,)), picture, image)
        assert found.tolist() == [row * columns + column for row, column in cells]

    def test_evidence_at_the_far_corner_lies_in_the_last_cell(self, loaded, records):
        (image,) = prepare_images(loaded, [open_picture(records[0].images[0])])
        rows, columns = image.cell_grid
        corner = (columns * 10.0, rows * 20.0)
        found = evidence_cells(replace(records[0], evidence=((*corner, *corner),)), (columns * 10, rows * 20), image)
        assert found.tolist() == [rows * columns - 1]

    def test_an_image_that_the_model_cannot_take_is_refused_by_its_records_name(self, loaded, records, tmp_path):
        Image.new("RGB", (3000, 4)).save(tmp_path / "thin.png")
        record = replace(records[0], name="the-thin-one", images=(tmp_path / "thin.png",))
        with pytest.raises(InputError, match=r"^the-thin-one: the image processor refuses"):
            evaluate(loaded, [record], [NONE], tmp_path / "out")

    @pytest.mark.parametrize("metric", METRICS)
    def test_answers_are_not_cut_where_that_would_change_their_score(self, loaded, records, metric):
        asked: list[Sequence] = []
        method, prompt = method_for(None), prepare_prompt(loaded, records[0].question, ())
        record = replace(records[0], metric=metric, answers=("8",))
        submit(SimpleNamespace(submit=asked.append), loaded, record, prompt, method, method.preselect([]))
        assert (asked[0].sampling.max_tokens > 60) == (metric in ("anls", "contains", "words"))


def stop_after(answers: int):
    def progress(step):
        if step.done == answers:
            raise KeyboardInterrupt

    return progress


def figures() -> tuple[list[Record], list[Contest], dict]:
    """Four questions about two images; the unpruned model gets three right, a method two of these."""
    names = ("one.png", "one.png", "two.png", "two.png")
    records = [
        Record(f"r{number}", (Path(name),), "?", ("a",), group="left" if number < 2 else "right")
        for number, name in enumerate(names)
    ]
    seeds = [Contestant("random", BaselinePolicy("random", 0.5, seed=seed)) for seed in (0, 1)]
    scores = {NONE.key: [1, 1, 1, 0], seeds[0].key: [1, 0, 1, 0], seeds[1].key: [1, 0, 0, 1]}
    answers = {
        (number, key): Answer("a", float(own[number]), 0.5, 0.6, 0.25 if number < 2 else None)
        for key, own in scores.items()
        for number in range(4)
    }
    return records, [Contest("final", 0.5, tuple(seeds), {"fastv": "it is too early"})], answers


class TestSummary:
    def test_figures_by_hand(self):
        summary = summarise(*figures())
        assert (summary.questions, summary.images) == (4, 2)
        assert summary.unpruned == {"all": 0.75, "left": 1.0, "right": 0.5}
        (line,) = summary.lines
        assert (line.name, line.score) == ("random", 0.5)
        assert line.retained.value == pytest.approx(2 / 3)
        # Of the three right ones both seeds leave one, one seed another one, and none the third.
        assert line.stays_right == pytest.approx(1.5 / 3)
        assert line.difference is None
        # Drawing one image twice gives 1/2 or 1, both once 2/3.
        assert (line.retained.low, line.retained.high) == (pytest.approx(0.5), pytest.approx(1.0))
        assert (line.final, line.layer_average, line.evidence) == (0.5, pytest.approx(0.6), 0.25)
        assert {group: one.value for group, one in line.by_group.items()} == {"left": 0.5, "right": 1.0}

    def test_a_group_may_be_called_all(self):
        records, contests, answers = figures()
        renamed = [replace(record, group="all" if record.group == "left" else "right") for record in records]
        summary = summarise(renamed, contests, answers)
        assert summary.unpruned == {"all": 0.75, "all (a group)": 1.0, "right": 0.5}
        assert set(summary.lines[0].by_group) == {"all (a group)", "right"}
        assert "Unpruned score: 75.0% (all (a group) 100.0%, right 50.0%)" in markdown(summary)

    def test_differences_are_paired(self):
        records, (found,), answers = figures()
        better = Contestant("better", BaselinePolicy("divprune", 0.5))
        answers |= {(number, better.key): answers[number, NONE.key] for number in range(4)}
        summary = summarise(records, [replace(found, contestants=(*found.contestants, better))], answers, "better")
        lines = {line.name: line for line in summary.lines}
        assert lines["better"].difference is None
        assert lines["random"].difference is not None
        # 2/3 - 3/3; one image twice: 3/4 - 1 or 1/2 - 1/2.
        assert lines["random"].difference.value == pytest.approx(-1 / 3)
        text = markdown(summary)
        assert "minus better" in text
        assert "-33.3" in text

    def test_what_stays_right_is_counted_seed_by_seed(self):
        records, (found,), answers = figures()
        answers |= {(0, NONE.key): replace(answers[0, NONE.key], score=0.5)}
        # The first question: the smaller of 0.5 and 1 for both seeds; the others as before.
        (line,) = summarise(records, [found], answers).lines
        assert line.stays_right == pytest.approx((0.5 + 0.0 + 0.5) / 2.5)

    def test_the_same_answers_always_give_the_same_intervals(self):
        assert summarise(*figures()) == summarise(*figures())

    def test_intervals_cover_the_truth_about_as_often_as_they_say(self):
        generator = np.random.default_rng(0)
        covered = 0
        method = Contestant("m", BaselinePolicy("divprune", 0.5))
        for _ in range(60):
            right = generator.random((80, 3)) < 0.8
            kept = right & (generator.random((80, 3)) < 0.7)
            records = [Record(str(number), (Path(f"{number // 3}"),), "?", ("a",)) for number in range(240)]
            answers = {}
            for key, own in ((NONE.key, right), (method.key, kept)):
                answers |= {
                    (number, key): Answer("", float(hit), 0.5, 0.5, None) for number, hit in enumerate(own.flatten())
                }
            (line,) = summarise(records, [Contest("final", 0.5, (method,), {})], answers).lines
            covered += line.retained.low <= 0.7 <= line.retained.high
        assert covered >= 52

    def test_the_report_names_everything(self, tmp_path):
        summary = summarise(*figures())
        text = markdown(summary)
        assert "4 questions about 2 images. Unpruned score: 75.0% (left 100.0%, right 50.0%)" in text
        assert "### Final retention 0.5 (50% pruned)" in text
        assert "| random | 66.7 | 50.0 to 100.0 | 50.0 | 0.500 | 0.600 | 25.0 | 50.0 | 100.0 |" in text
        assert "Not here: fastv, it is too early." in text
        write_report(tmp_path, summary, {"model": "m"})
        assert json.loads((tmp_path / "results.json").read_text())["lines"][0]["retained"]["value"] == pytest.approx(
            2 / 3
        )
        assert (tmp_path / "results.md").read_text() == text
        assert (tmp_path / "results.png").stat().st_size > 5000

    def test_several_retentions_are_drawn_as_curves_with_the_evidence_below(self, tmp_path):
        from PIL import Image

        def height(contests, answers):
            assert plot(summarise(records, contests, answers), tmp_path / "plot.png")
            with Image.open(tmp_path / "plot.png") as picture:
                return picture.height

        records, (found,), answers = figures()
        contests = [found, replace(found, target=0.25), replace(found, measure="layer_average")]
        blind = {place: replace(answer, evidence=None) for place, answer in answers.items()}
        assert height(contests, answers) > 800 > height(contests, blind) > height([found], answers)

    def test_without_matplotlib_there_is_no_plot(self, tmp_path, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
        assert not plot(summarise(*figures()), tmp_path / "plot.png")
        assert not (tmp_path / "plot.png").exists()


def test_the_command_evaluates_a_folder_and_a_table(tmp_path, capsys, monkeypatch):
    from erase.cli import main

    torch.set_num_threads(1)
    samples = STARTER / "samples"
    wanted = [
        "--model",
        str(STARTER),
        "--methods",
        "erase-2,random",
        "--retentions",
        "0.5",
        "--measures",
        "layer_average",
    ]
    assert main(["evaluate", str(samples), "--out", str(tmp_path / "a"), "--limit", "3", *wanted]) == 0
    assert "| erase-2 |" in capsys.readouterr().out
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert [line["name"] for line in results["lines"]] == ["erase-2", "random"]
    assert len((tmp_path / "a" / "answers.jsonl").read_text().splitlines()) == 1 + 3 * 5
    part = ["evaluate", str(samples), "--out", str(tmp_path / "e"), "--limit", "3", *wanted, "--part"]
    capsys.readouterr()
    assert main([*part, "1/2"]) == 0
    assert not capsys.readouterr().out
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["answers-1-of-2.jsonl"]
    Image.new("RGB", (3000, 4)).save(tmp_path / "thin.png")
    thin = {"name": "the-thin-one", "image": "thin.png", "question": "?", "answer": "8"}
    (tmp_path / "records.jsonl").write_text(json.dumps(thin) + "\n")
    assert main(["evaluate", str(tmp_path), "--out", str(tmp_path / "f"), *wanted]) == 1
    assert "the-thin-one: the image processor refuses" in capsys.readouterr().err
    for wrong in (["0/2"], ["3/2"], ["2"], ["a/b"], ["1/2", "--restart"]):
        assert main([*part, *wrong]) == 2
    for wrong in (["--methods", ","], ["--against", "fastv"]):
        assert main(["evaluate", str(samples), "--out", str(tmp_path / "d"), *wanted, *wrong]) == 2
    table = table_of(load_records(samples)[:2], tmp_path / "paper")
    assert main(["evaluate", str(table), "--out", str(tmp_path / "b"), "--metric", "anls", *wanted]) == 0
    for name in ("DocVQA_VAL", "InfoVQA_VAL", "ChartQA_TEST", "TextVQA_VAL", "OCRBench"):
        (tmp_path / "paper" / f"{name}.tsv").write_bytes(table.read_bytes())
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "paper"), "--suite", "paper", "--out", str(tmp_path / "c"), *wanted]) == 0
    assert capsys.readouterr().out.count("2 questions about") == 5
    assert main(["evaluate", str(samples), "--out", str(tmp_path / "d"), "--retentions", "2"]) == 2
    assert main(["evaluate", str(samples), "--out", str(tmp_path / "d"), "--measures", "total"]) == 2
    assert main(["evaluate", str(samples), "--out", str(tmp_path / "d"), *wanted[:2], "--methods", "magic"]) == 1
    assert "there is no policy 'magic'" in capsys.readouterr().err


def table_of(records, folder):
    import base64

    folder.mkdir()
    lines = ["index\timage\tquestion\tanswer"]
    for number, record in enumerate(records):
        data = base64.b64encode(record.images[0].read_bytes()).decode()
        lines.append(f"{number}\t{data}\t{record.question}\t{record.answers[0]}")
    file = folder / "set.tsv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_dials_are_turned_on_images_from_all_over_the_data(loaded, monkeypatch):
    from erase.cli import evaluate as command

    seen = []
    monkeypatch.setattr("erase.asking.open_picture", lambda path: seen.append(int(path.name)) or path)
    monkeypatch.setattr("erase.asking.prepare_images", lambda loaded, pictures: [])
    monkeypatch.setattr("erase.evaluation.contest", lambda *_: None)
    command._contests([], ["final"], [0.5], loaded, tuple(Record("r", (Path(str(n)),), "?", ("a",)) for n in range(78)))
    assert len(seen) == 48
    assert max(seen) >= 76
    assert max(b - a for a, b in pairwise(seen)) == 2
