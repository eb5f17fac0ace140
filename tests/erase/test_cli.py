"""The command line, run for real: on the starter model, whose figures are known, and on the bundled one."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import InternVLConfig, Qwen2_5_VLConfig, Qwen3VLConfig

import erase
from erase import cli
from erase.calibration.answers import Examiner
from erase.cli import maps
from erase.models import loading
from erase.models.loading import DEMO_FOLDER, load_model
from erase.overlay import LEGEND_HEIGHT, Fate, fates, overlay
from tests.starter import STARTER

ON_STARTER = ("--model", STARTER)
SAMPLES = STARTER / "samples"
PAGE, QUESTION = str(SAMPLES / "sample-3.png"), "what is page ?"
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "command-line.md"
K, S1, S2 = Fate.KEPT, Fate.DROPPED_BEFORE, Fate.DROPPED_INSIDE


@pytest.fixture
def command(capsys):
    """Runs a command: its exit code, standard output and standard error."""

    def run(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def starter(command):
    """Runs a command on the starter model."""
    return lambda name, *arguments: command(name, *ON_STARTER, *arguments)


@pytest.fixture
def folder(tmp_path):
    """A copy of the starter model to change."""
    copy = tmp_path / "model"
    shutil.copytree(STARTER, copy, ignore=shutil.ignore_patterns("samples"))
    return copy


@pytest.fixture
def no_weights(monkeypatch):
    """Loading weights fails."""
    monkeypatch.setattr(loading, "_with_weights", lambda *_: pytest.fail("weights were loaded"))


def as_json(result):
    code, out, err = result
    assert (code, err) == (0, "")
    return json.loads(out)


class TestAsk:
    def test_the_answer_goes_to_standard_output_and_the_figures_to_standard_error(self, starter):
        code, out, err = starter("ask", PAGE, QUESTION)
        assert (code, out) == (0, "2389\n")
        assert "64 in, 38 into the decoder, 25 kept" in err
        assert "31.5 vision tokens" in err
        assert "asked for 0.40, reached 0.39 final; 0.49 averaged over layers" in err
        assert re.search(r"prefill FLOPs +44% saved", err)
        assert re.search(r"time +\d+ ms, of these prepare \d+, encode \d+, prefill \d+, decode \d+", err)
        assert "Loading weights" not in err

    def test_json_has_everything_under_the_names_of_the_service(self, starter):
        answer = as_json(starter("ask", PAGE, QUESTION, "--json"))
        assert (answer["model"], answer["policy"], answer["answer"]) == ("starter-model", "starter-model", "2389")
        assert answer["finish_reason"] == "stop"
        assert answer["vision_tokens"] == {"input": 64, "after_stage1": 38, "kept": 25, "layer_average": 31.5}
        assert answer["retention"] == {
            "requested": 0.4,
            "achieved": 0.3906,
            "measure": "final",
            "final": 0.3906,
            "layer_average": 0.4922,
        }
        assert answer["cuts"] == [{"after_layers": 4, "kept": 25}]
        flops = answer["prefill_flops"]
        assert 0 < flops["saved"] == round(1 - flops["pruned"] / flops["unpruned"], 4) < 1
        assert answer["times_ms"]["total"] >= answer["times_ms"]["prefill"] > 0

    def test_a_method_that_makes_images_smaller_is_measured_by_what_they_were(self, starter, tmp_path):
        erase.save_policy(erase.BaselinePolicy("downsample", 0.25), tmp_path / "smaller.json")
        answer = as_json(starter("ask", PAGE, QUESTION, "--policy", tmp_path / "smaller.json", "--json"))
        assert answer["vision_tokens"] == {"input": 64, "after_stage1": 16, "kept": 16, "layer_average": 16.0}
        assert answer["retention"]["achieved"] == 0.25
        assert answer["prefill_flops"]["saved"] > 0.5
        for more in ((), (QUESTION,)):
            code, out, _ = starter("inspect", PAGE, *more, "--policy", tmp_path / "smaller.json")
            assert code == 0
            assert "16 (4 x 4 cells of 28 pixels), made smaller from 64" in out

    def test_a_question_that_is_no_text_is_told_in_a_line(self, starter):
        code, out, err = starter("ask", PAGE, "caf\udce9 ?")
        assert (code, out) == (1, "")
        assert err == "erase ask: a text of the prompt is not valid Unicode\n"

    def test_without_pruning_everything_is_kept(self, starter):
        answer = as_json(starter("ask", PAGE, QUESTION, "--policy", "none", "--json"))
        assert answer["answer"] == "2389"
        assert answer["vision_tokens"] == {"input": 64, "after_stage1": 64, "kept": 64, "layer_average": 64.0}
        assert answer["retention"]["requested"] is None
        assert answer["prefill_flops"]["saved"] == 0
        assert "1.00 final, 1.00 averaged over layers" in starter("ask", PAGE, QUESTION, "--policy", "none")[2]

    def test_a_budget_is_reported_over_layers(self, starter):
        arguments = ("ask", PAGE, QUESTION, "--policy", "qwen2.5-vl-7b-budget", "--retention", "0.5")
        assert re.search(
            r"asked for 0\.50, reached 0\.\d\d averaged over layers; 0\.\d\d final", starter(*arguments)[2]
        )
        retention = as_json(starter(*arguments, "--json"))["retention"]
        assert retention["measure"] == "layer_average"
        assert retention["achieved"] == retention["layer_average"]

    def test_several_images_come_before_the_question(self, starter):
        answer = as_json(starter("ask", PAGE, SAMPLES / "sample-0.png", "what is speed ?", "--json"))
        assert answer["vision_tokens"]["input"] == 64 + 36

    def test_options_may_stand_anywhere(self, starter):
        first, second = PAGE, SAMPLES / "sample-0.png"
        one = starter("ask", "--policy", "none", first, "--json", second, "--max-tokens", "3", QUESTION)
        assert as_json(one)["vision_tokens"]["kept"] == 64 + 36

    def test_max_tokens_ends_an_answer(self, starter):
        answer = as_json(starter("ask", PAGE, QUESTION, "--max-tokens", "2", "--json"))
        assert (answer["answer"], answer["finish_reason"]) == ("23", "length")

    def test_the_bundled_model_is_the_default_and_answers_its_samples(self, command):
        sample = json.loads((DEMO_FOLDER / "samples" / "samples.json").read_text())[0]
        image, turn = DEMO_FOLDER / "samples" / sample["image"], sample["turns"][0]
        answer = as_json(command("ask", image, turn["question"], "--json"))
        assert (answer["model"], answer["policy"], answer["answer"]) == ("demo", "demo", turn["answer"])


class TestPolicies:
    def policy_of(self, command, *arguments):
        answer = as_json(command("ask", PAGE, QUESTION, "--json", *arguments))
        return answer["policy"], answer["retention"]["requested"]

    def test_auto_is_the_models_own_and_else_the_architectures(self, command, folder):
        assert self.policy_of(command, "--model", folder) == ("model", 0.4)
        assert self.policy_of(command, "--model", folder, "--policy", "model") == ("model", 0.4)
        (folder / "erase_policy.json").rename(folder / "erase_bins.json")
        assert self.policy_of(command, "--model", folder) == ("qwen2.5-vl-7b", 0.25)
        assert self.policy_of(command, "--model", folder, "--policy", "model-bins") == ("model-bins", 0.4)

    def test_presets_and_files_are_taken_by_name_and_the_dial_turns_them(self, starter, tmp_path):
        assert self.policy_of(starter, "--policy", "qwen3-vl-8b") == ("qwen3-vl-8b", 0.25)
        file = tmp_path / "own.json"
        erase.save_policy(erase.BudgetPolicy(0.7), file)
        assert self.policy_of(starter, "--policy", file) == (str(file), 0.7)
        assert self.policy_of(starter, "--policy", file, "--retention", "0.6") == (str(file), 0.6)


class TestInspect:
    def test_without_a_question_the_image_is_described_and_no_weights_are_loaded(self, starter, no_weights):
        code, out, err = starter("inspect", PAGE)
        assert (code, err) == (0, "")
        assert "224 x 224 pixels as the model sees it" in out
        assert "64 (8 x 8 cells of 28 pixels)" in out
        assert "0.00 lowest, 0.04 median, 1.82 highest (nats)" in out
        assert "0.04 nats: bin 2 of 2 (up to 0.50)" in out
        assert re.search(r"stage 1 keeps +38 of 64", out)
        assert re.search(r"stage 2 keeps +25, after 4 of 8 layers", out)
        assert "answer" not in out

    def test_what_enters_the_decoder_is_told_beside_what_pixels_leave(self, starter):
        options = ("--policy", "distinct", "--retention", "0.1")
        code, out, _ = starter("inspect", PAGE, *options)
        assert code == 0
        left = int(re.search(r"stage 1 keeps +([0-9]+) of 64", out)[1])
        entering = int(re.search(r"decoder gets +([0-9]+) of these", out)[1])
        assert 64 > left > entering > 0
        found = as_json(starter("inspect", PAGE, QUESTION, *options, "--json"))
        assert found["vision_tokens"]["after_stage1"] == entering
        cells = [cell for row in found["pruning_map"] for cell in row]
        assert cells.count(0) == 64 - entering

    def test_the_files_of_the_weights_are_not_even_needed(self, command, folder):
        (folder / "model.safetensors").unlink()
        assert as_json(command("inspect", PAGE, "--model", folder, "--json"))["vision_tokens"]["after_stage1"] == 38
        code, _, err = command("inspect", PAGE, QUESTION, "--model", folder)
        assert (code, err.count("\n")) == (1, 1)
        assert "cannot load the model" in err

    def test_a_question_shows_the_answer_and_three_fates(self, starter):
        code, out, _ = starter("inspect", PAGE, QUESTION)
        assert code == 0
        assert re.search(r"answer +2389", out)
        assert "█ kept  · dropped before, ▒ in the decoder" in out
        drawn = [line[-16:] for line in out.splitlines()[-8:]]
        counted = {sign: sum(line.count(sign) for line in drawn) for sign in "█▒·"}
        assert counted == {"█": 2 * 25, "▒": 2 * 13, "·": 2 * 26}

    def test_json_maps_agree_with_the_counts_and_with_a_run_of_the_engine(self, starter):
        seen = as_json(starter("inspect", PAGE, QUESTION, "--json"))
        assert (seen["question"], seen["answer"], seen["bin"]) == (QUESTION, "2389", 2)
        assert seen["image"] == {"width": 224, "height": 224, "cell": 28}
        assert np.bincount(np.ravel(seen["pruning_map"])).tolist() == [26, 13, 25]
        assert np.shape(seen["entropy_map"]) == np.shape(seen["pruning_map"]) == (8, 8)
        assert np.max(seen["entropy_map"]) == seen["entropy"]["highest"]
        without = as_json(starter("inspect", PAGE, "--json"))
        assert (without["question"], without["answer"]) == (None, None)
        assert np.bincount(np.ravel(without["pruning_map"])).tolist() == [26, 0, 38]
        assert without["cuts"] == seen["cuts"]
        assert np.array_equal(np.array(without["pruning_map"]) == 0, np.array(seen["pruning_map"]) == 0)

    def test_the_overlay_shows_dropped_cells_dark_or_tinted_and_kept_ones_clear(self, starter, tmp_path):
        path = tmp_path / "overlay.png"
        seen = as_json(starter("inspect", PAGE, "--overlay", path, QUESTION, "--json"))
        picture = np.asarray(Image.open(path))
        assert picture.shape == (672 + LEGEND_HEIGHT, 672, 3)
        original = np.asarray(Image.open(PAGE).convert("RGB").resize((672, 672), Image.Resampling.LANCZOS))
        for row, fate_row in enumerate(seen["pruning_map"]):
            for column, fate in enumerate(fate_row):
                inside = np.s_[row * 84 + 2 : row * 84 + 83, column * 84 + 2 : column * 84 + 83]
                cell, before = picture[inside].astype(float), original[inside].astype(float)
                if fate == K:
                    assert np.array_equal(cell, before)
                elif fate == S1:
                    assert cell.max() < 80
                else:
                    assert (cell[..., 0] - cell[..., 2]).min() > 80

    @pytest.mark.parametrize("policy", ["none", "qwen2.5-vl-7b", "qwen2.5-vl-7b-budget"])
    def test_it_runs_with_every_kind_of_policy(self, starter, policy):
        code, out, _ = starter("inspect", SAMPLES / "sample-7.png", "--policy", policy, "what is total ?")
        assert code == 0
        assert ("bin" in out) == (policy == "qwen2.5-vl-7b")


class TestWithoutWeights:
    @pytest.mark.parametrize("config", [Qwen2_5_VLConfig, Qwen3VLConfig, InternVLConfig])
    def test_a_model_of_any_size_and_architecture_stands_without_memory(self, folder, config):
        config().save_pretrained(folder)
        (folder / "model.safetensors").unlink()
        loaded = load_model(str(folder), weights=False)
        parameters = sum(weight.numel() for weight in loaded.model.parameters())
        assert parameters > 5e9
        assert (loaded.device, loaded.revision) == (torch.device("meta"), "")
        assert loaded.adapter.architecture.depth == loaded.model.config.get_text_config().num_hidden_layers

    def test_it_is_the_same_model_otherwise(self):
        whole, bare = load_model(device="cpu"), load_model(weights=False)
        assert bare.adapter.architecture == whole.adapter.architecture
        assert (bare.name, bare.policy_file, bare.context_length) == (
            whole.name,
            whole.policy_file,
            whole.context_length,
        )


class TestOverlay:
    def test_fates_follow_from_what_survived(self):
        assert fates(5, [0, 2, 3], [2]) == [S2, S1, K, S2, S1]
        assert fates(2, [], []) == [S1, S1]

    @pytest.mark.parametrize(
        ("columns", "rows", "cell"), [(1, 1, 28), (3, 2, 28), (40, 30, 28), (5, 60, 32), (30, 1, 28)]
    )
    def test_every_shape_of_image_gets_its_legend(self, columns, rows, cell):
        image = Image.new("RGB", (columns * cell, rows * cell), "white")
        drawn = overlay(image, columns, [K, S1, S2, *[K] * (columns * rows)][: columns * rows])
        shown = max(image.width, 672) // columns
        assert drawn.size == (columns * shown, rows * shown + LEGEND_HEIGHT)

    def test_a_large_picture_is_not_resized(self):
        noise = np.random.default_rng(0).integers(0, 256, (56, 1120, 3), np.uint8)
        drawn = np.asarray(overlay(Image.fromarray(noise), 40, [K] * 80))
        assert np.array_equal(drawn[1:27, 1:27], noise[1:27, 1:27])

    def test_fates_can_be_told_apart_on_white_and_on_black(self):
        for ground in ("white", "black"):
            drawn = np.asarray(overlay(Image.new("RGB", (84, 28), ground), 3, [K, S2, S1])).astype(int)
            colours = drawn[112, [112, 336, 560]]
            assert all(abs(colours[one] - colours[other]).sum() > 30 for one, other in [(0, 1), (1, 2), (0, 2)])


class TestMaps:
    def test_narrow_maps_stand_side_by_side_and_wider_ones_below_each_other(self):
        def lines(columns):
            drawn = maps.maps([0.0, 1.0] * columns, [K, S1] * columns, columns, asked=True, encoding="utf-8")
            assert all(len(line) <= 80 for line in drawn.splitlines())
            return len(drawn.splitlines())

        assert [lines(columns) for columns in (1, 8, 16, 17, 39, 78)] == [3, 3, 3, 7, 7, 7]

    def test_a_map_wider_than_the_terminal_is_left_out(self):
        assert "does not fit" in maps.maps([0.0] * 79, [K] * 79, 79, asked=True, encoding="utf-8")

    def test_shades_follow_entropy_and_flat_images_have_one(self):
        assert (
            maps.maps([0, 1, 2, 3, 4], [K] * 5, 5, asked=False, encoding="utf-8")
            .splitlines()[1]
            .startswith("  ··░░▒▒▓▓██")
        )
        assert "··········" in maps.maps([0.0] * 5, [K] * 5, 5, asked=False, encoding="utf-8")

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", None, "no such encoding"])
    def test_a_terminal_without_shades_gets_plain_characters(self, encoding):
        drawn = maps.maps([0, 1, 2], [K, S1, S2], 3, asked=True, encoding=encoding)
        assert drawn.isascii()
        assert "##..++" in drawn


class TestCalibrate:
    SHORT = ("--iterations", 3, "--initial", 2, "--bins", 2, "--limit", 6)

    def test_it_writes_a_policy_that_ask_takes(self, starter, tmp_path):
        out = tmp_path / "policy.json"
        code, text, _ = starter("calibrate", SAMPLES, "--out", out, "--final-retention", 0.5, *self.SHORT)
        assert code == 0
        assert "6 of 6 answered right without pruning" in text
        assert "bin 2" in text
        assert erase.load_policy(out).final_retention == 0.5
        assert as_json(starter("ask", PAGE, QUESTION, "--policy", out, "--json"))["retention"]["requested"] == 0.5

    def test_it_resumes_and_restarts(self, starter, tmp_path, monkeypatch):
        arguments = ("calibrate", SAMPLES, "--out", tmp_path / "policy.json", *self.SHORT, "--json")
        first = as_json(starter(*arguments))
        asked = []
        ask = Examiner.ask
        monkeypatch.setattr(Examiner, "ask", lambda self, tasks: ask(self, [asked.append(t) or t for t in tasks]))
        assert as_json(starter(*arguments)) == first
        assert len(asked) == 6  # the final check alone
        code, _, err = starter(*arguments, "--seed", 1)
        assert (code, err.count("\n")) == (1, 1)
        assert "other settings" in err
        assert as_json(starter(*arguments, "--seed", 1, "--restart"))["policy"] != first["policy"]


class TestFailures:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("ask", "nowhere.png", "?"), "cannot read the image nowhere.png: No such file"),
            (("ask", DEMO_FOLDER / "config.json", "?"), "cannot read the image"),
            (("ask", SAMPLES, "?"), "cannot read the image"),
            (("ask", PAGE, "?", "--model", "./nowhere"), "no model folder at './nowhere'"),
            (("ask", PAGE, "?", "--model", "org/name"), "needs a revision"),
            (("ask", PAGE, "?", "--device", "tpu"), "expected auto, cpu, cuda or cuda:N"),
            (
                ("ask", PAGE, "?", "--policy", "best"),
                "no policy 'best': expected auto, none, demo, demo-bins, distinct, ",
            ),
            (("ask", PAGE, "?", "--policy", PAGE), "is not JSON"),
            (("ask", PAGE, "?", "--retention", "0"), "must be above 0 and at most 1"),
            (("ask", PAGE, "?", "--max-tokens", "0"), "max_tokens must be at least 1"),
            (("ask", PAGE, "page " * 5000, *ON_STARTER), "but the context holds 4096"),
            (("inspect", "nowhere.png"), "cannot read the image"),
            (("inspect", PAGE, "--overlay", "no/where.png"), "no/where.png: No such file"),
            (("inspect", PAGE, "--overlay", "/tmp/picture.unknown"), "cannot write a picture"),
            (("calibrate", "nowhere", "--out", "p.json"), "there is no folder nowhere"),
            (("calibrate", SAMPLES, "--out", "no/where.json", *ON_STARTER), "No such file"),
            (("calibrate", SAMPLES, "--out", "p.json", "--bins", "0"), "bins must be at least 1"),
            (("calibrate", SAMPLES, "--out", "p.json", "--limit", "0"), "--limit must be at least 1"),
            (("calibrate", SAMPLES, "--out", "p.json", "--final-retention", "2", *ON_STARTER), "final_retention"),
        ],
    )
    def test_what_cannot_be_done_is_one_line_and_code_1(self, command, arguments, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        code, out, err = command(*arguments)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(f"erase {arguments[0]}: ")
        assert message in err

    @pytest.mark.parametrize(
        "arguments",
        [
            (),
            ("answer",),
            ("ask",),
            ("ask", PAGE),
            ("ask", PAGE, "?", "--unknown"),
            ("ask", PAGE, "?", "--max-tokens", "many"),
            ("ask", PAGE, "?", "--policy", "none", "--retention", "0.5"),
            ("inspect",),
            ("inspect", PAGE, "?", "more"),
            ("calibrate", SAMPLES),
        ],
    )
    def test_wrong_usage_is_code_2(self, command, arguments):
        code, out, err = command(*arguments)
        assert (code, out) == (2, "")
        assert err

    def test_ctrl_c_is_code_130(self, command, monkeypatch):
        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(loading, "load_model", interrupted)
        assert command("ask", PAGE, QUESTION) == (130, "", "erase ask: interrupted\n")

    def test_a_real_ctrl_c_stops_a_calibration_and_leaves_its_progress(self, tmp_path):
        arguments = ["calibrate", SAMPLES, *ON_STARTER, "--out", tmp_path / "policy.json", "--iterations", "500"]
        progress = tmp_path / "policy.json.progress.jsonl"
        # Tests that run in the background of a shell inherit that SIGINT is ignored.
        asked_to_stop = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            process = subprocess.Popen([sys.executable, "-m", "erase", *arguments], stderr=subprocess.PIPE, text=True)
        finally:
            signal.signal(signal.SIGINT, asked_to_stop)
        with process:
            try:
                while process.poll() is None and not (progress.exists() and "point" in progress.read_text()):
                    time.sleep(0.02)
                process.send_signal(signal.SIGINT)
                assert process.communicate(timeout=60)[1] == "erase calibrate: interrupted\n"
                assert process.returncode == 130
            finally:
                process.kill()

    def test_a_reader_that_leaves_early_is_no_failure(self, monkeypatch, capsys):
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w", encoding="utf-8") as pipe:
            monkeypatch.setattr(sys, "stdout", pipe)
            assert cli.main(["inspect", PAGE]) == 0
        assert capsys.readouterr().err == ""

    def test_a_failing_model_is_one_line_without_traceback(self, command, monkeypatch):
        def failing(*_, **__):
            raise RuntimeError("out of memory")

        monkeypatch.setattr("erase.engine.stage.Prefill", failing)
        said = "erase ask: prefill failed (question, erase-distinct: RuntimeError: out of memory)\n"
        assert command("ask", PAGE, QUESTION) == (1, "", said)


class TestHelp:
    @pytest.mark.parametrize("name", ["ask", "inspect", "calibrate"])
    def test_every_command_explains_itself_with_an_example_that_parses(self, command, name):
        code, out, _ = command(name, "--help")
        assert code == 0
        example = out.split("example:\n")[1].strip()
        assert cli.parser().parse_args(shlex.split(example)[1:]).command == name

    def test_help_and_version_do_without_torch(self):
        script = (
            "import sys; from erase.cli import main; main(['--help']); main(['ask', '--help']); print(*sys.modules)"
        )
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        loaded = set(result.stdout.splitlines()[-1].split())
        assert not loaded & {"torch", "transformers", "numpy", "PIL", "tqdm"}
        assert all(f"\n    {name}" in result.stdout for name in ("ask", "inspect", "calibrate"))

    def test_the_package_is_a_command(self):
        version = subprocess.run(
            [sys.executable, "-m", "erase", "--version"], capture_output=True, text=True, check=True
        )
        assert version.stdout.strip() == erase.__version__


class TestDocumentation:
    TEXT = DOCUMENTATION.read_text(encoding="utf-8")

    def test_every_command_parses(self):
        lines = re.findall(r"^\.venv/bin/(erase .+)$", self.TEXT, re.MULTILINE)
        commands = [cli.parser().parse_args(shlex.split(line)[1:]).command for line in lines]
        assert set(commands) == {"ask", "inspect", "calibrate", "evaluate", "synthesize"}

    def test_ask_and_inspect_print_what_is_printed_there_but_for_the_time(self, command, tmp_path, monkeypatch):
        (tmp_path / "erase").symlink_to(DEMO_FOLDER.parent)  # the page's pictures, and a place for its overlay
        monkeypatch.chdir(tmp_path)
        examples = re.findall(
            r"```sh\n\.venv/bin/erase ((?:ask|inspect) .+)\n```\n\n```text\n((?:.*\n)+?)```\n", self.TEXT
        )
        assert {line.split()[0] for line, _ in examples} == {"ask", "inspect"}
        for line, printed in examples:
            code, out, err = command(*shlex.split(line))
            assert code == 0, err
            assert (out + err).partition("\n  time ")[0] == printed.partition("\n  time ")[0]
