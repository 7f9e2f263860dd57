from pathlib import Path

import pytest
import torch
import torchvision
from loaders import save_torchvision
from photos import as_tensor, photo

from fastdigin.models.classifier import Classifier


def test_neurons_of_a_head_that_is_a_convolution(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    save_torchvision(tmp_path)
    classifier = Classifier.load("torchvision:squeezenet1_1.IMAGENET1K_V1")
    assert classifier.num_neurons == 512 and classifier.class_index("robin") == 15


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_architectures_that_are_built_for_their_weights(tmp_path, monkeypatch, name):
    """The builder's own way with weights, given the file, against ours."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = torchvision.models.get_model_weights(name).DEFAULT
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, init_weights=False)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(model.state_dict(), folder / Path(weights.url).name)
    model = torchvision.models.get_model(name, weights=weights).eval()
    image = photo(300, 280)
    with torch.no_grad():
        expected = model(weights.transforms()(image)[None])
        actual = Classifier.load(f"torchvision:{name}").logits(as_tensor(image))
    # Inception has logits of the order of 1000 at random weights.
    assert (actual - expected).abs().max() < 1e-3 * max(1, float(expected.abs().max()))
