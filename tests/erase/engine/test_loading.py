"""Loading models: what is refused, and how content is named."""

import contextlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLImageProcessorPil

from erase import BinnedPolicy, DistinctPolicy, load_policy
from erase.errors import UnsupportedError
from erase.models import loading
from erase.models.loading import DEMO_FOLDER, ModelLoadError, fingerprint, load_model
from erase.models.prompt import prepare_images
from tests.starter import STARTER

pytestmark = pytest.mark.usefixtures("_offline")


@pytest.fixture
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path):
    """A copy of the starter model to spoil."""
    copy = tmp_path / "model"
    shutil.copytree(STARTER, copy, ignore=shutil.ignore_patterns("samples"))
    return copy


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_model_loads_ready_to_run(demo):
    assert (demo.name, demo.dtype, demo.device.type) == ("starter-model", torch.float32, "cpu")
    assert not demo.model.training
    assert not any(weight.requires_grad for weight in demo.model.parameters())
    assert demo.eos_tokens == {2}
    assert demo.context_length == 4096
    assert demo.revision == fingerprint(STARTER)
    assert (demo.policy_file, demo.bins_file) == (STARTER / "erase_policy.json", None)


def test_without_a_source_it_is_the_bundled_model_under_the_name_demo():
    bundled = load_model(device="cpu", dtype="float32")
    assert (bundled.name, bundled.dtype, bundled.device.type) == ("demo", torch.float32, "cpu")
    assert bundled.eos_tokens
    assert bundled.revision == fingerprint(DEMO_FOLDER)
    assert bundled.own_policies == {
        "demo": DEMO_FOLDER / "erase_policy.json",
        "demo-bins": DEMO_FOLDER / "erase_bins.json",
    }
    assert {type(load_policy(file)) for file in bundled.own_policies.values()} == {DistinctPolicy, BinnedPolicy}


def test_images_are_resized_by_pillow_on_every_machine(demo):
    assert isinstance(demo.image_processor, Qwen2VLImageProcessorPil)


def test_a_folder_loads_under_its_own_name(folder):
    (folder / "erase_policy.json").unlink()
    loaded = load_model(str(folder), device="cpu", dtype="bfloat16")
    assert (loaded.name, loaded.dtype, loaded.own_policies) == ("model", torch.bfloat16, {})


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        ("org/name", None, "40-digit hash of a commit"),
        ("org/name", "main", "40-digit hash of a commit"),
        ("org/name", "0" * 39, "40-digit hash of a commit"),
        ("org/name", "0" * 40 + "/..", "40-digit hash of a commit"),
        ("./nowhere", None, "no model folder"),
        ("/no/where", None, "no model folder"),
        ("~/no-such-folder", None, "no model folder"),
        ("nowhere", None, "no model folder"),
        ("a/b/c", "0" * 40, "no model folder"),
        ("", None, "no model folder"),
    ],
)
def test_what_is_no_folder_and_no_pinned_hub_model_is_refused(source, revision, message):
    with pytest.raises(ModelLoadError, match=message):
        load_model(source, revision=revision)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "tpu0"}, "expected auto, cpu, cuda or cuda:N"),
        ({"device": ""}, "expected auto, cpu, cuda or cuda:N"),
        ({"device": "meta"}, "expected auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:99"}, "PyTorch finds"),
        ({"dtype": "int8", "device": "cpu"}, "expected auto, float32, bfloat16, float16"),
    ],
)
def test_unusable_devices_and_types_are_refused(settings, message):
    with pytest.raises(ModelLoadError, match=message):
        load_model(str(STARTER), **settings)


def test_an_image_processor_whose_pixels_cannot_be_recovered_is_refused(folder):
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rescale_factor": 1 / 127.5}))
    with pytest.raises(UnsupportedError, match="rescale pixels by 1/255"):
        load_model(str(folder))


