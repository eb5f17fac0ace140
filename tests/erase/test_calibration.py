"""Calibration: the search on plain values, the progress file, and real runs on the starter model."""

import builtins
import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from erase import BinnedPolicy, EraseError, InputError, PolicyError, load_policy
from erase.calibration import Search, calibrate, run
from erase.calibration.answers import StageOneMethod
from erase.calibration.progress import Identity, ProgressFile, Tried, Unpruned
from erase.calibration.search import (
    HIGHEST_ENTROPY,
    ImageStats,
    bin_shares,
    deployed_policy,
    kept_counts,
    objective,
    point_of,
    stage1_policy,
    suggest,
)
from erase.methods.base import Architecture
from erase.models.loading import load_model
from erase.models.prompt import prepare_images
from erase.pictures import open_picture
from erase.records import Record, load_records
from tests.starter import STARTER

PAPER = Search()
SHORT = Search(iterations=7, initial=4, bins=2)
complexities = st.floats(0.0, 5.5, width=32)  # entropies are float32
thresholds = complexities | st.sampled_from([0.0, 1.0, HIGHEST_ENTROPY])
points = st.integers(1, 6).flatmap(
    lambda bins: st.tuples(
        st.tuples(*[thresholds] * (bins - 1)),
        st.tuples(st.floats(0.6, 0.9), *[st.floats(0.1, 0.85)] * (bins - 1)),
    ).map(lambda parts: parts[0] + parts[1])
)
images = st.lists(st.builds(ImageStats, st.integers(1, 2000), complexities), min_size=1)


