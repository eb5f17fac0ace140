"""Variants of pruning that were tried: what they say they do, and the command that compares them."""

import pytest
import torch

from bench import variants
from bench.variants import BeforeEncoder, _patches
from erase.methods import method_for
from erase.methods.base import Cut, EncodedPrompt, Preselection, ScoreContext
from erase.models.loading import load_model
from erase.models.prompt import prepare_images
from erase.pictures import open_picture
from erase.policy import DistinctPolicy
from erase.records import load_records
from erase.trace import layer_average_retention
from tests.starter import STARTER


@pytest.fixture(scope="module")
def loaded():
    return load_model(str(STARTER), device="cpu")


@pytest.fixture(scope="module")
def image(loaded):
    (prepared,) = prepare_images(loaded, [open_picture(load_records(STARTER / "samples")[0].images[0])])
    return prepared


def context(keep, survivors, features, states):
    encoded = EncodedPrompt(features, lambda: torch.zeros(1, features.shape[1]))
    return ScoreContext(Cut(0, keep, False), survivors, Preselection(()), lambda: None, lambda: states, encoded)


def test_patches_are_those_of_the_image_processor(loaded, image):
    processor = loaded.image_processor
    mean, std = (torch.tensor(part)[:, None, None] for part in (processor.image_mean, processor.image_std))
    made = _patches((image.pixels.tiles[0] / 255 - mean) / std, 14, 2, 2)
    assert torch.allclose(made.flatten(0, 1), image.pixel_values, atol=1e-5)


def test_an_encoder_that_sees_all_cells_makes_what_it_always_makes(loaded, image):
    made = BeforeEncoder(DistinctPolicy(0.2), loaded)._encoded(image.pixels, torch.ones(image.tokens, dtype=torch.bool))
    with torch.no_grad():
        steps = loaded.adapter.encode_steps(image.pixel_values, torch.tensor([image.grid_thw]))
        while True:
            try:
                next(steps)
            except StopIteration as done:
                (expected,) = done.value
                break
    assert torch.allclose(made, expected.tokens, atol=1e-4)
    few = BeforeEncoder(DistinctPolicy(0.2), loaded)._encoded(image.pixels, torch.arange(image.tokens) < 5)
    assert few[5:].abs().max() == 0.0
    assert not torch.allclose(few[:5], made[:5], atol=1e-3)


def test_merging_averages_what_is_dropped_into_what_it_is_most_like():
    method = variants.Merging(DistinctPolicy(0.5))
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
    states = torch.tensor([[2.0], [5.0], [4.0]])
    merged = method.merge(context(2, torch.arange(3), features, states), torch.tensor([0, 1]))
    assert merged.tolist() == [[3.0], [5.0]]


@pytest.mark.parametrize("retention", [0.3, 0.15])
def test_all_variants_keep_about_the_same(loaded, image, retention):
    architecture = loaded.adapter.architecture
    for name, one in variants.variants(retention, loaded).items():
        method = method_for(one)
        selection = method.preselect([image.pixels])
        cuts = method.plan(selection, architecture)
        average = layer_average_retention(selection.tokens, len(selection.kept), cuts, architecture.depth)
        share = len(selection.kept) / selection.tokens
        wanted = min(share, retention * ((share / variants.MEAN_SHARE) ** 0.5 if "own budget" in name else 1.0))
        least = share * architecture.early / architecture.depth if "early" in name or "erase-2" in name else 0.0
        assert average == pytest.approx(max(wanted, least), abs=0.03), name


def test_the_command_compares_them(tmp_path, capsys):
    data = tmp_path / "data"
    from erase.cli import main

    assert main(["synthesize", str(data), "--images", "1", "--families", "ocr", "--tokens", "64", "66"]) == 0
    capsys.readouterr()
    command = [str(data), "--out", str(tmp_path / "out"), "--model", str(STARTER), "--retentions", "0.3"]
    assert variants.main([*command, "--part", "1/2"]) == 0
    assert capsys.readouterr().out == ""
    assert variants.main(command) == 0
    table = capsys.readouterr().out
    assert all(f"| {name} |" in table for name in variants.variants(0.3, load_model(str(STARTER))))
    assert (tmp_path / "out" / "variants.md").read_text() in table
    assert variants.main([*command, "--only", "early", "--only", "distinct, cued"]) == 0
    shown = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert set(shown) == {"| method", "| ---", "| early", "| distinct, cued", "| erase-distinct"}
    assert variants.main([*command, "--only", "late"]) == 1
    assert "there is no variant 'late'; known: erase-distinct; " in capsys.readouterr().err
