"""What every loader promises: whole and finite weights, no pickles, and clear words otherwise."""

import re
from pathlib import Path

import pytest
import torch
from loaders import ABSENT, LOADERS, load_absent, networks, read, write
from photos import as_tensor, photo
from torch import nn

import fastdigin as fd
from fastdigin.errors import Missing, UserError
from fastdigin.models.weights import check_weights

pytest.importorskip("timm")
pytest.importorskip("open_clip")
pytest.importorskip("segment_anything_hq")


@pytest.fixture
def saved(request, tmp_path, monkeypatch):
    """(loader, the text that names its model, the file of its weights)."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("FASTDIGIN_CACHE", str(tmp_path / "cache"))
    loader = LOADERS[request.param]
    return loader, loader.save(tmp_path), tmp_path / loader.weights


every_loader = pytest.mark.parametrize("saved", LOADERS, indirect=True)


def refused(load, spec) -> str:
    with pytest.raises(UserError) as error:
        load(spec)
    assert "\n" not in str(error.value)
    return str(error.value)


@every_loader
def test_loaded_networks_hold_the_weights_of_the_file_and_are_frozen(saved):
    loader, spec, weights = saved
    loaded = networks(loader.load(spec))
    values = [value for network in loaded for value in network.state_dict().values()]
    for name, tensor in read(weights).items():
        if spec.startswith("open_clip:") and not name.startswith("visual."):
            continue  # of the text tower nothing stays but its words' embeddings
        assert any(v.shape == tensor.shape and torch.equal(v, tensor) for v in values), name
    assert not any(network.training for network in loaded)
    assert not any(p.requires_grad for network in loaded for p in network.parameters())


@pytest.mark.parametrize("saved", ["text encoder", "hf", "captioner"], indirect=True)
@pytest.mark.parametrize("shown", [True, False])
def test_loading_shows_no_bars_and_leaves_the_users_as_they_were(saved, shown, capfd):
    from transformers.utils import logging

    loader, spec, _ = saved
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        capfd.readouterr()
        loader.load(spec)
        assert "Loading weights" not in capfd.readouterr().err
        assert logging.is_progress_bar_enabled() == shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


@every_loader
@pytest.mark.parametrize("position", [0, -1])
def test_a_file_without_a_tensor_is_refused(saved, position):
    loader, spec, weights = saved
    state = read(weights)
    name = sorted(name for name in state if state[name].ndim)[position]
    write(weights, {key: value for key, value in state.items() if key != name})
    assert name in refused(loader.load, spec)


@every_loader
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_tensor_that_is_not_finite_is_refused(saved, value):
    loader, spec, weights = saved
    state = read(weights)
    name = sorted(name for name in state if state[name].ndim)[0]
    state[name].view(-1)[-1] = value
    write(weights, state)
    message = refused(loader.load, spec)
    assert "its weights are not finite in" in message and name in message


@every_loader
def test_a_tensor_beside_those_of_a_layer_is_refused(saved):
    """Adapters that were not merged, a bias that the configuration denies."""
    loader, spec, weights = saved
    state = read(weights)
    layer = sorted(name for name in state if name.endswith(".weight"))[0].removesuffix(".weight")
    write(weights, state | {f"{layer}.lora_A.weight": torch.ones(2, 2)})
    assert f"{layer}.lora_A.weight" in refused(loader.load, spec)


@pytest.mark.parametrize("saved", ["unet", "text encoder", "hf", "captioner"], indirect=True)
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net.model."])
def test_weights_of_a_wrapped_network_are_named_as_such(saved, prefix):
    loader, spec, weights = saved
    write(weights, {prefix + name: tensor for name, tensor in read(weights).items()})
    assert f"In the file all names begin with '{prefix}" in refused(loader.load, spec)


@every_loader
def test_broken_files_are_refused(saved):
    loader, spec, weights = saved
    weights.write_bytes(weights.read_bytes()[:1000])
    assert refused(loader.load, spec)


@every_loader
def test_nothing_is_unpickled(saved, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "mark", "unpickled"))

    loader, spec, weights = saved
    if weights.suffix == ".safetensors":
        weights.unlink()
    for file in ("pytorch_model.bin", "diffusion_pytorch_model.bin", weights.name):
        if not file.endswith(".safetensors"):
            torch.save({"a": Evil()}, weights.parent / file)
    refused(loader.load, spec)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("saved", ["timm", "torchvision", "hf", "open_clip", "file"], indirect=True)
def test_classifiers_are_differentiable(saved):
    loader, spec, _ = saved
    image = as_tensor(photo(50, 60)).requires_grad_()
    loader.load(spec).logits(image)[0, 0].backward()
    assert image.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_not_here_is_named_with_the_command_that_fetches_it(no_network, name):
    with pytest.raises(Missing) as error:
        load_absent(name)
    message, (file, command) = str(error.value), ABSENT[name]
    assert name.rpartition(" ")[2] in message and "HF_HUB_OFFLINE forbids" in message
    assert file in message and f"'{error.value.command}' fetches them" in message
    assert error.value.command.startswith(command)


def test_a_sum_that_overflows_is_of_finite_weights():
    network = nn.Linear(300, 300, dtype=torch.float16)
    nn.init.constant_(network.weight, 60000.0)
    check_weights("it", network)


ARCHITECTURES = "write file:PATH@torchvision:NAME or file:PATH@timm:NAME"
KINDS = "write one of embedded:NAME_OR_FOLDER, timm:NAME, torchvision:NAME.*file:PATH@"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("resnet18", KINDS),
        ("clip:vit", KINDS),
        ("timm:", KINDS),
        ("", KINDS),
        ("embedded:claen", "did you mean 'clean'"),
        ("timm:resnet18x", "is not a model of timm; did you mean .*resnet18"),
        ("timm:resnet18.a1_in1x", "is not a model of timm; did you mean .*resnet18.a1_in1k"),
        ("timm:coatnet_0_224", "has no pretrained weights: .*file:PATH@timm:coat"),
        ("timm:local-dir:/nowhere", "give a folder with config.json and model.safetensors"),
        ("torchvision:resnet5O", "is not a model of torchvision; did you mean .*resnet50"),
        ("torchvision:resnet50.V3", "no weights 'V3'; its weights are IMAGENET1K_V1, IMAGENET"),
        ("hf:/nowhere", "give a folder with config.json, preprocessor_config.json and model.safet"),
        ("open_clip:ViT-B-33/openai", "not a model of open_clip; did you mean .*ViT-B-32"),
        ("open_clip:ViT-B-32", "neither a file nor weights of ViT-B-32; write .*openai"),
        ("open_clip:ViT-B-32/openAI", "neither a file nor weights of ViT-B-32; write .*openai"),
        ("open_clip:/", "cannot be loaded .*a folder with open_clip_config.json"),
        ("file:w.pth", ARCHITECTURES),
        ("file:w.pth@resnet18", ARCHITECTURES),
        ("file:w.pth@hf:x", ARCHITECTURES),
        ("file:@", ARCHITECTURES),
        ("file:/dev/null@torchvision:resnet18", "cannot be read"),
    ],
)
def test_texts_that_name_no_classifier(spec, words):
    assert re.search(words, refused(fd.Classifier.load, spec))


def test_templates_are_for_zero_shot_classifiers():
    with pytest.raises(UserError, match="reads no text: leave them out"):
        fd.Classifier.load("embedded:clean", templates=["{}"])


@pytest.mark.parametrize("spec", ["hq-sam", "hq-sam:vit_x", "sam:vit_b", ""])
def test_texts_that_name_no_segmenter(spec):
    assert re.search("write hq-sam:KIND.*vit_tiny, vit_b", refused(fd.Segmenter.load, spec))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2, bias=False)])
        self.norm = nn.BatchNorm1d(2)


@pytest.mark.parametrize(
    ("name", "matters"),
    [
        ("block.layers.0.bias", True),
        ("block.layers.1.weight", True),
        ("block.layers.0.lora.down.weight", True),
        ("block.pooler.dense.weight", False),
        ("vision_model.layers.0.weight", False),
        ("logit_scale", False),
    ],
)
def test_which_tensors_matter_that_a_network_has_no_place_for(name, matters):
    network = nn.ModuleDict({"block": Block()})
    if not matters:
        return check_weights("it", network, [], [name])
    words = f"it cannot be loaded: its config.json has no place for {re.escape(name)}"
    with pytest.raises(UserError, match=words):
        check_weights("it", network, [], [name])


def test_a_backbone_is_no_classifier_but_has_features(tmp_path):
    from transformers import AutoModel, AutoModelForImageClassification

    from fastdigin.retrieval import load_embedding

    spec = LOADERS["hf"].save(tmp_path)
    whole = fd.Classifier.load(spec)
    AutoModel.from_pretrained(tmp_path, add_pooling_layer=False).save_pretrained(tmp_path)
    assert AutoModelForImageClassification.from_pretrained(tmp_path) is not None
    message = refused(fd.Classifier.load, spec)
    assert "has no head" in message and "classifier.weight" in message
    image = as_tensor(photo(32, 32))
    features = load_embedding(spec).activations(image)
    torch.testing.assert_close(features, whole.activations(image))


def test_a_model_of_timm_without_a_head_is_no_classifier(tmp_path):
    import timm

    model = timm.create_model("test_vit", num_classes=0)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    assert "has no head" in refused(fd.Classifier.load, f"timm:local-dir:{tmp_path}")


@pytest.mark.parametrize("name", ["photos/model", "./x", "x/", "C:/x", "photos/sub/model", "~/x"])
@pytest.mark.parametrize(
    ("load", "before"),
    [(fd.LatentDiffusion.from_pretrained, ""), (fd.Captioner.load, "")]
    + [(fd.Classifier.load, kind) for kind in ("hf:", "timm:hf-hub:", "open_clip:hf-hub:")],
)
def test_no_hint_fetches_what_names_a_folder_here(
    name, load, before, no_network, tmp_path, monkeypatch
):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    said = refused(load, before + name)
    assert name in said and "hf download" not in said