@pytest.fixture(scope="module")
def demo():
    return load_model(str(STARTER), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def samples():
    return load_records(STARTER / "samples")


@pytest.fixture(scope="module")
def records(samples):
    return samples[:9]


@pytest.fixture(scope="module")
def uninterrupted(demo, records, tmp_path_factory):
    """A policy file, and the calibration that wrote it."""
    out = tmp_path_factory.mktemp("whole") / "policy.json"
    return out, calibrate(demo, records, out, SHORT)


class TestPoints:
    def test_a_point_is_sorted_into_a_policy_that_stands_for_the_same_point(self):
        policy = stage1_policy((0.5, 1.5, 1.0, 0.7, 0.2, 0.8, 0.4))
        assert policy == BinnedPolicy((1.5, 1.0, 0.5), (0.8, 0.7, 0.4, 0.2), final_retention=0.2)
        assert stage1_policy(point_of(policy)) == policy

    @given(points)
    def test_every_point_within_the_bounds_is_a_valid_policy(self, point):
        policy = stage1_policy(point)
        assert len(policy.stage1_retention) == (len(point) + 1) // 2
        assert list(policy.stage1_retention) == sorted(policy.stage1_retention, reverse=True)
        assert all(low < high for high, low in itertools.pairwise(policy.thresholds))
        wanted = sorted(point[: len(policy.thresholds)], reverse=True)
        assert all(math.isclose(one, other, abs_tol=1e-9) for one, other in zip(policy.thresholds, wanted, strict=True))

    @given(complexities, thresholds)
    def test_between_equal_thresholds_there_is_no_image(self, complexity, threshold):
        shares = bin_shares([ImageStats(1, complexity)], stage1_policy((threshold, threshold, 0.7, 0.5, 0.3)))
        assert shares == ((1, 0, 0) if complexity > threshold else (0, 0, 1))

    def test_the_deployed_policy_has_the_same_bins_and_the_final_retention_of_the_caller(self):
        policy = deployed_policy((1.0, 0.7, 0.3), 0.15)
        assert policy == BinnedPolicy((1.0,), (0.7, 0.3), final_retention=0.15)
        assert policy.layers is None

    @given(images, points)
    def test_stage_one_keeps_the_bins_share_and_at_least_one_token(self, stats, point):
        policy = stage1_policy(point)
        for image, kept in zip(stats, kept_counts(stats, policy), strict=True):
            index = next((i for i, t in enumerate(policy.thresholds) if image.complexity > t), len(policy.thresholds))
            assert kept == max(1, int(image.tokens * policy.stage1_retention[index]))

    @given(images, points)
    def test_the_shares_of_the_bins_add_up(self, stats, point):
        assert math.isclose(sum(bin_shares(stats, stage1_policy(point))), 1.0)


class TestObjective:
    def test_it_is_the_specifications_formula(self):
        shares, retention = (0.1, 0.2, 0.3, 0.4), (0.9, 0.7, 0.5, 0.1)
        saved = 10 * 0.1 + 20 * 0.3 + 30 * 0.5 + 40 * 0.9
        assert math.isclose(objective(0.8, shares, retention, 0.65), 0.65 * 80 + 0.35 * saved)

    def test_its_ends_are_accuracy_alone_and_saving_alone(self):
        assert objective(0.8, (1.0,), (0.6,), 1.0) == 80.0
        assert math.isclose(objective(0.8, (1.0,), (0.6,), 0.0), 40.0)


class TestSuggestions:
    def test_random_points_lie_within_the_bounds_and_depend_on_seed_and_number_only(self):
        made = [suggest(PAPER, [(0.0,) * 7] * number, [0.0] * number) for number in range(20)]
        assert len(set(made)) == 20
        assert made[3] == suggest(PAPER, [(1.0,) * 7] * 3, [5.0] * 3)
        assert made[3] != suggest(Search(seed=1), [(0.0,) * 7] * 3, [0.0] * 3)
        for point in made:
            assert all(0.0 <= threshold <= HIGHEST_ENTROPY for threshold in point[:3])
            assert 0.6 <= point[3] <= 0.9
            assert all(0.1 <= retention <= 0.85 for retention in point[4:])

    def test_then_points_follow_from_what_was_seen_and_come_out_the_same_again(self):
        search = Search(initial=6, bins=2)
        seen = [suggest(search, [(0.0,)] * number, [0.0] * number) for number in range(6)]
        rising = [100.0 - 50.0 * point[2] for point in seen]
        one = suggest(search, seen, rising)
        assert one == suggest(search, seen, rising)
        assert one != suggest(search, seen, [-value for value in rising])

    def test_a_point_seen_twice_does_no_harm(self):
        search = Search(initial=2, bins=1)
        assert len(suggest(search, [(0.7,), (0.8,), (0.7,)], [1.0, 2.0, 1.0])) == 1

    def test_the_search_finds_the_best_of_a_simple_objective(self):
        search = Search(iterations=14, initial=5, bins=1)
        seen, values = [], []
        for _ in range(search.iterations):
            seen.append(suggest(search, seen, values))
            values.append(-((seen[-1][0] - 0.71) ** 2))
        assert abs(seen[values.index(max(values))][0] - 0.71) < 0.005

    def test_the_missing_package_is_named(self, monkeypatch):
        real = builtins.__import__

        def without(name, *rest):
            if name == "bayes_opt":
                raise ImportError(name)
            return real(name, *rest)

        monkeypatch.setattr(builtins, "__import__", without)
        with pytest.raises(EraseError, match=r"pip install 'bayesian-optimization>=3\.4'"):
            suggest(PAPER, [], [])

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"iterations": 0}, "iterations must be at least 1"),
            ({"initial": 0}, "initial must be at least 1"),
            ({"bins": 0}, "bins must be at least 1"),
            ({"weight": 1.1}, "weight must be between 0 and 1"),
            ({"weight": math.nan}, "weight must be between 0 and 1"),
            ({"seed": -1}, "seed must not be negative"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, settings, message):
        with pytest.raises(InputError, match=message):
            Search(**settings)


def test_stage_one_alone_keeps_as_many_tokens_as_were_counted(demo, samples):
    (image,) = prepare_images(demo, [open_picture(samples[0].images[0])])
    for point in [(0.0, 0.9, 0.85), (5.0, 0.6, 0.1)]:
        method = StageOneMethod(stage1_policy(point))
        chosen = method.preselect([image.pixels])
        stats = [ImageStats(one.tokens, one.complexity) for one in chosen.images]
        assert (len(chosen.kept),) == kept_counts(stats, method.policy)
        assert method.cuts(chosen, Architecture("any", 8, 2, 5, 2, 5)) == ()


