"""The making of the demo model: the training's forward pass equals stock code, training goes on where it stopped."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from bench.demo_model import train as training
from bench.demo_model.data import MARK_CLASSES, Collator, Stream, draw_cells, mark_weights, moved, render
from bench.demo_model.evaluate import evaluate, summary
from bench.demo_model.export import export
from bench.demo_model.recipe import RECIPES, Phase
from bench.demo_model.samples import bundled, choose
from bench.demo_model.tokenizer import SPECIAL, make_tokenizer, save_tokenizer
from bench.demo_model.train import CHECKPOINT, learning_rate, losses, make_optimizers, train
from bench.demo_model.validate import answered
from erase import bar, synthetic
from erase.models.loading import DEMO_FOLDER, load_model
from tests.bench.tiny import TINY, length_of, stock_inputs


def samples_of(columns: int, rows: int) -> list[synthetic.Sample]:
    families = ["general", "documents", "ocr"]
    return [render(family, "train", number, columns, rows, Random(number)) for number, family in enumerate(families)]


class TestNetwork:
    @pytest.mark.parametrize("cells", [(8, 4), (7, 10), (3, 5)], ids=["whole windows", "cut windows", "one window"])
    def test_answers_score_as_in_stock_code_one_question_at_a_time(self, network, tokenizer_folder, cells):
        samples = samples_of(*cells)
        asked = [sample.questions[:3] for sample in samples]
        with torch.no_grad():
            batch = Collator(tokenizer_folder).batch(samples, asked)
            vision = network.look(batch)
            logits, targets = network.answer(batch, vision)
        assert network.cells(vision).shape == (3, cells[0] * cells[1], MARK_CLASSES)
        stock = [
            stock_logits(network.model, tokenizer_folder, sample, question)
            for sample, questions in zip(samples, asked, strict=True)
            for question in questions
        ]
        assert len(targets) == sum(map(len, stock))
        assert (logits - torch.cat(stock)).abs().max() < 1e-4

    def test_questions_of_one_image_do_not_see_each_other(self, network, tokenizer_folder):
        (sample,) = samples_of(6, 6)[1:2]
        collator = Collator(tokenizer_folder)
        with torch.no_grad():
            both, _ = network(collator.batch([sample], [sample.questions[:2]]))
            last, _ = network(collator.batch([sample], [sample.questions[1:2]]))
        assert (both[-len(last) :] - last).abs().max() < 1e-4

    def test_an_answer_counts_only_when_every_token_is_right(self, network, tokenizer_folder):
        samples = samples_of(6, 6)
        batch = Collator(tokenizer_folder).batch(samples, [sample.questions[:2] for sample in samples])
        with torch.no_grad():
            logits, targets = network(batch)
        lucky = logits.argmax(-1)
        everywhere = batch.targets.clone()
        everywhere[batch.targets >= 0] = lucky
        outcome = answered(network, replace(batch, targets=everywhere), reduced=False)
        assert outcome == [True] * sum(min(2, len(sample.questions)) for sample in samples)
        first = (batch.targets >= 0).nonzero()[0]
        everywhere[tuple(first)] = (lucky[0] + 1) % logits.shape[-1]
        assert answered(network, replace(batch, targets=everywhere), reduced=False) == [False, *outcome[1:]]
        assert len(targets) == len(lucky)


class TestTokenizer:
    def test_it_is_the_same_every_time(self, tokenizer_folder):
        assert json.loads(make_tokenizer().backend_tokenizer.to_str()) == json.loads(
            (tokenizer_folder / "tokenizer.json").read_text()
        )

    @pytest.mark.parametrize("text", ["What is the total?", "K7X2 1042", "12.50%", "naïve 中文 \n\t x", "Tokyo's #1"])
    def test_any_text_comes_back(self, text):
        tokenizer = make_tokenizer()
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    def test_digits_are_single_and_common_words_whole(self):
        tokenizer = make_tokenizer()
        assert tokenizer.tokenize("1042") == ["1", "0", "4", "2"]
        assert tokenizer.tokenize("What color is the star?") == ["What", "Ġcolor", "Ġis", "Ġthe", "Ġstar", "?"]
        for token in SPECIAL:
            assert tokenizer.tokenize(token) == [token]

    def test_chats_are_written_in_qwens_format(self):
        content = [{"type": "image"}, {"type": "text", "text": "What is the total?"}]
        messages = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": "12.50"},
            {"role": "user", "content": "And the tax?"},
        ]
        text = make_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is the total?<|im_end|>\n"
            "<|im_start|>assistant\n12.50<|im_end|>\n"
            "<|im_start|>user\nAnd the tax?<|im_end|>\n<|im_start|>assistant\n"
        )


class TestTraining:
    def test_it_learns_keeps_checkpoints_and_goes_on_where_it_stopped(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(RECIPES, "tiny", TINY)
        monkeypatch.setattr(training, "validate", lambda *_: {"general": 0.5})
        monkeypatch.setattr(training, "_REPORT_EVERY", 5)
        monkeypatch.setattr(bar, "LINE_EVERY_S", 0.0)
        ticks = count()  # a step takes two of them, however busy the machine is
        monkeypatch.setattr(training, "training_clock", lambda _: 0.1 * next(ticks))
        train(tmp_path, "tiny", minutes=0.1, device="cpu", workers=0)
        first = torch.load(tmp_path / CHECKPOINT, weights_only=True)["progress"]
        train(tmp_path, "tiny", minutes=first["seconds"] / 60 + 0.1, device="cpu", workers=0)
        second = torch.load(tmp_path / CHECKPOINT, weights_only=True)["progress"]
        assert 6.0 <= first["seconds"] < second["seconds"]
        assert first["step"] < second["step"]
        assert first["images"] < second["images"]
        log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        losses = [entry["loss"] for entry in log if "loss" in entry]
        assert losses[-1] < losses[0]
        assert [entry["validation"] for entry in log if "validation" in entry] == [{"general": 0.5}] * 2
        assert "training" in capsys.readouterr().err

    def test_it_goes_on_with_the_model_of_a_folder(self, tmp_path, monkeypatch, network, tokenizer_folder):
        monkeypatch.setitem(RECIPES, "tiny", TINY)
        network.model.save_pretrained(tmp_path / "start")
        train(tmp_path / "run", "tiny", minutes=0.0, device="cpu", workers=0, start=tmp_path / "start")
        kept = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)["network"]
        assert all(torch.equal(weight, kept[f"model.{name}"]) for name, weight in network.model.state_dict().items())
        with pytest.raises(RuntimeError, match="size mismatch"):
            train(tmp_path / "other", "gpu", minutes=0.0, device="cpu", workers=0, start=tmp_path / "start")

    def test_the_learning_rate_warms_up_stays_and_cools_down(self):
        recipe = replace(RECIPES["gpu"], cooldown=0.5)
        assert learning_rate(recipe, 0, 0.0) == pytest.approx(recipe.rate / recipe.warmup_steps)
        rates = [learning_rate(recipe, 5000, share) for share in (0.0, 0.49, 0.75, 0.9999)]
        assert rates[:2] == [recipe.rate, recipe.rate]
        assert rates[2] == pytest.approx(recipe.rate / 2)
        assert 0 < rates[3] < 0.05 * recipe.rate

    @pytest.mark.parametrize(("cells_only", "frozen"), [(True, False), (False, False), (False, True)])
    def test_a_phase_says_what_learns(self, network, tokenizer_folder, cells_only, frozen):
        samples = samples_of(6, 4)
        batch = Collator(tokenizer_folder).batch(samples, [sample.questions[:2] for sample in samples])
        phase = Phase(1.0, (24, 24), 1.0, cells_only=cells_only, frozen=frozen)
        found = losses(network, batch, phase, TINY)
        found.total().backward()
        assert bool(found.answers.any()) != cells_only
        assert found.cells.any()
        assert 0 <= found.right <= 1
        learns = {name for name, weight in network.named_parameters() if weight.grad is not None}
        encoder = {name for name in learns if ".blocks." in name or ".patch_embed." in name}
        assert bool(encoder) != frozen
        assert any(".merger." in name for name in learns) != frozen
        assert any(".language_model." in name for name in learns) != cells_only
        assert "cells.weight" in learns

    def test_every_weight_has_exactly_one_optimizer(self, network):
        moved = [
            weight
            for optimizer in make_optimizers(network, TINY)
            for group in optimizer.param_groups
            for weight in group["params"]
        ]
        assert len(moved) == len({id(weight) for weight in moved}) == len(list(network.parameters()))

    def test_the_encoder_learns_at_a_rate_of_its_own(self, network):
        names = {id(weight): name for name, weight in network.named_parameters()}
        for optimizer, scale in zip(
            make_optimizers(network, replace(TINY, encoder_scale=0.25)), (1.0, 0.5), strict=True
        ):
            for group in optimizer.param_groups:
                of_encoder = {".visual." in names[id(weight)] for weight in group["params"]}
                assert of_encoder == {group["scale"] != scale}
                assert group["scale"] in (scale, scale * 0.25)

    def test_batches_come_from_the_training_split_in_the_size_of_the_phase(self, tokenizer_folder, monkeypatch):
        drawn = []
        original = synthetic.sample

        def recorded(family, split, index, **options):
            drawn.append(split)
            return original(family, split, index, **options)

        monkeypatch.setattr(synthetic, "sample", recorded)
        progress = torch.zeros(1)
        batches = iter(Stream(TINY, tokenizer_folder, progress, seed=1))
        small = next(batches)
        progress[0] = 1.0
        large = next(batches)
        assert set(drawn) == {"train"}
        for batch, (fewest, most) in ((small, (36, 49)), (large, (49, 64))):
            cells = batch.images.shape[1] * batch.images.shape[2] / 28**2
            assert fewest * 0.6 <= cells <= most * 1.1

    def test_harder_families_come_more_often(self, tokenizer_folder, monkeypatch):
        drawn = []
        original = synthetic.sample
        monkeypatch.setattr(
            synthetic,
            "sample",
            lambda family, *args, **options: drawn.append(family) or original(family, *args, **options),
        )
        recipe = replace(TINY, batch_tokens=4000, harder=("charts",))
        batches = iter(Stream(recipe, tokenizer_folder, torch.zeros(1), seed=1))
        while len(drawn) < 350:
            next(batches)
        assert drawn.count("charts") / len(drawn) == pytest.approx(2 / 7, abs=0.08)

    def test_an_image_is_shown_as_often_as_its_phase_says_each_time_moved(self, tokenizer_folder, monkeypatch):
        drawn = []
        original = synthetic.sample
        monkeypatch.setattr(
            synthetic, "sample", lambda *args, **options: drawn.append(args) or original(*args, **options)
        )
        monkeypatch.setattr("bench.demo_model.data._KEPT", 2)
        monkeypatch.setattr("bench.demo_model.data._DENSE_SHARE", 0.0)
        phase = Phase(1.0, (36, 49), 0.3, cells_only=True, shown=3)
        recipe = replace(TINY, phases=(phase,))
        batches = iter(Stream(recipe, tokenizer_folder, torch.zeros(1), seed=1))
        shown = [next(batches).images for _ in range(30)]
        images = sum(map(len, shown))
        assert images / len(drawn) == pytest.approx(3, rel=0.25)
        assert len({image.numpy().tobytes() for batch in shown for image in batch}) > 0.9 * images

    def test_marks_move_with_their_image(self):
        sample = samples_of(6, 4)[1]
        other = moved(sample, 30, -17)
        width, height = sample.image.size
        for old, new in zip(sample.marks, other.marks, strict=True):
            x, y = old.box.centre
            assert new.box.centre == pytest.approx(((x + 30) % width, (y - 17) % height))
            assert (new.kind, new.value) == (old.kind, old.value)
        point = (20, 40)
        assert other.image.getpixel(((20 + 30) % width, (40 - 17) % height)) == sample.image.getpixel(point)
        assert moved(other, -30, 17).image.tobytes() == sample.image.tobytes()

    def test_rarer_kinds_of_marks_weigh_more(self):
        weights = mark_weights()
        assert weights.shape == (MARK_CLASSES,)
        assert set(weights.tolist()) == {1.0, 3.0}

    @pytest.mark.parametrize("phase", [phase for recipe in RECIPES.values() for phase in recipe.phases])
    def test_sizes_stay_below_what_a_phase_allows(self, phase):
        rng = Random(0)
        for _ in range(300):
            columns, rows = draw_cells(rng, phase)
            assert 0.5 * phase.tokens[0] <= columns * rows <= 1.11 * phase.tokens[1]


class TestExport:
    def test_a_checkpoint_becomes_a_folder_that_stock_classes_and_ours_load(self, tmp_path, monkeypatch, network):
        monkeypatch.setitem(RECIPES, "tiny", TINY)
        run, out = tmp_path / "run", tmp_path / "model"
        save_tokenizer(run)
        torch.save({"network": network.state_dict()}, run / CHECKPOINT)
        export(run, out, "tiny")
        model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
        kept = network.model.model.language_model.layers[0].mlp.up_proj.weight
        assert torch.equal(model.model.language_model.layers[0].mlp.up_proj.weight, kept.half().float())
        assert AutoImageProcessor.from_pretrained(out).size["longest_edge"] == 2560 * 784
        assert AutoTokenizer.from_pretrained(out).eos_token == "<|im_end|>"
        assert load_model(str(out), device="cpu").name == "model"


class TestEvaluation:
    def test_shares_of_families_and_bands_add_up(self, tmp_path, tokenizer_folder, network):
        network.model.save_pretrained(tmp_path)
        save_tokenizer(tmp_path)
        table = summary(evaluate(tmp_path, "validation", 1, [(64, 70), (72, 80)], "cpu"))
        assert set(table) == {*synthetic.FAMILIES, "all"}
        assert table["all"]["all"].questions == sum(table[family]["all"].questions for family in synthetic.FAMILIES)
        assert table["all"]["all"].questions == sum(table["all"][band].questions for band in ("64 to 70", "72 to 80"))
        assert 0 <= table["all"]["all"].low <= table["all"]["all"].value <= table["all"]["all"].high <= 1


def stock_logits(
    model: torch.nn.Module, folder: Path, sample: synthetic.Sample, question: synthetic.Question
) -> torch.Tensor:
    """Scores of one question's answer tokens by `forward` of the stock classes."""
    with torch.no_grad():
        logits = model(**stock_inputs(folder, sample, question)).logits[0]
    return logits[-length_of(folder, question.answer) - 1 : -1]


