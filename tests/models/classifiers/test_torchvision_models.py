from pathlib import Path

import pytest
import torch
import torchvision
from photos import as_tensor, photo

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


def test_neurons_of_a_head_that_is_a_convolution(checkpoints):
    saved(checkpoints, "squeezenet1_1", torchvision.models.SqueezeNet1_1_Weights.DEFAULT)
    classifier = Classifier.load("torchvision:squeezenet1_1.IMAGENET1K_V1")
    assert classifier.num_neurons == 512 and classifier.class_index("robin") == 15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_architectures_that_are_built_for_their_weights(checkpoints, name, monkeypatch):
    """The builder's own way with weights, given the file, against ours."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    saved(checkpoints, name, weights, init_weights=False)
    model = torchvision.models.get_model(name, weights=weights).eval()
    image = photo(300, 280)
    with torch.no_grad():
        expected = model(weights.transforms()(image)[None])
        actual = Classifier.load(f"torchvision:{name}").logits(as_tensor(image))
    # Inception has logits of the order of 1000 at random weights.
    assert (actual - expected).abs().max() < 1e-3 * max(1, float(expected.abs().max()))