class TestProgressFile:
    IDENTITY = Identity(model="demo 1", records="abc", settings="{}")
    UNPRUNED = Unpruned(True, (ImageStats(64, 0.1 + 0.2),))
    TRIED = Tried((0.1 + 0.2, 0.7, 0.3), 0.95, 88.1)

    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "p.jsonl"
        file = ProgressFile(path, self.IDENTITY)
        file.add_unpruned(3, self.UNPRUNED)
        file.add_answer(3, (40, 7), right=True)
        file.add_tried(self.TRIED)
        file.close()
        return path

    def content(self, path, identity=IDENTITY, **settings):
        file = ProgressFile(path, identity, **settings)
        file.close()
        return file.unpruned, file.answers, file.tried

    def test_everything_comes_back_exactly(self, path):
        assert self.content(path) == ({3: self.UNPRUNED}, {(3, (40, 7)): True}, [self.TRIED])

    def test_whatever_was_written_last_before_a_kill_the_whole_lines_count(self, path):
        whole = path.read_bytes()
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            unpruned, answers, tried = self.content(path)
            lines = whole[:size].count(b"\n")
            assert (len(unpruned), len(answers), len(tried)) == (lines > 1, lines > 2, lines > 3)
            assert path.read_bytes() == whole[: max(whole.find(b"\n"), whole.rfind(b"\n", 0, size)) + 1]

    @pytest.mark.parametrize("restart", [False, True])
    def test_progress_that_is_being_written_is_left_alone(self, path, restart):
        writing = ProgressFile(path, self.IDENTITY)
        with pytest.raises(EraseError, match="another process is writing"):
            ProgressFile(path, self.IDENTITY, restart=restart)
        writing.add_answer(4, (1,), right=False)
        writing.close()
        assert (4, (1,)) in self.content(path)[1]

    def test_a_restart_forgets(self, path):
        assert self.content(path, restart=True) == ({}, {}, [])
        assert self.content(path) == ({}, {}, [])

    @pytest.mark.parametrize("part", ["model", "records", "settings"])
    def test_the_progress_of_another_calibration_is_refused_and_left_alone(self, path, part):
        before = path.read_bytes()
        other = Identity(**vars(self.IDENTITY) | {part: "other"})
        with pytest.raises(EraseError, match=rf"another calibration \(other {part}\): start over with --restart"):
            ProgressFile(path, other)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("text", ["hello\n", "[]\n", "{}\n", '{"format": 0}\n', "\n", "3\n"])
    def test_a_file_of_another_kind_is_refused_and_left_alone(self, path, text):
        path.write_text(text)
        with pytest.raises(EraseError, match="no progress of a calibration, or damaged"):
            ProgressFile(path, self.IDENTITY)
        assert path.read_text() == text

    @pytest.mark.parametrize("line", ["{}", '{"unpruned": 1}', '{"point": 3}', "half", "[]"])
    def test_a_damaged_line_is_refused(self, path, line):
        path.write_text(path.read_text() + line + "\n")
        with pytest.raises(EraseError, match="damaged"):
            ProgressFile(path, self.IDENTITY)