def test_an_image_processor_that_does_not_normalise_is_understood(folder, samples):
    file = folder / "preprocessor_config.json"
    usual = load_model(str(folder), device="cpu")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_normalize": False}))
    plain = load_model(str(folder), device="cpu")
    (expected,), (found,) = (prepare_images(one, [samples[0].image]) for one in (usual, plain))
    assert found.digest == expected.digest
    assert not torch.equal(found.pixel_values, expected.pixel_values)


def test_code_that_comes_with_a_model_is_never_run(folder):
    marker = folder / "ran"
    (folder / "custom.py").write_text(f"open({str(marker)!r}, 'w')\n")
    for name in ("config.json", "tokenizer_config.json"):
        config = json.loads((folder / name).read_text())
        config["auto_map"] = {"AutoConfig": "custom.Config", "AutoTokenizer": ["custom.Slow", "custom.Fast"]}
        (folder / name).write_text(json.dumps(config))
    with contextlib.suppress(ModelLoadError):
        load_model(str(folder))
    assert not marker.exists()


def test_weights_as_pickle_are_refused(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="safetensors"):
        load_model(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
@pytest.mark.parametrize("spoil", ["missing", "half", "empty"])
def test_a_folder_with_a_missing_or_broken_file_is_refused(folder, name, spoil):
    file = folder / name
    content = file.read_bytes()
    file.unlink()
    if spoil != "missing":
        file.write_bytes(content[: len(content) // 2] if spoil == "half" else b"")
    with pytest.raises(ModelLoadError, match="cannot load the model"):
        load_model(str(folder))


def test_incomplete_weights_are_refused_instead_of_made_up(folder):
    change_weights(folder, lambda weights: weights.pop("model.layers.3.input_layernorm.weight"))
    with pytest.raises(ModelLoadError, match=r"1 missing, first .*layers\.3\.input_layernorm"):
        load_model(str(folder))


def test_weights_of_another_shape_are_refused(folder):
    change_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(3)}))
    with pytest.raises(ModelLoadError, match="cannot load the model"):
        load_model(str(folder))


@pytest.mark.parametrize("model_type", ["qwen2_vl", "bert"])
def test_another_architecture_is_refused_by_name(folder, model_type):
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UnsupportedError, match=f"{model_type}.*supported: qwen2_5_vl, qwen3_vl, internvl"):
        load_model(str(folder))


def test_a_tokenizer_without_chat_template_is_refused(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelLoadError, match="no chat template"):
        load_model(str(folder))


def test_the_fingerprint_names_content_not_place(folder, demo, tmp_path):
    assert fingerprint(folder) == demo.revision
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    (moved / "README.md").write_text("Read me.")
    assert fingerprint(moved) == demo.revision


@pytest.mark.parametrize("at", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_the_fingerprint_changes_with_any_weight(folder, demo, at):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[round(at * (len(content) - 1))] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert fingerprint(folder) != demo.revision


@pytest.mark.parametrize("name", ["erase_policy.json", "erase_bins.json"])
def test_the_fingerprint_does_not_change_with_the_policies(folder, demo, name):
    (folder / name).write_text("{}")
    assert fingerprint(folder) == demo.revision


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json", "chat_template.jinja"])
def test_the_fingerprint_changes_with_any_setting(folder, demo, name):
    file = folder / name
    file.write_text(file.read_text() + " ")
    assert fingerprint(folder) != demo.revision
    file.unlink()
    assert fingerprint(folder) != demo.revision


def test_a_huge_file_is_sampled_in_every_part(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_BLOCK", 2**10)
    file = tmp_path / "model.safetensors"
    content = bytearray(2**22)
    for at in (0, 2**20, 2**21 + 2**13, 2**22 - 2**13):  # parts of 2**13 bytes, 512 of them
        file.write_bytes(content)
        blank = fingerprint(tmp_path)
        content[at] += 1
        file.write_bytes(content)
        assert fingerprint(tmp_path) != blank
