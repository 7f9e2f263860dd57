import pytest
import timm
import torch
from photos import check_transform

from fastdigin.errors import UserError
from fastdigin.models.classifier import Classifier


def saved(folder, name="test_resnet", config=None, **options):
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **options).eval()
    timm.models.save_for_hf(model, folder, model_config=config, safe_serialization=True)
    return model


@pytest.mark.parametrize(
    ("name", "cfg"),
    [
        ("test_resnet", {}),
        ("test_vit", {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bicubic"}),
        ("test_convnext", {"crop_pct": 0.9, "interpolation": "bilinear"}),
    ],
)
def test_logits_are_those_of_timms_own_transform(tmp_path, name, cfg):
    model = saved(tmp_path, name, pretrained_cfg_overlay=cfg)
    data = timm.data.resolve_model_data_config(model)
    assert all(data[key] == value for key, value in cfg.items())
    transform = timm.data.create_transform(**data, is_training=False)
    check_transform(Classifier.load(f"timm:local-dir:{tmp_path}"), model, transform, (190, 251))


def test_from_a_folder(tmp_path):
    model = saved(tmp_path)
    classifier = Classifier.load(f"timm:local-dir:{tmp_path}")
    assert len(classifier.classes) == 1000
    assert classifier.classes[15] == "robin, American robin, Turdus migratorius"
    assert classifier.class_index("American robin") == 15
    assert classifier.class_index("15") == 15
    with pytest.raises(UserError, match=r"134 \(crane\); 517 \(crane\)"):
        classifier.class_index("crane")
    data = timm.data.resolve_model_data_config(model)
    assert classifier.size == data["input_size"][-1]
    images = torch.rand(2, 3, classifier.size, classifier.size)
    mean, std = (torch.tensor(data[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        torch.testing.assert_close(
            classifier.logits(images, prepared=True), model((images - mean) / std)
        )
        features = classifier.activations(images, prepared=True)
        expected = model.forward_head(model.forward_features((images - mean) / std), True)
        torch.testing.assert_close(features, expected)


def test_names_that_came_with_the_weights(tmp_path):
    labels = {"label_names": ["n1", "n2"], "label_descriptions": {"n1": "cat", "n2": "dog"}}
    saved(tmp_path, config=labels, num_classes=2)
    assert Classifier.load(f"timm:local-dir:{tmp_path}").classes == ("cat", "dog")