class TestOnTheStarterModel:
    def tried(self, out):
        lines = [json.loads(line) for line in run.progress_path(out).read_text().splitlines()]
        return [line for line in lines if "point" in line]

    def test_it_saves_the_best_point_and_reports_on_it(self, uninterrupted):
        out, found = uninterrupted
        tried = self.tried(out)
        assert len(tried) == 7
        best = max(tried, key=lambda line: line["objective"])
        assert found.policy == load_policy(out) == deployed_policy(tuple(best["point"]), 0.25)
        assert (found.objective, found.accuracy) == (best["objective"], best["accuracy"])
        assert tried[found.iteration - 1] == best
        assert (found.records, found.answered) == (9, 9)
        assert math.isclose(sum(found.shares), 1.0)
        saved = sum(s * (1 - r) for s, r in zip(found.shares, found.policy.stage1_retention, strict=True))
        assert math.isclose(found.objective, 100 * (0.65 * found.accuracy + 0.35 * saved))
        assert abs(found.mean_retention - (1 - saved)) < 0.03
        assert 0.0 <= found.final_accuracy <= 1.0

    @pytest.mark.parametrize(("phase", "at"), [("unpruned", 5), ("search", 3), ("search", 6), ("check", 2)])
    def test_interrupted_and_resumed_it_ends_as_if_it_had_not_been(
        self, demo, records, uninterrupted, tmp_path, phase, at
    ):
        out = tmp_path / "policy.json"

        def interrupt(step):
            if (step.phase, step.done) == (phase, at):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            calibrate(demo, records, out, SHORT, progress=interrupt)
        assert not out.exists()
        steps = []
        assert calibrate(demo, records, out, SHORT, progress=steps.append) == uninterrupted[1]
        assert self.tried(out) == self.tried(uninterrupted[0])
        resumed_at = next(step.done for step in steps if step.phase == phase)
        assert resumed_at == (1 if phase == "check" else at)

    def test_more_iterations_go_on_and_fewer_take_the_first(self, demo, records, uninterrupted, tmp_path):
        out = tmp_path / "policy.json"
        calibrate(demo, records, out, Search(iterations=4, initial=4, bins=2))
        assert calibrate(demo, records, out, SHORT) == uninterrupted[1]
        fewer = calibrate(demo, records, out, Search(iterations=2, initial=4, bins=2))
        assert fewer.iteration <= 2
        assert len(self.tried(out)) == 7

    def test_what_was_asked_once_is_not_asked_again(self, demo, records, uninterrupted, tmp_path, monkeypatch):
        out = tmp_path / "policy.json"
        lines = run.progress_path(uninterrupted[0]).read_text().splitlines(keepends=True)
        run.progress_path(out).write_text("".join(line for line in lines if "point" not in line))
        asked = []
        ask = run.Examiner.ask
        monkeypatch.setattr(run.Examiner, "ask", lambda self, tasks: ask(self, [asked.append(t) or t for t in tasks]))
        assert calibrate(demo, records, out, SHORT) == uninterrupted[1]
        assert len(asked) == 9  # the final check alone
        answers = [json.loads(line) for line in lines if "answer" in json.loads(line)]
        assert len({(line["answer"], *line["kept"]) for line in answers}) == len(answers) < 7 * 9

    def test_records_that_the_unpruned_model_gets_wrong_do_not_count(self, demo, records, tmp_path):
        spoiled = [Record("spoiled", records[0].images, records[0].question, ("no such answer",)), *records[1:4]]
        found = calibrate(demo, spoiled, tmp_path / "policy.json", Search(iterations=1, bins=1))
        assert (found.records, found.answered) == (4, 3)
        with pytest.raises(InputError, match="answers none of the 1 questions"):
            calibrate(demo, spoiled[:1], tmp_path / "other.json", Search(iterations=1, bins=1))

    def test_other_records_or_settings_need_a_restart(self, demo, records, tmp_path):
        out = tmp_path / "policy.json"
        search = Search(iterations=1, bins=1)
        calibrate(demo, records[:2], out, search)
        with pytest.raises(EraseError, match="other records"):
            calibrate(demo, records[1:3], out, search)
        with pytest.raises(EraseError, match="other settings"):
            calibrate(demo, records[:2], out, Search(iterations=1, bins=2))
        assert calibrate(demo, records[1:3], out, search, restart=True).records == 2

    def test_a_wrong_final_retention_is_refused_before_anything_runs(self, demo, records, tmp_path):
        with pytest.raises(PolicyError, match="final_retention"):
            calibrate(demo, records, tmp_path / "policy.json", final_retention=0.0)
        assert not list(tmp_path.iterdir())

    def test_a_record_with_a_broken_image_is_named(self, demo, tmp_path):
        broken = tmp_path / "broken.png"
        broken.write_bytes(b"no picture")
        with pytest.raises(InputError, match=r"broken\.png"):
            calibrate(demo, [Record("r", (broken,), "?", ("1",))], tmp_path / "policy.json", Search(iterations=1))

    def test_a_question_too_long_for_the_model_is_named(self, demo, records, tmp_path):
        long = Record("the long one", records[0].images, "page " * 5000, ("1",))
        with pytest.raises(InputError, match=r"the long one: the prompt has \d+ tokens"):
            calibrate(demo, [long], tmp_path / "policy.json", Search(iterations=1))
