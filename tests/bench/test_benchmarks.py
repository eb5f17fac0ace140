"""Every benchmark runs to its end with tiny settings, and fails loudly when an answer is wrong."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import erase
from bench import engine, growth, load, preparing, stack, stage1
from bench.flops import request_flops
from bench.models import endless_model, image_size
from bench.pages import page
from bench.report import BenchmarkError, fractions, interval, output_file, this_machine, write_json
from bench.sides import StockSide
from erase.engine import Engine, EngineLimits, SamplingParams, Sequence
from erase.engine.attention import SdpaAttention
from erase.engine.cache import CachePool, SequenceCache
from erase.engine.images import Encoding, FeatureCache
from erase.engine.prefill import Prefill
from erase.methods import method_for
from erase.models.loading import LoadedModel
from erase.models.prompt import prepare_images, prepare_prompt
from erase.pixels import kernels
from tests.starter import STARTER

TINY_ENGINE = ["--model", str(STARTER), "--vision-tokens", "36", "--output-tokens", "3", "--concurrency", "1,2"]
TINY_ENGINE += ["--repetitions", "1"]
TINY_STACK = ["--concurrency", "2", "--repetitions", "1", "--unloaded-requests", "1", "--requests", "4"]


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return endless_model(str(STARTER), "cpu", "float32")


def test_the_engine_benchmark_prints_a_table_and_writes_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "engine.json"
    assert engine.main([*TINY_ENGINE, "--retention", "0.25,0.5", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    sides = [(row["concurrency"], row["side"]) for row in report["rows"]]
    names = ["unpruned", "pruned 0.25", "pruned 0.5", "stock generate"]
    assert sides == [(concurrency, name) for concurrency in (1, 2) for name in names]
    kept = {row["side"]: row["kept"] for row in report["rows"]}
    assert kept == {"unpruned": 36, "pruned 0.25": 9, "pruned 0.5": 18, "stock generate": 36}
    assert all(row["flops_speedup"] >= 1.0 for row in report["rows"])
    assert report["machine"]["commit"]
    assert "| stock generate |" in capsys.readouterr().out


def test_the_engine_benchmark_fails_when_the_engine_answers_something_else_than_generate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = StockSide.tokens_and_logits

    def other(side: StockSide, prompts: list[object], answer: int) -> tuple[list[list[int]], torch.Tensor]:
        tokens, logits = honest(side, prompts, answer)  # type: ignore[arg-type]
        return [[*row[:-1], (row[-1] + 1) % 100] for row in tokens], logits * 1000

    monkeypatch.setattr(StockSide, "tokens_and_logits", other)
    assert engine.main([*TINY_ENGINE, "--retention", "0.5"]) == 1
    assert "differs from stock generate at token 2" in capsys.readouterr().err


def test_the_engine_benchmark_says_when_the_model_makes_another_number_of_tokens(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert engine.main(["--model", str(STARTER), "--vision-tokens", "1280"]) == 1
    assert "choose --vision-tokens" in capsys.readouterr().err


@pytest.mark.system
def test_the_stack_benchmark_runs_pruned_and_unpruned_and_measures_the_overhead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ERASE_MODEL", str(STARTER))
    monkeypatch.setattr(stack, "DEMO", STARTER.name)  # the model whose right answers are known
    monkeypatch.setattr(load, "samples_folder", lambda: STARTER / "samples")
    few = [load.sample_questions()[number] for number in (0, 9)]
    monkeypatch.setattr(stack, "sample_questions", lambda: few)
    file = tmp_path / "stack.json"
    assert stack.main([*TINY_STACK, "--json", str(file)]) == 0, capsys.readouterr().err
    report = json.loads(file.read_text())
    assert report["model"] == STARTER.name
    by_side = {row["side"]: row for row in report["rows"]}
    assert by_side["pruned"]["token_reduction"] > 0.3
    assert by_side["unpruned"]["token_reduction"] == 0.0
    assert all(row["requests"] == 4 and row["failed"] == 0.0 for row in report["rows"])
    assert all(0 < overhead["overhead_p50"] < overhead["wall_p50"] for overhead in report["overhead"])


def test_the_stack_benchmark_fails_where_no_service_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert stack.main(["--url", "http://127.0.0.1:9"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_wrong_and_missing_answers_end_the_stack_benchmark() -> None:
    question = load.Question("what is page ?", b"")
    right = load.Reply(question, 0.1, answer={"answer": "2389"})

    def check(*replies: load.Reply) -> None:
        stack._refuse_wrong({1: {"pruned": [load.Load(replies, 1.0)]}}, {("pruned", question): "2389"})

    check(right, load.Reply(question, 0.1, refused=True, problem="queue-full"))
    with pytest.raises(BenchmarkError, match="1 of 2 answers differ"):
        check(right, replace(right, answer={"answer": "1"}))
    with pytest.raises(BenchmarkError, match="1 of 2 requests failed"):
        check(right, load.Reply(question, 0.1, problem="the stream ended without a result"))


def test_the_stage_1_benchmark_compares_sides_that_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not kernels.AVAILABLE:
        pytest.skip("numba is missing, or STAGE1_PURE set")
    file = tmp_path / "stage1.json"
    threads = torch.get_num_threads()
    try:
        assert stage1.main(["--cells-across", "4", "--cells-down", "3", "--rounds", "2", "--json", str(file)]) == 0
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(file.read_text())["rows"]
    assert {row["revision"] for row in rows} == {1, 2}
    assert "ours, compiled" in capsys.readouterr().out


def test_counted_operations_are_those_of_the_model(demo: LoadedModel) -> None:
    # PyTorch's counter sees every linear layer, but not attention on CPU, which is written out here.
    images = prepare_images(demo, [page(0, *image_size(36))])
    prompt = prepare_prompt(demo, "what is page ?", images)
    method = method_for(None)
    sequence = Sequence("0", prompt, method, method.preselect([images[0].pixels]))
    adapter, device = demo.adapter, demo.device
    depth, length = adapter.depth, len(prompt.tokens)
    pool = CachePool(depth * length, adapter.key_heads, adapter.head_dim, demo.dtype, device)
    cache = SequenceCache.create(pool, [length] * depth, 0)
    assert cache is not None
    encoding = Encoding(adapter, [images], [False], FeatureCache(0), device, 1)
    with torch.inference_mode(), FlopCounterMode(display=False) as encode:
        while not encoding.done:
            encoding.run_layer()
    with torch.inference_mode(), FlopCounterMode(display=False) as decoder:
        run = Prefill(adapter, SdpaAttention(), [sequence], encoding.features(), [cache], device)
        while run.layers_left:
            run.run_layer()
        run.logits()
    counted = request_flops(demo.model.config, [images[0].cell_grid], [length] * depth, [length] * depth, 1)
    full, windows = 2 * 144**2, 2 * (64**2 + 2 * 32**2 + 16**2)
    assert counted.encode - 4 * 128 * (full + windows) == encode.get_total_flops()
    attention = depth * 4 * 192 * length * (length + 1) / 2
    mlp = demo.model.config.text_config.intermediate_size
    left_out = (length - 1) * 2 * 192 * (192 + 3 * mlp)  # the last layer goes on with the last row alone
    assert counted.prefill - attention - left_out == decoder.get_total_flops()
    assert counted.decode == 0


def test_the_time_until_the_first_token_is_shared_out_over_its_phases(tmp_path: Path) -> None:
    file = tmp_path / "growth.json"
    settings = ["--model", str(STARTER), "--megapixels", "0.03,0.1", "--prompts", "2", "--images", "2"]
    assert growth.main([*settings, "--repetitions", "1", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["point"] for row in rows[::2]] == [
        "1 x 1 x 0.03 MP",
        "1 x 1 x 0.1 MP",
        "2 x 1 x 0.03 MP",
        "1 x 2 x 0.03 MP",
    ]
    for row in rows:
        assert row["stage1"] + row["encode"] + row["prefill"] <= row["first"] * 1.05
        assert 0 <= row["stage2"] <= row["prefill"]
        assert (row["side"] == "unpruned") == (row["kept"] == row["vision_tokens"])


def test_a_cut_before_the_first_layer_is_timed_with_the_others(demo: LoadedModel) -> None:
    prompt = prepare_prompt(demo, "?", prepare_images(demo, [page(0, 168, 168)]))
    method = method_for(erase.DistinctPolicy(0.25))
    preselection = method.preselect([image.pixels for image in prompt.images])
    sequence = Sequence("one", prompt, method, preselection, SamplingParams(max_tokens=1))
    with growth._timed_cuts(demo.device) as seconds, Engine(demo, EngineLimits()) as running:
        planned = method.plan(preselection, demo.adapter.architecture)
        running.submit(sequence).result()
    assert [cut.after_layers > 0 for cut in planned] == [False, True]
    assert len(seconds) == demo.adapter.depth, "before the first layer, and after each but the last"


@pytest.mark.parametrize("text", ["0.5,0.5", "0.25,0.5,0.2500000001"])
def test_a_retention_that_is_named_twice_is_refused_before_anything_is_measured(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="twice"):
        fractions(text)


def test_results_are_json_that_everything_reads_in_a_folder_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        output_file(str(tmp_path / "no" / "such.json"))
    file = output_file(str(tmp_path / "one.json"))
    write_json(file, this_machine(), argparse.Namespace(json=file), {"rows": [interval([2.0])]})
    assert json.loads(file.read_text(), parse_constant=pytest.fail)["rows"] == [
        {"low": None, "mean": 2.0, "high": None}
    ]


def test_images_are_prepared_beside_the_decoding_engine_in_threads_and_in_processes(tmp_path: Path) -> None:
    file = tmp_path / "preparing.json"
    settings = ["--model", str(STARTER), "--megapixels", "0.1", "--running", "2", "--output-tokens", "40"]
    assert preparing.main([*settings, "--beside", "2", "--repetitions", "1", "--json", str(file)]) == 0
    alone, threads, processes = json.loads(file.read_text())["rows"]
    assert [row["side"] for row in (alone, threads, processes)] == ["alone", "beside threads", "beside processes"]
    assert alone["images_per_s"] == 0
    assert min(threads["images_per_s"], processes["images_per_s"]) > 0
    assert min(row["tpot_ms"] for row in (alone, threads, processes)) > 0


@given(st.lists(st.floats(0.1, 10.0), min_size=2, max_size=8))
def test_an_interval_holds_its_mean_and_turns_over_with_the_ratio(ratios: list[float]) -> None:
    one, other = interval(ratios), interval([1 / ratio for ratio in ratios])
    assert one["low"] <= one["mean"] * (1 + 1e-9)
    assert one["mean"] <= one["high"] * (1 + 1e-9)
    assert one["mean"] == pytest.approx(1 / other["mean"])
    assert one["low"] == pytest.approx(1 / other["high"], rel=1e-6)


def test_an_interval_is_students() -> None:
    # Mean log 2 of two values: t(0.975, 1) = 12.706, standard error = log(2) / 2.
    one = interval([math.sqrt(2), 2 * math.sqrt(2)])
    assert one["mean"] == pytest.approx(2)
    assert math.log(one["high"] / one["mean"]) == pytest.approx(12.7062 * math.log(2) / 2, rel=1e-4)


def test_pages_are_the_same_every_time_and_differ_in_complexity(demo: LoadedModel) -> None:
    assert page(1, 280, 280).tobytes() == page(1, 280, 280).tobytes()
    method = method_for(None)
    pixels = [image.pixels for image in prepare_images(demo, [page(number, 280, 280) for number in range(3)])]
    assert len({round(image.complexity, 1) for image in method.preselect(pixels).images}) == 3


@pytest.mark.parametrize(("tokens", "size"), [(169, (364, 364)), (1280, (1120, 896)), (4096, (1792, 1792))])
def test_images_have_exactly_the_vision_tokens_asked_for(tokens: int, size: tuple[int, int]) -> None:
    assert image_size(tokens) == size


def test_strips_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="no image of usual shape"):
        image_size(127)