class TestBundledModel:
    def test_stock_classes_load_it_and_it_fits_into_the_repository(self):
        model = AutoModelForImageTextToText.from_pretrained(DEMO_FOLDER, dtype=torch.float32)
        assert model.config.text_config.num_hidden_layers >= 16
        assert AutoImageProcessor.from_pretrained(DEMO_FOLDER).merge_size == 2
        assert AutoTokenizer.from_pretrained(DEMO_FOLDER).get_vocab() == make_tokenizer().get_vocab()
        size = sum(file.stat().st_size for file in DEMO_FOLDER.rglob("*") if file.is_file())
        assert size <= 40 * 2**20

    def test_it_brings_a_picture_of_every_family_from_the_test_split(self):
        samples = json.loads((DEMO_FOLDER / "samples" / "samples.json").read_text())
        assert [sample["family"] for sample in samples] == list(synthetic.FAMILIES)
        assert all(sample["name"].startswith(f"{sample['family']}-test-") for sample in samples)
        assert all(len(sample["turns"]) >= 4 for sample in samples)

    def test_a_picture_stays_while_its_questions_are_answered_right(self):
        before = bundled(DEMO_FOLDER / "samples")
        assert [*before] == list(synthetic.FAMILIES)
        assert all(len(chosen.questions) == 4 for chosen in before.values())
        loaded = load_model(str(DEMO_FOLDER), device="cpu", dtype="float32")
        documents = before["documents"]
        assert choose(loaded, "documents", documents) is documents
        wrong = replace(documents.questions[0], answer="elsewhere")
        fewer = documents.questions[1:]
        for other in ((wrong, *fewer), fewer):
            chosen = choose(loaded, "documents", replace(documents, questions=other))
            assert chosen.questions != other
            assert len(chosen.questions) == 4

    def test_it_answers_more_than_half_of_what_it_has_not_seen(self):
        table = summary(evaluate(DEMO_FOLDER, "validation", 4, [(64, 100)], "cpu"))
        assert table["all"]["all"].value > 0.55
