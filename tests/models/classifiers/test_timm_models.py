import pytest
import timm
import torch
from loaders import save_timm
from safetensors.torch import load_file
from torchvision.transforms import Grayscale

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier


def test_names_are_guessed(tmp_path, caplog):
    classifier = Classifier.load(save_timm(tmp_path))
    assert "their names are guessed to be ImageNet's" in caplog.text
    assert len(classifier.classes) == 1000 and classifier.named == "guessed"
    assert classifier.classes[15] == "robin, American robin, Turdus migratorius"
    assert classifier.class_index("American robin") == 15
    assert classifier.class_index("15") == 15
    with pytest.raises(UserError, match=r"134 \(crane\); 517 \(crane\)"):
        classifier.class_index("crane")


def test_names_that_came_with_the_weights(tmp_path):
    labels = {"label_names": ["n1", "n2"], "label_descriptions": {"n1": "cat", "n2": "dog"}}
    spec = save_timm(tmp_path, labels, num_classes=2)
    assert Classifier.load(spec).classes == ("cat", "dog")


def test_the_users_names_stand_for_guessed_ones(tmp_path, caplog):
    names = [f"bird {n}" for n in range(1000)]
    classifier = Classifier.load(save_timm(tmp_path), classes=names)
    assert classifier.class_index("bird 7") == 7 and not caplog.text


def test_a_gray_network(tmp_path):
    """One channel: the luminance, normalised by the mean of the three channels' means."""
    classifier = Classifier.load(save_timm(tmp_path, in_chans=1, num_classes=2))
    model = timm.create_model("test_resnet", in_chans=1, num_classes=2).eval()
    model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    images = torch.rand(2, 3, classifier.size, classifier.size)
    data = timm.data.resolve_model_data_config(model)
    gray = Grayscale()(images)
    mean, std = (sum(data[key]) / 3 for key in ("mean", "std"))
    with torch.no_grad():
        expected = model((gray - mean) / std)
        found = classifier.logits(images, prepared=True)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
