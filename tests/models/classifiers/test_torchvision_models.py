from pathlib import Path

import pytest
import torch
import torchvision
from photos import as_tensor, check_transform, photo

from fastdigin.models.classifier import Classifier


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """An empty folder where torchvision looks for its weights."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def saved(checkpoints, name, weights, **options):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    torch.save(model.state_dict(), checkpoints / Path(weights.url).name)
    return model


@pytest.mark.parametrize(
    ("name", "tag", "neurons"),
    [
        ("resnet18", "IMAGENET1K_V1", 512),
        ("shufflenet_v2_x0_5", None, 1024),
        ("squeezenet1_1", "IMAGENET1K_V1", 512),
    ],
)
def test_logits_are_those_of_torchvisions_own_transform(checkpoints, name, tag, neurons):
    choices = torchvision.models.get_model_weights(name)
    weights = choices[tag] if tag else choices.DEFAULT
    model = saved(checkpoints, name, weights)
    classifier = Classifier.load(f"torchvision:{name}" + (f".{tag}" if tag else ""))
    check_transform(classifier, model, weights.transforms(), (240, 301))
    assert classifier.num_neurons == neurons
    assert classifier.class_index("robin") == 15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "vit_b_16", "swin_t"])
def test_architectures_that_are_built_for_their_weights(checkpoints, name, monkeypatch):
    """The builder's own way with weights, given the file, against ours."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    saved(checkpoints, name, weights, **options)
    model = torchvision.models.get_model(name, weights=weights).eval()
    image = photo(300, 280)
    with torch.no_grad():
        expected = model(weights.transforms()(image)[None])
        actual = Classifier.load(f"torchvision:{name}").logits(as_tensor(image))
    # Inception has logits of the order of 1000 at random weights.
    assert (actual - expected).abs().max() < 1e-3 * max(1, float(expected.abs().max()))
